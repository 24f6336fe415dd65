/* What a hostile command in the sandbox tries, one thing for each word; test_spawn_security.py compiles and runs it.
 *
 * Every attempt prints one line "NAME RESULT": RESULT is `ok`, or the errno's name. A word that goes on prints `ready`
 * first. It runs as any user, in an image that has nothing but busybox: static, and its own arguments are all it needs.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <grp.h>
#include <pthread.h>
#include <unistd.h>

static void say(const char *name, long result) {
    printf("%s %s\n", name, result < 0 ? strerrorname_np(errno) : "ok");
    fflush(stdout);
}

static _Noreturn void idle(void) { for (;;) pause(); }
static _Noreturn void ready(void) { say("ready", 0); idle(); }

/* --- into another process --- */

static void open_of(int pid, const char *what, int flags) {
    char path[64], byte;
    snprintf(path, sizeof path, "/proc/%d/%s", pid, what);
    int fd = open(path, flags);
    say(what, fd < 0 ? fd : flags == O_RDONLY ? read(fd, &byte, 1) : 0);
    if (fd >= 0) close(fd);
}

static void list_of(int pid, const char *what) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, what);
    DIR *list = opendir(path);
    struct dirent *entry = NULL;
    errno = list ? 0 : errno;
    while (list && (entry = readdir(list)) && entry->d_name[0] == '.') {}
    if (list && !errno && !entry) errno = EACCES; /* it is empty for who may not see what is in it */
    say(what, list && entry ? 0 : -1);
    if (list) closedir(list);
}

/* Each number: what it is, itself, and where it stands. Of those that there are not, container root is told that. */
static void descriptors_of(int pid) {
    char name[32], link[64], path[64];
    for (int fd = 0; fd < 64; fd++) {
        snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
        long n = readlink(path, link, sizeof link);
        if (n < 0 && errno == ENOENT) continue;
        say("link", n);
        snprintf(name, sizeof name, "fd/%d", fd);
        open_of(pid, name, O_RDONLY | O_NONBLOCK);
        open_of(pid, name, O_WRONLY | O_NONBLOCK);
        open_of(pid, name, O_PATH);
        snprintf(name, sizeof name, "fdinfo/%d", fd);
        open_of(pid, name, O_RDONLY);
    }
}

static void reach(int pid) {
    char here[16] = "x", link[64], path[64];
    struct iovec mine = {here, sizeof here}, its = {(void *)0x400000, sizeof here};
    const char *links[] = {"exe", "root", "cwd", "fd/0", "ns/mnt"};
    const char *files[] = {"smaps", "smaps_rollup", "numa_maps", "pagemap", "clear_refs", "io", "personality", "stack", "syscall"};
    say("attach", ptrace(PTRACE_ATTACH, pid, 0, 0));
    say("seize", ptrace(PTRACE_SEIZE, pid, 0, 0));
    say("readv", process_vm_readv(pid, &mine, 1, &its, 1, 0));
    say("writev", process_vm_writev(pid, &mine, 1, &its, 1, 0));
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    say("getfd", syscall(SYS_pidfd_getfd, pidfd, 0, 0));
    say("kcmp", syscall(SYS_kcmp, getpid(), pid, KCMP_FILES, 0, 0));
    say("madvise", syscall(SYS_process_madvise, pidfd, &its, 1, 20, 0)); /* MADV_COLD */
    say("pages", syscall(SYS_move_pages, pid, 1, &its.iov_base, NULL, here, 0));
    open_of(pid, "mem", O_RDONLY);
    open_of(pid, "mem", O_RDWR);
    open_of(pid, "environ", O_RDONLY);
    open_of(pid, "maps", O_RDONLY);
    open_of(pid, "auxv", O_RDONLY);
    list_of(pid, "fd");
    list_of(pid, "map_files");
    list_of(pid, "fdinfo");
    open_of(pid, "root/", O_RDONLY | O_DIRECTORY);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) open_of(pid, files[i], O_RDONLY);
    descriptors_of(pid);
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", pid, links[i]);
        say(links[i], readlink(path, link, sizeof link));
    }
    snprintf(path, sizeof path, "/proc/%d/task/%d/mem", pid, pid);
    say("task", open(path, O_RDONLY));
}

/* What needs no ptrace right, only the same user. Nothing is changed where it succeeds. */
static void meddle(int pid) {
    struct rlimit now;
    cpu_set_t cpus;
    struct sched_param plain = {0};
    say("limits", syscall(SYS_prlimit64, pid, RLIMIT_NOFILE, NULL, &now) ? -1 :
                  syscall(SYS_prlimit64, pid, RLIMIT_NOFILE, &now, NULL));
    say("nice", setpriority(PRIO_PROCESS, (id_t)pid, getpriority(PRIO_PROCESS, (id_t)pid)));
    sched_getaffinity(pid, sizeof cpus, &cpus);
    say("affinity", sched_setaffinity(pid, sizeof cpus, &cpus));
    say("scheduler", sched_setscheduler(pid, SCHED_OTHER, &plain));
    say("parameters", sched_setparam(pid, &plain));
    say("ioprio", syscall(SYS_ioprio_set, 1, pid, 2 << 13 | 4)); /* IOPRIO_WHO_PROCESS, IOPRIO_CLASS_BE */
}

/* What its /proc has to be written to; it is given what it has. */
static void adjust(int pid) {
    const char *names[] = {"oom_score_adj", "coredump_filter", "timerslack_ns", "autogroup", "comm", "sched", "clear_refs", "uid_map"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[64], text[64] = "1";
        snprintf(path, sizeof path, "/proc/%d/%s", pid, names[i]);
        int fd = open(path, O_RDWR);
        if (fd < 0 && errno == EACCES) fd = open(path, O_WRONLY);
        ssize_t n = fd < 0 ? fd : pread(fd, text, sizeof text, 0);
        if (!strcmp(names[i], "coredump_filter")) n = snprintf(text, sizeof text, "0x33");
        if (!strcmp(names[i], "autogroup")) n = snprintf(text, sizeof text, "0");
        say(names[i], fd < 0 ? fd : write(fd, text, n > 0 ? (size_t)n : 1));
    }
}

static void signal_of(int pid, const char *numbers) {
    for (char *list = strdup(numbers), *one; (one = strsep(&list, ",")); ) say(one, kill(pid, atoi(one)));
}

/* A signal that the kernel sends for a descriptor's owner: fcntl(2), F_SETSIG. */
static void own(int fd, int pid, int signum) {
    say("owner", fcntl(fd, F_SETOWN, pid));
    say("signal", fcntl(fd, F_SETSIG, signum));
    say("async", fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_ASYNC));
}

static void signal_by_pipe(int pid, int signum) {
    int ends[2];
    if (pipe(ends)) return;
    own(ends[0], pid, signum);
    say("event", write(ends[1], "x", 1));
}

static void signal_by_stdin(int pid, int signum) {
    own(0, pid, signum);
    ready();
}

/* --- rights --- */

static void regain(void) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct all[2] = {{1 << CAP_KILL, 1 << CAP_KILL, 0}, {0}};
    gid_t other = 4;
    say("capset", syscall(SYS_capset, &head, all));
    say("ambient", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
    say("bounding", prctl(PR_CAPBSET_DROP, CAP_KILL, 0, 0, 0));
    say("securebits", prctl(PR_SET_SECUREBITS, 1, 0, 0, 0));
    say("privileges", prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
    say("other", setresuid(1234, 1234, 1234));
    say("groups", setgroups(1, &other));
    say("pidns", unshare(CLONE_NEWPID));
    say("mount", mount("none", "/tmp", "tmpfs", 0, NULL));
    say("umount", umount2("/run/fastclaw-init", MNT_DETACH));
    say("chroot", chroot("/tmp"));
    say("device", mknod("/tmp/device", S_IFCHR | 0600, 0x101));
}

/* Each call tries again what the one before it may have changed: none of them may. */
static void become(int uid) {
    int none = -1;
    say("setuid", syscall(SYS_setuid, uid));
    say("setreuid", syscall(SYS_setreuid, none, uid));
    say("setresuid", syscall(SYS_setresuid, none, none, uid));
    say("setresuid-real", syscall(SYS_setresuid, uid, none, none));
    syscall(SYS_setfsuid, uid);
    int has = (int)syscall(SYS_setfsuid, none);
    errno = EPERM;
    say("setfsuid", has == uid ? 0 : -1);
#if defined(__x86_64__)
    int calls[] = {23, 213, 138, 215}; /* i386: setuid and setfsuid, of 16 and of 32 bits */
    for (int i = 0; i < 4; i++) {
        long result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"((long)calls[i]), "b"((long)uid) : "memory", "r8", "r9", "r10", "r11");
    }
    has = (int)syscall(SYS_setfsuid, none);
    errno = EPERM;
    say("compat", has == uid || getuid() == (uid_t)uid || geteuid() == (uid_t)uid ? 0 : -1);
#endif
}

static int child(void *unused) { (void)unused; return 0; }

static void user_namespace(void) {
    static char stack[65536];
    say("clone", clone(child, stack + sizeof stack, CLONE_NEWUSER | SIGCHLD, NULL));
    say("unshare", unshare(CLONE_NEWUSER));
}

/* A call as a program for 32 bits makes it; where there is none, what it would be told. */
static long compat_call(long number, long first, long second, long third) {
#if defined(__x86_64__)
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(first), "c"(second), "d"(third) : "memory", "r8", "r9", "r10", "r11");
    result = (int)result;
    if (result >= 0) return result;
    errno = (int)-result;
    return -1;
#else
    (void)number; (void)first; (void)second; (void)third;
    errno = ENOSYS;
    return -1;
#endif
}

static void hypervisor(void) {
    say("native", socket(40, SOCK_STREAM, 0));
    say("compat", compat_call(359, 40, SOCK_STREAM, 0));
    say("socketcall", compat_call(102, 1, 0, 0));
    say("inet", socket(AF_INET, SOCK_STREAM, 0));
}

static void rights(void) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct held[2] = {{0}};
    syscall(SYS_capget, &head, held);
    printf("uid %d %d\ncapabilities %x %x\n", getuid(), geteuid(), held[0].permitted, held[0].effective);
}

static void reconnect(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int kinds[] = {SOCK_SEQPACKET, SOCK_STREAM, SOCK_DGRAM};
    for (int i = 0; i < 3; i++)
        say("connect", connect(socket(AF_UNIX, kinds[i], 0), (struct sockaddr *)&address, sizeof address));
}

/* One datagram with the end of a pipe of its own. */
static long send_pipe(int to, struct sockaddr_un *whom, socklen_t bytes) {
    _Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {(char[]){"xxxxxxxxxxxxxxxxxxxx"}, 20};
    struct msghdr message = {.msg_name = whom, .msg_namelen = bytes, .msg_iov = &part, .msg_iovlen = 1};
    message.msg_control = space;
    message.msg_controllen = sizeof space;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(head), &(int){1}, sizeof(int));
    return sendmsg(to, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Every abstract socket of this network namespace (unix(7), /proc/net/unix), by each kind. */
static void named_sockets(void) {
    char line[512];
    FILE *list = fopen("/proc/net/unix", "r");
    while (list && fgets(line, sizeof line, list)) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        char *name = strrchr(line, ' ');
        if (!name || name[1] != '@') continue;
        name[strcspn(name, "\n")] = 0;
        strncpy(address.sun_path, name + 1, sizeof address.sun_path - 1);
        socklen_t bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name + 1));
        address.sun_path[0] = 0;
        int kinds[] = {SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM};
        for (int i = 0; i < 3; i++) {
            int fd = socket(AF_UNIX, kinds[i], 0), other = socket(AF_UNIX, kinds[i], 0);
            say("send", send_pipe(fd, &address, bytes));
            say("connect", connect(fd, (struct sockaddr *)&address, bytes));
            say("write", send(fd, "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL));
            say("bind", bind(other, (struct sockaddr *)&address, bytes));
            close(fd);
            close(other);
        }
    }
    say("end", 0);
}

static void replace(const char *path) {
    char aside[256];
    snprintf(aside, sizeof aside, "%s.aside", path);
    say("write", open(path, O_WRONLY));
    say("truncate", truncate(path, 0));
    say("unlink", unlink(path));
    say("rename", rename(path, aside));
    say("chmod", chmod(path, 0777));
}

/* --- trees that are hard to end --- */

static void *lives_on(void *unused) { (void)unused; ready(); }

static void lose_leader(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, lives_on, NULL);
    syscall(SYS_exit, 0); /* this thread only */
}

static void escape(void) {
    signal(SIGTERM, SIG_IGN);
    for (int generation = 0; generation < 4; generation++) {
        if (fork()) { if (generation % 2) idle(); _exit(0); }
        setsid();
        prctl(PR_SET_CHILD_SUBREAPER, generation % 2);
        prctl(PR_SET_NAME, ") Z 1 (");
        prctl(PR_SET_PDEATHSIG, 0);
        prctl(PR_SET_DUMPABLE, 0);
        clearenv();
    }
    say("ready", 0);
    for (int fd = 0; fd < 1024; fd++) close(fd);
    idle();
}

/* One new program for each step: forks of forks of forks share their pages, and each costs more than the last. */
static void deep(int depth) {
    char next[16];
    if (depth <= 1) ready();
    if (fork()) idle();
    snprintf(next, sizeof next, "%d", depth - 1);
    execl("/proc/self/exe", "hostile", "deep", next, NULL);
}

/* Each process lives only until it has forked the next. */
static void chains(int count) {
    signal(SIGTERM, SIG_IGN);
    for (int i = 1; i < count; i++) if (!fork()) break;
    for (long n = 0;; n++) {
        if (n == 50) say("ready", 0);
        if (fork() > 0) _exit(0);
    }
}

/* `apart`: every process in a session of its own. */
static void bomb(int apart) {
    signal(SIGTERM, SIG_IGN);
    for (int said = 0;;) {
        pid_t pid = fork();
        if (pid < 0 && !said++) say("full", 0);
        if (!pid && apart) setsid();
    }
}

static void hold(int pid) {
    if (ptrace(PTRACE_SEIZE, pid, 0, 0)) { say("seize", -1); return; }
    ready();
}

/* --- resources --- */

static void hog(size_t mib) {
    for (size_t i = 0; i < mib << 8; i++) *(volatile char *)malloc(4097) = 1;
    ready();
}

static void files(void) {
    int count = 3;
    while (dup(0) >= 0) count++;
    printf("files %d\n", count);
    ready();
}

static void everybody(int signum) {
    signal(SIGTERM, SIG_IGN);
    say("all", kill(-1, signum));
}

static void stop_all(void) {
    say("ready", 0);
    for (;;) kill(-1, SIGSTOP);
}

int main(int argc, char **argv) {
    const char *word = argc > 1 ? argv[1] : "", *text = argc > 2 ? argv[2] : "";
    int a = atoi(text), b = argc > 3 ? atoi(argv[3]) : 0;
    if (!strcmp(word, "reach")) reach(a);
    else if (!strcmp(word, "meddle")) meddle(a);
    else if (!strcmp(word, "adjust")) adjust(a);
    else if (!strcmp(word, "sockets")) named_sockets();
    else if (!strcmp(word, "kill")) signal_of(a, argv[3]);
    else if (!strcmp(word, "pipe")) signal_by_pipe(a, b);
    else if (!strcmp(word, "stdin")) signal_by_stdin(a, b);
    else if (!strcmp(word, "regain")) regain();
    else if (!strcmp(word, "become")) become(a);
    else if (!strcmp(word, "userns")) user_namespace();
    else if (!strcmp(word, "vsock")) hypervisor();
    else if (!strcmp(word, "rights")) rights();
    else if (!strcmp(word, "connect")) reconnect(text);
    else if (!strcmp(word, "replace")) replace(text);
    else if (!strcmp(word, "leader")) lose_leader();
    else if (!strcmp(word, "escape")) escape();
    else if (!strcmp(word, "deep")) deep(a);
    else if (!strcmp(word, "chains")) chains(a);
    else if (!strcmp(word, "bomb")) bomb(a);
    else if (!strcmp(word, "hold")) hold(a);
    else if (!strcmp(word, "hog")) hog((size_t)a);
    else if (!strcmp(word, "files")) files();
    else if (!strcmp(word, "everybody")) everybody(a);
    else if (!strcmp(word, "stop")) stop_all();
    else return 64;
    return 0;
}
