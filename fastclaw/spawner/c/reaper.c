/* A reaper: the parent of one command after the other, and of all orphaned descendants. It holds no descriptor of theirs. */
#include "spawner.h"
#include <linux/close_range.h>

enum {
    REAP_BURST = 4096,  /* before orders are handled: a tree that always forks anew never lets the reaping end */
    SETTLE_MS = 1,      /* for a pump to see the EOF of its streams after the last holder's end: microseconds */
    STUCK_MS = 100,     /* for a pump to take the last bytes, or to get out of a call on a pipe; after that the pipe counts as locked,
                         * and a run's end is told as incomplete */
    SEND_MS = 2000,     /* the same for a pump that sends what it has collected in frames: 32 MiB at most */
    NO_TIME = -1,
};

/* How far a reaper is with the process in its slot. */
struct progress {
    u32 id;
    int level, has_ended, is_empty, is_done, is_exit_told, is_last_asked, busy, more;
    u64 drained_at; /* when a run's end is told even if its streams are still held; 0: not yet known, or told */
    struct term_state term;
};

u32 take_order(u64 *word, u32 id) {
    u64 now = __atomic_load_n(word, __ATOMIC_ACQUIRE), idle = (u64)id << 32;
    do if (now >> 32 != id || now == idle) return 0;
    while (!__atomic_compare_exchange_n(word, &now, idle, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return (u32)now;
}

/* Until we reap it, its pid and the id of its process group are not reused. It leads a group from its setsid on; before that it is in
 * ours. */
static void send_signal(u32 pid, int signum, int to_group) {
    long whom = to_group && (u32)SYS(getpgid, pid) == pid ? -(long)pid : (long)pid;
    SYS(kill, whom, signum);
}

/* Main's new orders: sends the signals to `pid` (0: it has ended), returns the levels. */
static u32 apply_orders(u64 *orders, u32 id, u32 pid) {
    u32 asked = take_order(&orders[0], id);
    for (int word = TO_COMMAND; word < ORDERS; word++) {
        u32 signals = take_order(&orders[word], id);
        int first = (word - TO_COMMAND) % 2 * 32 + 1;
        for (int i = 0; pid && i < 32; i++) if (signals >> i & 1) send_signal(pid, first + i, word >= TO_GROUP);
    }
    return asked;
}

static struct target tree_of(struct slot *slot) { return (struct target){.root = slot->pid, .spared = slot->pump}; }

/* Adds bits, if the word is still for request `id`. Returns 0 where it is not, 2 where the word was empty, else 1. */
int set_order(u64 *orders, u32 id, int word, u32 bits) {
    u64 now = __atomic_load_n(&orders[word], __ATOMIC_ACQUIRE);
    do if (now >> 32 != id) return 0;
    while (!__atomic_compare_exchange_n(&orders[word], &now, now | bits, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return (u32)now ? 1 : 2;
}

void order(struct slot *slot, u32 id, int word, u32 bits) {
    if (set_order(slot->orders, id, word, bits)) SYS(kill, slot->pid, SIGUSR1);
}

/* --- a template's workers --- */

void wake_for_workers(struct slot *slot) {
    __atomic_store_n(&slot->worker_table->asked, 1, __ATOMIC_SEQ_CST);
    SYS(kill, slot->pid, SIGUSR1);
}

void order_worker(struct slot *slot, u32 id, int word, u32 bits) {
    struct worker_table *table = slot && slot->pid ? slot->worker_table : NULL;
    for (u32 i = 0; table && i < table->used; i++)
        if (table->workers[i].id == id && set_order(table->workers[i].orders, id, word, bits)) wake_for_workers(slot);
}

/* Makes a worker's entry vacant if it is in `state`; false where main or the reaper has done so already. */
static int remove_worker(struct worker *worker, u32 state) {
    if (__atomic_load_n(&worker->state, __ATOMIC_ACQUIRE) != state) return 0;
    for (int i = 0; i < ORDERS; i++) __atomic_store_n(&worker->orders[i], 0, __ATOMIC_RELEASE);
    return __atomic_compare_exchange_n(&worker->state, &state, VACANT, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

void refuse_worker(struct worker *worker, int error) {
    u32 id = worker->id;
    if (remove_worker(worker, ASKED)) tell(REFUSED, id, error, STEP_ADOPT);
}

/* A worker is adopted only if it is our child by now and in the template's session, which it leaves after its adoption only. */
static void adopt(struct slot *slot, u32 child, struct worker *worker) {
    u64 of[3];
    u32 asked = ASKED, id = worker->id, pid = worker->pid;
    int is_ours = child && pid != child && read_ids(pid, of) && of[0] == slot->pid && of[2] == child;
    if (!is_ours) refuse_worker(worker, ESRCH);
    else if (__atomic_compare_exchange_n(&worker->state, &asked, KEPT, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        tell(STARTED, id, (int)pid, -1);
}

/* `pid` was reaped: a worker, or a descendant of one. */
static void note_worker_end(struct slot *slot, u32 pid, int status, struct rusage *used) {
    struct worker_table *table = slot->worker_table;
    for (u32 i = 0; table && i < table->used; i++) {
        struct worker *worker = &table->workers[i];
        if (worker->pid != pid) continue;
        if (worker->state == ASKED) refuse_worker(worker, ESRCH);
        if (worker->state != KEPT) continue;
        struct slot ended = {.status = status, .used = *used, .reached[AT_EXITED] = now_ns()};
        tell_exit(&ended, worker->id, 0);
        __atomic_store_n(&worker->state, GONE, __ATOMIC_RELEASE);
    }
}

/* Handles the orders for one worker; returns whether it must be looked at again soon. */
static int handle_worker(struct slot *slot, u32 child, struct worker *worker, u32 strays) {
    u32 state = __atomic_load_n(&worker->state, __ATOMIC_ACQUIRE), id = worker->id;
    if (state == ASKED) adopt(slot, child, worker);
    if (state == GONE && !strays && remove_worker(worker, GONE)) {
        struct slot empty = {.reached[AT_GONE] = now_ns()};
        tell_reached(&empty, EMPTY, id, 0, 0);
    }
    if (worker->state != KEPT) return worker->state == GONE;
    u32 asked = apply_orders(worker->orders, id, worker->pid);
    struct target target = {.root = worker->pid, .reaper = slot->pid};
    if (asked & LEVEL_TERM) signal_tree(&target, LEVEL_TERM);
    worker->level |= asked & LEVEL_KILL;
    if (worker->level) signal_tree(&target, LEVEL_KILL);
    return worker->level != 0;
}

/* `look`: a process was reaped, so there may be strays, descendants that a worker left. EMPTY of a worker is told once there
 * are no strays of any worker. Returns whether to look again soon. */
static int handle_workers(struct slot *slot, u32 child, int look) {
    struct worker_table *table = slot->worker_table;
    struct target target = tree_of(slot);
    target.strays_of = slot;
    target.child = child;
    u32 strays = look ? signal_tree(&target, LEVEL_KILL) : 0;
    int more = strays > 0;
    if (!table || (!__atomic_exchange_n(&table->asked, 0, __ATOMIC_SEQ_CST) && !look)) return more;
    for (u32 i = 0; i < __atomic_load_n(&table->used, __ATOMIC_ACQUIRE); i++)
        more |= handle_worker(slot, child, &table->workers[i], strays);
    return more;
}

/* Nothing of the tree is left. A worker that was added since is refused, here or by main. */
static void clear_workers(struct worker_table *table) {
    for (u32 i = 0; table && i < __atomic_load_n(&table->used, __ATOMIC_SEQ_CST); i++) {
        u32 id = table->workers[i].id;
        refuse_worker(&table->workers[i], ESRCH);
        if (remove_worker(&table->workers[i], GONE)) tell(EMPTY, id, 0, 0);
    }
}

/* --- the end of a command, told once, by the second of reaper and pump --- */

/* A pump in the middle of a call on a pipe either moves bytes, which count, or the pipe is locked. */
static int is_pump_stuck(struct slot *slot) {
    u32 touching = LOAD_OF(&slot->touching);
    u64 until = now_ms() + STUCK_MS;
    if (!(touching & 1)) return 0;
    while (LOAD_OF(&slot->touching) == touching)
        if (now_ms() > until) return 1;
        else SYS(sched_yield);
    return 0;
}

static void tell_drained(struct slot *slot, struct progress *at) {
    at->drained_at = 0;
    u32 met = ADD_BITS(&slot->meet, MEET_TOLD);
    if (met & MEET_OVER) return; /* the pump was faster, and tells it */
    int incomplete = is_pump_stuck(slot) || !(met & MEET_DRAINED) ? INCOMPLETE : 0;
    tell_done(slot, at->id, incomplete | (at->is_empty ? WITH_EMPTY : 0));
}

/* The time to drain is over. What the command wrote before its end may still be in its pipes: its pump reads that first. */
static void end_drain(struct slot *slot, struct progress *at) {
    struct control asked = {LOOK, at->id, 0, 0, 0};
    struct iovec part = {&asked, sizeof asked};
    if (at->is_last_asked) { tell_drained(slot, at); return; }
    at->is_last_asked = 1;
    at->drained_at = now_ms() + (welcome_flags & W_GVISOR ? SEND_MS : STUCK_MS);
    ADD_BITS(&slot->meet, MEET_LAST);
    if (send_frame(post, &part, 1, NULL, 0, &slot->inbox) > 0) __atomic_add_fetch(&slot->posted, 1, __ATOMIC_SEQ_CST);
}

static void tell_ended(struct slot *slot, struct progress *at) {
    u32 bits = MEET_EXIT | (at->is_empty ? MEET_EMPTY : 0);
    int empty = at->is_empty ? WITH_EMPTY : 0;
    at->has_ended = 1;
    u32 met = ADD_BITS(&slot->meet, bits);
    if (!(slot->flags & F_RUN)) tell_exit(slot, at->id, empty | (met & MEET_OVER ? WITH_FREE : 0));
    else if (met & MEET_OVER) tell_done(slot, at->id, empty | WITH_FREE);
    else at->drained_at = now_ms() + slot->drain_ms + 1;
    if (slot->flags & F_END_ORPHANS) at->level = LEVEL_KILL;
}

/* A run's pump that comes second tells EMPTY with its DONE. */
static void tell_empty(struct slot *slot, struct progress *at) {
    u32 met = ADD_BITS(&slot->meet, MEET_EMPTY);
    int goes_along = slot->flags & F_RUN && !(met & (MEET_OVER | MEET_TOLD));
    if (!goes_along) tell_reached(slot, EMPTY, at->id, 0, 0);
}

/* A command whose start failed: its end is not told, only REFUSED. It is reaped by name, since before execve its exit signal is not
 * SIGCHLD (clone(2), CLONE_PARENT). */
static void tell_refused(struct slot *slot, struct progress *at) {
    at->is_empty = at->has_ended = 1;
    if (slot->step == STEP_EXEC) tell_no_program(slot, at->id);
    else tell(REFUSED, at->id, (int)slot->error, (int)slot->step);
    ADD_BITS(&slot->meet, MEET_EXIT | MEET_EMPTY | MEET_TOLD);
}

/* A run's exit is told before its end where its streams are still held. */
static void tell_exit_early(struct slot *slot, struct progress *at) {
    at->is_exit_told = 1;
    tell_exit(slot, at->id, at->is_empty ? WITH_EMPTY : 0);
}

/* A pump that has not come to say that the command runs is late: it did by now. */
static void note_end(struct slot *slot, int status, struct rusage *used) {
    reach(slot, AT_STARTED);
    reach(slot, AT_EXITED);
    slot->status = status;
    slot->used = *used;
    slot->child = 0;
}

/* Returns wait4's last result. A child before its execve is no child to wait4 without __WALL, so it is asked for by name; and that
 * before all others, since between the two calls it may execute and leave a descendant, which an earlier ECHILD says nothing of. */
static long reap(struct slot *slot, struct progress *at, int *ended, int *look) {
    struct rusage used;
    int code;
    long pid = 0;
    u32 child = LOAD_OF(&slot->child);
    if (child && !at->has_ended && SYS(wait4, child, &code, WNOHANG | __WALL, &used) == (long)child) {
        note_end(slot, code, &used);
        *ended = *look = 1;
    }
    for (int n = 0; n < REAP_BURST && (pid = SYS(wait4, -1, &code, WNOHANG, &used)) > 0; n++) {
        *look = 1;
        if ((u32)pid == LOAD_OF(&slot->child)) { note_end(slot, code, &used); *ended = 1; }
        else if (slot->flags & F_TEMPLATE) note_worker_end(slot, (u32)pid, code, &used);
    }
    return pid;
}

static void take_orders(struct slot *slot, struct progress *at, int look) {
    u32 asked = apply_orders(slot->orders, at->id, at->has_ended ? 0 : slot->child);
    if (asked & LEVEL_FINISH && !at->has_ended) { at->is_empty = 1; tell_ended(slot, at); }
    if (at->is_empty) return;
    if (!at->level) send_term(tree_of(slot), &at->term, asked & LEVEL_TERM, look);
    if (asked & LEVEL_KILL) at->level = LEVEL_KILL;
    if ((u32)SYS(getppid) != main_pid) at->level = LEVEL_KILL; /* main is dead: no order will come */
    if (!at->level) return;
    struct target tree = tree_of(slot);
    signal_tree(&tree, at->level);
}

/* The last step for a process: from here on the slot is the pump's, which may take the next request. */
static void finish(struct slot *slot, struct progress *at) {
    clear_workers(slot->worker_table);
    if (at->term.signalled) SYS(munmap, at->term.signalled, SIGNALLED_BYTES);
    at->is_done = 1;
    ADD_BITS(&slot->meet, MEET_DONE);
    unpark(&slot->meet);
}

/* One turn. A worker's streams (F_WORKER) have no child here: their end is ordered (LEVEL_FINISH). */
static void handle_process(struct slot *slot, struct progress *at) {
    if (LOAD_OF(&slot->meet) & MEET_CLOSE) { at->is_empty = 1; finish(slot, at); return; }
    int ended = 0, look = at->busy;
    long last = slot->flags & F_WORKER ? 0 : reap(slot, at, &ended, &look);
    at->more = last > 0;
    if (slot->flags & F_TEMPLATE) at->busy = handle_workers(slot, slot->child, look);
    int was_empty = at->is_empty;
    if (ended && slot->error) tell_refused(slot, at);
    else if (!at->is_empty && (ended || at->has_ended) && last == -ECHILD) {
        reach(slot, AT_GONE);
        at->is_empty = 1;
    }
    if (ended && !slot->error) tell_ended(slot, at);
    else if (at->is_empty && !was_empty && !slot->error) tell_empty(slot, at);
    take_orders(slot, at, look);
    if (at->is_empty && at->drained_at) park(&slot->meet, MEET_EXIT | MEET_EMPTY, SETTLE_MS);
    u32 met = LOAD_OF(&slot->meet);
    if (met & MEET_OVER) at->drained_at = 0;
    if (at->drained_at && !at->is_exit_told) tell_exit_early(slot, at);
    if (at->drained_at && (met & MEET_DRAINED || now_ms() >= at->drained_at)) end_drain(slot, at);
    if (at->is_empty && !at->drained_at) finish(slot, at);
}

/* Milliseconds until the next turn is due without a signal. */
static long pause_of(struct progress *at) {
    long pause = at->is_empty ? NO_TIME : at->level || at->busy ? TREE_PAUSE_MS : at->term.again_ms ? at->term.again_ms : NO_TIME;
    if (!at->drained_at) return pause;
    u64 now = now_ms();
    long left = at->drained_at > now ? (long)(at->drained_at - now) : 0;
    return pause < 0 || left < pause ? left : pause;
}

static void wait_for_event(struct progress *at) {
    u64 wakes = bit(SIGCHLD) | bit(SIGUSR1) | bit(SIGUSR2);
    long milliseconds = at->more ? 0 : pause_of(at);
    struct moment pause = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    SYS(rt_sigtimedwait, &wakes, 0, milliseconds < 0 ? 0 : &pause, sizeof wakes);
}

/* SCHED_BATCH: a reaper that is woken does not preempt fastclaw in the middle of a turn (sched(7)), which makes sixteen starts
 * at a time a fifth faster. Commands get SCHED_OTHER back. A spawner under another policy keeps that. */
static void use_batch_policy(void) {
    int priority = 0;
    if (SYS(sched_getscheduler, 0) == SCHED_OTHER) is_batch = !SYS(sched_setscheduler, 0, SCHED_BATCH, &priority);
}

/* Its exit signal is not SIGCHLD, so that wait4 without __WALL does not count it (wait(2), __WCLONE). */
static int make_pump(struct slot *slot) {
    long made = fork_with(CLONE_VM | CLONE_PARENT_SETTID | SIGUSR2, slot->memory + PUMP_STACK, &slot->pump, pump, slot);
    STORE_TO(&slot->is_made, made < 0 ? (u32)-made : 1u << 31);
    unpark(&slot->is_made);
    return made > 0;
}

/* Neither pump nor command (which counts by __WALL only before its execve): where the pump was killed in the middle of a start, or had
 * a worker's streams, no child's end will come. Reaps nothing. */
static int has_no_child(void) { return SYS(waitid, P_ALL, 0, 0, WEXITED | WNOHANG | WNOWAIT | __WALL, 0) == -ECHILD; }

int reaper(void *argument) {
    struct slot *slot = argument;
    struct progress at = {0};
    slot->pid = (u32)SYS(getpid);
    /* Main's descriptors are shared until here, and there may be thousands: those of its own that are needed have low numbers. */
    if (SYS(close_range, channel + 1, LAST_FD, CLOSE_RANGE_UNSHARE)) return 1;
    SYS(close, control); /* fastclaw must see it close when main ends */
    SYS(prctl, PR_SET_CHILD_SUBREAPER, 1);
    SYS(prctl, PR_SET_PDEATHSIG, SIGUSR1);
    use_batch_policy();
    if (!make_pump(slot)) return 1;
    for (;;) {
        wait_for_event(&at);
        if (slot->pump && SYS(wait4, slot->pump, 0, WNOHANG | __WALL, 0)) slot->pump = 0;
        /* Without its pump a process's streams are lost: it is killed, and its reaper ends. */
        int is_over = dying || !slot->pump || (u32)SYS(getppid) != main_pid;
        u32 id = LOAD_OF(&slot->id);
        if (id != at.id) at = (struct progress){.id = id};
        if (is_over) at.level = LEVEL_KILL;
        if (is_over && slot->pump) SYS(kill, slot->pump, SIGKILL); /* it may wait for us, or be in the middle of a start */
        if (id && !at.is_done) handle_process(slot, &at);
        if (is_over && (!id || at.is_empty || has_no_child())) return 0;
    }
}
