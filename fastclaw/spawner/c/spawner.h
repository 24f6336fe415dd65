/* The spawner: init of a container (or a child of fastclaw on the host) that starts processes on request.
 *
 *   main    PID 1. Talks to fastclaw over the control socket: signals, ends, clients, listeners, more reapers. When that
 *           socket closes, everything here ends. (main.c)
 *   reaper  one for each process: a subreaper, whose wait4 says ECHILD when neither the command nor any descendant is
 *           left, which is the kernel's own proof. Only it signals and reaps its tree. (reaper.c, tree.c)
 *   pump    one beside each reaper. Takes a START from the channel, makes the pipes or the terminal, starts the command as
 *           the reaper's child, and from then on moves its bytes: to clients, or into a bounded store. (pump.c, clients.c,
 *           collect.c)
 *
 * A command can block every task that touches one of its pipes: splice(2) from an empty socket waits with the pipe's
 * mutex held, and then even the last close waits, uninterruptibly. So a command's pipe is held, read, written and closed
 * by its pump alone, a task with its own descriptors; all others wait for a pump with a deadline.
 *
 * All tasks share main's memory (CLONE_VM); each has its own table of descriptors once it has started. Reaper and pump
 * share one word of their slot (MEET_*): the second of them to set its bits tells fastclaw what both know.
 *
 * Freestanding: raw system calls and no libc at run time, since a libc's errno and thread pointer would be shared by all.
 * No recursion, no allocation in a loop, every buffer bounded; the bounds are those of fastclaw/spawner/frames.py.
 *
 * Facts: clone(2), wait(2) (__WCLONE), prctl(2), unix(7), capabilities(7), pid_namespaces(7), proc_pid_task(5), pidfd_open(2),
 * pty(7), ioctl_tty(2), splice(2), pipe(7), memfd_create(2), close_range(2).
 */
#ifndef SPAWNER_H
#define SPAWNER_H
#define _GNU_SOURCE
#include <asm/unistd.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

typedef uint32_t u32;
typedef uint64_t u64;

/* --- system calls (system.c) --- */

#if defined(__x86_64__)
static inline long sys6(long n, long a, long b, long c, long d, long e, long f) {
    long r;
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return r;
}
#elif defined(__aarch64__)
static inline long sys6(long n, long a, long b, long c, long d, long e, long f) {
    register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
#else
#error "the spawner knows x86_64 and aarch64"
#endif
/* As clone(2) of the C library; a stack of 0 is below our own. */
long fork_with(unsigned long flags, void *stack, u32 *parent_tid, int (*fn)(void *), void *arg);

#define SYS(name, ...) SYS_(__NR_##name, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define SYS_(n, a, b, c, d, e, f, ...) \
    sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

struct moment { long seconds, nanoseconds; };

void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int byte, size_t n);
size_t length(const char *text);
char *put(char *at, const char *text);
char *put_number(char *at, u32 number);
_Noreturn void exit_process(int code);
void *map(size_t bytes, int fd);
u64 now_ns(void);
u64 now_ms(void);
void park(u32 *word, u32 value, long milliseconds); /* until it changes; < 0: without a limit */
long unpark(u32 *word); /* returns how many waited */
static inline u64 bit(int signum) { return 1ull << (signum - 1); }

#define LOAD_OF(of) __atomic_load_n(of, __ATOMIC_SEQ_CST)
#define STORE_TO(of, value) __atomic_store_n(of, value, __ATOMIC_SEQ_CST)
#define ADD_BITS(of, bits) __atomic_fetch_or(of, bits, __ATOMIC_SEQ_CST)

/* --- bounds; see fastclaw/spawner/frames.py --- */

enum { VERSION = 7, MAGIC = 0x57414c43 };
enum {
    FRAME_BYTES = 16 << 10,
    HELLO_BYTES = 64 << 10,
    MAX_STRINGS_BYTES = 8 << 20,
    MAX_REQUEST_BYTES = 16 << 20, /* of a template */
    MAX_STRINGS = 1 << 20,
    MAX_GROUPS = 256,
    MAX_LIMITS = 16,
    MAX_FDS = 5,
    MAX_JOINS = 3, /* control groups of a command's own: one for each controller of version 1 */
    MAX_REAPERS = 16 << 10,
    MAX_FILE_BYTES = 1 << 20,
    MAX_TREE = 32 << 10, /* pids of one tree: the default pid_max */
    MAX_WORKERS = 16 << 10,
    MAX_USAGE_ROWS = 512,
    MAX_LOOKED_AT = 4 << 10, /* processes of the trees of one MEASURE: some 50 ms */
    MAX_OUTPUT_BYTES = 16 << 20,
    INLINE_BYTES = 8 << 10, /* of each stream of a run: what comes with its end, without a file */
    SAID_BYTES = 4 << 10,   /* one frame of a template */
    MAX_SENDERS = 16,       /* clients that left while their last input waits for the process, and the connected one */
    PATH_BYTES = 4096,
};

/* --- frames (frames.c) --- */

enum { HELLO = 1, WELCOME, START, RETIRE, GROW, SIGNAL, END, LISTEN, READ, PING, ADOPT, ATTACH, RELEASE, LOOK, RESIZE, FINISH, FORK, HANGUP, MEASURE };
enum { STARTED = 32, REFUSED, EXITED, EMPTY, LOST, ANSWER, DONE, STORE, ENDED, LEFT, FREE, WAITING, STUCK, SAID, GAP, BLOCKED };
enum {
    F_DIRECTORY = 1, F_NULL_STDIN = 2, F_IDENTITY = 4, F_SPILLED = 8, F_TTY = 16, F_TEMPLATE = 32, F_WORKER = 64, F_RUN = 128,
    F_MERGE = 256, F_END_ORPHANS = 512, F_HOLD = 1024, F_LIMIT_KILLS = 2048, F_INPUT_FILE = 4096, F_ALL = 8191
};
enum { W_CONFINE = 1, W_GVISOR = 2 }; /* the second: no descriptor leaves this kernel, and it ignores CLONE_PARENT */
enum { STEP_REQUEST = 1, STEP_PROCESS, STEP_TTY, STEP_LIMIT, STEP_USER, STEP_DIRECTORY, STEP_EXEC, STEP_ADOPT, STEP_JOIN };
enum { SIGNAL_GROUP = 256 }; /* with a SIGNAL's number: to the whole process group */
enum { LEVEL_TERM = 1, LEVEL_KILL = 2, LEVEL_FINISH = 4 }; /* the last: the worker whose streams these are has ended */
enum { WITH_EMPTY = 1, WITH_FREE = 2, INCOMPLETE = 4, LIMITED = 8, OVERLOADED = 16 }; /* what goes along with EXITED and DONE */

struct control { u32 op, id, a, b, place; }; /* place: the slot of what it is about, or ~0 */
struct hello { u32 op, magic, version, facts; u64 now_ns; };
struct welcome { u32 op, version, flags, uid; u64 collect_bytes; u32 caps, unused; };
struct limit { u32 which, unused; u64 soft, hard; };
/* head, limit: of each stream of a run, how many bytes from its beginning are kept, and how many at all; input: bytes of
 * its stdin at the frame's end; place: a worker's template's slot; joins: of the descriptors that come along the first ones, by which
 * the command goes into control groups. */
struct start { u32 op, id, flags, argc, envc, uid, gid, groups, limits, bytes, head, limit, drain_ms, input, place, joins; };
/* In a MEASURE: `template`: the slot of a worker's template. In its answer, a file: processor time in clock ticks, resident memory in
 * pages, bytes of the streams; `is_known`: there is such a process. */
struct asked_usage { u32 id, place, template; };
struct usage { u64 ticks, pages, input, output; u32 processes, is_known; };
/* The stages of a process that are reached here. */
enum { AT_TAKEN, AT_STARTED, AT_FIRST_BYTE, AT_EXITED, AT_GONE, STAGES };
/* reached: when, in nanoseconds of CLOCK_MONOTONIC; 0 where that is not known (yet). */
struct event { u32 op, id; int32_t a, b; u64 user_us, system_us, max_rss_kb, reached[STAGES]; };
struct done { struct event event; u64 total[2]; u32 given[2]; };

struct passed { int count, fd[MAX_FDS]; };
struct address { struct sockaddr_un name; u32 bytes; }; /* of a datagram socket */

long receive(int from, void *frame, size_t bytes, struct passed *passed, int flags);
void close_passed(struct passed *passed);
void end_client(int fd);
void reject_message(struct control *head, struct passed *passed);
long send_frame(int to, struct iovec *parts, int count, const int *fds, int passed, struct address *whom);
long open_post(struct address *own, struct address *peer);
void tell(u32 op, u32 id, int a, int b);
void tell_with(u32 op, u32 id, int a, int b, int fd);

/* --- what main, a reaper and its pump share --- */

enum {
    MEET_EXIT = 1,    /* reaper: the command has ended, and how is in the slot */
    MEET_EMPTY = 2,   /* reaper: nothing of its tree is left */
    MEET_OVER = 4,    /* pump: its streams are over; a run's output is collected */
    MEET_TOLD = 8,    /* a run's end was told: later output is thrown away */
    MEET_LIMITED = 16, /* pump: a run's output went over its limit, which ends it */
    MEET_OVERLOADED = 32, /* pump: all runs together have collected too much */
    MEET_CLOSE = 128, /* pump: this request has no child for the reaper */
    MEET_LAST = 256,  /* reaper: a run's time to drain is over; what is in its pipes now still counts */
    MEET_DRAINED = 512, /* pump: it has read that */
    MEET_DONE = 64,   /* reaper: it does not touch the slot until the slot has another id */
};

enum { PUMP_RELEASE = 1, PUMP_CUT = 2, PUMP_LOOK = 4, PUMP_RESIZE = 8, PUMP_BLOCKED = 16 };

/* Main's orders to a reaper. Each word has the request's id in its upper half; the lower halves are the levels, signals 1-32 and 33-64
 * to the command, and signals 1-32 and 33-64 to its process group. */
enum { ORDERS = 5, TO_COMMAND = 1, TO_GROUP = 3 };

/* A template's workers. Main adds them (VACANT to ASKED); main and reaper remove them by a compare-and-swap of `state`; the
 * rest is the reaper's. `asked`: main has written something. Mapped for a slot's first worker, and kept. */
enum { VACANT, ASKED, KEPT, GONE };
struct worker { u32 pid, id, state, level; u64 orders[ORDERS]; };
struct worker_table { u32 used, asked; struct worker workers[MAX_WORKERS]; };

/* A reaper, its pump and their present process. `child`: the command, from its fork on. `pump_orders`: as `orders`, for the pump.
 * `window`: a terminal's rows and columns. `touching`: odd while the pump is in a call that a command can block. `inbox`: the pump's
 * socket for messages from main and reaper, sent by the batch's `mail`; `posted`, `heard`: messages sent and received so far.
 * `forks`: a template's pump's socket for messages from other pumps. `client`, `looked`, `looked_at`, `is_notified`, `is_lost`: used
 * by main only. */
struct slot {
    u32 pid, pump, id, child, error, step, flags, meet, touching, looked, drain_ms, retired, is_made, takes_requests;
    u32 batch, posted, heard, is_lost;
    u64 orders[ORDERS], total[2], taken, counted, pump_orders, looked_at, reached[STAGES]; /* total, taken: bytes of its outputs and stdin; counted: of a run in `collected_bytes` */
    int status, client[2], is_notified;
    u32 client_id[2], window;
    struct rusage used;
    char *memory;
    struct worker_table *worker_table;
    struct address inbox, forks;
};

/* Reapers and pumps come in batches, each with a socket from which its pumps are written to. Unread messages lie in the sending
 * socket's buffer (socket(7), SO_SNDBUF: 208 KiB by default, of which a short message takes 768 bytes). It has room for all that the
 * pumps of one batch may have unread, so pumps that sleep do not keep the others of their batch from being reached. */
enum { BATCH = 24, BATCHES = MAX_REAPERS / BATCH + 2, MAX_UNHEARD = 10 /* from main; one more from the reaper */ };
struct batch { int mail; u32 users; struct address address; };

extern struct slot *slots;
extern u32 used_slots, reaper_uid, welcome_flags, main_pid, held_caps, command_caps; /* the last: of commands that are root */
extern u64 collect_bytes, collected_bytes, own_word; /* the last: by which the filter knows us (confine.c) */
extern int control, channel, post, forks, null, dying, is_batch; /* post: the mail of the batch, in a reaper's or pump's table */
extern struct batch batches[BATCHES];
extern struct address forks_address;
enum { NO_USER = 0xffffffffu };
enum { LAST_FD = 0x7fffffff }; /* beyond it gVisor's close_range(2) says EINVAL */

/* A slot's memory. A usual reaper touches one page, a usual pump two: the pump's stack and its request share the page in
 * the middle of which PUMP_STACK lies. */
enum {
    REAPER_STACK = 16 << 10,
    PUMP_STACK = REAPER_STACK + (24 << 10) + 2048,
    POINTER_BYTES = 16 << 10, /* of an inline request; a spilled one brings its own */
    STORE_AT = PUMP_STACK + FRAME_BYTES + POINTER_BYTES + PATH_BYTES + 1024,
    SLOT_BYTES = STORE_AT + 2 * INLINE_BYTES + 1024,
};
static inline char *inline_store(struct slot *slot, int which) { return slot->memory + STORE_AT + which * INLINE_BYTES; }

/* --- the parts --- */

int reaper(void *slot);
int pump(void *slot);
void order(struct slot *slot, u32 id, int word, u32 bits);
int set_order(u64 *orders, u32 id, int word, u32 bits);
u32 take_order(u64 *word, u32 id);
void order_worker(struct slot *template, u32 id, int word, u32 bits);
void wake_for_workers(struct slot *slot);
void refuse_worker(struct worker *worker, int error);
void reach(struct slot *slot, int stage); /* frames.c */
void tell_reached(struct slot *slot, u32 op, u32 id, int a, int b);
void tell_exit(struct slot *slot, u32 id, int flags);
void tell_done(struct slot *slot, u32 id, int flags);
void tell_no_program(struct slot *slot, u32 id);
void uncount(struct slot *slot);


/* tree.c. A target is all descendants of `root`; where `reaper` is set, root too. `spared`: left out, with its descendants.
 * `strays_of`: only descendants of a template's reaper other than the template (`child`) and its workers. `term`: processes that had
 * TERM already are left out; with `is_first` there are none yet. */
struct signalled { u32 pid, name; };
struct term_state { u64 since; long again_ms; u32 count, has_forked; struct signalled *signalled; };
struct target { u32 root, reaper, spared; struct slot *strays_of; u32 child; struct term_state *term; int is_first; };
enum { TREE_PAUSE_MS = 2, SIGNALLED_BYTES = 4 << 10 }; /* pause between two rounds over a tree that is killed; memory of `signalled` */

long slurp(const char *path, char *to, size_t bytes);
int read_ids(u32 pid, u64 of[3]); /* parent, process group, session; returns 0 where there is no such process */
int read_usage(u32 pid, u64 *of, int count); /* fields from utime on */
struct descendant { u32 pid, parent; };
u32 add_children(u32 pid, struct descendant *tree, u32 count, u32 most);
u32 signal_tree(const struct target *target, int level);
void send_term(struct target target, struct term_state *term, int is_first, int look);

/* start.c */
struct job {
    struct slot *slot;
    struct start *request;
    struct limit *limits;
    u32 *groups;
    char *strings, *directory, *path; /* path: room for the file name that is tried */
    char *window, *input;             /* of a terminal: its struct winsize, unaligned; of a run: its stdin */
    char **argv, **envp;
    int stdio[3], control, input_file, go;
    const int *joins;
};
int parse(struct job *job, struct start *request, long bytes, struct passed *passed);
int lay_out(struct job *job, char **pointers);
size_t pointer_bytes(struct start *request);
int command(void *job);

/* program.c: the file at which an execve failed, or its interpreter or loader. `error`: why it cannot be used; 0: no cause was found.
 * `depth`: 0 for the program itself. Lies in the memory of a run's output. */
enum { PROGRAM_HEAD_BYTES = 256 }; /* as much as the kernel looks at (BINPRM_BUF_SIZE, include/uapi/linux/binfmts.h) */
struct finding { u32 depth, is_loader, error, name_bytes, head_bytes; char name[PATH_BYTES], head[PROGRAM_HEAD_BYTES]; };
_Static_assert(sizeof(struct finding) <= INLINE_BYTES, "a finding has no room");
void find_out(const char *path, long refused, struct finding *found);

/* confine.c */
enum { ALL_CAPS = 1 << 5 | 1 << 6 | 1 << 7 }; /* CAP_KILL, CAP_SETGID, CAP_SETUID */
void keep_capabilities(void);
long take_own_user(void);
void take_pump_user(u32 number);
void leave_capabilities(u32 uid);
u32 find_capabilities(u32 among);
int is_own_user(u32 uid);
long filter_calls(void);

/* measure.c */
int tell_usage(struct control *asked, long bytes, struct passed *passed);

/* files/: this program as an ordinary command, which reads and writes files. */
_Noreturn void file_helper(int count, char **arguments);

/* terminal.c */
long open_only(const char *path, u32 type, u32 major, u32 minor, int flags);
long open_terminal(struct job *job, int *slave);
int leaves_line_open(int master, char last);
int end_of_input(int master, int is_mid_line, char *into);

/* clients.c, collect.c: a pump at work; each returns when the streams are over. */
struct pipes { int in, out[2], control, inbox, forks, is_terminal; };
long next_message(struct slot *slot, int inbox, void *frame, size_t bytes, struct passed *passed);
void serve_clients(struct slot *slot, struct pipes *pipes, u32 id);
void collect(struct slot *slot, struct job *job, struct pipes *pipes, u32 id);
#define TOUCH(slot) __atomic_add_fetch(&(slot)->touching, 1, __ATOMIC_SEQ_CST)

#endif
