/* Processes, as reapers see them: who lives, who is a zombie, and whose parent the reaper is. In tree.c's and clone(2)'s place. */
#include "world.h"
#include <stdlib.h>
#include <unistd.h>

enum { FIRST_PID = 1000, MAX_LOCKS = 32 };

struct tree trees[MAX_TREES];
int tree_count;
static struct { struct member *by; ino_t inode; } locks[MAX_LOCKS];
static u32 last_pid = FIRST_PID;

long kill_rounds; /* calls of signal_tree in which a process did not die at once */

/* --- finding --- */

struct tree *tree_of_id(u32 id) {
    for (int i = tree_count - 1; id && i >= 0; i--) if (trees[i].id == id) return &trees[i];
    return NULL;
}

struct tree *tree_of_slot(struct slot *slot) {
    for (int i = tree_count - 1; i >= 0; i--) if (trees[i].slot == slot) return &trees[i];
    return NULL;
}

int living(struct tree *tree) {
    int count = 0;
    for (int i = 0; i < MAX_MEMBERS; i++) count += tree->members[i].is_there && tree->members[i].end == LIVES;
    return count;
}

static struct fiber *reaper_of(struct slot *slot) {
    for (int i = fiber_count - 1; i >= 0; i--)
        if (fibers[i].kind == REAPER && fibers[i].slot == slot && !fibers[i].is_over) return &fibers[i];
    return NULL;
}

static void signal_reaper(struct tree *tree, int signum) {
    struct fiber *reaper = reaper_of(tree->slot);
    if (reaper) reaper->pending |= bit(signum); else wake_main();
}

/* --- pipes that are locked --- */

void lock_pipe(struct member *member, int which) {
    struct stat about;
    if (fstat(member->fd[which], &about) || !S_ISFIFO(about.st_mode)) return;
    for (int i = 0; i < MAX_LOCKS; i++) {
        if (locks[i].by) continue;
        locks[i].by = member;
        locks[i].inode = about.st_ino;
        return;
    }
}

int is_locked(ino_t inode) {
    for (int i = 0; i < MAX_LOCKS; i++) if (locks[i].by && locks[i].inode == inode) return 1;
    return 0;
}

/* --- ends --- */

void die(struct tree *tree, struct member *member, int status) {
    int is_command = member == &tree->members[0], is_ours = is_command || tree->members[0].end != LIVES;
    if (!member->is_there || member->end != LIVES) return;
    note("    %u of %u dies", member->pid, tree->id);
    for (int i = 0; i < MAX_LOCKS; i++) if (locks[i].by == member) locks[i].by = NULL;
    for (int i = 0; i < 3; i++) {
        if (member->fd[i] >= 0) close(member->fd[i]);
        member->fd[i] = -1;
    }
    if (is_command && tree->control >= 0) { close(tree->control); tree->control = -1; }
    member->status = status;
    member->end = is_ours ? ZOMBIE : REAPED; /* its parent reaps it */
    if (is_ours) signal_reaper(tree, is_command && tree->is_before_exec ? SIGUSR2 : SIGCHLD);
    if (is_command) on_end(tree);
    acted++;
}

static long reap(struct member *member, int *status) {
    member->end = REAPED;
    if (status) *status = member->status;
    return member->pid;
}

/* Of the tree in this slot. A command before its execve does not count, but to who asks for it by name. */
static long wait_for_member(struct tree *tree, long pid, int *status, int all) {
    int is_left = 0;
    if (!tree) return -ECHILD;
    for (int i = 0; i < MAX_MEMBERS; i++) {
        struct member *member = &tree->members[i];
        int is_ours = member->is_there && member->end != REAPED && (!i || tree->members[0].end != LIVES);
        if (!is_ours || (pid > 0 && pid != member->pid) || (!i && tree->is_before_exec && !all)) continue;
        if (member->end == ZOMBIE) return reap(member, status);
        is_left = 1;
    }
    return is_left ? 0 : -ECHILD;
}

static long wait_for_fiber(enum kind kind, long pid) {
    int is_left = 0;
    for (int i = 0; i < fiber_count; i++) {
        struct fiber *fiber = &fibers[i];
        if (fiber->kind != kind || fiber->parent != me->pid || fiber->is_reaped || (pid > 0 && pid != fiber->pid)) continue;
        if (fiber->is_over) { fiber->is_reaped = 1; return fiber->pid; }
        is_left = 1;
    }
    return is_left ? 0 : -ECHILD;
}

/* Main: its reapers, and what lost its own. */
static long wait_for_any(int *status) {
    long pid = wait_for_fiber(REAPER, -1);
    for (int i = 0; pid <= 0 && i < tree_count; i++) {
        if (reaper_of(trees[i].slot)) continue;
        long stray = wait_for_member(&trees[i], -1, status, 1);
        if (stray >= 0) pid = stray;
    }
    return pid;
}

long wait_for(long pid, int *status, long options) {
    if (me->kind == MAIN) return wait_for_any(status);
    if (pid > 0 && pid < FIRST_PID) return wait_for_fiber(PUMP, pid);
    return wait_for_member(tree_of_slot(me->slot), pid, status, !!(options & __WALL));
}

long look_for_any(void) {
    struct tree *tree = tree_of_slot(me->slot);
    for (int i = 0; i < fiber_count; i++) if (fibers[i].parent == me->pid && !fibers[i].is_reaped) return 0;
    for (int i = 0; tree && i < MAX_MEMBERS; i++) {
        int is_ours = !i || tree->members[0].end != LIVES;
        if (is_ours && tree->members[i].is_there && tree->members[i].end != REAPED) return 0;
    }
    return -ECHILD;
}

long send_signal(long pid, long signum) {
    int is_group = pid < 0;
    if (pid == 0 || pid == -1) fail("signal %ld goes to %ld, which is everybody", signum, pid);
    if (is_group) pid = -pid; /* its leader stands for all of it */
    for (int i = 0; i < fiber_count; i++)
        if (fibers[i].pid == pid && !fibers[i].is_over) {
            if (is_group) fail("signal %ld goes to a group of ours", signum);
            if (signum == SIGKILL) kill_fiber(&fibers[i]);
            else fibers[i].pending |= bit((int)signum);
            return 0;
        }
    for (int i = 0; i < tree_count; i++)
        for (int k = 0; k < MAX_MEMBERS; k++) {
            struct member *member = &trees[i].members[k];
            if (!member->is_there || member->pid != pid || member->end == REAPED) continue;
            if (signum == SIGKILL) die(&trees[i], member, SIGKILL);
            return 0;
        }
    return -ESRCH;
}

void tell_parent(struct fiber *fiber) {
    struct fiber *reaper = reaper_of(fiber->slot);
    if (fiber->kind == REAPER) wake_main();
    else if (reaper) reaper->pending |= bit(SIGUSR2);
}

static void end_now(struct fiber *fiber) {
    fiber->is_over = 1;
    close_kept(fiber);
    tell_parent(fiber);
}

/* As by a KILL from a neighbour of the same user. A reaper's pump and its command go with it (PR_SET_PDEATHSIG). */
void kill_fiber(struct fiber *fiber) {
    struct tree *tree = tree_of_slot(fiber->slot);
    note("    %s %d is killed", fiber->kind == PUMP ? "pump" : "reaper", (int)(fiber->slot - slots));
    end_now(fiber);
    if (fiber->kind == PUMP) return;
    for (int i = 0; i < fiber_count; i++)
        if (fibers[i].kind == PUMP && fibers[i].parent == fiber->pid && !fibers[i].is_over) end_now(&fibers[i]);
    if (tree) die(tree, &tree->members[0], SIGKILL);
}

/* --- in tree.c's place --- */

static u32 kill_played_tree(struct tree *tree) {
    u32 count = 0;
    if (must_not_die(tree)) fail("%u is ended, and nobody has asked for it", tree->id);
    for (int i = 0; i < MAX_MEMBERS; i++) {
        struct member *member = &tree->members[i];
        if (!member->is_there || member->end == REAPED) continue;
        count++;
        if (any(3)) die(tree, member, SIGKILL); /* else it hangs in a call, until the next round */
    }
    return count;
}

u32 signal_tree(const struct target *target, int level) {
    u32 count = 0;
    calls++;
    for (int i = 0; level == LEVEL_KILL && i < tree_count; i++) {
        int is_meant = target->root == MAIN_PID ? !reaper_of(trees[i].slot) : trees[i].slot == me->slot;
        if (is_meant) count += kill_played_tree(&trees[i]);
    }
    return count;
}

void send_term(struct target target, struct term_state *term, int is_first, int look) {
    struct tree *tree = tree_of_slot(me->slot);
    (void)target, (void)term, (void)look;
    for (int i = 0; is_first && tree && i < MAX_MEMBERS; i++) if (any(2)) die(tree, &tree->members[i], SIGTERM);
}

int read_ids(u32 pid, u64 of[3]) { (void)pid, (void)of; return 0; }
int read_usage(u32 pid, u64 *of, int count) {
    for (int i = 0; i < tree_count; i++)
        for (int k = 0; k < MAX_MEMBERS; k++) {
            struct member *member = &trees[i].members[k];
            if (!member->is_there || member->pid != pid || member->end == REAPED) continue;
            for (int field = 0; field < count; field++) of[field] = 1;
            return 1;
        }
    return 0;
}

/* All of a tree are its reaper's children here. */
u32 add_children(u32 pid, struct descendant *found, u32 count, u32 most) {
    for (u32 i = 0; i < used_slots; i++) {
        struct tree *tree = slots[i].pid == pid ? tree_of_slot(&slots[i]) : NULL;
        for (int k = 0; tree && k < MAX_MEMBERS; k++) {
            struct member *member = &tree->members[k];
            if (member->is_there && member->end != REAPED && count < most) found[count++] = (struct descendant){member->pid, pid};
        }
    }
    return count;
}

long slurp(const char *path, char *to, size_t bytes) { (void)path, (void)to, (void)bytes; return -ENOENT; }

/* --- in clone(2)'s place --- */

static struct tree *new_tree(struct job *job) {
    struct slot *slot = job->slot;
    struct tree *before = tree_of_slot(slot);
    if (before) for (int i = 0; i < MAX_MEMBERS; i++)
        if (before->members[i].is_there && before->members[i].end != REAPED) fail("somebody of %u is left in its slot", before->id);
    if (tree_count == MAX_TREES) fail("more trees than are provided for");
    struct tree *tree = &trees[tree_count++];
    *tree = (struct tree){.id = slot->id, .slot = slot, .is_before_exec = 1, .control = -1};
    tree->members[0] = (struct member){.is_there = 1, .pid = ++last_pid};
    for (int i = 0; i < 3; i++) {
        tree->members[0].fd[i] = fcntl(job->stdio[i], F_DUPFD_CLOEXEC, 100);
        fcntl(tree->members[0].fd[i], F_SETFL, O_NONBLOCK);
    }
    if (job->control >= 0) tree->control = fcntl(job->control, F_DUPFD_CLOEXEC, 100);
    on_birth(tree, job->request);
    return tree;
}

/* clone(2) with CLONE_VFORK: whoever makes the command waits until that is through its execve, or has ended. */
static long begin_command(struct job *job, u32 *parent_tid) {
    struct tree *tree = new_tree(job);
    *parent_tid = tree->members[0].pid;
    while (tree->is_before_exec && tree->members[0].end == LIVES) block(0);
    return tree->members[0].pid;
}

long fork_with(unsigned long flags, void *stack, u32 *parent_tid, int (*fn)(void *), void *argument) {
    struct fiber *fiber;
    (void)flags, (void)stack;
    step();
    calls++;
    if (fn != reaper && fault_one_in && !any(fault_one_in)) return -EAGAIN;
    if (fn == command) return begin_command(argument, parent_tid);
    fiber = begin_fiber(fn == reaper ? REAPER : PUMP, argument, fn, argument);
    *parent_tid = fiber->pid;
    return fiber->pid;
}
