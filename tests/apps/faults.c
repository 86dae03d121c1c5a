/* Runs a command whose system calls can be made to fail, those of all that it starts included.
 *
 *   faults RULES NAME,NAME... command [argument...]
 *
 * RULES is a file that may come, change and go at any time. Each of its lines is
 *
 *   NAME ERRNO WHO [PERCENT]
 *
 * and lets the system call NAME (one of those on the command line) fail with the number ERRNO, always or in
 * so many percent of all cases, in each process WHO: the name of a program's file, or pid:N for that process
 * alone and not for what it has forked. A preloaded library would not be asked where a program calls the kernel
 * itself, as Rust programs do here and there; seccomp's notifications (seccomp_unotify(2)) are for all. Whoever
 * answers them is nobody's child and ends with the last of those whom it serves. It counts: RULES.count has a line
 * for each rule, with how often it was hit.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

static const struct {
	const char *name;
	int number;
} calls[] = {
#define CALL(name) {#name, SYS_##name}
	CALL(clone), CALL(clone3), CALL(execve), CALL(openat), CALL(openat2), CALL(close), CALL(read), CALL(write),
	CALL(writev), CALL(readv), CALL(pwrite64), CALL(fstat), CALL(statx), CALL(newfstatat), CALL(lseek), CALL(mmap),
	CALL(mprotect), CALL(brk), CALL(mremap), CALL(pipe2), CALL(dup), CALL(fcntl), CALL(flock), CALL(fsync),
	CALL(fdatasync), CALL(ftruncate), CALL(getdents64), CALL(socket), CALL(socketpair), CALL(bind), CALL(listen),
	CALL(accept4), CALL(connect), CALL(sendto), CALL(recvfrom), CALL(sendmsg), CALL(recvmsg), CALL(setsockopt),
	CALL(getsockopt), CALL(getsockname), CALL(epoll_create1), CALL(epoll_ctl), CALL(eventfd2), CALL(signalfd4),
	CALL(timerfd_create), CALL(timerfd_settime), CALL(inotify_init1), CALL(inotify_add_watch), CALL(memfd_create),
	CALL(pidfd_open), CALL(pidfd_send_signal), CALL(pidfd_getfd), CALL(waitid), CALL(wait4), CALL(kill),
	CALL(prctl), CALL(prlimit64), CALL(setpgid), CALL(fchdir), CALL(dup3), CALL(close_range), CALL(fchmod),
	CALL(fchown), CALL(splice), CALL(tee), CALL(ioctl), CALL(statfs), CALL(fstatfs), CALL(getrandom), CALL(ppoll),
	CALL(renameat2), CALL(unlinkat), CALL(mkdirat), CALL(readlinkat), CALL(fchmodat), CALL(linkat), CALL(symlinkat),
	CALL(sched_getaffinity), CALL(copy_file_range), CALL(shutdown), CALL(setsid), CALL(utimensat), CALL(fallocate),
#ifdef SYS_open
	CALL(open), CALL(stat), CALL(lstat), CALL(fork), CALL(vfork), CALL(poll), CALL(rename), CALL(unlink),
	CALL(mkdir), CALL(readlink), CALL(chmod), CALL(dup2), CALL(rmdir), CALL(chown), CALL(symlink), CALL(access),
	CALL(epoll_wait), CALL(pipe), CALL(link), CALL(mknod),
#endif
};

static int number_of(const char *name)
{
	size_t at;

	for (at = 0; at < sizeof calls / sizeof *calls; at++)
		if (strcmp(calls[at].name, name) == 0)
			return calls[at].number;
	return -1;
}

static int is(const char *who, unsigned thread)
{
	char path[64], target[4096];
	const char *base;
	ssize_t length;

	if (strncmp(who, "pid:", 4) == 0) {
		snprintf(path, sizeof path, "/proc/%d/task/%u", atoi(who + 4), thread);
		return access(path, F_OK) == 0;
	}
	snprintf(path, sizeof path, "/proc/%u/exe", thread);
	length = readlink(path, target, sizeof target - 1);
	if (length < 0)
		return 0;
	target[length] = '\0';
	base = strrchr(target, '/');
	return strcmp(base ? base + 1 : target, who) == 0;
}

/* The error of the first rule that is for this call, or 0. */
static int error_of(const char *rules, const char *counts, const struct seccomp_notif *asked)
{
	static char seen[8192];
	static unsigned long hits[64];
	char text[8192], *line, *rest = text;
	int file = open(rules, O_RDONLY | O_CLOEXEC), error = 0, at, index;
	ssize_t length;

	if (file < 0)
		return 0;
	length = read(file, text, sizeof text - 1);
	close(file);
	if (length <= 0)
		return 0;
	text[length] = '\0';
	if (strcmp(text, seen) != 0) {
		memcpy(seen, text, (size_t)length + 1);
		memset(hits, 0, sizeof hits);
	}
	for (at = 0; error == 0 && at < 64 && (line = strsep(&rest, "\n")); at++) {
		char name[64], who[256];
		int number = 0, percent = 100;

		if (sscanf(line, "%63s %d %255s %d", name, &number, who, &percent) < 3)
			continue;
		if (number_of(name) == asked->data.nr && is(who, asked->pid) && random() % 100 < percent) {
			hits[at]++;
			error = number;
		}
	}
	if (error) {
		char lines[4096];
		int size = 0;

		for (index = 0; index < 64 && size < 4000; index++)
			size += snprintf(lines + size, sizeof lines - (size_t)size, "%lu\n", hits[index]);
		/* In one write to an open file: who reads it while it is written sees this or the last. */
		file = open(counts, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
		if (file >= 0) {
			if (pwrite(file, lines, (size_t)size, 0) != size || ftruncate(file, size))
				_exit(4);
			close(file);
		}
	}
	return error;
}

static void serve(int listener, const char *rules)
{
	char counts[4096];
	struct seccomp_notif asked;
	struct seccomp_notif_resp answer;
	const char *seed = getenv("FAULTS_SEED");

	snprintf(counts, sizeof counts, "%s.count", rules);
	srandom(seed ? (unsigned)strtoul(seed, NULL, 10) : 1);
	for (;;) {
		struct pollfd wait = {listener, POLLIN, 0};

		if (poll(&wait, 1, -1) < 0 && errno == EINTR)
			continue;
		if (!(wait.revents & POLLIN))
			_exit(0); /* POLLHUP: nobody is left. */
		memset(&asked, 0, sizeof asked);
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &asked))
			continue; /* It was killed in the meantime. */
		memset(&answer, 0, sizeof answer);
		answer.id = asked.id;
		answer.error = -error_of(rules, counts, &asked);
		if (answer.error == 0)
			answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer) && errno != ENOENT)
			_exit(3);
	}
}

/* Without a system call that could be one of those: who would answer it is not there yet. */
struct hands {
	volatile int listener;
	volatile int taken;
};

int main(int argc, char **argv)
{
	static struct sock_filter code[512];
	unsigned short length = 0;
	struct hands *hands;
	char *name;
	int middle, status, number, self;

	if (argc < 4)
		return 2;
	code[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (name = strtok(argv[2], ","); name; name = strtok(NULL, ",")) {
		if ((number = number_of(name)) < 0 || length > 500) {
			fprintf(stderr, "faults: %s is not known here\n", name);
			return 2;
		}
		code[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1);
		code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
	}
	code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = {length, code};

	hands = mmap(NULL, sizeof *hands, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (hands == MAP_FAILED)
		return 125;
	hands->listener = -1;
	self = (int)getpid();
	middle = (int)fork();
	if (middle == 0) {
		int held, listener;

		if (fork() != 0)
			_exit(0);
		setsid();
		signal(SIGHUP, SIG_IGN);
		held = (int)syscall(SYS_pidfd_open, self, 0);
		while (hands->listener < 0) {
			if (kill(self, 0))
				_exit(0);
			usleep(100);
		}
		listener = (int)syscall(SYS_pidfd_getfd, held, hands->listener, 0);
		if (held < 0 || listener < 0)
			_exit(3);
		/* What it inherited is not to be held open by it. */
		if (listener != 3)
			dup2(listener, 3);
		syscall(SYS_close_range, 4, ~0U, 0);
		close(0);
		close(1);
		close(2);
		if (chdir("/"))
			_exit(3);
		hands->taken = 1;
		serve(3, argv[1]);
	}
	if (middle < 0 || waitpid(middle, &status, 0) < 0)
		return 125;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) {
		perror("faults: no_new_privs");
		return 125;
	}
	number = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
		SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &program);
	if (number < 0)
		_exit(125);
	hands->listener = number;
	while (!hands->taken)
		syscall(SYS_sched_yield);
	/* The listener is close-on-exec. */
	execvp(argv[3], argv + 3);
	perror(argv[3]);
	return 127;
}
