/* Programs of the sandbox that hold the lock of a pipe: their own stdio's, or a neighbour's. test_pipe_locks.py compiles
 * and runs them; any user can, in an image that has nothing but busybox.
 *
 *   pipe_locks hold REPORT SECONDS HOW STREAM WHO [PID]
 *   pipe_locks watch REPORT SECONDS STREAM         says when somebody else holds the pipe of one of its streams
 *   pipe_locks victim REPORT SECONDS STREAM        says its pid and waits. SIGUSR2: it closes that stream and answers with
 *                                                  the same. SIGUSR1: it ends
 *   pipe_locks fifo REPORT SECONDS PATH            PATH becomes a locked FIFO: open(2) of one waits for the lock
 *
 * Nobody else can read, write, splice, resize, open or close such a pipe: who tries sleeps in the kernel, and no signal
 * wakes him, while the holder waits as long as it likes and can be killed at any time. So here each holder has an alarm.
 *
 * REPORT is a FIFO in the workspace: `held` is said there only after a probe of the pipe has not come back. "-" is none.
 * `unlucky`: this pipe cannot be held that way, but the next one is likely to be.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum {
    PROBE_MS = 100,    /* a pipe that is not locked answers within microseconds: the rest is for a loaded machine */
    WATCH_MS = 5000,   /* how long somebody waits for a lock before it says that there is none */
    SETTLE_US = 3000,  /* from fork to a child that sleeps; the probe afterwards tells whether it does */
    TEE_PIPES = 384,   /* of two pipes the one with the lower address is locked first: one of so many is the higher */
    TEE_STEP = 16,     /* as many lie beside each other: the next that is tried is likely to lie elsewhere */
    PAGE = 4096,
};

static int report = -1;
static unsigned seconds;

/* `end`: the descriptor by which the pipe is held. `input`: it is a stdin, and `feed` writes to the same pipe. */
struct target { int end, feed, input; };

static void say(const char *format, ...) {
    char line[128];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(line, sizeof line, format, values);
    va_end(values);
    if (report >= 0 && write(report, line, (size_t)length) < 0) _exit(65);
}

static _Noreturn void fail(const char *step) {
    say("failed %s: %s\n", step, strerror(errno));
    _exit(66);
}

/* What the machine does not let this user have: no failure of who runs it. */
static _Noreturn void lacking(const char *step) {
    say("not available %s: %s\n", step, strerror(errno));
    _exit(67);
}

static int sound(int result, const char *step) {
    if (result < 0) fail(step);
    return result;
}

/* --- whether a pipe is locked --- */

static int is_held(int pipe_end) {
    int news[2];
    char byte;
    sound(pipe2(news, O_CLOEXEC), "pipe");
    if (!sound(fork(), "fork")) {
        int count;
        alarm(seconds);
        if (write(news[1], "a", 1) == 1 && !ioctl(pipe_end, FIONREAD, &count)) (void)!write(news[1], "b", 1);
        _exit(0);
    }
    close(news[1]);
    int asleep = read(news[0], &byte, 1) == 1 && !poll(&(struct pollfd){news[0], POLLIN, 0}, 1, PROBE_MS);
    close(news[0]);
    while (waitpid(-1, NULL, WNOHANG) > 0) {}
    return asleep;
}

static int watch(int pipe_end) {
    for (int tries = WATCH_MS * 1000 / SETTLE_US; tries--; usleep(SETTLE_US))
        if (is_held(pipe_end)) return say("held\n"), 1;
    return say("not held\n"), 0;
}

static pid_t watch_aside(int pipe_end) {
    pid_t watcher = sound(fork(), "fork");
    if (watcher) return watcher;
    signal(SIGTERM, SIG_IGN);
    alarm(seconds);
    _exit(!watch(pipe_end));
}

/* --- the ways to hold it: each returns when it was let go --- */

/* Both ends stay with the holder, so nobody else ends the wait. */
static void empty_socket(int ends[2]) { sound(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), "socketpair"); }

static void full_socket(int ends[2]) {
    char chunk[PAGE] = {0};
    empty_socket(ends);
    while (send(ends[0], chunk, sizeof chunk, MSG_DONTWAIT) > 0) {}
}

static long by_splice(struct target *at) {
    int ends[2];
    (at->input ? full_socket : empty_socket)(ends);
    return at->input ? splice(at->end, NULL, ends[0], NULL, PAGE, 0) : splice(ends[0], NULL, at->end, NULL, 1, 0);
}

/* From a socket into the pipe: a pipe cannot be its source. */
static long by_sendfile(struct target *at) {
    int ends[2];
    empty_socket(ends);
    return sendfile(at->input ? at->feed : at->end, ends[0], NULL, 1);
}

/* From a terminal where nobody types; to one whose output is stopped. */
static long by_terminal(struct target *at) {
    int master = sound(posix_openpt(O_RDWR | O_NOCTTY), "posix_openpt");
    sound(unlockpt(master), "unlockpt");
    int slave = sound(ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY), "TIOCGPTPEER");
    if (!at->input) return splice(slave, NULL, at->end, NULL, 1, 0);
    sound(tcflow(slave, TCOOFF), "tcflow");
    return splice(at->end, NULL, slave, NULL, PAGE, 0);
}

/* tee(2) takes two locks: while somebody holds the one, it sleeps with the other, and is not even woken by KILL. */
static int tee_with(struct target *at, int other[2]) {
    int ends[2];
    if (!at->input && write(other[1], "x", 1) != 1) fail("write");
    if (!sound(fork(), "fork")) {
        alarm(seconds);
        empty_socket(ends);
        _exit(splice(ends[0], NULL, other[1], NULL, 1, 0) < 0);
    }
    usleep(SETTLE_US);
    if (!sound(fork(), "fork")) {
        alarm(seconds);
        _exit(tee(at->input ? at->end : other[0], at->input ? other[1] : at->end, 1, 0) < 0);
    }
    usleep(SETTLE_US);
    return is_held(at->end);
}

static long by_tee(struct target *at) {
    static int pipes[TEE_PIPES][2];
    for (int i = 0; i < TEE_PIPES; i++) sound(pipe2(pipes[i], O_CLOEXEC), "pipe");
    for (int i = 0; i < TEE_PIPES; i++)
        if (tee_with(at, pipes[i % (TEE_PIPES / TEE_STEP) * TEE_STEP + i / (TEE_PIPES / TEE_STEP)])) return pause();
    say("unlucky\n");
    _exit(68);
}

/* A page that comes when it likes: of a file in $SLOW_FILE that somebody serves slowly, or of memory whose faults this
 * process itself was to serve. */
static char *slow_page(void) {
    const char *path = getenv("SLOW_FILE");
    int file = path ? sound(open(path, O_RDONLY | O_CLOEXEC), "open") : -1;
    char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | (path ? 0 : MAP_ANONYMOUS), file, 0);
    if (page == MAP_FAILED) fail("mmap");
    if (path) return page;
    int faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {{(unsigned long)page, PAGE}, UFFDIO_REGISTER_MODE_MISSING, 0};
    if (faults < 0 || ioctl(faults, UFFDIO_API, &api) || ioctl(faults, UFFDIO_REGISTER, &range)) lacking("userfaultfd");
    return page;
}

static long by_write(struct target *at) {
    char *page = slow_page();
    return at->input ? read(at->end, page, 1) : write(at->end, page, 1);
}

static long by_vmsplice(struct target *at) { return vmsplice(at->end, &(struct iovec){slow_page(), 1}, 1, 0); }

/* The splice above, done by a thread of the kernel. */
static long by_io_uring(struct target *at) {
    struct io_uring_params given = {0};
    int ends[2], ring = (int)syscall(__NR_io_uring_setup, 1, &given);
    if (ring < 0) lacking("io_uring_setup");
    size_t bytes = given.sq_off.array + sizeof(unsigned);
    char *queue = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *order = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    if (queue == MAP_FAILED || (void *)order == MAP_FAILED) fail("mmap");
    (at->input ? full_socket : empty_socket)(ends);
    *order = (struct io_uring_sqe){.opcode = IORING_OP_SPLICE, .fd = at->input ? ends[0] : at->end, .len = 1,
        .off = (__u64)-1, .splice_off_in = (__u64)-1, .splice_fd_in = at->input ? at->end : ends[0]};
    *(unsigned *)(queue + given.sq_off.array) = 0;
    __atomic_store_n((unsigned *)(queue + given.sq_off.tail), 1, __ATOMIC_RELEASE);
    return syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
}

static const struct { const char *name; long (*hold)(struct target *); } ways[] = {
    {"splice", by_splice}, {"sendfile", by_sendfile}, {"terminal", by_terminal}, {"tee", by_tee},
    {"write", by_write}, {"vmsplice", by_vmsplice}, {"io_uring", by_io_uring},
};

/* --- who holds it, and when --- */

static int open_of(const char *process, int stream, int flags) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/fd/%d", process, stream);
    return sound(open(path, flags | O_CLOEXEC), "open of a stream by its name");
}

static struct target target_of(const char *process, int stream) {
    struct target at = {stream, -1, stream == 0};
    if (process) at.end = open_of(process, stream, stream ? O_WRONLY : O_RDONLY);
    if (at.input) at.feed = open_of(process ? process : "self", stream, O_WRONLY);
    return at;
}

/* Something in the pipe: for who holds it to take, or for who reads it to come for. */
static void prime(struct target *at) {
    if (write(at->input ? at->feed : at->end, "x", 1) != 1) fail("write");
}

static _Noreturn void hold(long (*way)(struct target *), struct target *at) {
    alarm(seconds);
    prime(at);
    if (way(at) < 0) (errno == EPERM || errno == ENOSYS ? lacking : fail)("hold");
    say("let go\n");
    _exit(0);
}

static _Noreturn void as_leader(long (*way)(struct target *), struct target *at) {
    watch_aside(at->end);
    hold(way, at);
}

static _Noreturn void as_orphan(long (*way)(struct target *), struct target *at) {
    if (!sound(fork(), "fork")) {
        setsid();
        hold(way, at);
    }
    _exit(!watch(at->end));
}

/* The leader's own descriptor is gone, and nothing runs between the close and the lock. */
static _Noreturn void reopened(long (*way)(struct target *), int stream) {
    alarm(seconds);
    struct target at = target_of("self", stream);
    close(stream);
    if (report >= 0) watch_aside(at.end);
    hold(way, &at);
}

static void await(int signum, int told) {
    sigset_t set;
    int got;
    sigemptyset(&set);
    sigaddset(&set, signum);
    if (told) (void)!write(told, "r", 1);
    sigwait(&set, &got);
}

static void block(int signum) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signum);
    sigprocmask(SIG_BLOCK, &set, NULL);
}

/* Between TERM and KILL. */
static _Noreturn void at_term(long (*way)(struct target *), struct target *at) {
    block(SIGTERM);
    alarm(seconds);
    watch_aside(at->end);
    say("up\n");
    await(SIGTERM, 0);
    hold(way, at);
}

/* In the very moment of the leader's end, which tells its child so. */
static _Noreturn void at_exit(long (*way)(struct target *), struct target *at) {
    int told[2];
    char byte;
    sound(pipe2(told, O_CLOEXEC), "pipe");
    block(SIGUSR1);
    if (!sound(fork(), "fork")) {
        alarm(seconds);
        setsid();
        watch_aside(at->end);
        prctl(PR_SET_PDEATHSIG, SIGUSR1);
        await(SIGUSR1, told[1]);
        hold(way, at);
    }
    _exit(read(told[0], &byte, 1) != 1);
}

/* A neighbour's stream that he himself has no more: his own end waits for nobody. */
static _Noreturn void as_heir(long (*way)(struct target *), struct target *at, int neighbour) {
    block(SIGUSR2);
    sound(kill(neighbour, SIGUSR2), "kill");
    await(SIGUSR2, 0);
    as_leader(way, at);
}

static _Noreturn void hold_as(char **words, int count) {
    const char *how = words[0], *who = words[2];
    int stream = atoi(words[1]);
    long (*way)(struct target *) = NULL;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) if (!strcmp(how, ways[i].name)) way = ways[i].hold;
    if (!way) _exit(64);
    if (!strcmp(who, "reopened")) reopened(way, stream);
    struct target at = target_of(count > 3 ? words[3] : NULL, stream);
    if (!strcmp(who, "leader") || !strcmp(who, "neighbour")) as_leader(way, &at);
    if (!strcmp(who, "heir")) as_heir(way, &at, atoi(words[3]));
    if (!strcmp(who, "orphan")) as_orphan(way, &at);
    if (!strcmp(who, "at_term")) at_term(way, &at);
    if (!strcmp(who, "at_exit")) at_exit(way, &at);
    _exit(64);
}

/* --- who is held --- */

static _Noreturn void victim(int stream) {
    siginfo_t told;
    sigset_t set;
    block(SIGUSR1);
    block(SIGUSR2);
    sigprocmask(SIG_BLOCK, NULL, &set); /* reads what is blocked now */
    say("pid %d\n", getpid());
    while (sigwaitinfo(&set, &told) == SIGUSR2) {
        close(stream);
        kill(told.si_pid, SIGUSR2);
    }
    _exit(0);
}

static _Noreturn void fifo(const char *path) {
    unlink(path);
    sound(mkfifo(path, 0666), "mkfifo");
    chmod(path, 0666);
    struct target at = {sound(open(path, O_RDWR | O_CLOEXEC), "open"), -1, 0};
    as_leader(by_splice, &at);
}

int main(int argc, char **argv) {
    if (argc < 4) return 64;
    seconds = (unsigned)atoi(argv[3]);
    alarm(seconds);
    if (strcmp(argv[2], "-")) report = sound(open(argv[2], O_WRONLY | O_NONBLOCK | O_CLOEXEC), "report");
    if (!strcmp(argv[1], "hold") && argc > 6) hold_as(argv + 4, argc - 4);
    if (!strcmp(argv[1], "watch") && argc > 4) return !watch(atoi(argv[4]));
    if (!strcmp(argv[1], "victim") && argc > 4) victim(atoi(argv[4]));
    if (!strcmp(argv[1], "fifo") && argc > 4) fifo(argv[4]);
    return 64;
}
