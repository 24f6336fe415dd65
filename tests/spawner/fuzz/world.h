/* A world around the spawner's tasks, in one process and one thread: main, reapers and pumps are fibers that run the real code and
 * take turns by chance, at each system call and each atomic step (fibers.c). Sockets, pipes, terminals and files are real; time,
 * signals, futexes, processes and locked pipes are played (kernel.c, trees.c). story.c plays fastclaw, its clients and the commands;
 * ledger.c has what they know and checks it. */
#ifndef WORLD_H
#define WORLD_H
#include "spawner.h"

enum { MAIN_PID = 2, CONTROL_FD = 3, MAX_FIBERS = 64, MAX_FD = 2048, MAX_MEMBERS = 5, MAX_TREES = 64 };
enum kind { MAIN, REAPER, PUMP };
enum { LIVES, ZOMBIE, REAPED };

struct fiber {
    enum kind kind;
    int is_over, is_reaped, is_blocked, idle_turns, is_woken;
    u32 pid, parent, *parked_at;
    u64 deadline, pending; /* a deadline of 0 is none */
    struct slot *slot;
};

/* Member 0 is the command itself. */
struct member { int is_there, end, status, fd[3]; u32 pid; };
struct tree {
    u32 id;
    struct slot *slot;
    int is_before_exec, may_be_killed, control;
    struct member members[MAX_MEMBERS];
};

/* fibers.c */
extern struct fiber *me, fibers[MAX_FIBERS];
extern int fiber_count, is_loud;
extern u64 virtual_ms, calls, seed; /* calls: that did not wait */
u32 any(u32 below);
struct fiber *begin_fiber(enum kind kind, struct slot *slot, int (*fn)(void *), void *argument);
_Noreturn void end_fiber(void);
void step(void); /* another may go on */
void block(u64 deadline);
int expired(u64 deadline);
int schedule(void); /* one turn of one fiber; 0: all wait for something */
u64 next_deadline(void);
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* kernel.c */
extern u32 fault_one_in; /* 0: never */
extern u64 acted; /* counts what the story does: who goes round twice without anything to do, and without that, spins */
int open_by(struct fiber *fiber);
void close_kept(struct fiber *fiber);
void wake_main(void);

/* trees.c */
extern struct tree trees[MAX_TREES];
extern int tree_count;
struct tree *tree_of_slot(struct slot *slot);
struct tree *tree_of_id(u32 id);
int living(struct tree *tree);
void die(struct tree *tree, struct member *member, int status);
long wait_for(long pid, int *status, long options);
long look_for_any(void); /* waitid(2) of all, with WNOWAIT: 0, or -ECHILD */
long send_signal(long pid, long signum);
void lock_pipe(struct member *member, int which);
int is_locked(ino_t inode);
void kill_fiber(struct fiber *fiber);
void tell_parent(struct fiber *fiber); /* that it is no more */

/* story.c, ledger.c */
int must_not_die(struct tree *tree); /* whether nobody has asked for its end */
void on_birth(struct tree *tree, struct start *request);
void on_end(struct tree *tree);
void on_word(struct event *event); /* it has been said, and not yet heard */

/* sim_main.c */
void begin_main(u64 collect_bytes);
int run_main(void *nothing);
#endif
