/* The system calls of the spawner's tasks: what the real kernel does for one process it does here too; what needs several is played.
 *
 * Checked at each call: that memory it is given is the caller's; that a descriptor that is closed is the caller's own and open; that
 * nobody but a pump touches a command's pipe, and a pump only while it says so (`touching`), since the command may have locked it;
 * and that nobody goes round without anything to do. */
#include "world.h"
#include <sanitizer/asan_interface.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_IDLE_TURNS = 8 };

u32 fault_one_in;
u64 acted;
static struct { struct fiber *owner; int is_pipe; ino_t inode; } kept[MAX_FD];
static int main_children = -1;

long hooked(long n, long a, long b, long c, long d, long e, long f);

static int is_faulty(void) { return fault_one_in && !any(fault_one_in); }

/* --- descriptors --- */

static long keep(long fd) {
    struct stat about;
    if (fd < 0) return fd;
    if (fd >= MAX_FD || kept[fd].owner) fail("descriptor %ld is new, and still somebody's", fd);
    kept[fd].owner = me;
    kept[fd].is_pipe = !fstat((int)fd, &about) && S_ISFIFO(about.st_mode);
    kept[fd].inode = kept[fd].is_pipe ? about.st_ino : 0;
    return fd;
}

int open_by(struct fiber *fiber) {
    int count = 0;
    for (int fd = 0; fd < MAX_FD; fd++) count += kept[fd].owner == fiber;
    return count;
}

void close_kept(struct fiber *fiber) {
    for (int fd = 0; fd < MAX_FD; fd++) {
        if (kept[fd].owner != fiber) continue;
        close(fd);
        kept[fd].owner = NULL;
    }
}

void wake_main(void) {
    u64 one = 1;
    if (main_children >= 0 && write(main_children, &one, sizeof one) < 0) abort();
}

static void touch(long fd) {
    if (fd < 0 || fd >= MAX_FD || !kept[fd].owner || !kept[fd].is_pipe) return;
    if (me->kind != PUMP) fail("it touches a command's pipe");
    struct tree *tree = tree_of_id(me->slot->id);
    if (!tree || tree->is_before_exec) return; /* nobody else has it yet, or had it ever */
    if (!(me->slot->touching & 1)) fail("it touches a pipe that may be locked, and does not say so");
    while (is_locked(kept[fd].inode)) block(0);
}

static long close_own(long fd) {
    if (fd == CONTROL_FD && me->kind == REAPER) return 0; /* its copy of main's */
    if (fd < 0 || fd >= MAX_FD || kept[fd].owner != me) fail("it closes descriptor %ld, which is none of its own", fd);
    touch(fd);
    kept[fd].owner = NULL;
    return sys6(__NR_close, fd, 0, 0, 0, 0, 0);
}

/* --- memory --- */

static void check_memory(const void *at, size_t bytes) {
    void *bad = bytes ? __asan_region_is_poisoned((void *)(uintptr_t)at, bytes) : NULL;
    if (bad) fail("%zu bytes at %p are not all its own: %p is not", bytes, at, bad);
}

static void check_message(struct msghdr *message) {
    check_memory(message, sizeof *message);
    for (size_t i = 0; i < message->msg_iovlen; i++) check_memory(message->msg_iov[i].iov_base, message->msg_iov[i].iov_len);
    check_memory(message->msg_control, message->msg_controllen);
}

/* Between its parts nobody has anything: what would be the tasks' stacks, and the room left over. */
static void poison(char *memory) {
    ASAN_POISON_MEMORY_REGION(memory, PUMP_STACK);
    ASAN_POISON_MEMORY_REGION(memory + STORE_AT - 1016, 1016);
    ASAN_POISON_MEMORY_REGION(memory + STORE_AT + 2 * INLINE_BYTES, 1024);
}

static long map_memory(size_t bytes, long prot, long flags, long fd) {
    if (is_faulty() && bytes != SLOT_BYTES && bytes < 1 << 20) return -ENOMEM;
    long at = sys6(__NR_mmap, 0, (long)bytes, prot, flags, fd, 0);
    if (bytes == SLOT_BYTES && at > 0) poison((char *)at);
    return at;
}

/* --- waiting --- */

static u64 deadline_of(struct moment *pause) {
    return pause ? virtual_ms + (u64)pause->seconds * 1000 + (u64)pause->nanoseconds / 1000000 : 0;
}

static void moved(void) { me->idle_turns = 0; }

static long poll_for(struct pollfd *of, long count, struct moment *pause) {
    static u64 last_acted;
    struct moment now = {0, 0};
    int is_look = pause && !pause->seconds && !pause->nanoseconds;
    u64 deadline = deadline_of(pause);
    check_memory(of, (size_t)count * sizeof *of);
    if (!is_look && is_faulty()) return -EINTR;
    for (;;) {
        long n = sys6(__NR_ppoll, (long)of, count, (long)&now, 0, 8, 0);
        if (n || is_look) {
            if (acted != last_acted) moved();
            last_acted = acted;
            if (!is_look && me->kind == PUMP && ++me->idle_turns > MAX_IDLE_TURNS) fail("it goes round without anything to do");
            if (pause) *pause = (struct moment){0, (long)(deadline > virtual_ms ? deadline - virtual_ms : 0) * 1000000};
            return n;
        }
        if (pause && virtual_ms >= deadline) { *pause = (struct moment){0, 0}; return 0; }
        block(pause ? deadline : 0);
    }
}

static long wait_on(u32 *word, u32 value, struct moment *pause) {
    u64 deadline = deadline_of(pause);
    if (*word != value) return -EAGAIN;
    me->parked_at = word;
    me->is_woken = 0;
    while (!me->is_woken && !(pause && virtual_ms >= deadline)) block(pause ? deadline : 0);
    me->parked_at = NULL;
    return me->is_woken ? 0 : -ETIMEDOUT;
}

static long wake_one(u32 *word) {
    for (int i = 0; i < fiber_count; i++) {
        if (fibers[i].is_over || fibers[i].parked_at != word || fibers[i].is_woken) continue;
        fibers[i].is_woken = 1;
        return 1;
    }
    return 0;
}

static long wait_for_signal(u64 *mask, struct moment *pause) {
    u64 deadline = deadline_of(pause);
    while (!(me->pending & *mask)) {
        if (pause && virtual_ms >= deadline) return -EAGAIN;
        block(pause ? deadline : 0);
    }
    int first = __builtin_ctzll(me->pending & *mask);
    me->pending &= ~(1ull << first);
    return first + 1;
}

/* --- messages --- */

static int never_waits(long fd, long flags) { return flags & MSG_DONTWAIT || fcntl((int)fd, F_GETFL) & O_NONBLOCK; }

static long receive_message(long fd, struct msghdr *message, long flags) {
    int waits = !never_waits(fd, flags);
    size_t room = message->msg_controllen;
    check_message(message);
    if (is_faulty()) return -EINTR;
    long n;
    while ((n = sys6(__NR_recvmsg, fd, (long)message, flags | MSG_DONTWAIT, 0, 0, 0)) == -EAGAIN && waits) {
        block(0);
        message->msg_controllen = room;
    }
    if (n < 0) return n;
    for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head; head = CMSG_NXTHDR(message, head))
        for (size_t i = 0; i < (head->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) keep(((int *)CMSG_DATA(head))[i]);
    moved();
    return n;
}

static long send_message(long fd, struct msghdr *message, long flags) {
    int waits = !never_waits(fd, flags);
    long n;
    check_message(message);
    while ((n = sys6(__NR_sendmsg, fd, (long)message, flags | MSG_DONTWAIT, 0, 0, 0)) == -EAGAIN && waits) block(0);
    if (n >= 0) moved();
    if (n >= 0 && fd == channel) on_word(message->msg_iov[0].iov_base);
    return n;
}

/* --- bytes: at times fewer than are wanted --- */

static long fewer(long bytes) { return bytes > 1 && !any(4) ? 1 + (long)any((u32)bytes) : bytes; }

static int is_socket(long fd) {
    struct stat about;
    return !fstat((int)fd, &about) && S_ISSOCK(about.st_mode);
}

static long transfer(long n, long a, long b, long c, long d, long e, long f) {
    long done;
    if (n == __NR_splice) {
        touch(a);
        touch(c);
        if (is_faulty()) { moved(); return is_socket(a) || is_socket(c) ? -EINVAL : -EINTR; }
        done = sys6(n, a, b, c, d, fewer(e), f);
    } else {
        touch(a);
        if (n != __NR_sendfile) check_memory((void *)b, (size_t)c);
        if (is_faulty() && n != __NR_pwrite64 && n != __NR_recvfrom) { moved(); return -EINTR; }
        done = sys6(n, a, b, n == __NR_pwrite64 || n == __NR_recvfrom ? c : fewer(c), d, e, f);
    }
    if (done > 0) moved();
    return done;
}

/* --- the rest --- */

static long make_pair(long n, long a, long b, long c, int *ends) {
    if (is_faulty()) return -EMFILE;
    long error = n == __NR_pipe2 ? sys6(n, (long)ends, b, 0, 0, 0, 0) : sys6(n, a, b, c, (long)ends, 0, 0);
    if (!error) { keep(ends[0]); keep(ends[1]); }
    return error;
}

static long control_file(long n, long a, long b, long c) {
    if (n == __NR_fcntl && (b == F_SETPIPE_SZ || b == F_GETPIPE_SZ)) touch(a);
    long got = sys6(n, a, b, c, 0, 0, 0);
    int is_new = (n == __NR_fcntl && b == F_DUPFD_CLOEXEC) || (n == __NR_ioctl && b == TIOCGPTPEER);
    return is_new ? keep(got) : got;
}

static long tell_time(struct moment *now) {
    *now = (struct moment){(long)(virtual_ms / 1000), (long)(virtual_ms % 1000) * 1000000};
    return 0;
}

static long give_way(void) {
    u64 until = virtual_ms + 1;
    while (virtual_ms < until) block(until);
    return 0;
}

static u32 parent_of_me(void) {
    for (int i = 0; i < fiber_count; i++) if (fibers[i].pid == me->parent && !fibers[i].is_over) return me->parent;
    return MAIN_PID;
}

static long waits(long n, long a, long b, long c) {
    if (n == __NR_ppoll) return poll_for((struct pollfd *)a, b, (struct moment *)c);
    if (n == __NR_rt_sigtimedwait) return wait_for_signal((u64 *)a, (struct moment *)c);
    return give_way();
}

static long take_turn(long n, long a, long b, long c, long d, long e, long f) {
    switch (n) {
    case __NR_getpid: return me->pid;
    case __NR_getppid: return parent_of_me();
    case __NR_clock_gettime: return tell_time((struct moment *)b);
    case __NR_prctl: case __NR_setsid: case __NR_close_range: case __NR_setfsuid: case __NR_sched_setscheduler: return 0;
    case __NR_sched_getscheduler: return SCHED_BATCH;
    case __NR_exit_group: end_fiber();
    case __NR_mmap: return map_memory((size_t)b, c, d, e);
    case __NR_ppoll: case __NR_rt_sigtimedwait: case __NR_sched_yield: return waits(n, a, b, c);
    case __NR_futex: return (b & 127) == FUTEX_WAIT ? wait_on((u32 *)a, (u32)c, (struct moment *)d) : wake_one((u32 *)a);
    case __NR_wait4: return wait_for(a, (int *)b, c);
    case __NR_waitid: return look_for_any();
    case __NR_kill: return send_signal(a, b);
    case __NR_getpgid: return a; /* a command leads its own */
    case __NR_recvmsg: return receive_message(a, (struct msghdr *)b, c);
    case __NR_sendmsg: return send_message(a, (struct msghdr *)b, c);
    case __NR_read: case __NR_write: case __NR_pwrite64: case __NR_recvfrom: case __NR_splice: return transfer(n, a, b, c, d, e, f);
    case __NR_pipe2: return make_pair(n, a, b, c, (int *)a);
    case __NR_socketpair: return make_pair(n, a, b, c, (int *)d);
    case __NR_close: moved(); return close_own(a);
    case __NR_shutdown: moved(); return sys6(n, a, b, 0, 0, 0, 0);
    case __NR_fcntl: case __NR_ioctl: return control_file(n, a, b, c);
    case __NR_tee: touch(a); return is_faulty() ? -EINTR : sys6(n, a, b, c, d, 0, 0);
    case __NR_signalfd4: return keep(main_children = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    case __NR_memfd_create: if (is_faulty()) return -EMFILE; /* fall through */
    case __NR_socket: case __NR_openat: case __NR_epoll_create1: return keep(sys6(n, a, b, c, d, e, f));
    case __NR_munmap: case __NR_bind: case __NR_getsockname: case __NR_connect: case __NR_getsockopt: case __NR_dup3:
    case __NR_setsockopt: case __NR_epoll_ctl: case __NR_epoll_pwait: case __NR_ftruncate: case __NR_lseek: case __NR_statx:
        return sys6(n, a, b, c, d, e, f);
    default: fail("it makes system call %ld, for which nothing is provided", n);
    }
}

long hooked(long n, long a, long b, long c, long d, long e, long f) {
    if (!me) return sys6(n, a, b, c, d, e, f); /* while the world is made */
    step();
    long result = take_turn(n, a, b, c, d, e, f);
    if (n != __NR_clock_gettime && n != __NR_getppid) calls++;
    if (is_loud > 1) note("call %ld(%ld, %ld, %ld) = %ld", n, a, b, c, result);
    return result;
}
