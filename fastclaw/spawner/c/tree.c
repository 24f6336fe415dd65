/* Trees: who descends from a process, and signals that cannot hit anybody else. */
#include "spawner.h"

enum {
    STOP_PASSES = 8,
    PID_TABLE = 4 * MAX_BROOD, /* a power of two: a quarter full at most */
    FORKNOEXEC = 0x40, /* of a process's flags (PF_FORKNOEXEC, include/linux/sched.h): forked, and no execve since */
    YOUNG_TICKS = 500, /* 5 s: between fork and execve there is less than that, on a loaded machine too */
    ASK_MS = 512, /* the longest pause before a tree that was asked to end is looked at again */
};

long slurp(const char *path, char *to, size_t bytes) {
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

int kinship(u32 pid, u64 of[3]) {
    u32 name;
    return read_stat(pid, &name, 0, of, 3);
}

/* In clock ticks since the boot (/proc/PID/stat, field 22); a tick is 10 ms on every architecture here. */
static u64 now_in_ticks(void) {
    struct moment now = {0};
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

static int is_reaper(u32 pid) {
    for (u32 i = 0; i < used_slots; i++) if (slots[i].pid == pid) return 1;
    return 0;
}

/* A process that forks while it is asked to end may leave somebody who was not, and one that was asked between its fork and
 * its execve has its parent's handler, and forgets. So of the young ones, from clock tick `since` on, who was not asked, or
 * goes by another name since, or was in its fork then and has executed something since, is asked once its parent has ended:
 * until then it may be helping that to tidy up. Looked at when somebody was reaped, and meanwhile, later and later; a few
 * times only, unless somebody is still in its fork. `asked` is memory of its own, since hardly any reaper needs it. */

/* Whether it is young and was not asked yet as what it is now; from now on it was. */
static int is_unasked(struct asking *asking, u32 pid) {
    u64 birth, flags;
    u32 name, at = 0;
    if (!read_stat(pid, &name, 18, &birth, 1) || birth < asking->since) return 0;
    if (!read_stat(pid, &name, 5, &flags, 1)) return 0;
    if (flags & FORKNOEXEC) { name = ~name; asking->has_forked = 1; }
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
        if (__atomic_load_n(&brood->workers[i].state, __ATOMIC_ACQUIRE) == VACANT) continue;
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
        int one_by_one = signum == SIGTERM || signum == SIGCONT || prey->reaper || prey->strays_of;
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

static u32 leave_out(struct kin *tree, u32 count, u32 pid) {
    u32 kept = 0;
    for (u32 i = 0; i < count; i++) if (tree[i].pid != pid) tree[kept++] = tree[i];
    return kept;
}

static u32 leave_reapers_out(struct kin *tree, u32 count) {
    u32 kept = 0;
    for (u32 i = 0; i < count; i++) if (!is_reaper(tree[i].pid)) tree[kept++] = tree[i];
    return kept;
}

/* Parents first, each signalled (`signum`; 0: not) before its children are read. Main's own tree leaves the reapers out. */
static u32 gather(const struct prey *prey, struct kin *tree, int signum) {
    u32 count = 1, root = prey->root;
    long last = 0;
    if (prey->reaper) tree[0] = (struct kin){root, prey->reaper};
    else count = add_kin(root, tree, 0);
    if (prey->spared) count = leave_out(tree, count, prey->spared);
    if (prey->strays_of) count = sift(prey, tree, count);
    if (root == main_pid) count = leave_reapers_out(tree, count);
    for (u32 next = 0; next < count; next++) {
        if (signum) strike(prey, tree[next], signum, &last);
        count = add_kin(tree[next].pid, tree, count);
    }
    return count;
}

/* One round; returns how many there were. Before KILL everything is stopped, so that nobody forks into the room that
 * the dead make. */
u32 hunt(const struct prey *prey, int level) {
    size_t bytes = sizeof(struct kin) * MAX_TREE;
    struct kin *tree = map(bytes, -1);
    if (!tree) return 1; /* no memory: the next round tries again */
    int first = level == LEVEL_KILL ? SIGSTOP : 0;
    long last = 0;
    u32 count = gather(prey, tree, first), before = 0, found = count;
    for (int pass = 0; first && count > 1 && count != before && pass < STOP_PASSES; pass++) {
        before = count;
        count = gather(prey, tree, first);
    }
    if (prey->asking) count = leave_unasked(prey, tree, count);
    for (u32 i = 0; i < count; i++) strike(prey, tree[i], level == LEVEL_KILL ? SIGKILL : SIGTERM, &last);
    for (u32 i = 0; level == LEVEL_TERM && i < count; i++) strike(prey, tree[i], SIGCONT, &last);
    SYS(munmap, tree, bytes);
    return found;
}

/* `is_first`: TERM has been asked for just now. */
void ask_to_end(struct prey prey, struct asking *asking, int is_first, int look) {
    if (is_first) {
        asking->since = now_in_ticks() - YOUNG_TICKS;
        asking->again_ms = HUNT_MS;
        asking->count = 0;
    } else if (asking->since && (look || asking->again_ms)) {
        long next = 2 * asking->again_ms;
        asking->again_ms = next <= ASK_MS ? next : asking->has_forked ? ASK_MS : 0;
    } else {
        return;
    }
    asking->has_forked = 0;
    prey.asking = asking;
    prey.is_first = is_first;
    hunt(&prey, LEVEL_TERM);
}
