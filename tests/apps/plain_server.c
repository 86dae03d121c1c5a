/* A server in C: it accepts, blocking, on the first socket of LISTEN_FDS. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int number(const char *name)
{
	const char *value = getenv(name);

	return value ? atoi(value) : -1;
}

int main(void)
{
	if (number("LISTEN_FDS") != 1 || number("LISTEN_PID") != getpid())
		return 3;
	for (;;) {
		static const char reply[] =
			"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 7\r\n\r\nfrom C\n";
		char request[4096];
		size_t length = 0;
		int connection = accept(3, NULL, NULL);

		if (connection < 0)
			return 4;
		while (length < sizeof request - 1) {
			ssize_t count = read(connection, request + length, sizeof request - 1 - length);

			if (count <= 0)
				break;
			length += (size_t)count;
			request[length] = '\0';
			if (strstr(request, "\r\n\r\n"))
				break;
		}
		if (write(connection, reply, sizeof reply - 1) < 0)
			return 5;
		close(connection);
	}
}
