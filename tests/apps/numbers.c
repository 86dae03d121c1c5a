/* Writes numbered lines: numbers COUNT LENGTH PAUSE_US EVERY [FD...]
 * A line is "NUMBER xxx... NUMBER\n", LENGTH bytes in all, one write(2) each, to the descriptors in turn;
 * after EVERY lines there is a pause. COUNT 0: until TERM. Then it waits for TERM, unless NUMBERS_END is set,
 * and writes to the file NUMBERS_REPORT: lines, longest write in microseconds, failed writes. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t over;

static void stop(int signal)
{
	(void)signal;
	over = 1;
}

static long now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000L + t.tv_nsec / 1000;
}

static void report(unsigned long lines, long longest, unsigned long failed)
{
	const char *path = getenv("NUMBERS_REPORT");
	char new[4096];
	FILE *file;
	if (!path)
		return;
	snprintf(new, sizeof new, "%s.new", path);
	file = fopen(new, "w");
	if (!file)
		return;
	fprintf(file, "%lu %ld %lu\n", lines, longest, failed);
	fclose(file);
	rename(new, path);
}

int main(int argc, char **argv)
{
	unsigned long count, every, number = 0, failed = 0;
	long length, pause_us, longest = 0;
	struct sigaction action;
	char *line;
	if (argc < 5)
		return 2;
	count = strtoul(argv[1], NULL, 10);
	length = atol(argv[2]);
	pause_us = atol(argv[3]);
	every = strtoul(argv[4], NULL, 10);
	memset(&action, 0, sizeof action);
	action.sa_handler = stop;
	sigaction(SIGTERM, &action, NULL);
	line = malloc(length + 1);
	memset(line, 'x', length);
	line[10] = ' ';
	line[length - 12] = ' ';
	line[length - 1] = '\n';
	while (!over && (count == 0 || number < count)) {
		int fd = argc > 5 ? atoi(argv[5 + number % (argc - 5)]) : 1;
		char digits[16];
		long done = 0, begun, took;
		number++;
		snprintf(digits, sizeof digits, "%010lu", number);
		memcpy(line, digits, 10);
		memcpy(line + length - 11, digits, 10);
		begun = now_us();
		while (done < length) {
			ssize_t got = write(fd, line + done, length - done);
			if (got >= 0)
				done += got;
			else if (errno != EINTR && errno != EAGAIN) {
				failed++;
				break;
			}
		}
		took = now_us() - begun;
		if (took > longest)
			longest = took;
		if (pause_us && every && number % every == 0)
			usleep(pause_us);
	}
	report(number, longest, failed);
	while (!over && !getenv("NUMBERS_END"))
		poll(NULL, 0, 100);
	return 0;
}
