/* A reaper: the parent of one command after the other, and of all that they leave. It holds no descriptor of theirs. */
#include "spawner.h"
#include <linux/close_range.h>

enum {
    REAP_BURST = 4096,  /* before orders are heeded: a tree that always forks anew never lets the reaping end */
    SETTLE_MS = 1,      /* for a pump to see the end of streams that nobody holds any more: microseconds */
    STUCK_MS = 100,     /* for a pump to take the last bytes, or to get out of a call on a pipe; then the command has locked it, and a
                         * run is told without */
    NO_TIME = -1,
};

/* How far a reaper is with the process in its slot. */
struct tending {
    u32 id;
    int level, has_ended, is_empty, is_done, is_exit_told, is_last_asked, busy, more;
    u64 drained_at; /* when a run's end is told whoever still holds its streams; 0: not yet known, or told */
    struct asking asking;
};

u32 take_order(u64 *word, u32 id) {
    u64 now = __atomic_load_n(word, __ATOMIC_ACQUIRE), idle = (u64)id << 32;
    do if (now >> 32 != id || now == idle) return 0;
    while (!__atomic_compare_exchange_n(word, &now, idle, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return (u32)now;
}

/* Until we reap it, its number is its own, and so is its group's, which it leads from its setsid on. Before that it is in ours. */
static void send_signal(u32 pid, int signum, int to_group) {
    long whom = to_group && (u32)SYS(getpgid, pid) == pid ? -(long)pid : (long)pid;
    SYS(kill, whom, signum);
}

/* What main has asked for since: sends the signals to `pid` (0: it has ended), returns the levels. */
static u32 heed(u64 *orders, u32 id, u32 pid) {
    u32 asked = take_order(&orders[0], id);
    for (int word = TO_COMMAND; word < ORDERS; word++) {
        u32 signals = take_order(&orders[word], id);
        int first = (word - TO_COMMAND) % 2 * 32 + 1;
        for (int i = 0; pid && i < 32; i++) if (signals >> i & 1) send_signal(pid, first + i, word >= TO_GROUP);
    }
    return asked;
}

static struct prey tree_of(struct slot *slot) { return (struct prey){.root = slot->pid, .spared = slot->pump}; }

/* An order counts only as long as its place serves the request it was meant for. Returns 0 where it does not, 2 where nothing was
 * left there yet. */
int leave_order(u64 *orders, u32 id, int word, u32 bits) {
    u64 now = __atomic_load_n(&orders[word], __ATOMIC_ACQUIRE);
    do if (now >> 32 != id) return 0;
    while (!__atomic_compare_exchange_n(&orders[word], &now, now | bits, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return (u32)now ? 1 : 2;
}

void order(struct slot *slot, u32 id, int word, u32 bits) {
    if (leave_order(slot->orders, id, word, bits)) SYS(kill, slot->pid, SIGUSR1);
}

/* --- a template's workers --- */

void wake_brood(struct slot *slot) {
    __atomic_store_n(&slot->brood->asked, 1, __ATOMIC_SEQ_CST);
    SYS(kill, slot->pid, SIGUSR1);
}

void order_worker(struct slot *slot, u32 id, int word, u32 bits) {
    struct brood *brood = slot && slot->pid ? slot->brood : NULL;
    for (u32 i = 0; brood && i < brood->used; i++)
        if (brood->workers[i].id == id && leave_order(brood->workers[i].orders, id, word, bits)) wake_brood(slot);
}

/* Takes a worker out of the brood; false where somebody else was first. */
static int take_out(struct worker *worker, u32 state) {
    if (__atomic_load_n(&worker->state, __ATOMIC_ACQUIRE) != state) return 0;
    for (int i = 0; i < ORDERS; i++) __atomic_store_n(&worker->orders[i], 0, __ATOMIC_RELEASE);
    return __atomic_compare_exchange_n(&worker->state, &state, VACANT, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

void turn_away(struct worker *worker, int error) {
    u32 id = worker->id;
    if (take_out(worker, ASKED)) tell(REFUSED, id, error, STEP_ADOPT);
}

/* Ours is who fell to us and is still in the template's session, as everybody is who waits to be adopted. */
static void adopt(struct slot *slot, u32 child, struct worker *worker) {
    u64 of[3];
    u32 asked = ASKED, id = worker->id, pid = worker->pid;
    int is_ours = child && pid != child && kinship(pid, of) && of[0] == slot->pid && of[2] == child;
    if (!is_ours) turn_away(worker, ESRCH);
    else if (__atomic_compare_exchange_n(&worker->state, &asked, KEPT, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        tell(STARTED, id, (int)pid, -1);
}

/* Somebody was reaped: a worker, or what a worker left. */
static void bury(struct slot *slot, u32 pid, int status, struct rusage *used) {
    struct brood *brood = slot->brood;
    for (u32 i = 0; brood && i < brood->used; i++) {
        struct worker *worker = &brood->workers[i];
        if (worker->pid != pid) continue;
        if (worker->state == ASKED) turn_away(worker, ESRCH);
        if (worker->state != KEPT) continue;
        struct slot ended = {.status = status, .used = *used};
        tell_exit(&ended, worker->id, 0);
        __atomic_store_n(&worker->state, GONE, __ATOMIC_RELEASE);
    }
}

/* Orders for one worker; returns whether there is more to do soon. */
static int tend_worker(struct slot *slot, u32 child, struct worker *worker, u32 strays) {
    u32 state = __atomic_load_n(&worker->state, __ATOMIC_ACQUIRE), id = worker->id;
    if (state == ASKED) adopt(slot, child, worker);
    if (state == GONE && !strays && take_out(worker, GONE)) tell(EMPTY, id, 0, 0);
    if (worker->state != KEPT) return worker->state == GONE;
    u32 asked = heed(worker->orders, id, worker->pid);
    struct prey prey = {.root = worker->pid, .reaper = slot->pid};
    if (asked & LEVEL_TERM) hunt(&prey, LEVEL_TERM);
    worker->level |= asked & LEVEL_KILL;
    if (worker->level) hunt(&prey, LEVEL_KILL);
    return worker->level != 0;
}

/* `look`: somebody was reaped, so that there may be what a worker left. A worker's end is told once nothing of that is
 * there, whoever's it was. Returns whether there is more to do soon. */
static int tend_brood(struct slot *slot, u32 child, int look) {
    struct brood *brood = slot->brood;
    struct prey prey = tree_of(slot);
    prey.strays_of = slot;
    prey.child = child;
    u32 strays = look ? hunt(&prey, LEVEL_KILL) : 0;
    int more = strays > 0;
    if (!brood || (!__atomic_exchange_n(&brood->asked, 0, __ATOMIC_SEQ_CST) && !look)) return more;
    for (u32 i = 0; i < __atomic_load_n(&brood->used, __ATOMIC_ACQUIRE); i++)
        more |= tend_worker(slot, child, &brood->workers[i], strays);
    return more;
}

/* Nobody is left. Who was entered since is turned away, here or by main. */
static void dissolve(struct brood *brood) {
    for (u32 i = 0; brood && i < __atomic_load_n(&brood->used, __ATOMIC_SEQ_CST); i++) {
        u32 id = brood->workers[i].id;
        turn_away(&brood->workers[i], ESRCH);
        if (take_out(&brood->workers[i], GONE)) tell(EMPTY, id, 0, 0);
    }
}

/* --- the end of a command, told once by whoever of reaper and pump comes second --- */

/* Its pump may be in the middle of a call on a pipe, whose bytes then still count; or the pipe is locked. */
static int is_pump_stuck(struct slot *slot) {
    u32 touching = LOAD_OF(&slot->touching);
    u64 until = now_ms() + STUCK_MS;
    if (!(touching & 1)) return 0;
    while (LOAD_OF(&slot->touching) == touching)
        if (now_ms() > until) return 1;
        else SYS(sched_yield);
    return 0;
}

static void tell_drained(struct slot *slot, struct tending *at) {
    at->drained_at = 0;
    u32 met = ADD_BITS(&slot->meet, MEET_TOLD);
    if (met & MEET_OVER) return; /* the pump was faster, and tells it */
    int incomplete = is_pump_stuck(slot) || !(met & MEET_DRAINED) ? INCOMPLETE : 0;
    tell_done(slot, at->id, incomplete | (at->is_empty ? WITH_EMPTY : 0));
}

/* The time to drain is over. What the command wrote before its end may be in its pipes still: its pump takes that first. */
static void end_drain(struct slot *slot, struct tending *at) {
    struct control asked = {LOOK, at->id, 0, 0, 0};
    struct iovec part = {&asked, sizeof asked};
    if (at->is_last_asked) { tell_drained(slot, at); return; }
    at->is_last_asked = 1;
    at->drained_at = now_ms() + STUCK_MS;
    ADD_BITS(&slot->meet, MEET_LAST);
    if (say(post, &part, 1, NULL, 0, &slot->inbox) > 0) __atomic_add_fetch(&slot->posted, 1, __ATOMIC_SEQ_CST);
}

static void tell_ended(struct slot *slot, struct tending *at) {
    u32 bits = MEET_EXIT | (at->is_empty ? MEET_EMPTY : 0);
    int empty = at->is_empty ? WITH_EMPTY : 0;
    at->has_ended = 1;
    u32 met = ADD_BITS(&slot->meet, bits);
    if (!(slot->flags & F_RUN)) tell_exit(slot, at->id, empty | (met & MEET_OVER ? WITH_FREE : 0));
    else if (met & MEET_OVER) tell_done(slot, at->id, empty | WITH_FREE);
    else at->drained_at = now_ms() + slot->drain_ms + 1;
    if (slot->flags & F_END_ORPHANS) at->level = LEVEL_KILL;
}

/* Where the pump's end was told by it meanwhile, it was told with this one. */
static void tell_empty(struct slot *slot, struct tending *at) {
    u32 met = ADD_BITS(&slot->meet, MEET_EMPTY);
    int goes_along = slot->flags & F_RUN && !(met & (MEET_OVER | MEET_TOLD));
    if (!goes_along) tell(EMPTY, at->id, 0, 0);
}

/* A command that its execve refused was never there (its parent's exit signal is not SIGCHLD: clone(2), CLONE_PARENT). */
static void tell_refused(struct slot *slot, struct tending *at) {
    at->is_empty = at->has_ended = 1;
    if (slot->step == STEP_EXEC) tell_no_program(slot, at->id);
    else tell(REFUSED, at->id, (int)slot->error, (int)slot->step);
    ADD_BITS(&slot->meet, MEET_EXIT | MEET_EMPTY | MEET_TOLD);
}

/* Something still holds a run's streams: its time is over all the same. */
static void tell_exit_early(struct slot *slot, struct tending *at) {
    at->is_exit_told = 1;
    tell_exit(slot, at->id, at->is_empty ? WITH_EMPTY : 0);
}

static void note_end(struct slot *slot, int status, struct rusage *used) {
    slot->status = status;
    slot->used = *used;
    slot->child = 0;
}

/* Returns wait4's last word. One that ended before its execve is no child that counts, and is asked for by name: before the others,
 * since in between it may execute something that leaves somebody, whom a word from before knows nothing of. */
static long reap(struct slot *slot, struct tending *at, int *ended, int *look) {
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
        else if (slot->flags & F_TEMPLATE) bury(slot, (u32)pid, code, &used);
    }
    return pid;
}

static void take_orders(struct slot *slot, struct tending *at, int look) {
    u32 asked = heed(slot->orders, at->id, at->has_ended ? 0 : slot->child);
    if (asked & LEVEL_FINISH && !at->has_ended) { at->is_empty = 1; tell_ended(slot, at); }
    if (at->is_empty) return;
    if (!at->level) ask_to_end(tree_of(slot), &at->asking, asked & LEVEL_TERM, look);
    if (asked & LEVEL_KILL) at->level = LEVEL_KILL;
    if ((u32)SYS(getppid) != main_pid) at->level = LEVEL_KILL; /* main is dead: nobody will ever ask */
    if (!at->level) return;
    struct prey tree = tree_of(slot);
    hunt(&tree, at->level);
}

/* The last that is done for a process: from here on the slot is the pump's, which may take the next. */
static void finish(struct slot *slot, struct tending *at) {
    dissolve(slot->brood);
    if (at->asking.asked) SYS(munmap, at->asking.asked, ASKED_BYTES);
    at->is_done = 1;
    ADD_BITS(&slot->meet, MEET_DONE);
    unpark(&slot->meet);
}

/* One look at everything. A worker's streams (F_WORKER) have no child here: their end is ordered. */
static void tend(struct slot *slot, struct tending *at) {
    if (LOAD_OF(&slot->meet) & MEET_CLOSE) { at->is_empty = 1; finish(slot, at); return; }
    int ended = 0, look = at->busy;
    long last = slot->flags & F_WORKER ? 0 : reap(slot, at, &ended, &look);
    at->more = last > 0;
    if (slot->flags & F_TEMPLATE) at->busy = tend_brood(slot, slot->child, look);
    int was_empty = at->is_empty;
    if (ended && slot->error) tell_refused(slot, at);
    else if (!at->is_empty) at->is_empty = (ended || at->has_ended) && last == -ECHILD;
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

/* Milliseconds until something is to be looked at that sends no signal. */
static long pause_of(struct tending *at) {
    long pause = at->is_empty ? NO_TIME : at->level || at->busy ? HUNT_MS : at->asking.again_ms ? at->asking.again_ms : NO_TIME;
    if (!at->drained_at) return pause;
    u64 now = now_ms();
    long left = at->drained_at > now ? (long)(at->drained_at - now) : 0;
    return pause < 0 || left < pause ? left : pause;
}

static void await_something(struct tending *at) {
    u64 wakes = bit(SIGCHLD) | bit(SIGUSR1) | bit(SIGUSR2);
    long milliseconds = at->more ? 0 : pause_of(at);
    struct moment pause = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    SYS(rt_sigtimedwait, &wakes, 0, milliseconds < 0 ? 0 : &pause, sizeof wakes);
}

/* A reaper that is woken does not push fastclaw off its processor in the middle of a turn (sched(7)): sixteen starts at a
 * time are a fifth faster so. What it starts is scheduled as ever. Who runs under another policy keeps it. */
static void wait_for_turn(void) {
    int priority = 0;
    if (SYS(sched_getscheduler, 0) == SCHED_OTHER) is_batch = !SYS(sched_setscheduler, 0, SCHED_BATCH, &priority);
}

/* Its exit signal is not SIGCHLD, so that wait4 does not count it among the children that are left (wait(2), __WCLONE). */
static int make_pump(struct slot *slot) {
    long made = fork_with(CLONE_VM | CLONE_PARENT_SETTID | SIGUSR2, slot->memory + PUMP_STACK, &slot->pump, pump, slot);
    STORE_TO(&slot->is_made, made < 0 ? (u32)-made : 1u << 31);
    unpark(&slot->is_made);
    return made > 0;
}

/* No pump, and no command, which before its execve counts by __WALL only: where the pump was killed in the middle of a start, or had
 * a worker's streams, nobody's end is ever to come. Nobody is reaped here. */
static int is_alone(void) { return SYS(waitid, P_ALL, 0, 0, WEXITED | WNOHANG | WNOWAIT | __WALL, 0) == -ECHILD; }

int reaper(void *argument) {
    struct slot *slot = argument;
    struct tending at = {0};
    slot->pid = (u32)SYS(getpid);
    /* Main's descriptors are shared until here, and there may be thousands: those of its own that are needed have low numbers. */
    if (SYS(close_range, channel + 1, ~0u, CLOSE_RANGE_UNSHARE)) return 1;
    SYS(close, control); /* its end is main's end */
    SYS(prctl, PR_SET_CHILD_SUBREAPER, 1);
    SYS(prctl, PR_SET_PDEATHSIG, SIGUSR1);
    wait_for_turn();
    if (!make_pump(slot)) return 1;
    for (;;) {
        await_something(&at);
        if (slot->pump && SYS(wait4, slot->pump, 0, WNOHANG | __WALL, 0)) slot->pump = 0;
        /* Without a pump nothing can be said any more of the process's streams: it ends, and so does its reaper. */
        int is_over = dying || !slot->pump || (u32)SYS(getppid) != main_pid;
        u32 id = LOAD_OF(&slot->id);
        if (id != at.id) at = (struct tending){.id = id};
        if (is_over) at.level = LEVEL_KILL;
        if (is_over && slot->pump) SYS(kill, slot->pump, SIGKILL); /* it may wait for us, or be in the middle of a start */
        if (id && !at.is_done) tend(slot, &at);
        if (is_over && (!id || at.is_empty || is_alone())) return 0;
    }
}
