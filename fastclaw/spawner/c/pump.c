/* A pump: takes one request after the other from the channel, makes its streams, starts its command and moves its bytes. */
#include "spawner.h"

static void close_fd(int *fd) {
    if (*fd >= 0) SYS(close, *fd);
    *fd = -1;
}

/* --- the streams of a process --- */

/* `ours`: 0 to read, 1 to write. Our end does not block; the command's does, as programs expect of their stdio. */
static long make_pipe(int ours, int *our_fd, int *their_fd) {
    int ends[2];
    long error = SYS(pipe2, ends, O_CLOEXEC);
    if (error) return error;
    SYS(fcntl, ends[ours], F_SETFL, O_NONBLOCK);
    *our_fd = ends[ours];
    *their_fd = ends[1 - ours];
    return 0;
}

static long make_pipes(struct job *job, struct pipes *pipes) {
    u32 flags = job->request->flags;
    long error = 0;
    if (!(flags & F_NULL_STDIN)) error = make_pipe(1, &pipes->in, &job->stdio[0]);
    if (!error) error = make_pipe(0, &pipes->out[0], &job->stdio[1]);
    if (!error && !(flags & F_MERGE)) error = make_pipe(0, &pipes->out[1], &job->stdio[2]);
    return error;
}

static long make_terminal(struct job *job, struct pipes *pipes) {
    int slave = -1;
    long master = open_terminal(job, &slave);
    if (master < 0) return master;
    pipes->is_terminal = 1;
    pipes->out[0] = (int)master;
    job->stdio[1] = slave;
    if (job->request->flags & F_NULL_STDIN) return 0;
    long input = SYS(fcntl, master, F_DUPFD_CLOEXEC, 3);
    pipes->in = (int)input;
    return input < 0 ? input : 0;
}

static long make_control(struct job *job, struct pipes *pipes) {
    int ends[2];
    long error = SYS(socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends);
    if (error) return error;
    SYS(fcntl, ends[0], F_SETFL, O_NONBLOCK);
    pipes->control = ends[0];
    job->control = ends[1];
    return 0;
}

/* gVisor has no setfsuid(2), and takes effective capabilities with the effective user. */
static long lend(u32 uid, u64 word) {
    if (!(welcome_flags & W_GVISOR)) return SYS(setfsuid, uid, 0, 0, word);
    long own = SYS(geteuid);
    SYS(setresuid, -1, uid, -1);
    keep_capabilities();
    return own;
}

/* Made as the command's user, who may then open them again by name: /dev/stdout. A change of the user takes the parent-death
 * signal away (prctl(2)); if the reaper died meanwhile, the pump ends. */
static long make_streams(struct job *job, struct pipes *pipes) {
    u32 flags = job->request->flags;
    int lent = flags & F_IDENTITY;
    long own = lent ? lend(job->request->uid, 0) : 0;
    long error = flags & F_TTY ? make_terminal(job, pipes) : make_pipes(job, pipes);
    if (!error && flags & F_TEMPLATE) error = make_control(job, pipes);
    if (lent) {
        lend((u32)own, own_word);
        SYS(prctl, PR_SET_DUMPABLE, 0); /* see take_pump_user */
        SYS(prctl, PR_SET_PDEATHSIG, SIGKILL);
        if ((u32)SYS(getppid) != job->slot->pid) exit_process(1);
    }
    return error;
}

/* The command may have closed its ends by now, and the last close of an end waits while a pipe is locked. */
static void close_theirs(struct job *job) {
    TOUCH(job->slot);
    for (int i = 0; i < 3; i++) close_fd(&job->stdio[i]);
    close_fd(&job->control);
    TOUCH(job->slot);
}

/* Of the first descriptors that came along: the others go on to the end of a run. */
static void close_joins(struct job *job, struct passed *passed) {
    int count = (int)job->request->joins;
    for (int i = 0; i < count; i++) SYS(close, passed->fd[i]);
    passed->count -= count;
    for (int i = 0; i < passed->count; i++) passed->fd[i] = passed->fd[i + count];
}

static void close_ours(struct pipes *pipes) {
    close_fd(&pipes->in);
    close_fd(&pipes->out[0]);
    close_fd(&pipes->out[1]);
    close_fd(&pipes->control);
}

/* --- a start --- */

/* The child's stdio: a stdin that it has none of is /dev/null, its stderr may be its stdout, and a terminal is all three. */
static void fill_stdio(struct job *job, int stdio[3]) {
    u32 flags = job->request->flags;
    memcpy(stdio, job->stdio, sizeof job->stdio);
    if (stdio[2] < 0) stdio[2] = stdio[1];
    if (stdio[0] < 0) stdio[0] = flags & F_TTY && !(flags & F_NULL_STDIN) ? stdio[1] : null;
}

/* gVisor takes CLONE_PARENT and does nothing about it (pkg/sentry/kernel/task_clone.go). There the command is a grandchild, which its
 * parent's end leaves to the reaper, the nearest subreaper. */
struct apart { struct job *job; long child; };

static int start_and_leave(void *argument) {
    struct apart *apart = argument;
    apart->child = fork_with(CLONE_VM | CLONE_VFORK | CLONE_PARENT_SETTID, 0, &apart->job->slot->child, command, apart->job);
    return 0;
}

static long start_apart(struct job *job) {
    struct apart apart = {job, 0};
    long between = fork_with(CLONE_VM | CLONE_VFORK, 0, NULL, start_and_leave, &apart);
    if (between < 0) return between;
    SYS(wait4, between, 0, __WALL, 0);
    if (job->slot->error) SYS(kill, job->slot->pid, SIGUSR1); /* a child that has not executed sends its parent nothing */
    return apart.child < 0 ? apart.child : 0;
}

/* The command's parent is the reaper (CLONE_PARENT). Returns 0, or an error where there is no child for the reaper to reap. */
static long start_command(struct job *job) {
    struct slot *slot = job->slot;
    struct job theirs = *job;
    fill_stdio(job, theirs.stdio);
    if (welcome_flags & W_GVISOR) return start_apart(&theirs);
    unsigned long flags = CLONE_VM | CLONE_VFORK | CLONE_PARENT | CLONE_PARENT_SETTID;
    long child = fork_with(flags, 0, &slot->child, command, &theirs);
    return child < 0 ? child : 0;
}

enum { TEMPLATE_MS = 5000 }; /* for a template to read earlier requests: a fork takes it some ms */

/* To the pump of the worker's template, which hands it on. The template answers fastclaw. */
static long ask_template(struct job *job, int spilled) {
    struct start *request = job->request;
    struct slot *of = &slots[request->place];
    struct control head = {FORK, request->id, spilled >= 0, 0, 0};
    struct iovec parts[2] = {{&head, sizeof head}, {job->strings, spilled < 0 ? request->bytes : 0}};
    int stdio[3], fds[5], count = 0;
    u64 until = now_ms() + TEMPLATE_MS;
    fill_stdio(job, stdio);
    fds[count++] = job->go;
    for (int i = request->flags & F_NULL_STDIN ? 1 : 0; i < 3; i++) fds[count++] = stdio[i];
    if (spilled >= 0) fds[count++] = spilled;
    for (;;) {
        struct moment pause = {0, 1000000};
        if (!LOAD_OF(&of->takes_requests)) return -ESRCH;
        long n = send_frame(forks, parts, 2, fds, count, &of->forks);
        if (n > 0 && !LOAD_OF(&of->takes_requests)) return -ESRCH; /* it may be too late; then REFUSED may be told twice */
        if (n != -EAGAIN || now_ms() > until) return n < 0 ? n : 0;
        SYS(ppoll, 0, 0, &pause, 0, 8); /* many workers at once: messages to all templates share one buffer (socket(7), SO_SNDBUF) */
    }
}

/* Writes what fits into the pipe before the command runs: usually all of it. */
static void write_input(struct job *job, struct pipes *pipes) {
    struct start *request = job->request;
    if (!request->input) return;
    long n = SYS(write, pipes->in, job->input, request->input);
    if (n > 0) { job->input += n; request->input -= (u32)n; job->slot->taken += (u64)n; }
    if (!request->input) close_fd(&pipes->in);
}

static void take_slot(struct slot *slot, struct start *request) {
    slot->error = slot->child = slot->step = 0;
    slot->flags = request->flags;
    slot->drain_ms = request->drain_ms;
    slot->takes_requests = 0;
    slot->status = 0;
    slot->used = (struct rusage){0};
    slot->total[0] = slot->total[1] = slot->taken = 0;
    memset(slot->reached, 0, sizeof slot->reached);
    reach(slot, AT_TAKEN);
    STORE_TO(&slot->meet, 0);
    for (int i = 0; i < ORDERS; i++) __atomic_store_n(&slot->orders[i], (u64)request->id << 32, __ATOMIC_RELEASE);
    STORE_TO(&slot->pump_orders, (u64)request->id << 32);
    STORE_TO(&slot->id, request->id);
}

/* For a request that has no child for the reaper: it was refused before its fork, or it is a worker, whose tree belongs to its
 * template's reaper. */
static void close_slot(struct slot *slot) {
    ADD_BITS(&slot->meet, MEET_CLOSE);
    SYS(kill, slot->pid, SIGUSR1);
}

/* A message from main or the reaper; counted in `heard`, which makes room for more. */
long next_message(struct slot *slot, int inbox, void *frame, size_t bytes, struct passed *passed) {
    long n = receive(inbox, frame, bytes, passed, MSG_DONTWAIT);
    if (n >= 0 || n == -EBADMSG) __atomic_add_fetch(&slot->heard, 1, __ATOMIC_SEQ_CST);
    return n;
}

/* Rejects messages that came too late, among them clients that main still watches. */
static void empty_inbox(struct slot *slot, int inbox) {
    struct passed passed;
    struct control head;
    long n;
    while ((n = next_message(slot, inbox, &head, sizeof head, &passed)) > 0 || n == -EBADMSG || n == -EINTR) reject_message(&head, &passed);
}

/* The slot is free from here on. */
static void release_slot(struct slot *slot, int inbox) {
    for (u32 meet; !((meet = LOAD_OF(&slot->meet)) & MEET_DONE);) park(&slot->meet, meet, -1);
    empty_inbox(slot, inbox);
    ((struct start *)(slot->memory + PUMP_STACK))->op = 0; /* see tell_lost_idle */
    for (int i = 0; i < ORDERS; i++) __atomic_store_n(&slot->orders[i], 0, __ATOMIC_RELEASE);
    STORE_TO(&slot->pump_orders, 0);
    STORE_TO(&slot->id, 0);
}

static long open_forks(struct slot *slot, struct pipes *pipes) {
    long fd = open_post(&slot->forks, &forks_address);
    pipes->forks = (int)fd;
    STORE_TO(&slot->takes_requests, fd >= 0);
    return fd < 0 ? fd : 0;
}

/* A template has ended: its workers may live on for long, and keep its slot. */
static void close_forks(struct slot *slot, struct pipes *pipes) {
    struct passed passed;
    char *frame = slot->memory + PUMP_STACK; /* the request's, which is over */
    long n;
    STORE_TO(&slot->takes_requests, 0);
    while ((n = receive(pipes->forks, frame, FRAME_BYTES, &passed, MSG_DONTWAIT)) > 0 || n == -EBADMSG || n == -EINTR)
        reject_message((struct control *)frame, &passed);
    close_fd(&pipes->forks);
}

/* The request is sound and the job laid out. `spilled`: a file that goes along to a template. */
static void run(struct job *job, struct passed *passed, int spilled, int inbox) {
    struct slot *slot = job->slot;
    u32 id = job->request->id, flags = job->request->flags;
    struct pipes pipes = {-1, {-1, -1}, -1, inbox, -1, 0};
    take_slot(slot, job->request);
    long error = make_streams(job, &pipes);
    int step = flags & F_TTY ? STEP_TTY : STEP_PROCESS;
    if (!error && flags & F_TEMPLATE) error = open_forks(slot, &pipes);
    if (!error) write_input(job, &pipes);
    if (!error) error = flags & F_WORKER ? ask_template(job, spilled) : start_command(job);
    if (error) tell(REFUSED, id, (int)-error, step);
    else if (!slot->error) {
        if (!(flags & F_WORKER)) reach(slot, AT_STARTED);
        if (!(flags & F_RUN)) tell_reached(slot, STARTED, id, 0, (int)(slot - slots));
    }
    close_theirs(job);
    close_joins(job, passed);
    if (!(flags & F_RUN)) close_passed(passed);
    if (!error && !slot->error && flags & F_RUN) collect(slot, job, &pipes, id);
    else if (!error && !slot->error) serve_clients(slot, &pipes, id);
    if (flags & F_TEMPLATE) close_forks(slot, &pipes);
    close_ours(&pipes);
    close_passed(passed);
    if (error || (flags & (F_WORKER | F_RUN)) == F_WORKER) close_slot(slot);
    release_slot(slot, inbox);
}

/* Returns 0 for an invalid frame. */
static int serve(struct slot *slot, struct start *request, long bytes, struct passed *passed, int inbox) {
    struct job job = {.slot = slot, .request = request, .stdio = {-1, -1, -1}, .control = -1};
    if (!parse(&job, request, bytes, passed)) return 0;
    int spilled = request->flags & F_SPILLED ? passed->fd[passed->count - 1] : -1;
    int is_worker = request->flags & F_WORKER;
    char *inline_room = (char *)(((uintptr_t)request + (size_t)bytes + 7) & ~(uintptr_t)7);
    if (is_worker || spilled < 0) {
        if (!is_worker && (pointer_bytes(request) > POINTER_BYTES || !lay_out(&job, (char **)inline_room))) return 0;
        run(&job, passed, spilled, inbox);
        return 1;
    }
    if (SYS(lseek, spilled, 0, SEEK_END) != (long)request->bytes) return 0; /* past its end is SIGBUS */
    size_t room = pointer_bytes(request) + PATH_BYTES, strings = request->bytes;
    char **pointers = map(room, -1);
    job.strings = pointers ? map(strings, spilled) : NULL;
    char *mapped = job.strings;
    int sound = !mapped || lay_out(&job, pointers);
    if (!mapped) { close_passed(passed); tell(REFUSED, request->id, ENOMEM, STEP_REQUEST); }
    else if (sound) run(&job, passed, -1, inbox);
    if (mapped) SYS(munmap, mapped, strings);
    if (pointers) SYS(munmap, pointers, room);
    return sound;
}

/* --- READ: copies a file, as it is seen inside, into fastclaw's --- */

static int read_file(struct control *asked, long bytes, struct passed *passed) {
    if (passed->count != 1 || bytes == sizeof *asked || ((char *)asked)[bytes - 1]) return 0;
    long fd = open_only((char *)(asked + 1), S_IFREG, 0, 0, O_RDONLY | O_NONBLOCK | O_NOCTTY), n = fd;
    u32 total = 0;
    while (fd >= 0 && total < MAX_FILE_BYTES && (n = SYS(sendfile, passed->fd[0], fd, 0, MAX_FILE_BYTES - total)) > 0)
        total += (u32)n;
    if (fd >= 0) SYS(close, fd);
    close_passed(passed);
    tell(ANSWER, asked->id, n < 0 ? (int)-n : 0, (int)total);
    return 1;
}

/* --- the pump itself --- */

/* Returns whether to go on. */
static int serve_next(struct slot *slot, struct start *request, int inbox) {
    struct passed passed;
    request->op = 0; /* see tell_lost_idle */
    long n = receive(channel, request, FRAME_BYTES, &passed, 0);
    if (n == -EINTR) return 1;
    if (dying || (n < 0 && n != -EBADMSG)) return 0;
    struct control *order = (struct control *)request;
    if (n == sizeof *order && order->op == RETIRE) { slot->retired = 1; return 0; }
    int sound, is_order = n >= (long)sizeof *order;
    if (is_order && order->op == READ) sound = read_file(order, n, &passed);
    else if (is_order && order->op == MEASURE) sound = tell_usage(order, n, &passed);
    else sound = n > 0 && serve(slot, request, n, &passed, inbox);
    if (!sound) SYS(shutdown, channel, SHUT_RDWR); /* main and fastclaw see the end */
    return sound;
}

int pump(void *argument) {
    struct slot *slot = argument;
    slot->pump = (u32)SYS(getpid);
    take_pump_user((u32)(slot - slots));
    SYS(prctl, PR_SET_PDEATHSIG, SIGKILL);
    if ((u32)SYS(getppid) != slot->pid) return 1;
    int inbox = (int)open_post(&slot->inbox, &batches[slot->batch].address);
    while (inbox >= 0 && serve_next(slot, (struct start *)(slot->memory + PUMP_STACK), inbox)) {}
    return 0;
}
