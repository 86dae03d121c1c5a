/* STATUS to NOTIFY_SOCKET at once, READY=1 when the file of its argument exists. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void say(const char *text)
{
	const char *name = getenv("NOTIFY_SOCKET");
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int out = socket(AF_UNIX, SOCK_DGRAM, 0);
	size_t length = name ? strlen(name) : 0;

	if (out < 0 || !length || length >= sizeof to.sun_path)
		exit(3);
	memcpy(to.sun_path, name, length);
	if (*name == '@')
		to.sun_path[0] = '\0';
	if (sendto(out, text, strlen(text), 0, (struct sockaddr *)&to,
		   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)) < 0)
		exit(4);
	close(out);
}

int main(int count, char **arguments)
{
	if (count != 2)
		return 2;
	say("STATUS=loading");
	while (access(arguments[1], F_OK))
		usleep(10000);
	say("STATUS=loaded\nREADY=1");
	for (;;)
		pause();
}
