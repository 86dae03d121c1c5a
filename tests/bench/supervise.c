/* The floor of `make bench`'s respawns: a supervisor as bare as it can be. It starts COUNT of PROGRAM, sits in wait(2),
 * and starts it again as soon as one ends. No signal, log, limit or socket is its concern.
 *
 *   supervise COUNT PROGRAM [ARGUMENT...]
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void start(char **command)
{
	if (vfork() == 0) {
		execvp(command[0], command);
		_exit(127);
	}
}

int main(int argc, char **argv)
{
	int count;

	if (argc < 3)
		return 2;
	for (count = atoi(argv[1]); count > 0; count--)
		start(argv + 2);
	while (wait(NULL) > 0)
		start(argv + 2);
	return 1;
}
