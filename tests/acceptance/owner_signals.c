/* What container root tries against another user's command without kill(2): the kernel signals the owner of a descriptor
 * when something happens there, and lets the host's uid 0 name anybody (fcntl(2), F_SETOWN; sigio_perm in fs/fcntl.c).
 *
 *   owner_signals own PID OWNER ASYNC SIGNAL   a descriptor gets PID, or its group, for its owner; then something happens
 *   owner_signals urgent PID OWNER             the same with urgent data, which needs no O_ASYNC
 *   owner_signals directory PID                the same with a change of a directory (F_NOTIFY)
 *   owner_signals lease PID                    the same with a lease that is broken
 *   owner_signals autogroup                    the scheduling group of PID 1 gets nice 19
 *
 * Every attempt prints one line "NAME RESULT", as those of hostile.c do.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef FIOSETOWN
#define FIOSETOWN 0x8901
#define SIOCSPGRP 0x8902
#endif

static void say(const char *name, long result) {
    printf("%s %s\n", name, result < 0 ? strerrorname_np(errno) : "ok");
    fflush(stdout);
}

static int is(const char *a, const char *b) { return !strcmp(a, b); }


static void own(int fd, int pid, const char *owner) {
    struct f_owner_ex one = {F_OWNER_PID, pid}, thread = {F_OWNER_TID, pid}, group = {F_OWNER_PGRP, pid};
    if (is(owner, "F_SETOWN")) say(owner, fcntl(fd, F_SETOWN, pid));
    else if (is(owner, "group")) say(owner, fcntl(fd, F_SETOWN, -pid));
    else if (is(owner, "F_OWNER_PID")) say(owner, fcntl(fd, F_SETOWN_EX, &one));
    else if (is(owner, "F_OWNER_TID")) say(owner, fcntl(fd, F_SETOWN_EX, &thread));
    else if (is(owner, "F_OWNER_PGRP")) say(owner, fcntl(fd, F_SETOWN_EX, &group));
    else if (is(owner, "FIOSETOWN")) say(owner, ioctl(fd, FIOSETOWN, &pid));
    else if (is(owner, "SIOCSPGRP")) say(owner, ioctl(fd, SIOCSPGRP, &pid));
    else exit(64);
}

static void happen(int pid, const char *owner, const char *async, int signum) {
    int ends[2], one = 1;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) exit(66);
    own(ends[0], pid, owner);
    if (signum) say("F_SETSIG", fcntl(ends[0], F_SETSIG, signum));
    if (is(async, "FIOASYNC")) say(async, ioctl(ends[0], FIOASYNC, &one));
    else say(async, fcntl(ends[0], F_SETFL, fcntl(ends[0], F_GETFL) | O_ASYNC));
    say("event", write(ends[1], "x", 1));
}

/* SIGURG goes to the owner whether O_ASYNC is set or not. */
static void urgent(int pid, const char *owner) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0), sender = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&at, size) || listen(listener, 1) || getsockname(listener, (void *)&at, &size)) exit(66);
    if (connect(sender, (void *)&at, size)) exit(66);
    int receiver = accept(listener, NULL, NULL);
    own(receiver, pid, owner);
    say("event", send(sender, "x", 1, MSG_OOB));
}

static void directory(int pid) {
    int fd = open("/tmp", O_RDONLY | O_DIRECTORY);
    say("F_SETOWN", fcntl(fd, F_SETOWN, pid));
    say("F_NOTIFY", fcntl(fd, F_NOTIFY, DN_CREATE | DN_MULTISHOT));
    say("again", fcntl(fd, F_SETOWN, pid));
    say("event", open("/tmp/owner_signals", O_CREAT | O_RDWR, 0600));
    unlink("/tmp/owner_signals");
}

static void lease(int pid) {
    int fd = open("/tmp/owner_lease", O_CREAT | O_RDONLY, 0600);
    signal(SIGIO, SIG_IGN);
    say("F_SETLEASE", fcntl(fd, F_SETLEASE, F_RDLCK));
    say("F_SETOWN", fcntl(fd, F_SETOWN, pid));
    say("event", open("/tmp/owner_lease", O_WRONLY | O_NONBLOCK) < 0 && errno != EWOULDBLOCK ? -1 : 0);
    fcntl(fd, F_SETLEASE, F_UNLCK);
    unlink("/tmp/owner_lease");
}

static void autogroup(void) {
    int fd = open("/proc/1/autogroup", O_WRONLY);
    say("autogroup", fd < 0 ? fd : write(fd, "19", 2));
}

int main(int argc, char **argv) {
    const char *word = argc > 1 ? argv[1] : "";
    int pid = argc > 2 ? atoi(argv[2]) : 0;
    if (is(word, "own") && argc == 6) happen(pid, argv[3], argv[4], atoi(argv[5]));
    else if (is(word, "urgent") && argc == 4) urgent(pid, argv[3]);
    else if (is(word, "directory")) directory(pid);
    else if (is(word, "lease")) lease(pid);
    else if (is(word, "autogroup")) autogroup();
    else return 64;
    return 0;
}
