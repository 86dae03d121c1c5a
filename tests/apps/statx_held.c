/* For LD_PRELOAD: statx(2) of a path that ends in what STATX_HELD names is answered late: what it found is given when
 * the file that STATX_GATE names is gone. While it waits, there is a file of that name with ".waits" after it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int statx(int directory, const char *restrict path, int flags, unsigned int mask, struct statx *restrict found)
{
	static int (*real)(int, const char *, int, unsigned int, struct statx *);
	const char *end = getenv("STATX_HELD"), *gate = getenv("STATX_GATE");
	char mark[4096];
	int done;

	if (!real)
		real = (int (*)(int, const char *, int, unsigned int, struct statx *))dlsym(RTLD_NEXT, "statx");
	done = real(directory, path, flags, mask, found);
	if (!end || !gate || strlen(path) < strlen(end) || strcmp(path + strlen(path) - strlen(end), end) != 0)
		return done;
	if (access(gate, F_OK) == 0) {
		snprintf(mark, sizeof mark, "%s.waits", gate);
		close(open(mark, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
		while (access(gate, F_OK) == 0)
			usleep(1000);
		unlink(mark);
	}
	return done;
}
