/* A command that holds the lock of its own stdin pipe, which no signal handler, limit or seccomp profile of an engine
   keeps it from:

   stdin_lock reading SECONDS   splice(2) from the pipe to a full socket waits for room with the pipe's lock held, as
                                soon as there is something in the pipe
   stdin_lock writing SECONDS   splice(2) from an empty socket to the pipe, opened again, waits for data with it held

   Says "up" before. Lets go after so many seconds, so that a test that fails ends. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char chunk[4096];

static void let_go_after(unsigned int seconds, int ours, int theirs) {
    if (fork()) {
        close(theirs);
        return;
    }
    close(0), close(1), close(2), close(ours);
    sleep(seconds);
    _exit(0);
}

int main(int argc, char **argv) {
    int ends[2];
    if (argc != 3 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) return 1;
    int is_reading = !strcmp(argv[1], "reading");
    while (is_reading && send(ends[0], chunk, sizeof chunk, MSG_DONTWAIT) > 0) {
    }
    let_go_after((unsigned int)atoi(argv[2]), ends[0], ends[1]);
    int again = is_reading ? -1 : open("/proc/self/fd/0", O_WRONLY);
    if (write(1, "up\n", 3) != 3) return 1;
    while ((is_reading ? splice(0, 0, ends[0], 0, 1 << 20, 0) : splice(ends[0], 0, again, 0, 1 << 20, 0)) > 0) {
    }
    return 0;
}
