/* For LD_PRELOAD: write(2) to a regular file fails with the errno whose number stands in the file that
 * WRITE_ERRNO names, for as long as that file is there. Pipes and sockets are written as ever.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

ssize_t write(int fd, const void *bytes, size_t count)
{
	static ssize_t (*real)(int, const void *, size_t);
	const char *path = getenv("WRITE_ERRNO");
	struct stat found;
	char digits[16] = "";
	int fault;

	if (!real)
		real = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
	if (path && fstat(fd, &found) == 0 && S_ISREG(found.st_mode) && (fault = open(path, O_RDONLY | O_CLOEXEC)) >= 0) {
		ssize_t length = read(fault, digits, sizeof digits - 1);
		close(fault);
		if (length > 0 && atoi(digits) > 0) {
			errno = atoi(digits);
			return -1;
		}
	}
	return real(fd, bytes, count);
}
