/* Process trees: lists the descendants of a process, and signals them so that no other process can be hit. */
#include "spawner.h"

enum {
    STOP_PASSES = 8,
    PID_TABLE = 4 * MAX_WORKERS, /* a power of two: a quarter full at most */
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

/* Some fields of a process's stat, `skipped` ones behind its state, and a hash of its name; returns 0 where there is no such
 * process. A zombie counts: it may be a leader whose threads live on. */
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
        for (of[i] = 0, at += at < n && stat[at] == '-'; at < n && stat[at] >= '0' && stat[at] <= '9'; at++) of[i] = of[i] * 10 + (u64)(stat[at] - '0');
    return 1;
}

int read_ids(u32 pid, u64 of[3]) {
    u32 name;
    return read_stat(pid, &name, 0, of, 3);
}

int read_usage(u32 pid, u64 *of, int count) {
    u32 name;
    return read_stat(pid, &name, 10, of, count);
}

/* In clock ticks since the boot (/proc/PID/stat, field 22); a tick is 10 ms on every architecture here. */
static u64 now_in_ticks(void) {
    struct moment now = {0};
    SYS(clock_gettime, CLOCK_BOOTTIME, &now);
    return (u64)now.seconds * 100 + (u64)now.nanoseconds / 10000000;
}

static u32 parent_of(u32 pid) {
    u64 of[3];
    return read_ids(pid, of) ? (u32)of[0] : 0;
}

/* Appends the children that one thread has forked. A chunk may end in the middle of a number. */
static u32 add_children_of_thread(const char *path, u32 parent, struct descendant *tree, u32 count, u32 most) {
    char text[512];
    u32 pid = 0;
    long n, fd = SYS(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && (n = SYS(read, fd, text, sizeof text)) > 0)
        for (long i = 0; i < n; i++) {
            if (text[i] != ' ') { pid = pid * 10 + (u32)(text[i] - '0'); continue; }
            if (count < most) tree[count++] = (struct descendant){pid, parent};
            pid = 0;
        }
    if (fd >= 0) SYS(close, fd);
    return count;
}

u32 add_children(u32 pid, struct descendant *tree, u32 count, u32 most) {
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
            count = add_children_of_thread(path, pid, tree, count, most);
        }
    SYS(close, fd);
    return count;
}

static int is_reaper(u32 pid) {
    for (u32 i = 0; i < used_slots; i++) if (slots[i].pid == pid) return 1;
    return 0;
}

/* TERM must reach processes that were forked meanwhile. A process that forks while its tree gets TERM may leave a child that had none;
 * and a child that had it between its fork and its execve has lost it with its parent's handler. So TERM goes to every young process
 * (born from clock tick `since` on) that had none, or has another name since, or had it between fork and execve and has executed since;
 * but only once its parent has ended, since until then it may be helping the parent to clean up. Looked for when a process was reaped,
 * and meanwhile at growing intervals, a few times only, unless one is still between fork and execve. `signalled` is mapped when needed,
 * since hardly any reaper needs it. */

/* Whether a process is young and has not had TERM under its present name; records that it has. */
static int needs_term(struct term_state *term, u32 pid) {
    u64 birth, flags;
    u32 name, at = 0;
    if (!read_stat(pid, &name, 18, &birth, 1) || birth < term->since) return 0;
    if (!read_stat(pid, &name, 5, &flags, 1)) return 0;
    if (flags & FORKNOEXEC) { name = ~name; term->has_forked = 1; }
    if (!term->signalled && !(term->signalled = map(SIGNALLED_BYTES, -1))) return 0;
    while (at < term->count && term->signalled[at].pid != pid) at++;
    if (at < term->count && term->signalled[at].name == name) return 0;
    if (at == SIGNALLED_BYTES / sizeof *term->signalled) return 0; /* a tree that forks so much gets KILL after its grace time */
    if (at == term->count) term->count++;
    term->signalled[at] = (struct signalled){pid, name};
    return 1;
}

static u32 keep_unsignalled(const struct target *target, struct descendant *tree, u32 count) {
    u32 kept = 0;
    for (u32 i = 0; i < count; i++) {
        int is_meant = target->is_first || tree[i].parent == target->root;
        if ((is_meant && needs_term(target->term, tree[i].pid)) || target->is_first) tree[kept++] = tree[i];
    }
    return kept;
}

/* Keeps the strays among the first `count`: those that are neither the template, nor a worker, nor waiting to be adopted. Until its
 * adoption a worker is in the template's session, and no worker's descendant is in it. */
static u32 keep_strays(const struct target *target, struct descendant *tree, u32 count) {
    struct worker_table *table = target->strays_of->worker_table;
    u32 *pids = map(sizeof *pids * PID_TABLE, -1), kept = 0, at;
    u64 of[3];
    if (!pids) { tree[0] = (struct descendant){0, 0}; return 1; } /* no process; the next round tries again */
    for (u32 i = 0; table && i < table->used; i++) {
        if (__atomic_load_n(&table->workers[i].state, __ATOMIC_ACQUIRE) == VACANT) continue;
        for (at = table->workers[i].pid % PID_TABLE; pids[at]; at = (at + 1) % PID_TABLE) {}
        pids[at] = table->workers[i].pid;
    }
    for (u32 i = 0; i < count; i++) {
        for (at = tree[i].pid % PID_TABLE; pids[at] && pids[at] != tree[i].pid; at = (at + 1) % PID_TABLE) {}
        if (pids[at] || tree[i].pid == target->child) continue;
        if (target->child && read_ids(tree[i].pid, of) && of[2] == target->child) continue;
        tree[kept++] = tree[i];
    }
    SYS(munmap, pids, sizeof *pids * PID_TABLE);
    return kept;
}

/* The pid of our own child is not reused until we reap it, and neither is its process group's id. That group has members of its tree
 * only, since every command begins a session (a template's workers do so late, so theirs are left out). A group is killed by one call,
 * so that no member can fork in between. For all others the pidfd is opened before the parent is checked again, so that a reused pid
 * is not hit. */
static void signal_process(const struct target *target, struct descendant one, int signum, long *last) {
    if (one.parent == (u32)SYS(getpid)) {
        int one_by_one = signum == SIGTERM || signum == SIGCONT || target->reaper || target->strays_of;
        long group = one_by_one ? 0 : SYS(getpgid, one.pid);
        if (group > 1 && group != *last && group != SYS(getpgid, 0)) SYS(kill, -(*last = group), SIGKILL);
        SYS(kill, one.pid, signum);
        return;
    }
    long fd = SYS(pidfd_open, one.pid, 0);
    if (fd == -ESRCH) return;
    u32 parent = parent_of(one.pid);
    if (parent && (parent == one.parent || parent == target->root)) {
        if (fd < 0 || SYS(pidfd_send_signal, fd, signum, 0, 0) == -ENOSYS) SYS(kill, one.pid, signum);
    }
    if (fd >= 0) SYS(close, fd);
}

static u32 leave_out(struct descendant *tree, u32 count, u32 pid) {
    u32 kept = 0;
    for (u32 i = 0; i < count; i++) if (tree[i].pid != pid) tree[kept++] = tree[i];
    return kept;
}

static u32 leave_reapers_out(struct descendant *tree, u32 count) {
    u32 kept = 0;
    for (u32 i = 0; i < count; i++) if (!is_reaper(tree[i].pid)) tree[kept++] = tree[i];
    return kept;
}

/* Lists a target's processes, parents first, and signals each (`signum`; 0: none) before its children are read. Main's own tree leaves
 * the reapers out. */
static u32 list_tree(const struct target *target, struct descendant *tree, int signum) {
    u32 count = 1, root = target->root;
    long last = 0;
    if (target->reaper) tree[0] = (struct descendant){root, target->reaper};
    else count = add_children(root, tree, 0, MAX_TREE);
    if (target->spared) count = leave_out(tree, count, target->spared);
    if (target->strays_of) count = keep_strays(target, tree, count);
    if (root == main_pid) count = leave_reapers_out(tree, count);
    for (u32 next = 0; next < count; next++) {
        if (signum) signal_process(target, tree[next], signum, &last);
        count = add_children(tree[next].pid, tree, count, MAX_TREE);
    }
    return count;
}

/* One round; returns how many there were. Before KILL all are stopped, so that none forks when others' ends make room under a limit. */
u32 signal_tree(const struct target *target, int level) {
    size_t bytes = sizeof(struct descendant) * MAX_TREE;
    struct descendant *tree = map(bytes, -1);
    if (!tree) return 1; /* no memory: the next round tries again */
    int first = level == LEVEL_KILL ? SIGSTOP : 0;
    long last = 0;
    u32 count = list_tree(target, tree, first), before = 0, found = count;
    for (int pass = 0; first && count > 1 && count != before && pass < STOP_PASSES; pass++) {
        before = count;
        count = list_tree(target, tree, first);
    }
    if (target->term) count = keep_unsignalled(target, tree, count);
    for (u32 i = 0; i < count; i++) signal_process(target, tree[i], level == LEVEL_KILL ? SIGKILL : SIGTERM, &last);
    for (u32 i = 0; level == LEVEL_TERM && i < count; i++) signal_process(target, tree[i], SIGCONT, &last);
    SYS(munmap, tree, bytes);
    return found;
}

/* `is_first`: TERM was ordered just now. */
void send_term(struct target target, struct term_state *term, int is_first, int look) {
    if (is_first) {
        term->since = now_in_ticks() - YOUNG_TICKS;
        term->again_ms = TREE_PAUSE_MS;
        term->count = 0;
    } else if (term->since && (look || term->again_ms)) {
        long next = 2 * term->again_ms;
        term->again_ms = next <= ASK_MS ? next : term->has_forked ? ASK_MS : 0;
    } else {
        return;
    }
    term->has_forked = 0;
    target.term = term;
    target.is_first = is_first;
    signal_tree(&target, LEVEL_TERM);
}
