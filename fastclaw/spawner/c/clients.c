/* A pump's work for a process with clients: one at a time for each of its two sockets, stdio and stderr.
 *
 * Output goes to the connected client; without one nothing is read from its pipe. Input is taken from one client after the other; what
 * a client sent before it left is still delivered. The two halves of a client's connection end independently. What to poll for is
 * decided at each turn, and a turn that changes the set of clients ends there, since the poll's other results may be stale. */
#include "spawner.h"

enum {
    COPY_BYTES = 64 << 10,   /* one read where nothing can be spliced: all that a usual pipe holds */
    CHUNK_BYTES = 1 << 20,   /* one splice: the largest pipe an unprivileged process may ask for (fs.pipe-max-size) */
    PIPE_BYTES = 64 << 10,   /* a fresh pipe: one that was full is a bulk one, and grows */
    BURST = 16,              /* moves of one direction before the others have their turn */
    STALLED_LOOKS = 10,      /* see fastclaw/limits.py */
    SETTLE_MS = 2,           /* for the command's end, which comes within microseconds of its streams' end */
    CLIENTS = MAX_SENDERS + 2,
};

/* `has_shut`: it reads no more, and may be closing. `queued`: bytes that it had not read at the last look; `idle`: looks in a row
 * between which it has read nothing. */
struct client { int fd, which, has_sent, has_read, has_shut, queued, idle; };

/* Moves bytes from one descriptor to another. `copies`: splice(2) takes neither of the two. `held`: bytes read, and not written yet.
 * `has_moved`: any, since the last look. */
struct mover { int copies, waits_for_room, is_large, has_moved; char *buffer; u32 at, held; };

struct streams {
    struct slot *slot;
    u32 id;
    struct pipes *pipes;
    int is_released, is_cut, stalled, has_ended[2], is_mid_line, eof_bytes; /* stalled: bit set of outputs whose client reads nothing */
    char eof[2];
    struct mover output[2], input;
    struct client clients[CLIENTS], *current[2], *senders[MAX_SENDERS];
    int sending;
};

enum { STDIO = 0, STDERR = 1 };
enum { AT_INBOX, AT_FORKS, AT_CONTROL, AT_OUTPUT, AT_INPUT = AT_OUTPUT + 2, AT_CLIENT, AT_SENDER = AT_CLIENT + 2, PLACES };

/* --- moving bytes --- */

static int has_hung_up(int fd) {
    struct pollfd one = {fd, 0, 0};
    struct moment now = {0, 0};
    return SYS(ppoll, &one, 1, &now, 0, 8) > 0 && one.revents & POLLHUP;
}

/* False for a template with a full socket: further requests wait in their senders. */
static int takes_more(int fd) {
    struct pollfd one = {fd, POLLOUT, 0};
    struct moment now = {0, 0};
    return SYS(ppoll, &one, 1, &now, 0, 8) > 0;
}

static int is_readable(int fd) {
    struct pollfd one = {fd, POLLIN, 0};
    struct moment now = {0, 0};
    return SYS(ppoll, &one, 1, &now, 0, 8) > 0 && one.revents & POLLIN;
}

/* A terminal's end is EIO (read(2)). Writing to it never fails with EPIPE: without a reader it only fills up. */
static long copy(struct mover *mover, int from, int to, int is_from_terminal, int is_to_terminal) {
    if (!mover->buffer && !(mover->buffer = map(COPY_BYTES, -1))) return -EAGAIN;
    if (!mover->held) {
        long n = SYS(read, from, mover->buffer, COPY_BYTES);
        if (n <= 0) return n == -EIO && is_from_terminal ? 0 : n;
        mover->at = 0;
        mover->held = (u32)n;
    }
    long n = SYS(write, to, mover->buffer + mover->at, mover->held);
    if (n == -EAGAIN && is_to_terminal && has_hung_up(to)) return -EPIPE;
    if (n > 0) { mover->at += (u32)n; mover->held -= (u32)n; }
    return n;
}

/* Others read it (measure.c). */
static void count(struct streams *streams, struct mover *mover, long n) {
    u64 *of = mover == &streams->input ? &streams->slot->taken : &streams->slot->total[mover - streams->output];
    mover->has_moved = 1;
    __atomic_fetch_add(of, (u64)n, __ATOMIC_RELAXED);
}

/* Returns the bytes moved, 0 at the source's end, or an error; -EAGAIN may be about either side. */
static long move(struct streams *streams, struct mover *mover, int from, int to, int is_output) {
    int terminal = streams->pipes->is_terminal;
    long n = -EINVAL;
    TOUCH(streams->slot);
    if (!mover->copies && !terminal) n = SYS(splice, from, 0, to, 0, CHUNK_BYTES, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (n == -EINVAL) {
        mover->copies = 1;
        n = copy(mover, from, to, terminal && is_output, terminal && !is_output);
    }
    if (n > 0) count(streams, mover, n);
    if (n > 0 && is_output) reach(streams->slot, AT_FIRST_BYTE);
    if (n > 0 && terminal && !is_output && welcome_flags & W_GVISOR) streams->is_mid_line = leaves_line_open(to, mover->buffer[mover->at - 1]);
    if (n >= PIPE_BYTES && !mover->is_large && !terminal) {
        mover->is_large = 1;
        SYS(fcntl, is_output ? from : to, F_SETPIPE_SZ, CHUNK_BYTES);
    }
    TOUCH(streams->slot);
    return n;
}

/* A client that closes while bytes are being sent has left them unread, but the kernel returns what went out and drops the error
 * (unix_stream_sendmsg). So a client that has hung up right after a move, with more bytes to come, counts as one that left output
 * unread. */
static int has_left_unread(struct mover *mover, int from, int to) { return has_hung_up(to) && (mover->held || is_readable(from)); }

/* Moves until there is nothing more, or BURST times. EAGAIN does not say which side it is about; but if it comes from the first move
 * after "source is readable" it is the target, and the other way round. Returns 1 to go on later, 0 at the end, or an error. */
static long move_on(struct streams *streams, struct mover *mover, int from, int to, int is_output) {
    long n = 1;
    int turn = 0;
    for (; turn < BURST; turn++) {
        n = move(streams, mover, from, to, is_output);
        if (n == -EAGAIN || n == -EINTR) {
            if (mover->held) mover->waits_for_room = 1;
            else if (!turn && n == -EAGAIN) mover->waits_for_room = !mover->waits_for_room;
            return 1;
        }
        if (n <= 0) break;
        mover->waits_for_room = mover->held > 0;
        if (mover->held || n < PIPE_BYTES) break; /* most likely that was all: another call would return EAGAIN */
    }
    if (is_output && (n > 0 || (turn && n == -EPIPE)) && has_left_unread(mover, from, to)) return -ECONNRESET;
    return n > 0 ? 1 : n;
}

/* --- clients --- */

/* Before a close, so that the client reads its output and then EOF: unread input would turn our close into a reset. The peer's own
 * reset, which means output left unread, is reported once only (unix(7), SO_ERROR): to main, or to us here. */
static void drop_input(struct streams *streams, struct client *client) {
    char nowhere[512];
    long n;
    while ((n = SYS(recvfrom, client->fd, nowhere, sizeof nowhere, MSG_DONTWAIT, 0, 0)) > 0) {}
    if (n == -ECONNRESET) tell(GAP, streams->id, client->which, 0);
}

static void close_client(struct streams *streams, struct client *client) {
    for (int i = 0; i < 2; i++) if (streams->current[i] == client) streams->current[i] = NULL;
    SYS(shutdown, client->fd, SHUT_RDWR);
    drop_input(streams, client);
    SYS(close, client->fd);
    client->fd = -1;
}

static void close_if_through(struct streams *streams, struct client *client) {
    if (client->fd >= 0 && client->has_sent && client->has_read) close_client(streams, client);
}

/* The client's next write fails with EPIPE; unread input is dropped, as by a pipe without a reader. */
static void refuse_input(struct streams *streams, struct client *client) {
    client->has_sent = 1;
    SYS(shutdown, client->fd, SHUT_RD);
    drop_input(streams, client); /* a client that polls for room to write is woken by that room only */
    close_if_through(streams, client);
}

/* EOF on the process's stdin; clients that still send get EPIPE. */
static void close_input(struct streams *streams) {
    int *in = &streams->pipes->in;
    if (*in < 0) return;
    int sending = streams->sending;
    streams->sending = 0;
    if (streams->pipes->is_terminal && !streams->has_ended[STDIO]) streams->eof_bytes = end_of_input(*in, streams->is_mid_line, streams->eof);
    if (!streams->eof_bytes) {
        TOUCH(streams->slot);
        SYS(close, *in);
        TOUCH(streams->slot);
        *in = -1;
    }
    for (int i = 0; i < sending; i++) if (streams->senders[i]->fd >= 0) refuse_input(streams, streams->senders[i]);
}

/* Writes a terminal's EOF characters when there is room for them, then closes its input. */
static void send_eof(struct streams *streams) {
    int *in = &streams->pipes->in;
    long n = SYS(write, *in, streams->eof, streams->eof_bytes);
    if (n > 0) { streams->eof[0] = streams->eof[1]; streams->eof_bytes -= (int)n; }
    if (n == -EAGAIN && !has_hung_up(*in)) return;
    if (n < 0) streams->eof_bytes = 0;
    if (streams->eof_bytes) return;
    SYS(close, *in);
    *in = -1;
}

static void end_output(struct streams *streams, int which) {
    struct client *client = streams->current[which];
    if (!client) return;
    tell(ENDED, streams->id, which, 0); /* before the client can see EOF and hang up */
    streams->has_ended[which] = 1;
    SYS(shutdown, client->fd, SHUT_WR);
    client->has_read = 1;
    close_if_through(streams, client);
}

/* The client has closed. What it sent before stays in its socket until stdin has taken it. Main tells fastclaw. */
static void drop_client(struct streams *streams, int which) {
    struct client *client = streams->current[which];
    streams->current[which] = NULL;
    client->has_read = 1;
    streams->output[which].waits_for_room = 0;
    close_if_through(streams, client);
}

/* The client has shut its reading side. Only when it hangs up does the kernel say whether it left output unread (unix_release_sock). */
static void await_hang_up(struct streams *streams, int which) {
    streams->current[which]->has_shut = 1;
    streams->output[which].waits_for_room = 1;
}

static int is_there(struct streams *streams, int which) {
    return streams->current[which] && !streams->current[which]->has_read;
}

static struct client *new_client(struct streams *streams, int which) {
    if (which != STDIO && which != STDERR) return NULL;
    int has_left = is_there(streams, which) && (has_hung_up(streams->current[which]->fd) || welcome_flags & W_GVISOR);
    if (has_left) drop_client(streams, which); /* its POLLHUP, in gVisor its HANGUP, is still to come, or lost */
    if (streams->is_cut || streams->current[which] || (which == STDIO && streams->sending == MAX_SENDERS)) return NULL;
    for (int i = 0; i < CLIENTS; i++) if (streams->clients[i].fd < 0) return &streams->clients[i];
    return NULL;
}

static void attach(struct streams *streams, int which, int fd) {
    struct client *client = new_client(streams, which);
    if (!client) { end_client(fd); SYS(close, fd); return; }
    SYS(fcntl, fd, F_SETFL, O_NONBLOCK);
    *client = (struct client){.fd = fd, .which = which, .queued = -1};
    streams->current[which] = client;
    streams->output[which].waits_for_room = streams->output[which].held > 0;
    if (which == STDIO && streams->pipes->in >= 0 && !streams->eof_bytes) streams->senders[streams->sending++] = client;
    else refuse_input(streams, client);
    if (streams->pipes->out[which] < 0) end_output(streams, which);
}

/* --- what happens --- */

static void close_output(struct streams *streams, int which) {
    TOUCH(streams->slot);
    SYS(close, streams->pipes->out[which]);
    TOUCH(streams->slot);
    streams->pipes->out[which] = -1;
    end_output(streams, which);
    if (which == STDIO && streams->pipes->is_terminal) { streams->has_ended[STDIO] = 1; streams->eof_bytes = 0; close_input(streams); }
}

static void on_output(struct streams *streams, int which) {
    int *out = &streams->pipes->out[which];
    if (is_there(streams, which)) {
        int to = streams->current[which]->fd;
        long n = move_on(streams, &streams->output[which], *out, to, 1);
        if (!n) close_output(streams, which);
        else if (n == -EPIPE && !has_hung_up(to)) await_hang_up(streams, which);
        else if (n < 0) { if (n == -ECONNRESET) tell(GAP, streams->id, which, 0); drop_client(streams, which); }
    } else if (streams->is_released) {
        long n = move_on(streams, &streams->output[which], *out, null, 1);
        streams->output[which].waits_for_room = 0;
        if (n <= 0) close_output(streams, which);
    } else if (!is_readable(*out) && !streams->output[which].held) {
        close_output(streams, which); /* no writer is left, and no output */
    } else {
        streams->output[which].waits_for_room = 1; /* for a client: polling this pipe would only spin */
    }
}

/* The first sender's input has ended (half-close, full close), or the process does not read any more (EPIPE). */
static void end_sender(struct streams *streams, long error) {
    struct client *client = streams->senders[0];
    int which_left = streams->current[STDIO] != client || (!client->has_read && has_hung_up(client->fd));
    for (int i = 1; i < streams->sending; i++) streams->senders[i - 1] = streams->senders[i];
    streams->sending--;
    if (error == -ECONNRESET) tell(GAP, streams->id, STDIO, 0);
    client->has_sent = 1;
    streams->input.waits_for_room = 0;
    if (error == -EPIPE || !(which_left && streams->slot->flags & F_HOLD)) close_input(streams);
    if (error == -EPIPE) refuse_input(streams, client);
    close_if_through(streams, client);
}

static void on_input(struct streams *streams, int events) {
    if (streams->eof_bytes) {
        send_eof(streams);
    } else if (events & (POLLERR | POLLHUP)) { /* no reader is left */
        if (streams->sending) end_sender(streams, -EPIPE);
        else close_input(streams);
    } else if (streams->sending) {
        long n = move_on(streams, &streams->input, streams->senders[0]->fd, streams->pipes->in, 0);
        if (n <= 0) end_sender(streams, n == -ECONNRESET || !n ? n : -EPIPE);
    }
}

/* Whether a client reads nothing: its socket's unread bytes (unix(7), SIOCOUTQ) were the same at STALLED_LOOKS looks in a row. */
static int reads_nothing(struct client *client, struct mover *mover, int waits) {
    int queued = -1, before = client->queued;
    SYS(ioctl, client->fd, TIOCOUTQ, &queued);
    client->queued = queued;
    if (!waits || !mover->waits_for_room || mover->has_moved || queued != before) client->idle = 0;
    else if (client->idle < STALLED_LOOKS) client->idle++;
    return client->idle == STALLED_LOOKS;
}

static void tell_waiting(struct streams *streams) {
    int is_waiting = 0;
    streams->stalled = 0;
    for (int i = 0; i < 2; i++) {
        struct mover *mover = &streams->output[i];
        int waits = streams->pipes->out[i] >= 0 && (mover->held || is_readable(streams->pipes->out[i]));
        is_waiting |= waits;
        if (is_there(streams, i) && reads_nothing(streams->current[i], mover, waits)) streams->stalled |= 1 << i;
        mover->has_moved = 0;
    }
    tell(WAITING, streams->id, is_waiting, streams->stalled);
}

/* Whether a writer to this output blocks: its pipe is full, and no client reads. A reader of a pipe cannot ask whether it is full; but a
 * copy of its content in a pipe of the same size is as full (tee(2), pipe(7)). Unknown for a terminal: 0. */
static int is_blocked(struct streams *streams, int which) {
    int copy[2], out = streams->pipes->out[which];
    if (out < 0 || streams->pipes->is_terminal || streams->is_released || (is_there(streams, which) && !streams->output[which].waits_for_room)) return 0;
    if (SYS(pipe2, copy, O_CLOEXEC | O_NONBLOCK)) return 0;
    TOUCH(streams->slot);
    long size = SYS(fcntl, out, F_GETPIPE_SZ);
    int is_as_large = SYS(fcntl, copy[1], F_SETPIPE_SZ, size) == size;
    long copied = is_as_large ? SYS(tee, out, copy[1], size, SPLICE_F_NONBLOCK) : 0;
    int is_full = copied > 0 && !takes_more(copy[1]);
    SYS(close, copy[0]);
    SYS(close, copy[1]);
    TOUCH(streams->slot);
    return is_full;
}

/* From now on output without a client is thrown away. `cut`: clients that were stalled at the last look read EOF; their input is still
 * delivered. */
static void release(struct streams *streams, int cut) {
    streams->is_released = 1;
    streams->is_cut |= cut;
    for (int i = 0; cut && i < 2; i++) {
        if (!is_there(streams, i) || !(streams->stalled & 1 << i)) continue;
        SYS(shutdown, streams->current[i]->fd, SHUT_RDWR);
        drop_client(streams, i);
    }
    for (int i = 0; i < 2; i++) if (!is_there(streams, i)) streams->output[i].waits_for_room = 0;
}

static void touched_close(struct streams *streams, struct passed *passed) {
    if (!passed->count) return;
    TOUCH(streams->slot);
    close_passed(passed);
    TOUCH(streams->slot);
}

/* A request from another pump, for the template that runs here. A worker's pipes may be locked by now, so their descriptors are closed
 * with TOUCH. */
static void on_fork(struct streams *streams) {
    char text[64], *frame = streams->slot->memory + PUMP_STACK; /* the request's, which is over */
    struct control *head = (struct control *)frame;
    struct passed passed;
    long bytes = receive(streams->pipes->forks, frame, FRAME_BYTES, &passed, MSG_DONTWAIT);
    if (bytes < (long)sizeof *head || head->op != FORK) { touched_close(streams, &passed); return; }
    struct iovec part = {head + 1, (size_t)bytes - sizeof *head};
    if (head->a && passed.count) { /* spilled */
        long size = SYS(lseek, passed.fd[passed.count - 1], 0, SEEK_END);
        char *end = put(put_number(put(text, "{\"spilled\": "), (u32)size), "}");
        part = (struct iovec){text, (size_t)(end - text)};
    }
    long n = streams->pipes->control < 0 ? -ESRCH : send_frame(streams->pipes->control, &part, 1, passed.fd, passed.count, NULL);
    if (n < 0) tell(REFUSED, head->id, (int)-n, STEP_ADOPT);
    touched_close(streams, &passed);
}

static void resize(struct streams *streams) {
    u32 window = LOAD_OF(&streams->slot->window);
    struct winsize size = {.ws_row = (unsigned short)(window >> 16), .ws_col = (unsigned short)window};
    if (!streams->pipes->is_terminal || streams->pipes->out[0] < 0) return;
    SYS(ioctl, streams->pipes->out[0], TIOCSWINSZ, &size);
    u32 child = LOAD_OF(&streams->slot->child);
    if (welcome_flags & W_GVISOR && child) SYS(kill, -(long)child, SIGWINCH); /* gVisor sends none, and says no foreground group here */
}

/* Takes main's orders from the slot; done after any message, since one of them is the notification. */
static void handle_pump_orders(struct streams *streams) {
    u32 pump_orders = take_order(&streams->slot->pump_orders, streams->id);
    if (pump_orders & PUMP_RELEASE) release(streams, !!(pump_orders & PUMP_CUT));
    if (pump_orders & PUMP_RESIZE) resize(streams);
    if (pump_orders & PUMP_LOOK) tell_waiting(streams);
    if (pump_orders & PUMP_BLOCKED) tell(BLOCKED, streams->id, is_blocked(streams, STDIO) | is_blocked(streams, STDERR) << STDERR, 0);
}

static void on_message(struct streams *streams) {
    struct control head;
    struct passed passed;
    long n = next_message(streams->slot, streams->pipes->inbox, &head, sizeof head, &passed);
    if (n == sizeof head && head.id == streams->id && head.op == ATTACH && passed.count == 1) {
        passed.count = 0;
        attach(streams, (int)head.a, passed.fd[0]);
    } else if (n == sizeof head && head.id == streams->id && head.op == HANGUP) {
        if (is_there(streams, (int)head.a & 1)) drop_client(streams, (int)head.a & 1);
    } else if (n == sizeof head) {
        reject_message(&head, &passed);
    }
    close_passed(&passed);
    handle_pump_orders(streams);
}

/* Passes a template's frame to fastclaw; an empty one at its end. Descriptors that come along are closed here, since one may be the end
 * of a pipe that the template has locked. */
static void on_control(struct streams *streams) {
    char *frame = streams->slot->memory + PUMP_STACK;
    struct passed passed;
    struct event event = {.op = SAID, .id = streams->id};
    long n = receive(streams->pipes->control, frame, SAID_BYTES, &passed, MSG_DONTWAIT);
    touched_close(streams, &passed);
    if (n == -EAGAIN || n == -EINTR) return;
    event.a = n > 0 ? (int)n : 0;
    struct iovec parts[2] = {{&event, sizeof event}, {frame, (size_t)event.a}};
    send_frame(channel, parts, 2, NULL, 0, NULL);
    if (n > 0) return;
    TOUCH(streams->slot); /* this closes unreceived descriptors, too */
    SYS(close, streams->pipes->control);
    TOUCH(streams->slot);
    streams->pipes->control = -1;
}

/* --- the turns --- */

static void set_output(struct streams *streams, int which, struct pollfd *of) {
    struct mover *mover = &streams->output[which];
    struct client *client = is_there(streams, which) ? streams->current[which] : NULL;
    int waits = mover->waits_for_room;
    of[AT_OUTPUT + which] = (struct pollfd){waits ? -1 : streams->pipes->out[which], client || streams->is_released ? POLLIN : 0, 0};
    if (client) of[AT_CLIENT + which] = (struct pollfd){client->fd, waits && !client->has_shut ? POLLOUT : 0, 0};
}

static void set_places(struct streams *streams, struct pollfd *of) {
    struct pipes *pipes = streams->pipes;
    for (int i = 0; i < PLACES; i++) of[i] = (struct pollfd){-1, 0, 0};
    int takes = pipes->control < 0 || takes_more(pipes->control);
    of[AT_INBOX] = (struct pollfd){pipes->inbox, POLLIN, 0};
    of[AT_FORKS] = (struct pollfd){pipes->forks, takes ? POLLIN : 0, 0};
    of[AT_CONTROL] = (struct pollfd){pipes->control, takes ? POLLIN : POLLIN | POLLOUT, 0};
    for (int i = 0; i < 2; i++) set_output(streams, i, of);
    int is_sending = streams->sending && !streams->eof_bytes;
    if (streams->eof_bytes || (is_sending && streams->input.waits_for_room)) of[AT_INPUT] = (struct pollfd){pipes->in, POLLOUT, 0};
    else if (!pipes->is_terminal) of[AT_INPUT] = (struct pollfd){pipes->in, 0, 0};
    if (is_sending && !streams->input.waits_for_room) of[AT_SENDER] = (struct pollfd){streams->senders[0]->fd, POLLIN, 0};
}

static int is_over(struct streams *streams) {
    struct pipes *pipes = streams->pipes;
    if (pipes->in >= 0 || pipes->out[0] >= 0 || pipes->out[1] >= 0 || pipes->control >= 0) return 0;
    for (int i = 0; i < CLIENTS; i++) if (streams->clients[i].fd >= 0) return 0;
    return 1;
}

/* Returns after a change of the clients: a new descriptor may have the number of one that was polled. */
static void turn(struct streams *streams) {
    struct pollfd of[PLACES];
    set_places(streams, of);
    if (SYS(ppoll, of, PLACES, 0, 0, 8) <= 0) return;
    if (of[AT_INBOX].revents) { on_message(streams); return; }
    if (of[AT_FORKS].revents) { on_fork(streams); return; }
    if (of[AT_CONTROL].revents) { on_control(streams); return; }
    for (int i = 0; i < 2; i++)
        if (of[AT_CLIENT + i].revents & (POLLHUP | POLLERR)) { drop_client(streams, i); return; }
    for (int i = 0; i < 2; i++)
        if (of[AT_OUTPUT + i].revents || of[AT_CLIENT + i].revents & POLLOUT) on_output(streams, i);
    if (streams->pipes->in >= 0 && (of[AT_INPUT].revents || of[AT_SENDER].revents)) on_input(streams, of[AT_INPUT].revents);
}

static void free_buffers(struct streams *streams) {
    struct mover *movers[3] = {&streams->output[0], &streams->output[1], &streams->input};
    for (int i = 0; i < 3; i++) if (movers[i]->buffer) SYS(munmap, movers[i]->buffer, COPY_BYTES);
}

/* Waits a little for the command's exit, which usually comes at once: then EXITED says that the streams are over. */
static void tell_free(struct slot *slot, u32 id) {
    u32 met = ADD_BITS(&slot->meet, MEET_OVER);
    u64 until = now_ms() + SETTLE_MS;
    while (!(met & MEET_EXIT) && now_ms() < until && !(slot->flags & F_WORKER)) {
        park(&slot->meet, met | MEET_OVER, SETTLE_MS);
        if (LOAD_OF(&slot->meet) & MEET_EXIT) return;
    }
    tell(FREE, id, 0, 0);
}

void serve_clients(struct slot *slot, struct pipes *pipes, u32 id) {
    struct streams streams = {.slot = slot, .id = id, .pipes = pipes};
    for (int i = 0; i < CLIENTS; i++) streams.clients[i].fd = -1;
    while (!is_over(&streams)) turn(&streams);
    free_buffers(&streams);
    tell_free(slot, id);
}
