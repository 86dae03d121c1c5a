/* Preloaded: the time of day, and no other clock, is ten hours ahead while the file $JUMP exists. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time)
{
    long result = syscall(SYS_clock_gettime, clock, time);
    const char *file = getenv("JUMP");
    if (result == 0 && clock == CLOCK_REALTIME && file && access(file, F_OK) == 0)
        time->tv_sec += 10 * 3600;
    return (int)result;
}
