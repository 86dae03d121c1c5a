/* For LD_PRELOAD: statx(2) of a path that ends in /f fails with the errno whose number stands in the file that
 * STATX_ERRNO names, for as long as that file is there.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int statx(int directory, const char *restrict path, int flags, unsigned int mask, struct statx *restrict found)
{
	static int (*real)(int, const char *, int, unsigned int, struct statx *);
	const char *name = getenv("STATX_ERRNO");
	size_t length = strlen(path);
	char digits[16] = "";
	int fault;

	if (!real)
		real = (int (*)(int, const char *, int, unsigned int, struct statx *))dlsym(RTLD_NEXT, "statx");
	if (name && length > 2 && strcmp(path + length - 2, "/f") == 0 && (fault = open(name, O_RDONLY | O_CLOEXEC)) >= 0) {
		ssize_t count = read(fault, digits, sizeof digits - 1);
		close(fault);
		if (count > 0 && atoi(digits) > 0) {
			errno = atoi(digits);
			return -1;
		}
	}
	return real(directory, path, flags, mask, found);
}
