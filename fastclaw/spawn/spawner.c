/* The spawner: init of a container (or a child of fastclaw on the host) that starts processes on request.
 *
 *   main    PID 1. Talks to fastclaw over the control socket: signals, ends, listeners, files, more keepers. When
 *           that socket closes, everything here ends.
 *   keeper  one for each process that is being kept. Shares main's memory (CLONE_VM), is a process of its own and a
 *           subreaper, takes one start request from the channel, vforks the command and waits until neither it nor
 *           anything it started is left: then wait4 says ECHILD, which is the kernel's own proof. Then it takes the next.
 *
 * Keepers take requests straight from the channel, so a start costs one message, one vfork and one answer, and nobody
 * stands in between. What main orders a keeper to do goes through its slot, tagged with the request's id, so that an
 * order for a process that has ended cannot hit the next one. Only the keeper signals and reaps its tree.
 *
 * A template (F_CONTROL) forks its workers itself, twice, so that they fall to its keeper: the brood. Main enters one
 * that fastclaw was told of, the keeper takes it as its own if it is, and answers for it as for a command: its exit by
 * wait4, its tree by being the subreaper it is itself. What it leaves falls to the keeper and is ended at once.
 *
 * Freestanding: raw system calls and no libc at run time, since a libc's errno and thread pointer would be shared by
 * all keepers. No recursion, no allocation in a loop, every buffer bounded; the bounds are those of
 * fastclaw/protocol/spawner.py, which writes and reads the same frames.
 *
 * Facts: clone(2), prctl(2) PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, PR_SET_PDEATHSIG, unix(7), capabilities(7),
 * pid_namespaces(7), proc_pid_task(5) for /proc/PID/task/TID/children, pidfd_open(2), pty(7), ioctl_tty(2).
 */
#define _GNU_SOURCE
#include <asm/unistd.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

typedef uint32_t u32;
typedef uint64_t u64;

enum { VERSION = 1, MAGIC = 0x57414c43 };

enum { /* bounds; see fastclaw/protocol/spawner.py */
    FRAME_BYTES = 16 << 10,
    HELLO_BYTES = 64 << 10,
    MAX_STRINGS_BYTES = 8 << 20,
    MAX_STRINGS = 1 << 20,
    MAX_GROUPS = 256,
    MAX_LIMITS = 16,
    MAX_FDS = 5,
    MAX_KEEPERS = 16 << 10,
    MAX_FILE_BYTES = 1 << 20,
    MAX_TREE = 32 << 10, /* pids of one tree: the default pid_max */
    MAX_BROOD = 16 << 10,
    PID_TABLE = 4 * MAX_BROOD, /* a power of two: a quarter full at most */
    KEEPER_STACK = (24 << 10) + 2048, /* ends in the middle of a page, whose other half begins the request: a usual
                                         keeper touches that one page */
    POINTER_BYTES = 16 << 10, /* of an inline request; a spilled one brings its own */
    KEEPER_BYTES = 64 << 10,
    STOP_PASSES = 8,
    HUNT_MS = 2,
    ASKED_BYTES = 4 << 10,
    YOUNG_TICKS = 500, /* 5 s: between fork and execve there is less than that, on a loaded machine too */
    ASK_MS = 512, /* the longest pause before a tree that was asked to end is looked at again */
    REAP_BURST = 4096, /* before orders are heeded: a tree that always forks anew never lets the reaping end */
};

enum { HELLO = 1, WELCOME, START, RETIRE, GROW, SIGNAL, END, LISTEN, READ, PING, SHUTDOWN, ADOPT };
enum { STARTED = 32, REFUSED, EXITED, EMPTY, LOST, ANSWER };
enum { F_DIRECTORY = 1, F_NULL_STDIN = 2, F_IDENTITY = 4, F_SPILLED = 8, F_TTY = 16, F_CONTROL = 32, F_ALL = 63 };
enum { W_CONFINE = 1 };
enum { STEP_REQUEST = 1, STEP_PROCESS, STEP_TTY, STEP_LIMIT, STEP_USER, STEP_DIRECTORY, STEP_EXEC, STEP_ADOPT };
enum { LEVEL_TERM = 1, LEVEL_KILL = 2 };

struct control { u32 op, id, a, b; };
struct hello { u32 op, magic, version, facts; };
struct limit { u32 which, unused; u64 soft, hard; };
struct start { u32 op, id, flags, argc, envc, uid, gid, groups, limits, bytes; };
struct event { u32 op, id; int32_t a, b; u64 user_us, system_us, max_rss_kb; };

/* What main and one keeper share. `child`: the command while the keeper is suspended by vfork. `orders`: the request's
 * id in the upper half; in the lower the hunt level, then signals 1-32, then 33-64. */
struct slot { u32 pid, id, child, error, step, is_template; u64 orders[3]; char *memory; struct brood *brood; };

/* A template's workers. Main enters them (FREE to ASKED), whoever takes one out again does so by its state; all else is
 * the keeper's. `asked`: main has written something. Mapped for a slot's first worker, and kept. */
enum { FREE, ASKED, KEPT, ENDED };
struct worker { u32 pid, id, state, level; u64 orders[3]; };
struct brood { u32 used, asked; struct worker workers[MAX_BROOD]; };

static struct slot *slots;
static u32 keepers, used_slots, keeper_uid, welcome_flags, main_pid, held_caps;
static int control = -1, channel = -1, null = -1, dying, strays, is_batch;
enum { NO_USER = 0xffffffffu, CAPS = 1 << CAP_SETUID | 1 << CAP_SETGID | 1 << CAP_KILL };

/* --- system calls --- */

#if defined(__x86_64__)
static inline long sys6(long n, long a, long b, long c, long d, long e, long f) {
    long r;
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return r;
}
__asm__(".text\n.globl _start\n_start:\n xor %ebp,%ebp\n mov %rsp,%rdi\n and $-16,%rsp\n call begin\n hlt\n"
        /* long fork_with(flags, stack, parent_tid, fn, arg): as clone(2) of the C library; stack 0 is below ours. */
        "fork_with:\n test %rsi,%rsi\n jnz 1f\n lea -256(%rsp),%rsi\n and $-16,%rsi\n"
        "1: sub $16,%rsi\n mov %rcx,(%rsi)\n mov %r8,8(%rsi)\n xor %r10d,%r10d\n xor %r8d,%r8d\n"
        " mov $56,%eax\n syscall\n test %rax,%rax\n jnz 2f\n xor %ebp,%ebp\n pop %rax\n pop %rdi\n call *%rax\n"
        " mov %eax,%edi\n mov $60,%eax\n syscall\n hlt\n2: ret\n");
#elif defined(__aarch64__)
static inline long sys6(long n, long a, long b, long c, long d, long e, long f) {
    register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
__asm__(".text\n.globl _start\n_start:\n mov x29,#0\n mov x0,sp\n bl begin\n brk #1\n"
        "fork_with:\n cbnz x1,1f\n sub x1,sp,#256\n1: stp x3,x4,[x1,#-16]!\n mov x3,#0\n mov x4,#0\n mov x8,#220\n"
        " svc #0\n cbz x0,2f\n ret\n2: mov x29,#0\n ldp x1,x0,[sp],#16\n blr x1\n mov x8,#93\n svc #0\n brk #1\n");
#else
#error "the spawner knows x86_64 and aarch64"
#endif
long fork_with(unsigned long flags, void *stack, u32 *parent_tid, int (*fn)(void *), void *arg);

#define SYS(name, ...) SYS_(__NR_##name, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define SYS_(n, a, b, c, d, e, f, ...) \
    sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

void *memcpy(void *to, const void *from, size_t n) {
    for (size_t i = 0; i < n; i++) ((char *)to)[i] = ((const char *)from)[i];
    return to;
}
void *memset(void *to, int byte, size_t n) {
    for (size_t i = 0; i < n; i++) ((volatile char *)to)[i] = (char)byte;
    return to;
}
static size_t length(const char *s) { size_t n = 0; while (s[n]) n++; return n; }
static _Noreturn void leave(int code) { for (;;) SYS(exit_group, code); }
static u64 bit(int signum) { return 1ull << (signum - 1); }

static void *map(size_t bytes, int fd) {
    long at = SYS(mmap, 0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
    return at < 0 && at > -4096 ? NULL : (void *)at;
}

/* --- messages --- */

struct passed { int count, fd[MAX_FDS]; };

/* One frame; its descriptors are close-on-exec. A frame that was cut short is no frame: -EBADMSG. */
static long receive(int from, void *frame, size_t bytes, struct passed *passed) {
    _Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int) * MAX_FDS)];
    struct iovec part = {frame, bytes};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space};
    message.msg_controllen = CMSG_LEN(sizeof(int) * MAX_FDS); /* without the padding, in which one more has room */
    passed->count = 0;
    long n = SYS(recvmsg, from, &message, MSG_CMSG_CLOEXEC);
    if (n <= 0) return n;
    struct cmsghdr *head = (struct cmsghdr *)space;
    if (message.msg_controllen >= sizeof *head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
        passed->count = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(passed->fd, CMSG_DATA(head), sizeof(int) * (size_t)passed->count);
    }
    return message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ? -EBADMSG : n;
}

static void close_passed(struct passed *passed) {
    while (passed->count > 0) SYS(close, passed->fd[--passed->count]);
}

static long say(int to, const void *frame, size_t bytes, int fd) {
    _Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {(void *)frame, bytes};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        struct cmsghdr *head = (struct cmsghdr *)space;
        *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
        message.msg_control = space;
        message.msg_controllen = sizeof space;
    }
    long n;
    while ((n = SYS(sendmsg, to, &message, MSG_NOSIGNAL)) == -EINTR) {}
    return n;
}

static void tell(u32 op, u32 id, int a, int b, int fd) {
    struct event event = {.op = op, .id = id, .a = a, .b = b};
    say(channel, &event, sizeof event, fd);
}

/* --- trees: who descends from a process, and signals that cannot hit anybody else --- */

static char *put_number(char *at, u32 number) {
    char digits[10];
    int n = 0;
    do digits[n++] = (char)('0' + number % 10); while (number /= 10);
    while (n) *at++ = digits[--n];
    return at;
}
static char *put(char *at, const char *text) { while (*text) *at++ = *text++; return at; }

static long slurp(const char *path, char *to, size_t bytes) {
    long fd = SYS(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC), n = fd;
    if (fd < 0) return fd;
    n = SYS(read, fd, to, bytes);
    SYS(close, fd);
    return n;
}

/* Some fields of a process's stat, `skipped` ones behind its state, and a hash of its name; 0 for who is gone. A zombie is
 * not: it may be a leader whose threads live on. */
static int read_stat(u32 pid, u32 *name, int skipped, u64 *of, int count) {
    char path[32], stat[512];
    *put(put_number(put(path, "/proc/"), pid), "/stat") = 0;
    long n = slurp(path, stat, sizeof stat), at = n - 1;
    while (at > 0 && stat[at] != ')') at--;
    if (at <= 0) return 0;
    *name = 2166136261u; /* FNV-1a */
    for (long i = 0; i < at; i++) *name = (*name ^ (unsigned char)stat[i]) * 16777619u;
    for (at += 4; skipped; at++) if (at >= n || stat[at] == ' ') skipped--;
    for (int i = 0; i < count; i++, at++)
        for (of[i] = 0; at < n && stat[at] >= '0' && stat[at] <= '9'; at++) of[i] = of[i] * 10 + (u64)(stat[at] - '0');
    return 1;
}

/* Parent, process group and session. */
static int kinship(u32 pid, u64 of[3]) {
    u32 name;
    return read_stat(pid, &name, 0, of, 3);
}

/* In clock ticks since the boot (/proc/PID/stat, field 22); a tick is 10 ms on every architecture here. */
static u64 now_in_ticks(void) {
    struct { long seconds, nanoseconds; } now = {0};
    SYS(clock_gettime, CLOCK_BOOTTIME, &now);
    return (u64)now.seconds * 100 + (u64)now.nanoseconds / 10000000;
}

static u32 parent_of(u32 pid) {
    u64 of[3];
    return kinship(pid, of) ? (u32)of[0] : 0;
}

struct kin { u32 pid, parent; };

/* Appends the children that one thread has forked. The file is read whole or in chunks that end anywhere. */
static u32 add_children(const char *path, u32 parent, struct kin *tree, u32 count) {
    char text[512];
    u32 pid = 0;
    long n, fd = SYS(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && (n = SYS(read, fd, text, sizeof text)) > 0)
        for (long i = 0; i < n; i++) {
            if (text[i] != ' ') { pid = pid * 10 + (u32)(text[i] - '0'); continue; }
            if (count < MAX_TREE) tree[count++] = (struct kin){pid, parent};
            pid = 0;
        }
    if (fd >= 0) SYS(close, fd);
    return count;
}

static u32 add_kin(u32 pid, struct kin *tree, u32 count) {
    _Alignas(8) char entries[1024], path[64];
    char *threads = put(put_number(put(path, "/proc/"), pid), "/task/");
    *threads = 0;
    long n, fd = SYS(openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return count;
    while ((n = SYS(getdents64, fd, entries, sizeof entries)) > 0)
        for (long at = 0; at < n; at += *(uint16_t *)(entries + at + 16)) { /* struct linux_dirent64: d_reclen, d_name */
            char *name = entries + at + 19;
            if (*name == '.') continue;
            *put(put(threads, name), "/children") = 0;
            count = add_children(path, pid, tree, count);
        }
    SYS(close, fd);
    return count;
}

static int is_keeper(u32 pid) {
    for (u32 i = 0; i < used_slots; i++) if (slots[i].pid == pid) return 1;
    return 0;
}

/* What is hunted: everything below `root`; where `keeper` is set, root too; where `strays_of` is set, what a template's
 * keeper has to do with besides the template itself (`child`) and its workers. `asking`: who was asked to end already is
 * not asked again; where `is_first`, that is nobody yet. */
struct prey { u32 root, keeper; struct slot *strays_of; u32 child; struct asking *asking; int is_first; };

/* A process that forks while it is asked to end may leave somebody who was not, and one that was asked between its fork and
 * its execve has its parent's handler, and forgets. So of the young ones, from clock tick `since` on, who was not asked, or
 * goes by another name since, is asked once its parent has ended: until then it may be helping that to tidy up. Looked at
 * when somebody was reaped, and a few times meanwhile, later and later. `asked` is memory of its own, since hardly any
 * keeper needs it. */
struct asked { u32 pid, name; };
struct asking { u64 since; long again_ms; u32 count; struct asked *asked; };

/* Whether it is young and was not asked yet; from now on it was. */
static int is_unasked(struct asking *asking, u32 pid) {
    u64 birth;
    u32 name, at = 0;
    if (!read_stat(pid, &name, 18, &birth, 1) || birth < asking->since) return 0;
    if (!asking->asked && !(asking->asked = map(ASKED_BYTES, -1))) return 0;
    while (at < asking->count && asking->asked[at].pid != pid) at++;
    if (at < asking->count && asking->asked[at].name == name) return 0;
    if (at == ASKED_BYTES / sizeof *asking->asked) return 0; /* who forks so much gets KILL when its time is over */
    if (at == asking->count) asking->count++;
    asking->asked[at] = (struct asked){pid, name};
    return 1;
}

static u32 leave_unasked(const struct prey *prey, struct kin *tree, u32 count) {
    u32 kept = 0;
    for (u32 i = 0; i < count; i++) {
        int is_meant = prey->is_first || tree[i].parent == prey->root;
        if ((is_meant && is_unasked(prey->asking, tree[i].pid)) || prey->is_first) tree[kept++] = tree[i];
    }
    return kept;
}

/* Keeps those of the first `count` that nobody answers for: what workers left. Not who waits to be adopted: until then
 * it is in the template's session, where no worker leaves anything. */
static u32 sift(const struct prey *prey, struct kin *tree, u32 count) {
    struct brood *brood = prey->strays_of->brood;
    u32 *pids = map(sizeof *pids * PID_TABLE, -1), kept = 0, at;
    u64 of[3];
    if (!pids) { tree[0] = (struct kin){0, 0}; return 1; } /* nobody; the next round tries again */
    for (u32 i = 0; brood && i < brood->used; i++) {
        if (__atomic_load_n(&brood->workers[i].state, __ATOMIC_ACQUIRE) == FREE) continue;
        for (at = brood->workers[i].pid % PID_TABLE; pids[at]; at = (at + 1) % PID_TABLE) {}
        pids[at] = brood->workers[i].pid;
    }
    for (u32 i = 0; i < count; i++) {
        for (at = tree[i].pid % PID_TABLE; pids[at] && pids[at] != tree[i].pid; at = (at + 1) % PID_TABLE) {}
        if (pids[at] || tree[i].pid == prey->child) continue;
        if (prey->child && kinship(tree[i].pid, of) && of[2] == prey->child) continue;
        tree[kept++] = tree[i];
    }
    SYS(munmap, pids, sizeof *pids * PID_TABLE);
    return kept;
}

/* A child of ours keeps its number until we reap it, and so does its process group, which is of its tree alone: every
 * command begins a session (a template's workers do so late, so theirs are left out). A group is hit at once, so that
 * nobody forks out of the way. Of all others the pidfd is opened before the process is looked at again, so that a number
 * given out anew is not hit. */
static void strike(const struct prey *prey, struct kin kin, int signum, long *last) {
    if (kin.parent == (u32)SYS(getpid)) {
        int one_by_one = signum == SIGTERM || signum == SIGCONT || prey->keeper || prey->strays_of;
        long group = one_by_one ? 0 : SYS(getpgid, kin.pid);
        if (group > 1 && group != *last && group != SYS(getpgid, 0)) SYS(kill, -(*last = group), SIGKILL);
        SYS(kill, kin.pid, signum);
        return;
    }
    long fd = SYS(pidfd_open, kin.pid, 0);
    if (fd == -ESRCH) return;
    u32 parent = parent_of(kin.pid);
    if (parent && (parent == kin.parent || parent == prey->root)) {
        if (fd < 0 || SYS(pidfd_send_signal, fd, signum, 0, 0) == -ENOSYS) SYS(kill, kin.pid, signum);
    }
    if (fd >= 0) SYS(close, fd);
}

/* Parents first, each signalled (`signum`; 0: not) before its children are read. Main's own tree leaves the keepers out. */
static u32 collect(const struct prey *prey, struct kin *tree, int signum) {
    u32 count = 1, root = prey->root;
    long last = 0;
    if (prey->keeper) tree[0] = (struct kin){root, prey->keeper};
    else count = add_kin(root, tree, 0);
    if (prey->strays_of) count = sift(prey, tree, count);
    if (root == main_pid) {
        u32 kept = 0;
        for (u32 i = 0; i < count; i++) if (!is_keeper(tree[i].pid)) tree[kept++] = tree[i];
        count = kept;
    }
    for (u32 next = 0; next < count; next++) {
        if (signum) strike(prey, tree[next], signum, &last);
        count = add_kin(tree[next].pid, tree, count);
    }
    return count;
}

/* One round; returns how many there were. Before KILL everything is stopped, so that nobody forks into the room that
 * the dead make. */
static u32 hunt(const struct prey *prey, int level) {
    size_t bytes = sizeof(struct kin) * MAX_TREE;
    struct kin *tree = map(bytes, -1);
    if (!tree) return 1; /* no memory: the next round tries again */
    int first = level == LEVEL_KILL ? SIGSTOP : 0;
    long last = 0;
    u32 count = collect(prey, tree, first), before = 0, found = count;
    for (int pass = 0; first && count > 1 && count != before && pass < STOP_PASSES; pass++) {
        before = count;
        count = collect(prey, tree, first);
    }
    if (prey->asking) count = leave_unasked(prey, tree, count);
    for (u32 i = 0; i < count; i++) strike(prey, tree[i], level == LEVEL_KILL ? SIGKILL : SIGTERM, &last);
    for (u32 i = 0; level == LEVEL_TERM && i < count; i++) strike(prey, tree[i], SIGCONT, &last);
    SYS(munmap, tree, bytes);
    return found;
}

/* --- one process, from its request to the end of its tree --- */

struct job {
    struct slot *slot;
    struct start *request;
    struct limit *limits;
    u32 *groups;
    char *strings, *directory, *path; /* path: room for the file name that is tried, PATH_MAX */
    char *window; /* of a terminal: its struct winsize, unaligned */
    char **argv, **envp;
    int stdio[3], control;
};
enum { PATH_BYTES = 4096 };

static int refuse(struct job *job, int step, long error) {
    job->slot->step = (u32)step;
    job->slot->error = (u32)-error;
    return 127;
}

static void drop_capabilities(void) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0}};
    SYS(capset, &head, none);
}

static long become(struct job *job) {
    struct start *request = job->request;
    long error = 0;
    if (request->flags & F_IDENTITY) {
        if ((error = SYS(setgroups, request->groups, job->groups))) return error;
        if ((error = SYS(setresgid, request->gid, request->gid, request->gid))) return error;
        if ((error = SYS(setresuid, request->uid, request->uid, request->uid))) return error;
    }
    if (welcome_flags & W_CONFINE) drop_capabilities();
    return 0;
}

/* execvp(3) without its shell for files that are no program. The last error that says more than "not here" wins. */
static long execute(struct job *job) {
    const char *name = job->argv[0], *from = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    size_t bytes = length(name);
    for (const char *c = name; *c; c++) if (*c == '/') return SYS(execve, name, job->argv, job->envp);
    for (char **entry = job->envp; *entry; entry++)
        if ((*entry)[0] == 'P' && (*entry)[1] == 'A' && (*entry)[2] == 'T' && (*entry)[3] == 'H' && (*entry)[4] == '=') {
            from = *entry + 5;
            break;
        }
    long said = -ENOENT;
    for (;; from++) {
        const char *end = from;
        while (*end && *end != ':') end++;
        size_t prefix = (size_t)(end - from);
        if (prefix + bytes + 2 <= PATH_BYTES) {
            char *at = job->path;
            memcpy(at, from, prefix);
            at += prefix;
            if (prefix) *at++ = '/';
            memcpy(at, name, bytes + 1);
            long error = SYS(execve, job->path, job->argv, job->envp);
            if (error == -EACCES) said = error;
            else if (error != -ENOENT && error != -ENOTDIR && error != -ELOOP) return error;
        }
        from = end;
        if (!*end) return said;
    }
}

static long hand_on(int fd, int as) { return fd == as ? SYS(fcntl, fd, F_SETFD, 0) : SYS(dup3, fd, as, 0); }

/* Runs in the vforked child, in the keeper's memory: writes nothing but its slot. */
static int command(void *argument) {
    struct job *job = argument;
    struct start *request = job->request;
    u64 none = 0;
    int priority = 0;
    long error;
    SYS(setsid);
    if (is_batch) SYS(sched_setscheduler, 0, SCHED_OTHER, &priority);
    SYS(prctl, PR_SET_PDEATHSIG, SIGKILL); /* and again below: changing users takes it away */
    for (int i = 0; i < 3; i++) /* never 0-2 already: main keeps those open on /dev/null */
        if ((error = SYS(dup3, job->stdio[i], i, 0)) < 0) return refuse(job, STEP_PROCESS, error);
    if (request->flags & F_TTY && (error = SYS(ioctl, 1, TIOCSCTTY, 0)) < 0) return refuse(job, STEP_TTY, error);
    for (u32 i = 0; i < request->limits; i++) {
        u64 pair[2] = {job->limits[i].soft, job->limits[i].hard};
        if ((error = SYS(prlimit64, 0, job->limits[i].which, pair, 0)) < 0) return refuse(job, STEP_LIMIT, error);
    }
    if (request->flags & F_CONTROL && (error = hand_on(job->control, 3)) < 0) return refuse(job, STEP_PROCESS, error);
    if ((error = become(job)) < 0) return refuse(job, STEP_USER, error);
    if (job->directory && (error = SYS(chdir, job->directory)) < 0) return refuse(job, STEP_DIRECTORY, error);
    SYS(prctl, PR_SET_PDEATHSIG, SIGKILL);
    SYS(rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
    return refuse(job, STEP_EXEC, execute(job));
}

/* Points at `count` strings, one after the other. False where they do not fill their place exactly. */
static int point(char ***into, u32 count, char **at, const char *end) {
    char **pointers = *into;
    for (u32 i = 0; i < count; i++) {
        pointers[i] = *at;
        while (*at < end && **at) ++*at;
        if (*at == end) return 0;
        ++*at;
    }
    pointers[count] = NULL;
    *into = pointers + count + 1;
    return 1;
}

static int lay_out(struct job *job, char **pointers) {
    struct start *request = job->request;
    char *at = job->strings, *end = at + request->bytes;
    job->argv = pointers;
    if (!point(&pointers, request->argc, &at, end)) return 0;
    job->envp = pointers;
    if (!point(&pointers, request->envc, &at, end)) return 0;
    job->directory = NULL;
    if (request->flags & F_DIRECTORY) {
        job->directory = at;
        while (at < end && *at) at++;
        if (at++ == end) return 0;
    }
    job->path = (char *)pointers;
    return at == end;
}

/* A terminal belongs to who opens its master: the command's user may then open it again by name. A change of the user
 * takes the parent-death signal away (prctl(2)); if main died meanwhile, the signal is sent here. */
static long open_master(struct job *job) {
    int lent = job->request->flags & F_IDENTITY;
    long own = lent ? SYS(setfsuid, job->request->uid) : 0;
    long master = SYS(openat, AT_FDCWD, "/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (!lent) return master;
    SYS(setfsuid, own);
    SYS(prctl, PR_SET_PDEATHSIG, SIGUSR1);
    if ((u32)SYS(getppid) != main_pid) SYS(kill, job->slot->pid, SIGUSR1);
    return master;
}

/* A pseudo-terminal of this mount namespace: its own name is valid for who uses it. Returns the master. */
static long open_tty(struct job *job, struct passed *passed) {
    int unlock = 0;
    struct winsize window;
    memcpy(&window, job->window, sizeof window);
    long slave, master = open_master(job);
    if (master < 0) return master;
    slave = SYS(ioctl, master, TIOCSPTLCK, &unlock);
    if (slave >= 0) slave = SYS(ioctl, master, TIOCSWINSZ, &window);
    if (slave >= 0) slave = SYS(ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0) { SYS(close, master); return slave; }
    passed->fd[passed->count++] = (int)slave;
    for (int i = job->request->flags & F_NULL_STDIN ? 1 : 0; i < 3; i++) job->stdio[i] = (int)slave;
    return master;
}

/* What main has asked for since: sends the signals to `pid` (0: it has ended), returns the levels. */
static u32 heed(u64 *orders, u32 id, u32 pid) {
    u64 idle = (u64)id << 32;
    u32 asked = (u32)__atomic_exchange_n(&orders[0], idle, __ATOMIC_ACQ_REL);
    for (int half = 0; half < 2; half++) {
        u32 signals = (u32)__atomic_exchange_n(&orders[1 + half], idle, __ATOMIC_ACQ_REL);
        for (int i = 0; pid && i < 32; i++) if (signals >> i & 1) SYS(kill, pid, half * 32 + i + 1);
    }
    return asked;
}

static void ask_to_end(struct slot *slot, struct asking *asking, int is_first, int look) {
    if (is_first) {
        asking->since = now_in_ticks() - YOUNG_TICKS;
        asking->again_ms = HUNT_MS;
        asking->count = 0;
    } else if (asking->since && (look || asking->again_ms)) {
        asking->again_ms = asking->again_ms < ASK_MS ? 2 * asking->again_ms : 0;
    } else {
        return;
    }
    hunt(&(struct prey){.root = slot->pid, .asking = asking, .is_first = is_first}, LEVEL_TERM);
}

static void take_orders(struct slot *slot, u32 child, int *level, struct asking *asking, int look) {
    u32 asked = heed(slot->orders, slot->id, child);
    if (!*level) ask_to_end(slot, asking, asked & LEVEL_TERM, look);
    if (asked & LEVEL_KILL) *level = LEVEL_KILL;
    if ((u32)SYS(getppid) != main_pid) *level = LEVEL_KILL; /* main is dead: nobody will ever ask */
}

static void tell_exit(u32 id, int status, int empty, struct rusage *used) {
    struct event event = {.op = EXITED, .id = id, .a = status, .b = empty};
    event.user_us = (u64)used->ru_utime.tv_sec * 1000000 + (u64)used->ru_utime.tv_usec;
    event.system_us = (u64)used->ru_stime.tv_sec * 1000000 + (u64)used->ru_stime.tv_usec;
    event.max_rss_kb = (u64)used->ru_maxrss;
    say(channel, &event, sizeof event, -1);
}

/* --- a template's workers --- */

/* Takes a worker out of the brood; false where somebody else was first. */
static int take_out(struct worker *worker, u32 state) {
    if (__atomic_load_n(&worker->state, __ATOMIC_ACQUIRE) != state) return 0;
    for (int i = 0; i < 3; i++) __atomic_store_n(&worker->orders[i], 0, __ATOMIC_RELEASE);
    return __atomic_compare_exchange_n(&worker->state, &state, FREE, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void turn_away(struct worker *worker, int error) {
    u32 id = worker->id;
    if (take_out(worker, ASKED)) tell(REFUSED, id, error, STEP_ADOPT, -1);
}

/* Ours is who fell to us and is still in the template's session, as everybody is who waits to be adopted. */
static void adopt(struct slot *slot, u32 child, struct worker *worker) {
    u64 of[3];
    u32 asked = ASKED, id = worker->id, pid = worker->pid;
    int is_ours = child && pid != child && kinship(pid, of) && of[0] == slot->pid && of[2] == child;
    if (!is_ours) turn_away(worker, ESRCH);
    else if (__atomic_compare_exchange_n(&worker->state, &asked, KEPT, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        tell(STARTED, id, (int)pid, 0, -1);
}

/* Somebody was reaped: a worker, or what a worker left. */
static void bury(struct slot *slot, u32 pid, int status, struct rusage *used) {
    struct brood *brood = slot->brood;
    for (u32 i = 0; brood && i < brood->used; i++) {
        struct worker *worker = &brood->workers[i];
        if (worker->pid != pid) continue;
        if (worker->state == ASKED) turn_away(worker, ESRCH);
        if (worker->state != KEPT) continue;
        tell_exit(worker->id, status, 0, used);
        __atomic_store_n(&worker->state, ENDED, __ATOMIC_RELEASE);
    }
}

/* Orders for one worker; returns whether there is more to do soon. */
static int tend_one(struct slot *slot, u32 child, struct worker *worker, u32 strays) {
    u32 state = __atomic_load_n(&worker->state, __ATOMIC_ACQUIRE), id = worker->id;
    if (state == ASKED) adopt(slot, child, worker);
    if (state == ENDED && !strays && take_out(worker, ENDED)) tell(EMPTY, id, 0, 0, -1);
    if (worker->state != KEPT) return worker->state == ENDED;
    u32 asked = heed(worker->orders, id, worker->pid);
    struct prey prey = {.root = worker->pid, .keeper = slot->pid};
    if (asked & LEVEL_TERM) hunt(&prey, LEVEL_TERM);
    worker->level |= asked & LEVEL_KILL;
    if (worker->level) hunt(&prey, LEVEL_KILL);
    return worker->level != 0;
}

/* `look`: somebody was reaped, so that there may be what a worker left. A worker's end is told once nothing of that is
 * there, whoever's it was. Returns whether there is more to do soon. */
static int tend(struct slot *slot, u32 child, int look) {
    struct brood *brood = slot->brood;
    struct prey prey = {.root = slot->pid, .strays_of = slot, .child = child};
    u32 strays = look ? hunt(&prey, LEVEL_KILL) : 0;
    int more = strays > 0;
    if (!brood || (!__atomic_exchange_n(&brood->asked, 0, __ATOMIC_SEQ_CST) && !look)) return more;
    for (u32 i = 0; i < __atomic_load_n(&brood->used, __ATOMIC_ACQUIRE); i++)
        more |= tend_one(slot, child, &brood->workers[i], strays);
    return more;
}

/* Nobody is left. Who was entered since is turned away, here or by main. */
static void dissolve(struct brood *brood) {
    for (u32 i = 0; brood && i < __atomic_load_n(&brood->used, __ATOMIC_SEQ_CST); i++) {
        u32 id = brood->workers[i].id;
        turn_away(&brood->workers[i], ESRCH);
        if (take_out(&brood->workers[i], ENDED)) tell(EMPTY, id, 0, 0, -1);
    }
}

static void keep(struct slot *slot, u32 child) {
    u64 wakes = bit(SIGCHLD) | bit(SIGUSR1);
    struct { long seconds, nanoseconds; } pause = {0}, none = {0};
    struct asking asking = {0};
    int status = 0, level = 0, told = 0, busy = 0, more = 0;
    u32 id = slot->id;
    for (;;) {
        long pause_ms = level || busy ? HUNT_MS : asking.again_ms;
        pause.nanoseconds = pause_ms * 1000000;
        SYS(rt_sigtimedwait, &wakes, 0, more ? &none : pause_ms ? &pause : 0, sizeof wakes);
        struct rusage used, last;
        long pid = 0;
        int code, ended = 0, look = busy;
        for (int n = 0; n < REAP_BURST && (pid = SYS(wait4, -1, &code, WNOHANG | __WALL, &used)) > 0; n++) {
            if (pid == child) { ended = 1; status = code; last = used; child = 0; }
            else if (slot->is_template) bury(slot, (u32)pid, code, &used);
            look = 1;
        }
        more = pid > 0;
        int empty = pid == -ECHILD;
        if (slot->is_template) busy = tend(slot, child, look);
        if (ended) { tell_exit(id, status, empty, &last); told = empty; }
        if (empty && !told) tell(EMPTY, id, 0, 0, -1);
        if (empty) break;
        take_orders(slot, child, &level, &asking, look);
        if (level) hunt(&(struct prey){.root = slot->pid}, level);
    }
    if (asking.asked) SYS(munmap, asking.asked, ASKED_BYTES);
}

/* The request is sound and the job laid out: start it, and keep it until nothing is left. */
static void run(struct job *job, struct passed *passed) {
    struct slot *slot = job->slot;
    u32 id = job->request->id;
    long master = -1, child;
    slot->error = slot->child = 0;
    slot->is_template = job->request->flags & F_CONTROL;
    for (int i = 0; i < 3; i++) __atomic_store_n(&slot->orders[i], (u64)id << 32, __ATOMIC_RELEASE);
    __atomic_store_n(&slot->id, id, __ATOMIC_RELEASE);
    if (job->request->flags & F_TTY && (master = open_tty(job, passed)) < 0) {
        close_passed(passed);
        tell(REFUSED, id, (int)-master, STEP_TTY, -1);
    } else {
        child = fork_with(CLONE_VM | CLONE_VFORK | CLONE_PARENT_SETTID | SIGCHLD, 0, &slot->child, command, job);
        __atomic_store_n(&slot->child, 0, __ATOMIC_RELEASE); /* from here it may be reaped */
        close_passed(passed);
        if (child < 0) {
            tell(REFUSED, id, (int)-child, STEP_PROCESS, -1);
        } else if (slot->error) {
            SYS(wait4, child, 0, __WALL, 0);
            tell(REFUSED, id, (int)slot->error, (int)slot->step, -1);
        } else {
            tell(STARTED, id, (int)child, 0, (int)master);
            if (master >= 0) SYS(close, master);
            master = -1;
            keep(slot, (u32)child);
        }
    }
    if (master >= 0) SYS(close, master);
    __atomic_store_n(&slot->id, 0, __ATOMIC_SEQ_CST);
    for (int i = 0; i < 3; i++) __atomic_store_n(&slot->orders[i], 0, __ATOMIC_RELEASE);
    dissolve(slot->brood);
}

/* Whether the counts fit each other and the frame; sets where its parts lie. */
static int parse(struct job *job, struct start *request, long bytes, struct passed *passed) {
    if (bytes < (long)sizeof *request || request->op != START || !request->id || request->flags & ~(u32)F_ALL) return 0;
    u32 spilled = request->flags & F_SPILLED, tty = request->flags & F_TTY, no_stdin = request->flags & F_NULL_STDIN;
    u32 is_template = request->flags & F_CONTROL;
    if (tty && is_template) return 0;
    if (!request->argc || request->argc > MAX_STRINGS || request->envc > MAX_STRINGS) return 0;
    if (request->groups > MAX_GROUPS || request->limits > MAX_LIMITS || request->bytes > MAX_STRINGS_BYTES) return 0;
    if (passed->count != (tty ? 0 : no_stdin ? 2 : 3) + !!is_template + !!spilled) return 0;
    job->limits = (struct limit *)(request + 1);
    job->groups = (u32 *)(job->limits + request->limits);
    job->strings = (char *)(job->groups + request->groups);
    long fixed = job->strings - (char *)request, window = tty ? (long)sizeof(struct winsize) : 0;
    if (bytes != fixed + (spilled ? 0 : (long)request->bytes) + window) return 0;
    job->window = (char *)request + bytes - window;
    int next = 0;
    for (int i = 0; i < 3; i++) job->stdio[i] = tty || (!i && no_stdin) ? null : passed->fd[next++];
    job->control = is_template ? passed->fd[next] : -1;
    return 1;
}

static size_t pointer_bytes(struct start *request) {
    return ((size_t)request->argc + request->envc + 2) * sizeof(char *);
}

/* Returns 0 for a frame that is none of ours. */
static int serve(struct slot *slot, struct start *request, long bytes, struct passed *passed) {
    struct job job = {.slot = slot, .request = request};
    if (!parse(&job, request, bytes, passed)) return 0;
    char *inline_room = (char *)(((uintptr_t)request + (size_t)bytes + 7) & ~(uintptr_t)7);
    if (!(request->flags & F_SPILLED)) {
        if (pointer_bytes(request) > POINTER_BYTES || !lay_out(&job, (char **)inline_room)) return 0;
        run(&job, passed);
        return 1;
    }
    int file = passed->fd[passed->count - 1];
    if (SYS(lseek, file, 0, SEEK_END) != (long)request->bytes) return 0; /* past its end is SIGBUS */
    size_t room = pointer_bytes(request) + PATH_BYTES;
    char **pointers = map(room, -1);
    job.strings = pointers ? map(request->bytes, passed->fd[passed->count - 1]) : NULL;
    int sound = !job.strings || lay_out(&job, pointers);
    if (!job.strings) { close_passed(passed); tell(REFUSED, request->id, ENOMEM, STEP_REQUEST, -1); }
    else if (sound) run(&job, passed);
    if (job.strings) SYS(munmap, job.strings, request->bytes);
    if (pointers) SYS(munmap, pointers, room);
    return sound;
}

static void keep_capabilities(void) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct held[2] = {{held_caps, held_caps, 0}, {0}};
    SYS(capset, &head, held);
}

/* A user that nobody in the sandbox is: without a capability none can signal main or a keeper, or change its limits. */
static void take_own_user(void) {
    if (!(welcome_flags & W_CONFINE) || !(held_caps & 1u << CAP_SETUID) || keeper_uid == NO_USER) return;
    SYS(prctl, PR_SET_KEEPCAPS, 1);
    SYS(setresuid, keeper_uid, keeper_uid, keeper_uid);
    keep_capabilities();
    SYS(prctl, PR_SET_DUMPABLE, 0);
}

#define LOAD(field) {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, field)}
#define EQUAL(value, yes) {BPF_JMP | BPF_JEQ | BPF_K, yes, 0, value}
#define UNLESS(value, no) {BPF_JMP | BPF_JEQ | BPF_K, 0, no, value}
#define RETURN(action) {BPF_RET | BPF_K, 0, 0, action}
#if defined(__x86_64__)
enum { NATIVE = AUDIT_ARCH_X86_64, COMPAT = AUDIT_ARCH_I386, COMPAT_UNSHARE = 310 };
#else
enum { NATIVE = (int)AUDIT_ARCH_AARCH64, COMPAT = AUDIT_ARCH_ARM, COMPAT_UNSHARE = 337 };
#endif

/* What the engine's own filter leaves open, and commands must not have: KILL or STOP by way of a descriptor's owner,
 * which the kernel allows the host's uid 0 towards everybody (fcntl(2), F_SETSIG; sigio_perm in fs/fcntl.c), and user
 * namespaces (more kernel within reach). Arguments of clone3(2) cannot be looked at; libraries do without it. */
static long filter_calls(void) {
    static struct sock_filter code[] = {
        /* 0 */ LOAD(arch), UNLESS((u32)NATIVE, 7),
        /* 2 */ LOAD(nr), {BPF_ALU | BPF_AND | BPF_K, 0, 0, 0x3fffffff}, /* x32 has the same numbers */
        /* 4 */ EQUAL(__NR_fcntl, 12), EQUAL(__NR_unshare, 17), EQUAL(__NR_clone, 16), EQUAL(__NR_clone3, 18),
        /* 8 */ RETURN(SECCOMP_RET_ALLOW),
        /* 9 */ UNLESS((u32)COMPAT, 16), LOAD(nr),
        /* 11 */ EQUAL(55, 5), EQUAL(221, 4), EQUAL(120, 9), EQUAL(COMPAT_UNSHARE, 8), EQUAL(435, 10),
        /* 16 */ RETURN(SECCOMP_RET_ALLOW),
        /* 17 fcntl */ LOAD(args[1]), UNLESS(10 /* F_SETSIG */, 3),
        /* 19 */ LOAD(args[2]), EQUAL(SIGKILL, 4), EQUAL(SIGSTOP, 3),
        /* 22 */ RETURN(SECCOMP_RET_ALLOW),
        /* 23 clone, unshare */ LOAD(args[0]), {BPF_JMP | BPF_JSET | BPF_K, 0, 2, CLONE_NEWUSER},
        /* 25 */ RETURN(SECCOMP_RET_ERRNO | EPERM),
        /* 26 */ RETURN(SECCOMP_RET_ERRNO | ENOSYS),
        /* 27 */ RETURN(SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    return SYS(prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

/* A keeper that is woken does not push fastclaw off its processor in the middle of a turn (sched(7)): sixteen starts at a
 * time are a fifth faster so. What it starts is scheduled as ever. Who runs under another policy keeps it. */
static void wait_for_turn(void) {
    int priority = 0;
    if (SYS(sched_getscheduler, 0) == SCHED_OTHER) is_batch = !SYS(sched_setscheduler, 0, SCHED_BATCH, &priority);
}

static int keeper(void *argument) {
    struct slot *slot = argument;
    struct start *request = (struct start *)(slot->memory + KEEPER_STACK);
    struct passed passed;
    slot->pid = (u32)SYS(getpid);
    SYS(prctl, PR_SET_CHILD_SUBREAPER, 1);
    SYS(prctl, PR_SET_PDEATHSIG, SIGUSR1);
    wait_for_turn();
    SYS(close, control);
    for (;;) {
        long n = receive(channel, request, FRAME_BYTES, &passed);
        if (n == -EINTR) continue;
        int retire = n == sizeof(struct control) && request->op == RETIRE;
        if (n <= 0 || retire || dying || !serve(slot, request, n, &passed)) {
            if (n && !retire && !dying) SYS(shutdown, channel, SHUT_RDWR); /* a malformed frame: main and fastclaw see the end */
            return 0;
        }
    }
}

/* --- main --- */

static void answer(u32 id, long error, int value, int fd) {
    struct event event = {.op = ANSWER, .id = id, .a = error < 0 ? (int)-error : 0, .b = value};
    say(control, &event, sizeof event, fd);
}

static long add_keeper(void) {
    struct slot *slot = slots;
    while (slot < slots + MAX_KEEPERS && (slot->pid || slot->id)) slot++; /* a lost one's stack may be in use */
    if (slot == slots + MAX_KEEPERS) return -EAGAIN;
    if (!slot->memory && !(slot->memory = map(KEEPER_BYTES, -1))) return -ENOMEM;
    slot->id = slot->child = 0;
    long pid = fork_with(CLONE_VM | CLONE_PARENT_SETTID | SIGCHLD, slot->memory + KEEPER_STACK, &slot->pid, keeper, slot);
    if (pid < 0) { slot->pid = 0; return pid; }
    slot->pid = (u32)pid;
    if (used_slots <= (u32)(slot - slots)) used_slots = (u32)(slot - slots) + 1;
    keepers++;
    return 0;
}

static void grow(u32 id, u32 count) {
    long error = 0;
    u32 added = 0;
    while (added < count && !(error = add_keeper())) added++;
    answer(id, error, (int)added, -1);
}

/* An order counts only as long as its place serves the request it was meant for. */
static int leave_order(u64 *orders, u32 id, int word, u32 bits) {
    u64 now = __atomic_load_n(&orders[word], __ATOMIC_ACQUIRE);
    do if (now >> 32 != id) return 0;
    while (!__atomic_compare_exchange_n(&orders[word], &now, now | bits, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return 1;
}

static void order(struct slot *slot, u32 id, int word, u32 bits) {
    if (leave_order(slot->orders, id, word, bits)) SYS(kill, slot->pid, SIGUSR1);
}

/* A command that was stopped before its execve would hold its keeper in vfork for ever. The id is looked at last: who was
 * read before that is its child, and not that of the slot's next request. */
static void free_from_vfork(struct slot *slot, u32 id) {
    u32 child = __atomic_load_n(&slot->child, __ATOMIC_ACQUIRE);
    long fd = child ? SYS(pidfd_open, child, 0) : -ESRCH;
    if (fd < 0) return;
    if (__atomic_load_n(&slot->child, __ATOMIC_ACQUIRE) == child && __atomic_load_n(&slot->id, __ATOMIC_ACQUIRE) == id)
        SYS(pidfd_send_signal, fd, SIGKILL, 0, 0);
    SYS(close, fd);
}

static void end(struct slot *slot, u32 id, u32 level) {
    order(slot, id, 0, level);
    if (level != LEVEL_KILL) return;
    SYS(kill, slot->pid, SIGCONT);
    free_from_vfork(slot, id);
}

static struct slot *find(u32 id) {
    for (u32 i = 0; id && i < used_slots; i++) if (slots[i].id == id) return &slots[i];
    return NULL;
}

static void wake_brood(struct slot *slot) {
    __atomic_store_n(&slot->brood->asked, 1, __ATOMIC_SEQ_CST);
    SYS(kill, slot->pid, SIGUSR1);
}

static void order_worker(struct slot *slot, u32 id, int word, u32 bits) {
    struct brood *brood = slot && slot->pid ? slot->brood : NULL;
    for (u32 i = 0; brood && i < brood->used; i++)
        if (brood->workers[i].id == id && leave_order(brood->workers[i].orders, id, word, bits)) wake_brood(slot);
}

/* Enters a worker for the keeper to look at. Where that has gone meanwhile, one of both turns it away. */
static long enter(struct slot *slot, u32 template, u32 id, u32 pid) {
    if (!slot || !slot->pid || !slot->is_template) return -ESRCH;
    if (!slot->brood && !(slot->brood = map(sizeof(struct brood), -1))) return -ENOMEM;
    struct brood *brood = slot->brood;
    u32 at = 0;
    while (at < brood->used && __atomic_load_n(&brood->workers[at].state, __ATOMIC_ACQUIRE) != FREE) at++;
    if (at == MAX_BROOD) return -EAGAIN;
    struct worker *worker = &brood->workers[at];
    worker->pid = pid;
    worker->id = id;
    worker->level = 0;
    for (int i = 0; i < 3; i++) __atomic_store_n(&worker->orders[i], (u64)id << 32, __ATOMIC_RELEASE);
    __atomic_store_n(&worker->state, ASKED, __ATOMIC_SEQ_CST);
    if (at == brood->used) __atomic_store_n(&brood->used, at + 1, __ATOMIC_SEQ_CST);
    wake_brood(slot);
    if (__atomic_load_n(&slot->id, __ATOMIC_SEQ_CST) != template) turn_away(worker, ESRCH);
    return 0;
}

static void enter_or_refuse(struct control *asked) {
    long error = enter(find(asked->b), asked->b, asked->id, asked->a);
    if (error) tell(REFUSED, asked->id, (int)-error, STEP_ADOPT, -1);
}

static void end_all(u32 level) {
    for (u32 i = 0; i < used_slots; i++) if (slots[i].id) end(&slots[i], slots[i].id, level);
}

static void listen_for(struct control *asked) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = __builtin_bswap16((uint16_t)asked->a)};
    socklen_t bytes = sizeof address;
    int one = 1;
    address.sin_addr.s_addr = __builtin_bswap32(INADDR_LOOPBACK);
    long fd = SYS(socket, AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), error = fd;
    if (fd >= 0) error = SYS(setsockopt, fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (error >= 0) error = SYS(bind, fd, &address, sizeof address);
    if (error >= 0) error = SYS(listen, fd, asked->b);
    if (error >= 0) error = SYS(getsockname, fd, &address, &bytes);
    answer(asked->id, error, __builtin_bswap16(address.sin_port), error < 0 ? -1 : (int)fd);
    if (fd >= 0) SYS(close, fd);
}

/* A file as who is in here sees it, into a file of who asks. Not from what may block: sendfile(2) wants a real file. */
static void read_for(struct control *asked, const char *path, struct passed *passed) {
    long fd = SYS(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), n = fd;
    u32 total = 0;
    while (fd >= 0 && total < MAX_FILE_BYTES && (n = SYS(sendfile, passed->fd[0], fd, 0, MAX_FILE_BYTES - total)) > 0)
        total += (u32)n;
    if (fd >= 0) SYS(close, fd);
    answer(asked->id, n, (int)total, -1);
}

/* Returns 0 for a frame that is none of ours, and for the wish to end. */
static int obey(struct control *asked, long bytes, struct passed *passed) {
    if (bytes < (long)sizeof *asked) return 0;
    char *path = (char *)(asked + 1);
    struct slot *slot;
    int word;
    switch (asked->op) {
    case GROW:
        if (asked->a > MAX_KEEPERS) return 0;
        grow(asked->id, asked->a);
        return 1;
    case PING: answer(asked->id, 0, (int)keepers, -1); return 1;
    case LISTEN:
        if (asked->a > 65535) return 0;
        listen_for(asked);
        return 1;
    case SIGNAL:
        if (asked->a < 1 || asked->a > 64) return 0;
        word = 1 + (asked->a > 32);
        if (asked->b) order_worker(find(asked->b), asked->id, word, 1u << (asked->a - 1) % 32);
        else if ((slot = find(asked->id))) order(slot, asked->id, word, 1u << (asked->a - 1) % 32);
        return 1;
    case END:
        if (asked->a != LEVEL_TERM && asked->a != LEVEL_KILL) return 0;
        if (!asked->id) end_all(asked->a);
        else if (asked->b) order_worker(find(asked->b), asked->id, 0, asked->a);
        else if ((slot = find(asked->id))) end(slot, asked->id, asked->a);
        return 1;
    case ADOPT:
        if (!asked->id || !asked->a || !asked->b) return 0;
        enter_or_refuse(asked);
        return 1;
    case READ:
        if (passed->count != 1 || bytes == sizeof *asked || ((char *)asked)[bytes - 1]) return 0;
        read_for(asked, path, passed);
        return 1;
    default: return 0;
    }
}

static void tell_lost(void) {
    for (u32 i = 0; i < used_slots; i++) {
        if (slots[i].pid || !slots[i].id) continue;
        tell(LOST, slots[i].id, 0, 0, -1);
        for (u32 k = 0; slots[i].brood && k < slots[i].brood->used; k++) {
            struct worker *worker = &slots[i].brood->workers[k];
            if (worker->state != FREE) tell(LOST, worker->id, 0, 1, -1); /* no keeper of its own */
            worker->state = FREE;
        }
        slots[i].id = 0;
    }
}

/* Ours are the keepers only. Whatever else falls to us lost its keeper, so it is ended. Returns what wait4 said last. */
static long reap(void) {
    struct prey everything = {.root = main_pid};
    long pid;
    while ((pid = SYS(wait4, -1, 0, WNOHANG | __WALL, 0)) > 0)
        for (u32 i = 0; i < used_slots; i++) {
            if (slots[i].pid != (u32)pid) continue;
            if (slots[i].id) strays = 1; /* its number stays until they are gone: then it is told */
            slots[i].pid = 0;
            for (int k = 0; k < 3; k++) slots[i].orders[k] = 0;
            keepers--;
        }
    if (strays && !(strays = hunt(&everything, LEVEL_KILL) > 0)) tell_lost();
    return pid;
}

/* The kernel ends a PID namespace with its init. On a host every tree is ended by its keeper. */
static _Noreturn void end_everything(void) {
    struct { long seconds, nanoseconds; } pause = {0, HUNT_MS * 1000000};
    u64 wakes = bit(SIGCHLD);
    if (main_pid == 1) leave(0);
    dying = 1;
    SYS(shutdown, channel, SHUT_RDWR);
    strays = 1;
    while (reap() != -ECHILD) {
        end_all(LEVEL_KILL);
        SYS(rt_sigtimedwait, &wakes, 0, &pause, sizeof wakes);
    }
    leave(0);
}

static _Noreturn void attend(void) {
    static _Alignas(8) char frame[FRAME_BYTES];
    u64 chld = bit(SIGCHLD);
    struct { long seconds, nanoseconds; } pause = {0, HUNT_MS * 1000000};
    long children = SYS(signalfd4, -1, &chld, sizeof chld, SFD_CLOEXEC | SFD_NONBLOCK);
    if (children < 0) leave(4);
    for (;;) {
        struct pollfd of[3] = {{control, POLLIN, 0}, {(int)children, POLLIN, 0}, {channel, 0, 0}};
        SYS(ppoll, of, 3, strays ? &pause : 0, 0, 8);
        int died = of[1].revents; /* or since the poll: what is read here is never told again */
        while (SYS(read, children, frame, sizeof frame) > 0) died = 1;
        if (died || strays) reap();
        if (of[2].revents) end_everything();
        if (!of[0].revents) continue;
        struct passed passed;
        long n = receive(control, frame, sizeof frame, &passed);
        int sound = n > 0 && obey((struct control *)frame, n, &passed);
        close_passed(&passed);
        if (!sound && n != -EINTR) end_everything();
    }
}

static void reset_signals(void) {
    struct { u64 handler, flags, restorer, mask; } standard = {0};
    u64 all = ~0ull;
    for (int signum = 1; signum <= 64; signum++) SYS(rt_sigaction, signum, &standard, 0, sizeof all);
    SYS(rt_sigprocmask, SIG_SETMASK, &all, 0, sizeof all);
}

/* argv[1]: the path of the socket to connect to, or the number of a descriptor that is connected already. */
static int reach(const char *where) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t bytes = length(where);
    if (*where != '/') {
        int fd = 0;
        while (*where >= '0' && *where <= '9') fd = fd * 10 + *where++ - '0';
        SYS(fcntl, fd, F_SETFD, FD_CLOEXEC);
        return fd;
    }
    if (bytes >= sizeof address.sun_path) leave(2);
    memcpy(address.sun_path, where, bytes + 1);
    long fd = SYS(socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || SYS(connect, fd, &address, sizeof address)) leave(2);
    return (int)fd;
}

static u32 find_capabilities(void) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct held[2] = {{0}};
    return SYS(capget, &head, held) ? 0 : held[0].permitted;
}

/* The environment goes along: it is what the engine made of the image's. */
static void shake_hands(char **envp) {
    static char frame[HELLO_BYTES];
    char probe[1], path[64];
    *put(put_number(put(path, "/proc/self/task/"), main_pid), "/children") = 0;
    u32 facts = (slurp(path, probe, sizeof probe) >= 0) | (u32)((find_capabilities() & CAPS) == CAPS) << 1;
    struct hello hello = {HELLO, MAGIC, VERSION, facts};
    size_t bytes = sizeof hello;
    memcpy(frame, &hello, sizeof hello);
    for (; *envp; envp++) {
        size_t more = length(*envp) + 1;
        if (bytes + more > sizeof frame) leave(3);
        memcpy(frame + bytes, *envp, more);
        bytes += more;
    }
    struct passed passed;
    if (say(control, frame, bytes, -1) < 0) leave(3);
    struct control *welcome = (struct control *)frame;
    if (receive(control, frame, sizeof frame, &passed) != sizeof *welcome || welcome->op != WELCOME) leave(3);
    if (welcome->id != VERSION || passed.count != 1) leave(3);
    welcome_flags = welcome->a;
    keeper_uid = welcome->b;
    channel = passed.fd[0];
}

__attribute__((used)) _Noreturn void begin(long *stack) {
    char **argv = (char **)(stack + 1), **envp = argv + stack[0] + 1;
    if (stack[0] != 2) leave(1);
    main_pid = (u32)SYS(getpid);
    SYS(prctl, PR_SET_DUMPABLE, 0);
    SYS(setsid);
    reset_signals();
    if (main_pid != 1) SYS(prctl, PR_SET_CHILD_SUBREAPER, 1);
    control = reach(argv[1]);
    do null = (int)SYS(openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC); while (null >= 0 && null < 3);
    if (null < 0) leave(1);
    for (int fd = 0; fd < 3; fd++) SYS(dup3, null, fd, 0);
    slots = map(sizeof(struct slot) * MAX_KEEPERS, -1);
    if (!slots) leave(1);
    shake_hands(envp);
    held_caps = find_capabilities() & CAPS;
    if (welcome_flags & W_CONFINE) {
        SYS(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        keep_capabilities();
        take_own_user();
        if (filter_calls() < 0) leave(5);
    }
    attend();
}
