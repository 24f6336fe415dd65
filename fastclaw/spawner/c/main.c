/* Main: PID 1 of a container, or a child of fastclaw. It handles orders, reaps, and never blocks on anything that a container owns. */
#include "spawner.h"
#include <linux/close_range.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>

/* Low numbers: a reaper inherits these, and none of the thousands of clients' duplicates. */
enum { CONTROL = 3, NULL_DEVICE, POST, FORKS, CHANNEL };
enum { NOWHERE = ~0u };
enum { ASLEEP_MS = 500 }; /* in one call on a pipe means blocked: a call that only copies takes some ms at most */
enum { READY_MS = 2000 }; /* for a reaper to say that it has a pump: 0.1 ms; a machine that swaps may take longer */
enum { DIED_MS = 5 }; /* between two checks that a reaper lives: its death does not wake a futex wait */

struct slot *slots;
u32 used_slots, reaper_uid, welcome_flags, main_pid, held_caps, command_caps;
u64 collect_bytes, collected_bytes;
int control = CONTROL, channel = CHANNEL, post = POST, forks = FORKS, null = NULL_DEVICE, dying, is_batch;
struct batch batches[BATCHES];
struct address forks_address;

static u32 reapers;
static int strays, hang_ups = -1;
static long user_error;

static void answer(u32 id, long error, int value, int fd) {
    struct event event = {.op = ANSWER, .id = id, .a = error < 0 ? (int)-error : 0, .b = value};
    struct iovec part = {&event, sizeof event};
    send_frame(control, &part, 1, &fd, fd >= 0, NULL);
}

/* --- reapers --- */

static struct slot *vacant_slot(void) {
    static u32 next; /* where to look first: earlier ones are likely taken */
    u32 tried = 0;
    while (tried < MAX_REAPERS && (slots[next].pid || slots[next].id || slots[next].is_lost)) { tried++; next = (next + 1) % MAX_REAPERS; }
    if (tried == MAX_REAPERS) return NULL; /* a lost one's stack may be in use */
    struct slot *slot = &slots[next];
    if (!slot->memory && !(slot->memory = map(SLOT_BYTES, -1))) return NULL;
    return slot;
}

/* The table of descriptors is shared until the reaper has taken its own: a copy of thousands would keep its size. */
static long add_reaper(struct batch *batch, struct slot **made) {
    struct slot *slot = vacant_slot();
    if (!slot) return -EAGAIN;
    slot->id = slot->child = slot->pump = slot->is_made = slot->retired = slot->takes_requests = 0;
    slot->posted = slot->heard = 0;
    slot->batch = (u32)(batch - batches);
    slot->client[0] = slot->client[1] = -1;
    unsigned long flags = CLONE_VM | CLONE_FILES | CLONE_PARENT_SETTID | SIGCHLD;
    long pid = fork_with(flags, slot->memory + REAPER_STACK, &slot->pid, reaper, slot);
    if (pid < 0) { slot->pid = 0; return pid; }
    if (used_slots <= (u32)(slot - slots)) used_slots = (u32)(slot - slots) + 1;
    reapers++;
    batch->users++;
    *made = slot;
    return 0;
}

/* A reaper that has ended and is not reaped yet. */
static int has_died(u32 pid) {
    siginfo_t info = {.si_pid = 0};
    return !SYS(waitid, P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, 0) && info.si_pid;
}

/* Returns 0 once the reaper has a pump; else the error, and the reaper ends. It may be killed before it has said either. */
static long await_pump(struct slot *slot) {
    u64 until = now_ms() + READY_MS;
    while (!LOAD_OF(&slot->is_made) && now_ms() < until && !has_died(slot->pid)) park(&slot->is_made, 0, DIED_MS);
    u32 made = LOAD_OF(&slot->is_made);
    if (made >> 31) return 0;
    slot->retired = 1; /* not counted */
    return made ? -(long)made : -EAGAIN;
}

/* A batch with room. Its mail becomes `post` for the reapers made next: earlier ones do not share our descriptors any more. */
static long open_batch(struct batch **opened) {
    struct batch *batch = batches;
    while (batch->users >= BATCH) batch++; /* never past the last: there are fewer reapers than that */
    if (!batch->address.bytes) {
        long mail = open_post(&batch->address, NULL);
        if (mail < 0) { batch->address.bytes = 0; return mail; }
        batch->mail = (int)mail;
    }
    *opened = batch;
    long fd = SYS(dup3, batch->mail, post, O_CLOEXEC);
    return fd < 0 ? fd : 0;
}

/* Starts a batch's reapers, then waits for each, so that they come up in parallel. */
static void grow(u32 id, u32 count) {
    struct slot *made[BATCH];
    struct batch *batch;
    long error = user_error;
    u32 added = 0, begun;
    for (u32 left = count; left && !error; left -= begun) {
        if ((error = open_batch(&batch))) break;
        u32 room = BATCH - batch->users, most = left < room ? left : room;
        for (begun = 0; begun < most && !(error = add_reaper(batch, &made[begun])); begun++) {}
        for (u32 i = 0; i < begun; i++) {
            long failed = await_pump(made[i]);
            if (failed) error = failed; else added++;
        }
    }
    answer(id, error, (int)added, -1);
}

/* --- orders --- */

/* `place`: its slot's number, if known. */
static struct slot *find(u32 id, u32 place) {
    if (!id) return NULL;
    if (place < used_slots) return LOAD_OF(&slots[place].id) == id ? &slots[place] : NULL;
    for (u32 i = 0; i < used_slots; i++) if (slots[i].id == id) return &slots[i];
    return NULL;
}

static void end(struct slot *slot, u32 id, u32 level) {
    order(slot, id, 0, level);
    if (level == LEVEL_KILL && slot->pid) SYS(kill, slot->pid, SIGCONT); /* 0: its reaper is dead, and that would be our group */
}

/* Adds a worker to the template's table for its reaper. If the template ends meanwhile, main or the reaper refuses the worker. */
static long add_worker(struct slot *slot, u32 template, u32 id, u32 pid) {
    if (!slot || !slot->pid || !(slot->flags & F_TEMPLATE)) return -ESRCH;
    if (!slot->worker_table && !(slot->worker_table = map(sizeof(struct worker_table), -1))) return -ENOMEM;
    struct worker_table *table = slot->worker_table;
    u32 at = 0;
    while (at < table->used && __atomic_load_n(&table->workers[at].state, __ATOMIC_ACQUIRE) != VACANT) at++;
    if (at == MAX_WORKERS) return -EAGAIN;
    struct worker *worker = &table->workers[at];
    worker->pid = pid;
    worker->id = id;
    worker->level = 0;
    for (int i = 0; i < ORDERS; i++) __atomic_store_n(&worker->orders[i], (u64)id << 32, __ATOMIC_RELEASE);
    __atomic_store_n(&worker->state, ASKED, __ATOMIC_SEQ_CST);
    if (at == table->used) __atomic_store_n(&table->used, at + 1, __ATOMIC_SEQ_CST);
    wake_for_workers(slot);
    if (__atomic_load_n(&slot->id, __ATOMIC_SEQ_CST) != template) refuse_worker(worker, ESRCH);
    return 0;
}

static void adopt_worker(struct control *asked) {
    long error = add_worker(find(asked->b, NOWHERE), asked->b, asked->id, asked->a);
    if (error) tell(REFUSED, asked->id, (int)-error, STEP_ADOPT);
}

/* `asked->b`: a worker's template; 0 for any other process. */
static void forward_order(struct control *asked, int word, u32 bits) {
    struct slot *slot = find(asked->b ? asked->b : asked->id, asked->place);
    if (asked->b) order_worker(slot, asked->id, word, bits);
    else if (slot && !word) end(slot, asked->id, bits);
    else if (slot) order(slot, asked->id, word, bits);
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

/* --- clients: main keeps a duplicate of each socket, so that it sees hang-ups, and can end clients, while their pump sleeps --- */

/* Not sent where its pump has MAX_UNHEARD unread messages: see `struct batch`. */
static long post_to(struct slot *slot, struct control *order, int fd) {
    struct iovec part = {order, sizeof *order};
    if ((int)(LOAD_OF(&slot->posted) - LOAD_OF(&slot->heard)) >= MAX_UNHEARD) return -EAGAIN;
    long n = send_frame(batches[slot->batch].mail, &part, 1, &fd, fd >= 0, &slot->inbox);
    if (n > 0) __atomic_add_fetch(&slot->posted, 1, __ATOMIC_SEQ_CST);
    return n;
}

/* Removed from the epoll set explicitly: its pump may have the socket still, for its last input, so our close does not remove it. */
static void forget_client(struct slot *slot, int which) {
    int fd = slot->client[which];
    slot->client[which] = -1;
    if (fd < 0) return;
    SYS(epoll_ctl, hang_ups, EPOLL_CTL_DEL, fd, 0);
    SYS(close, fd);
}

static long watch(struct slot *slot, int which, u32 id, int fd) {
    struct epoll_event event = {.events = EPOLLET, .data = {.u64 = (u64)(slot - slots) << 1 | (u64)which}};
    forget_client(slot, which);
    long error = SYS(epoll_ctl, hang_ups, EPOLL_CTL_ADD, fd, &event);
    if (error) return error;
    slot->client[which] = fd;
    slot->client_id[which] = id;
    return 0;
}

/* Where the pump has too many unread messages, the client reads EOF, and fastclaw is told that it left. Where the streams are over, the
 * client reads their EOF, and ENDED is told before that, as pumps do: fastclaw may not know yet. The same where the pump has released
 * its slot meanwhile, since it may read its inbox much later; `meet` is read before `id`, since the slot's next process resets it. */
static void attach(struct slot *slot, struct control *asked, struct passed *passed) {
    int which = asked->a & 1, fd = passed->fd[0];
    if (!slot || watch(slot, which, asked->id, fd)) {
        end_client(fd);
        tell(LEFT, asked->id, which, 0);
        return;
    }
    passed->count = 0;
    int is_posted = post_to(slot, asked, fd) > 0;
    int is_over = LOAD_OF(&slot->meet) & MEET_OVER || LOAD_OF(&slot->id) != asked->id;
    if (is_posted && !is_over) return;
    if (is_over) tell(ENDED, asked->id, which, 0);
    end_client(fd); /* which is seen as a hang-up */
}

static void report_hang_ups(void) {
    struct epoll_event events[64];
    long count = SYS(epoll_pwait, hang_ups, events, 64, 0, 0, 8);
    for (long i = 0; i < count; i++) {
        struct slot *slot = &slots[events[i].data.u64 >> 1];
        int which = events[i].data.u64 & 1, error = 0;
        u32 bytes = sizeof error;
        if (!(events[i].events & EPOLLHUP) || slot->client[which] < 0) continue;
        SYS(getsockopt, slot->client[which], SOL_SOCKET, SO_ERROR, &error, &bytes);
        forget_client(slot, which);
        tell(LEFT, slot->client_id[which], which, error == ECONNRESET);
    }
}

/* gVisor tells nobody inside of a hang-up. fastclaw sees it, by a duplicate of its own. */
static void hang_up(struct slot *slot, struct control *asked) {
    int which = asked->a & 1;
    if (slot->client[which] < 0) return;
    forget_client(slot, which);
    tell(LEFT, asked->id, which, asked->a >> 1 & 1);
    post_to(slot, asked, -1);
}

/* A pump's orders stay in its slot, so that none is lost while its inbox is full; only the first of them wakes it. A pump with unread
 * messages takes its orders when it reads the next one. */
static void order_pump(struct slot *slot, struct control *asked, u32 bits) {
    int left = set_order(&slot->pump_orders, asked->id, 0, bits);
    if (left == 2 || (left && !slot->is_notified)) slot->is_notified = post_to(slot, asked, -1) > 0;
}

/* A pump that is in the same call at two LOOKs, ASLEEP_MS apart, is blocked in it. Then its clients are ended here. */
static void look(struct slot *slot, struct control *asked) {
    u32 touching = LOAD_OF(&slot->touching);
    u64 now = now_ms();
    if (asked->a) { order_pump(slot, asked, PUMP_BLOCKED); return; }
    int is_same = touching & 1 && touching == slot->looked;
    if (!is_same) { slot->looked = touching; slot->looked_at = now; }
    if (!is_same || now < slot->looked_at + ASLEEP_MS) { order_pump(slot, asked, PUMP_LOOK); return; }
    for (int i = 0; i < 2; i++) if (slot->client[i] >= 0) SYS(shutdown, slot->client[i], SHUT_RDWR);
    tell(STUCK, asked->id, 0, 0);
}

/* --- what fastclaw says --- */

static void handle_stream_order(struct control *asked, struct passed *passed) {
    struct slot *slot = find(asked->id, asked->place);
    if (asked->op == ATTACH) attach(slot, asked, passed);
    else if (slot && asked->op == HANGUP) hang_up(slot, asked);
    else if (slot && asked->op == LOOK) look(slot, asked);
    else if (slot && asked->op == FINISH) order(slot, asked->id, 0, LEVEL_FINISH);
    else if (slot && asked->op == RELEASE) order_pump(slot, asked, asked->a ? PUMP_RELEASE | PUMP_CUT : PUMP_RELEASE);
    else if (slot) { STORE_TO(&slot->window, asked->a); order_pump(slot, asked, PUMP_RESIZE); }
}

/* Returns 0 for an invalid frame: then everything ends. */
static int handle_order(struct control *asked, long bytes, struct passed *passed) {
    if (bytes != (long)sizeof *asked) return 0;
    u32 level, signum;
    switch (asked->op) {
    case GROW:
        if (asked->a > MAX_REAPERS) return 0;
        grow(asked->id, asked->a);
        return 1;
    case PING: answer(asked->id, 0, (int)reapers, -1); return 1;
    case LISTEN:
        if (asked->a > 65535) return 0;
        listen_for(asked);
        return 1;
    case SIGNAL:
        signum = asked->a & ~SIGNAL_GROUP;
        if (signum < 1 || signum > 64) return 0;
        forward_order(asked, (asked->a & SIGNAL_GROUP ? TO_GROUP : TO_COMMAND) + (signum > 32), 1u << (signum - 1) % 32);
        return 1;
    case END:
        level = asked->a;
        if (level != LEVEL_TERM && level != LEVEL_KILL) return 0;
        if (!asked->id) end_all(level);
        else forward_order(asked, 0, level);
        return 1;
    case ADOPT:
        if (!asked->id || !asked->a || !asked->b) return 0;
        adopt_worker(asked);
        return 1;
    case ATTACH:
        if (passed->count != 1 || asked->a > 1) return 0;
        handle_stream_order(asked, passed);
        return 1;
    case RELEASE: case LOOK: case RESIZE: case FINISH: case HANGUP: handle_stream_order(asked, passed); return 1;
    default: return 0;
    }
}

/* --- ends --- */

/* A reaper without a process has died, and its pump with it. The pump may have been killed with a request that it had just received
 * and not answered: that lies in its memory. */
static void tell_lost_idle(struct slot *slot) {
    struct start *last = (struct start *)(slot->memory + PUMP_STACK);
    slot->is_lost = 0;
    if (last->op == READ || last->op == MEASURE) tell(ANSWER, last->id, ESRCH, 0);
    tell(LOST, last->op == START ? last->id : 0, 0, 0);
}

static void tell_lost(void) {
    for (u32 i = 0; i < used_slots; i++) {
        if (slots[i].is_lost) tell_lost_idle(&slots[i]);
        if (slots[i].pid || !slots[i].id) continue;
        tell(LOST, slots[i].id, 0, 0);
        for (u32 k = 0; slots[i].worker_table && k < slots[i].worker_table->used; k++) {
            struct worker *worker = &slots[i].worker_table->workers[k];
            if (worker->state != VACANT) tell(LOST, worker->id, 0, 1); /* no reaper of its own */
            worker->state = VACANT;
        }
        for (int k = 0; k < 2; k++) {
            if (slots[i].client[k] >= 0) end_client(slots[i].client[k]);
            forget_client(&slots[i], k); /* the slot's next process has none */
        }
        uncount(&slots[i]);
        slots[i].id = 0;
    }
}

/* One without a process counts as lost too, unless it was retired. */
static void note_reaper_end(struct slot *slot) {
    slot->is_lost = !slot->id && !slot->retired;
    if (slot->id || slot->is_lost) strays = 1; /* LOST is told once nothing of its tree is left */
    slot->pid = 0;
    batches[slot->batch].users--;
    for (int k = 0; k < ORDERS; k++) slot->orders[k] = 0;
    reapers--;
}

/* Our children are the reapers. Any other process reparented to us has lost its reaper and is killed. Returns wait4's last result. */
static long reap(void) {
    struct target everything = {.root = main_pid};
    long pid;
    while ((pid = SYS(wait4, -1, 0, WNOHANG | __WALL, 0)) > 0)
        for (u32 i = 0; i < used_slots; i++) if (slots[i].pid == (u32)pid) note_reaper_end(&slots[i]);
    if (strays && !(strays = signal_tree(&everything, LEVEL_KILL) > 0)) tell_lost();
    return pid;
}

/* The kernel ends a PID namespace with its init. On a host every tree is ended by its reaper. */
static _Noreturn void end_everything(void) {
    struct moment pause = {0, TREE_PAUSE_MS * 1000000};
    u64 wakes = bit(SIGCHLD);
    if (main_pid == 1) exit_process(0);
    dying = 1;
    SYS(shutdown, channel, SHUT_RDWR);
    strays = 1;
    while (reap() != -ECHILD) {
        end_all(LEVEL_KILL);
        SYS(rt_sigtimedwait, &wakes, 0, &pause, sizeof wakes);
    }
    exit_process(0);
}

static _Noreturn void main_loop(void) {
    static _Alignas(8) char frame[FRAME_BYTES];
    u64 chld = bit(SIGCHLD);
    long children = SYS(signalfd4, -1, &chld, sizeof chld, SFD_CLOEXEC | SFD_NONBLOCK);
    if (children < 0) exit_process(4);
    for (;;) {
        struct moment pause = {0, TREE_PAUSE_MS * 1000000}; /* ppoll writes to it */
        struct pollfd of[4] = {{control, POLLIN, 0}, {(int)children, POLLIN, 0}, {channel, 0, 0}, {hang_ups, POLLIN, 0}};
        SYS(ppoll, of, 4, strays ? &pause : 0, 0, 8);
        int died = of[1].revents; /* or since the poll: a signalfd reports what was read once only */
        while (SYS(read, children, frame, sizeof frame) > 0) died = 1;
        if (died || strays) reap();
        if (of[2].revents) end_everything();
        if (of[3].revents) report_hang_ups();
        if (!of[0].revents) continue;
        struct passed passed;
        long n = receive(control, frame, sizeof frame, &passed, 0);
        int sound = n > 0 && handle_order((struct control *)frame, n, &passed);
        close_passed(&passed);
        if (!sound && n != -EINTR) end_everything();
    }
}

/* --- the beginning --- */

static void reset_signals(void) {
    struct { u64 handler, flags, restorer, mask; } standard = {0};
    u64 all = ~0ull;
    for (int signum = 1; signum <= 64; signum++) SYS(rt_sigaction, signum, &standard, 0, sizeof all);
    SYS(rt_sigprocmask, SIG_SETMASK, &all, 0, sizeof all);
}

static void move_to(int fd, int number) {
    if (fd == number) SYS(fcntl, fd, F_SETFD, FD_CLOEXEC);
    else if (SYS(dup3, fd, number, O_CLOEXEC) < 0) exit_process(1);
    else SYS(close, fd);
}

/* argv[1]: the path of the socket to connect to, or the number of a descriptor that is connected already. */
static int connect_control(const char *where) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t bytes = length(where);
    if (*where != '/') {
        int fd = 0;
        while (*where >= '0' && *where <= '9') fd = fd * 10 + *where++ - '0';
        return fd;
    }
    if (bytes >= sizeof address.sun_path) exit_process(2);
    memcpy(address.sun_path, where, bytes + 1);
    long fd = SYS(socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || SYS(connect, fd, &address, sizeof address)) exit_process(2);
    return (int)fd;
}

/* `forks`: the socket by which pumps reach a template's. `post`: a batch's mail; until there is one, its number is reserved. */
static void open_posts(void) {
    long fd = open_post(&forks_address, NULL);
    if (fd < 0) exit_process(1);
    move_to((int)fd, forks);
    if (SYS(dup3, null, post, O_CLOEXEC) < 0) exit_process(1);
}

/* The environment goes along: it is what the engine made of the image's. */
static void send_hello(char **envp) {
    static char frame[HELLO_BYTES];
    char probe[1], path[64];
    *put(put_number(put(path, "/proc/self/task/"), main_pid), "/children") = 0;
    u32 facts = (slurp(path, probe, sizeof probe) >= 0) | (u32)(find_capabilities(ALL_CAPS) == ALL_CAPS) << 1;
    struct hello hello = {HELLO, MAGIC, VERSION, facts, now_ns()};
    size_t bytes = sizeof hello;
    memcpy(frame, &hello, sizeof hello);
    for (; *envp; envp++) {
        size_t more = length(*envp) + 1;
        if (bytes + more > sizeof frame) exit_process(3);
        memcpy(frame + bytes, *envp, more);
        bytes += more;
    }
    struct iovec part = {frame, bytes};
    if (send_frame(control, &part, 1, NULL, 0, NULL) < 0) exit_process(3);
}

static void receive_welcome(void) {
    struct welcome welcome;
    struct passed passed;
    if (receive(control, &welcome, sizeof welcome, &passed, 0) != sizeof welcome || welcome.op != WELCOME) exit_process(3);
    if (welcome.version != VERSION || passed.count != 1) exit_process(3);
    welcome_flags = welcome.flags;
    reaper_uid = welcome.uid;
    collect_bytes = welcome.collect_bytes;
    command_caps = welcome.caps;
    move_to(passed.fd[0], CHANNEL);
}

static void open_null(void) {
    long fd = SYS(openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC);
    if (fd < 0) exit_process(1);
    move_to((int)fd, NULL_DEVICE);
    for (int number = 0; number < 3; number++) SYS(dup3, NULL_DEVICE, number, 0);
}

static int is_word(const char *text, const char *word) {
    while (*word) if (*text++ != *word++) return 0;
    return !*text;
}

__attribute__((used)) _Noreturn void begin(long *stack) {
    char **argv = (char **)(stack + 1), **envp = argv + stack[0] + 1;
    if (stack[0] > 1 && is_word(argv[1], "--file")) file_helper((int)stack[0] - 2, argv + 2);
    if (stack[0] != 2) exit_process(1);
    main_pid = (u32)SYS(getpid);
    SYS(prctl, PR_SET_DUMPABLE, 0);
    SYS(setsid);
    reset_signals();
    if (main_pid != 1) SYS(prctl, PR_SET_CHILD_SUBREAPER, 1);
    move_to(connect_control(argv[1]), CONTROL);
    if (SYS(close_range, CONTROL + 1, LAST_FD, 0)) exit_process(6); /* Linux 5.9 */
    open_null();
    open_posts();
    slots = map(sizeof(struct slot) * MAX_REAPERS, -1);
    if (!slots) exit_process(1);
    send_hello(envp);
    receive_welcome();
    hang_ups = (int)SYS(epoll_create1, EPOLL_CLOEXEC);
    if (hang_ups < 0) exit_process(1);
    held_caps = find_capabilities(ALL_CAPS);
    command_caps = find_capabilities(command_caps);
    if (welcome_flags & W_CONFINE) {
        SYS(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        keep_capabilities();
        user_error = take_own_user();
        if (filter_calls() < 0) exit_process(5);
    }
    main_loop();
}
