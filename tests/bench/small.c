/* The small program that `make bench` has supervised: says "PID NANOSECONDS" (of CLOCK_MONOTONIC) into the FIFO that
 * $says names as the first thing it does, then waits for its end.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
	struct timespec now;
	char line[64];
	const char *path = getenv("says");
	int fifo, length;

	clock_gettime(CLOCK_MONOTONIC, &now);
	fifo = path ? open(path, O_WRONLY | O_NONBLOCK) : -1;
	if (fifo >= 0) {
		length = snprintf(line, sizeof line, "%d %lld\n", (int)getpid(),
				  now.tv_sec * 1000000000LL + now.tv_nsec);
		if (write(fifo, line, (size_t)length) < 0)
			return 1;
		close(fifo);
	}
	for (;;)
		pause();
}
