/* A pump at work for a process that has clients: one at a time for each of its two sockets, stdio and stderr.
 *
 * Output goes to whoever is connected; nothing is read from a pipe while nobody is. Input is taken from one client after the
 * other; what a client sent before it left is still delivered. Both halves of a client end on their own. What the two wait for
 * is decided anew at each turn, so a turn that has changed who is there looks again before it believes what it was told. */
#include "spawner.h"

enum {
    COPY_BYTES = 64 << 10,   /* one read where nothing can be spliced: all that a usual pipe holds */
    CHUNK_BYTES = 1 << 20,   /* one splice: the largest pipe an unprivileged process may ask for (fs.pipe-max-size) */
    PIPE_BYTES = 64 << 10,   /* a fresh pipe: one that was full is a bulk one, and grows */
    BURST = 16,              /* moves of one direction before the others have their turn */
    STALLED_LOOKS = 10,      /* see fastclaw/limits.py */
    SETTLE_MS = 2,           /* for the command's end, which comes within microseconds of its streams' */
    CLIENTS = MAX_SENDERS + 2,
};

/* `has_shut`: it takes no more, and may be in the middle of closing. `queued`: at the last look, what it had not read yet; `idle`: looks
 * in a row at which it has taken nothing. */
struct client { int fd, which, has_sent, has_read, has_shut, queued, idle; };

/* Bytes on their way from one descriptor to another. `copies`: splice(2) takes none of the two. `held`: read, and not written yet.
 * `has_moved`: something, since somebody looked. */
struct mover { int copies, waits_for_room, is_large, has_moved; char *buffer; u32 at, held; };

struct scene {
    struct slot *slot;
    u32 id;
    struct pipes *pipes;
    int is_released, is_cut, stalled, has_ended[2], eof_bytes; /* stalled: by bit, outputs whose client reads nothing */
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

/* A template that has requests enough: further ones wait, and whoever brings them. */
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

/* A terminal's end is EIO (read(2)); and it never says EPIPE: without anybody at its other side it only fills up. */
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

/* Returns the bytes moved, 0 at the source's end, or an error; -EAGAIN for either side. */
static long move(struct scene *scene, struct mover *mover, int from, int to, int is_output) {
    int terminal = scene->pipes->is_terminal;
    long n = -EINVAL;
    TOUCH(scene->slot);
    if (!mover->copies && !terminal) n = SYS(splice, from, 0, to, 0, CHUNK_BYTES, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (n == -EINVAL) {
        mover->copies = 1;
        n = copy(mover, from, to, terminal && is_output, terminal && !is_output);
    }
    if (n > 0) mover->has_moved = 1;
    if (n >= PIPE_BYTES && !mover->is_large && !terminal) {
        mover->is_large = 1;
        SYS(fcntl, is_output ? from : to, F_SETPIPE_SZ, CHUNK_BYTES);
    }
    TOUCH(scene->slot);
    return n;
}

/* A client that closes while it is being sent something has left that unread, but the kernel returns what went out and forgets the
 * error (unix_stream_sendmsg). So whoever is gone right after a move that took less than there is counts as one that has. */
static int has_left_unread(struct mover *mover, int from, int to) { return has_hung_up(to) && (mover->held || is_readable(from)); }

/* As long as there is something, within bounds. Which side EAGAIN is about it does not say; but where the first move after "source is
 * readable" says so it was the target, and the other way round. Returns 1 to go on later, 0 at the end, or an error. */
static long move_on(struct scene *scene, struct mover *mover, int from, int to, int is_output) {
    long n = 1;
    int turn = 0;
    for (; turn < BURST; turn++) {
        n = move(scene, mover, from, to, is_output);
        if (n == -EAGAIN || n == -EINTR) {
            if (mover->held) mover->waits_for_room = 1;
            else if (!turn && n == -EAGAIN) mover->waits_for_room = !mover->waits_for_room;
            return 1;
        }
        if (n <= 0) break;
        mover->waits_for_room = mover->held > 0;
        if (mover->held || n < PIPE_BYTES) break; /* most likely that was all: asking again would cost a call for an EAGAIN */
    }
    if (is_output && (n > 0 || (turn && n == -EPIPE)) && has_left_unread(mover, from, to)) return -ECONNRESET;
    return n > 0 ? 1 : n;
}

/* --- clients --- */

/* Closed so that it reads what it was sent and then a clean end: unread input would turn our close into a reset. The peer's own
 * reset, by which it leaves output unread, is told to one only of those who ask (unix(7), SO_ERROR): main, or us here. */
static void drop_input(struct scene *scene, struct client *client) {
    char nowhere[512];
    long n;
    while ((n = SYS(recvfrom, client->fd, nowhere, sizeof nowhere, MSG_DONTWAIT, 0, 0)) > 0) {}
    if (n == -ECONNRESET) tell(GAP, scene->id, client->which, 0);
}

static void close_client(struct scene *scene, struct client *client) {
    for (int i = 0; i < 2; i++) if (scene->current[i] == client) scene->current[i] = NULL;
    SYS(shutdown, client->fd, SHUT_RDWR);
    drop_input(scene, client);
    SYS(close, client->fd);
    client->fd = -1;
}

static void close_if_through(struct scene *scene, struct client *client) {
    if (client->fd >= 0 && client->has_sent && client->has_read) close_client(scene, client);
}

/* Its next write fails with EPIPE; what it wrote already is dropped, as by a pipe without a reader. */
static void refuse_input(struct scene *scene, struct client *client) {
    client->has_sent = 1;
    SYS(shutdown, client->fd, SHUT_RD);
    drop_input(scene, client); /* a client that polls for room is told of the end by that room only */
    close_if_through(scene, client);
}

/* EOF on the process's stdin; whoever still sends is told that nobody reads. */
static void close_input(struct scene *scene) {
    int *in = &scene->pipes->in;
    if (*in < 0) return;
    int sending = scene->sending;
    scene->sending = 0;
    if (scene->pipes->is_terminal && !scene->has_ended[STDIO]) scene->eof_bytes = end_of_input(*in, scene->eof);
    if (!scene->eof_bytes) {
        TOUCH(scene->slot);
        SYS(close, *in);
        TOUCH(scene->slot);
        *in = -1;
    }
    for (int i = 0; i < sending; i++) if (scene->senders[i]->fd >= 0) refuse_input(scene, scene->senders[i]);
}

/* As soon as there is room for it; then nobody can send any more. */
static void send_eof(struct scene *scene) {
    int *in = &scene->pipes->in;
    long n = SYS(write, *in, scene->eof, scene->eof_bytes);
    if (n > 0) { scene->eof[0] = scene->eof[1]; scene->eof_bytes -= (int)n; }
    if (n == -EAGAIN && !has_hung_up(*in)) return;
    if (n < 0) scene->eof_bytes = 0;
    if (scene->eof_bytes) return;
    SYS(close, *in);
    *in = -1;
}

static void end_output(struct scene *scene, int which) {
    struct client *client = scene->current[which];
    if (!client) return;
    tell(ENDED, scene->id, which, 0); /* before the end itself: from here on a hang-up is none */
    scene->has_ended[which] = 1;
    SYS(shutdown, client->fd, SHUT_WR);
    client->has_read = 1;
    close_if_through(scene, client);
}

/* The peer closed for good. What it sent before stays in its socket until stdin has taken it. Main tells fastclaw. */
static void lose(struct scene *scene, int which) {
    struct client *client = scene->current[which];
    scene->current[which] = NULL;
    client->has_read = 1;
    scene->output[which].waits_for_room = 0;
    close_if_through(scene, client);
}

/* Until it hangs up: only then does the kernel say whether it has left something unread (unix_release_sock). */
static void shut(struct scene *scene, int which) {
    scene->current[which]->has_shut = 1;
    scene->output[which].waits_for_room = 1;
}

static int is_there(struct scene *scene, int which) {
    return scene->current[which] && !scene->current[which]->has_read;
}

static struct client *new_client(struct scene *scene, int which) {
    if (which != STDIO && which != STDERR) return NULL;
    if (is_there(scene, which) && has_hung_up(scene->current[which]->fd)) lose(scene, which); /* with the news still to come */
    if (scene->is_cut || scene->current[which] || (which == STDIO && scene->sending == MAX_SENDERS)) return NULL;
    for (int i = 0; i < CLIENTS; i++) if (scene->clients[i].fd < 0) return &scene->clients[i];
    return NULL;
}

static void attach(struct scene *scene, int which, int fd) {
    struct client *client = new_client(scene, which);
    if (!client) { end_client(fd); SYS(close, fd); return; }
    SYS(fcntl, fd, F_SETFL, O_NONBLOCK);
    *client = (struct client){.fd = fd, .which = which, .queued = -1};
    scene->current[which] = client;
    scene->output[which].waits_for_room = scene->output[which].held > 0;
    if (which == STDIO && scene->pipes->in >= 0 && !scene->eof_bytes) scene->senders[scene->sending++] = client;
    else refuse_input(scene, client);
    if (scene->pipes->out[which] < 0) end_output(scene, which);
}

/* --- what happens --- */

static void close_output(struct scene *scene, int which) {
    TOUCH(scene->slot);
    SYS(close, scene->pipes->out[which]);
    TOUCH(scene->slot);
    scene->pipes->out[which] = -1;
    end_output(scene, which);
    if (which == STDIO && scene->pipes->is_terminal) { scene->has_ended[STDIO] = 1; scene->eof_bytes = 0; close_input(scene); }
}

static void on_output(struct scene *scene, int which) {
    int *out = &scene->pipes->out[which];
    if (is_there(scene, which)) {
        int to = scene->current[which]->fd;
        long n = move_on(scene, &scene->output[which], *out, to, 1);
        if (!n) close_output(scene, which);
        else if (n == -EPIPE && !has_hung_up(to)) shut(scene, which);
        else if (n < 0) { if (n == -ECONNRESET) tell(GAP, scene->id, which, 0); lose(scene, which); }
    } else if (scene->is_released) {
        long n = move_on(scene, &scene->output[which], *out, null, 1);
        scene->output[which].waits_for_room = 0;
        if (n <= 0) close_output(scene, which);
    } else if (!is_readable(*out) && !scene->output[which].held) {
        close_output(scene, which); /* nobody writes any more, and nothing is left */
    } else {
        scene->output[which].waits_for_room = 1; /* for a client: nothing else is to be seen here */
    }
}

/* Its input is through (half-close, full close), or the process does not read any more (EPIPE). */
static void end_sender(struct scene *scene, long error) {
    struct client *client = scene->senders[0];
    int which_left = scene->current[STDIO] != client || (!client->has_read && has_hung_up(client->fd));
    for (int i = 1; i < scene->sending; i++) scene->senders[i - 1] = scene->senders[i];
    scene->sending--;
    if (error == -ECONNRESET) tell(GAP, scene->id, STDIO, 0);
    client->has_sent = 1;
    scene->input.waits_for_room = 0;
    if (error == -EPIPE || !(which_left && scene->slot->flags & F_HOLD)) close_input(scene);
    if (error == -EPIPE) refuse_input(scene, client);
    close_if_through(scene, client);
}

static void on_input(struct scene *scene, int events) {
    if (scene->eof_bytes) {
        send_eof(scene);
    } else if (events & (POLLERR | POLLHUP)) { /* nobody reads any more */
        if (scene->sending) end_sender(scene, -EPIPE);
        else close_input(scene);
    } else if (scene->sending) {
        long n = move_on(scene, &scene->input, scene->senders[0]->fd, scene->pipes->in, 0);
        if (n <= 0) end_sender(scene, n == -ECONNRESET || !n ? n : -EPIPE);
    }
}

/* Whether a client reads nothing: at so many looks in a row it has taken nothing, by what lies in its socket (unix(7), SIOCOUTQ). */
static int reads_nothing(struct client *client, struct mover *mover, int waits) {
    int queued = -1, before = client->queued;
    SYS(ioctl, client->fd, TIOCOUTQ, &queued);
    client->queued = queued;
    if (!waits || !mover->waits_for_room || mover->has_moved || queued != before) client->idle = 0;
    else if (client->idle < STALLED_LOOKS) client->idle++;
    return client->idle == STALLED_LOOKS;
}

static void tell_waiting(struct scene *scene) {
    int is_waiting = 0;
    scene->stalled = 0;
    for (int i = 0; i < 2; i++) {
        struct mover *mover = &scene->output[i];
        int waits = scene->pipes->out[i] >= 0 && (mover->held || is_readable(scene->pipes->out[i]));
        is_waiting |= waits;
        if (is_there(scene, i) && reads_nothing(scene->current[i], mover, waits)) scene->stalled |= 1 << i;
        mover->has_moved = 0;
    }
    tell(WAITING, scene->id, is_waiting, scene->stalled);
}

/* Whether who writes to an output waits: nobody takes from it, and its pipe has no room. That nobody says who only reads from it; but a
 * copy of it in a pipe that is as large is as full (tee(2), pipe(7)). Of a terminal it cannot be said. */
static int is_blocked(struct scene *scene, int which) {
    int copy[2], out = scene->pipes->out[which];
    if (out < 0 || scene->pipes->is_terminal || scene->is_released || (is_there(scene, which) && !scene->output[which].waits_for_room)) return 0;
    if (SYS(pipe2, copy, O_CLOEXEC | O_NONBLOCK)) return 0;
    TOUCH(scene->slot);
    long size = SYS(fcntl, out, F_GETPIPE_SZ);
    int is_as_large = SYS(fcntl, copy[1], F_SETPIPE_SZ, size) == size;
    long copied = is_as_large ? SYS(tee, out, copy[1], size, SPLICE_F_NONBLOCK) : 0;
    int is_full = copied > 0 && !takes_more(copy[1]);
    SYS(close, copy[0]);
    SYS(close, copy[1]);
    TOUCH(scene->slot);
    return is_full;
}

/* From now on what nobody reads is thrown away. `cut`: who read nothing at the last look reads an end; what it has sent is delivered. */
static void release(struct scene *scene, int cut) {
    scene->is_released = 1;
    scene->is_cut |= cut;
    for (int i = 0; cut && i < 2; i++) {
        if (!is_there(scene, i) || !(scene->stalled & 1 << i)) continue;
        SYS(shutdown, scene->current[i]->fd, SHUT_RDWR);
        lose(scene, i);
    }
    for (int i = 0; i < 2; i++) if (!is_there(scene, i)) scene->output[i].waits_for_room = 0;
}

static void touched_close(struct scene *scene, struct passed *passed) {
    if (!passed->count) return;
    TOUCH(scene->slot);
    close_passed(passed);
    TOUCH(scene->slot);
}

/* From another pump, for the template that runs here. Descriptors of a worker's streams may be of a pipe that is locked by now. */
static void on_fork(struct scene *scene) {
    char text[64], *frame = scene->slot->memory + PUMP_STACK; /* the request's, which is over */
    struct control *head = (struct control *)frame;
    struct passed passed;
    long bytes = receive(scene->pipes->forks, frame, FRAME_BYTES, &passed, MSG_DONTWAIT);
    if (bytes < (long)sizeof *head || head->op != FORK) { touched_close(scene, &passed); return; }
    struct iovec part = {head + 1, (size_t)bytes - sizeof *head};
    if (head->a && passed.count) { /* spilled */
        long size = SYS(lseek, passed.fd[passed.count - 1], 0, SEEK_END);
        char *end = put(put_number(put(text, "{\"spilled\": "), (u32)size), "}");
        part = (struct iovec){text, (size_t)(end - text)};
    }
    long n = scene->pipes->control < 0 ? -ESRCH : say(scene->pipes->control, &part, 1, passed.fd, passed.count, NULL);
    if (n < 0) tell(REFUSED, head->id, (int)-n, STEP_ADOPT);
    touched_close(scene, &passed);
}

static void resize(struct scene *scene) {
    u32 window = LOAD_OF(&scene->slot->window);
    struct winsize size = {.ws_row = (unsigned short)(window >> 16), .ws_col = (unsigned short)window};
    if (scene->pipes->is_terminal && scene->pipes->out[0] >= 0) SYS(ioctl, scene->pipes->out[0], TIOCSWINSZ, &size);
}

/* What main has left for us; any message may be the one that says so. */
static void grant_wishes(struct scene *scene) {
    u32 wishes = take_order(&scene->slot->wishes, scene->id);
    if (wishes & WISH_RELEASE) release(scene, !!(wishes & WISH_CUT));
    if (wishes & WISH_RESIZE) resize(scene);
    if (wishes & WISH_LOOK) tell_waiting(scene);
    if (wishes & WISH_BLOCKED) tell(BLOCKED, scene->id, is_blocked(scene, STDIO) | is_blocked(scene, STDERR) << STDERR, 0);
}

static void on_message(struct scene *scene) {
    struct control head;
    struct passed passed;
    long n = next_message(scene->slot, scene->pipes->inbox, &head, sizeof head, &passed);
    if (n == sizeof head && head.id == scene->id && head.op == ATTACH && passed.count == 1) {
        passed.count = 0;
        attach(scene, (int)head.a, passed.fd[0]);
    } else if (n == sizeof head) {
        turn_down(&head, &passed);
    }
    close_passed(&passed);
    grant_wishes(scene);
}

/* A template's word, for fastclaw; an empty one at its end. Descriptors that it sends along are closed here, since one may be the end
 * of a pipe that it has locked. */
static void on_control(struct scene *scene) {
    char *frame = scene->slot->memory + PUMP_STACK;
    struct passed passed;
    struct event event = {.op = SAID, .id = scene->id};
    long n = receive(scene->pipes->control, frame, SAID_BYTES, &passed, MSG_DONTWAIT);
    touched_close(scene, &passed);
    if (n == -EAGAIN || n == -EINTR) return;
    event.a = n > 0 ? (int)n : 0;
    struct iovec parts[2] = {{&event, sizeof event}, {frame, (size_t)event.a}};
    say(channel, parts, 2, NULL, 0, NULL);
    if (n > 0) return;
    TOUCH(scene->slot); /* what was sent along, and not received, goes with it */
    SYS(close, scene->pipes->control);
    TOUCH(scene->slot);
    scene->pipes->control = -1;
}

/* --- the turns --- */

static void set_output(struct scene *scene, int which, struct pollfd *of) {
    struct mover *mover = &scene->output[which];
    struct client *client = is_there(scene, which) ? scene->current[which] : NULL;
    int waits = mover->waits_for_room;
    of[AT_OUTPUT + which] = (struct pollfd){waits ? -1 : scene->pipes->out[which], client || scene->is_released ? POLLIN : 0, 0};
    if (client) of[AT_CLIENT + which] = (struct pollfd){client->fd, waits && !client->has_shut ? POLLOUT : 0, 0};
}

static void set_places(struct scene *scene, struct pollfd *of) {
    struct pipes *pipes = scene->pipes;
    for (int i = 0; i < PLACES; i++) of[i] = (struct pollfd){-1, 0, 0};
    int takes = pipes->control < 0 || takes_more(pipes->control);
    of[AT_INBOX] = (struct pollfd){pipes->inbox, POLLIN, 0};
    of[AT_FORKS] = (struct pollfd){pipes->forks, takes ? POLLIN : 0, 0};
    of[AT_CONTROL] = (struct pollfd){pipes->control, takes ? POLLIN : POLLIN | POLLOUT, 0};
    for (int i = 0; i < 2; i++) set_output(scene, i, of);
    int is_sending = scene->sending && !scene->eof_bytes;
    if (scene->eof_bytes || (is_sending && scene->input.waits_for_room)) of[AT_INPUT] = (struct pollfd){pipes->in, POLLOUT, 0};
    else if (!pipes->is_terminal) of[AT_INPUT] = (struct pollfd){pipes->in, 0, 0};
    if (is_sending && !scene->input.waits_for_room) of[AT_SENDER] = (struct pollfd){scene->senders[0]->fd, POLLIN, 0};
}

static int is_over(struct scene *scene) {
    struct pipes *pipes = scene->pipes;
    if (pipes->in >= 0 || pipes->out[0] >= 0 || pipes->out[1] >= 0 || pipes->control >= 0) return 0;
    for (int i = 0; i < CLIENTS; i++) if (scene->clients[i].fd >= 0) return 0;
    return 1;
}

/* Whoever came or went may have taken another's number: after that everything is looked at anew. */
static void turn(struct scene *scene) {
    struct pollfd of[PLACES];
    set_places(scene, of);
    if (SYS(ppoll, of, PLACES, 0, 0, 8) <= 0) return;
    if (of[AT_INBOX].revents) { on_message(scene); return; }
    if (of[AT_FORKS].revents) { on_fork(scene); return; }
    if (of[AT_CONTROL].revents) { on_control(scene); return; }
    for (int i = 0; i < 2; i++)
        if (of[AT_CLIENT + i].revents & (POLLHUP | POLLERR)) { lose(scene, i); return; }
    for (int i = 0; i < 2; i++)
        if (of[AT_OUTPUT + i].revents || of[AT_CLIENT + i].revents & POLLOUT) on_output(scene, i);
    if (scene->pipes->in >= 0 && (of[AT_INPUT].revents || of[AT_SENDER].revents)) on_input(scene, of[AT_INPUT].revents);
}

static void free_buffers(struct scene *scene) {
    struct mover *movers[3] = {&scene->output[0], &scene->output[1], &scene->input};
    for (int i = 0; i < 3; i++) if (movers[i]->buffer) SYS(munmap, movers[i]->buffer, COPY_BYTES);
}

/* That the streams are over goes along with the command's exit, which usually comes at once. */
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
    struct scene scene = {.slot = slot, .id = id, .pipes = pipes};
    for (int i = 0; i < CLIENTS; i++) scene.clients[i].fd = -1;
    while (!is_over(&scene)) turn(&scene);
    free_buffers(&scene);
    tell_free(slot, id);
}
