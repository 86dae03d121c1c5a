/* Preloaded: an older kernel, whose cgroups have no cgroup.kill. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/types.h>

typedef int opener(int, const char *, int, ...);

static int as(const char *symbol, int at, const char *path, int flags, mode_t mode)
{
	static const char name[] = "cgroup.kill";
	size_t length = strlen(path);

	if (length >= sizeof name - 1 && strcmp(path + length - (sizeof name - 1), name) == 0) {
		errno = ENOENT;
		return -1;
	}
	return ((opener *)dlsym(RTLD_NEXT, symbol))(at, path, flags, mode);
}

int openat(int at, const char *path, int flags, ...)
{
	va_list rest;
	mode_t mode;

	va_start(rest, flags);
	mode = va_arg(rest, mode_t);
	va_end(rest);
	return as("openat", at, path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...)
{
	va_list rest;
	mode_t mode;

	va_start(rest, flags);
	mode = va_arg(rest, mode_t);
	va_end(rest);
	return as("openat64", at, path, flags, mode);
}
