/* A pump's work for a run: collects both outputs within their bound, and feeds stdin.
 *
 * Of each stream the first `head` bytes are kept and, in a ring behind them, the last `limit - head`. Up to INLINE_BYTES stay in the
 * slot's memory and are sent with the end. More goes to a file in memory (stdout at 0, stderr at `limit`) that fastclaw gets at once, so
 * that it has the output even where a neighbour locks the pipe and with it this pump. It is not mapped here: the out-of-memory killer
 * would count memory that main shares as main's. No descriptor leaves gVisor: there what is in the file is sent in frames, once all
 * is there. */
#include "spawner.h"
#include <linux/memfd.h>

enum {
    SHORT_MS = 5,          /* STARTED is told of a run that waits for longer */
    SHORT_TURNS = 64,      /* and of one that takes so many turns without waiting */
    CHUNK_BYTES = 1 << 20, /* one splice */
    SENT_BYTES = 2 * INLINE_BYTES, /* one frame of a file, as long as a DONE may be */
};

struct collecting {
    struct slot *slot;
    struct pipes *pipes;
    struct job *job;
    u32 id, head, limit, input;
    int file, filed, is_told, turns, is_sent; /* is_sent: the file's content, so that no more is kept */
};

static void end_run(struct collecting *run, u32 why) {
    ADD_BITS(&run->slot->meet, why);
    if (run->slot->flags & F_WORKER) order_worker(&slots[run->job->request->place], run->id, 0, LEVEL_KILL);
    else order(run->slot, run->id, 0, LEVEL_KILL);
}

static void touched_close(struct collecting *run, int *fd) {
    TOUCH(run->slot);
    SYS(close, *fd);
    TOUCH(run->slot);
    *fd = -1;
}

/* --- output --- */

/* Where the next byte goes (`at`); returns how many fit there: 0 where no more are kept. */
static u32 room_at(struct collecting *run, u64 total, u32 *at) {
    u32 ring = run->limit - run->head;
    *at = total < run->head ? (u32)total : run->head + (ring ? (u32)((total - run->head) % ring) : 0);
    return total < run->head ? run->head - *at : run->limit - *at;
}

/* Adds to the bytes that all runs have in files; false where that is more than they may. */
static int count(struct collecting *run, u64 bytes) {
    u64 now = __atomic_add_fetch(&collected_bytes, bytes, __ATOMIC_RELAXED);
    run->slot->counted += bytes;
    return now <= collect_bytes;
}

static int open_file(struct collecting *run) {
    long fd = SYS(memfd_create, "fastclaw-run", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return 0;
    run->file = (int)fd;
    if (SYS(ftruncate, fd, 2 * (u64)run->limit)) return 0;
    SYS(fcntl, fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
    if (!(welcome_flags & W_GVISOR)) tell_with(STORE, run->id, 0, 0, run->file);
    return 1;
}

/* Copies the stream's bytes in memory to the same offset of the file. */
static int move_to_file(struct collecting *run, int which) {
    if (run->file < 0 && !open_file(run)) return 0;
    run->filed |= 1 << which;
    char *from = inline_store(run->slot, which);
    return SYS(pwrite64, run->file, from, INLINE_BYTES, (u64)which * run->limit) == INLINE_BYTES;
}

static long keep_inline(struct collecting *run, int which, u32 at, u32 room) {
    if (at + room > INLINE_BYTES) room = INLINE_BYTES - at;
    return SYS(read, run->pipes->out[which], inline_store(run->slot, which) + at, room);
}

static long keep_in_file(struct collecting *run, int which, u32 at, u32 room) {
    u64 offset = (u64)which * run->limit + at;
    if (room > CHUNK_BYTES) room = CHUNK_BYTES;
    return SYS(splice, run->pipes->out[which], 0, run->file, &offset, room, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
}

static long throw_away(struct collecting *run, int which) {
    return SYS(splice, run->pipes->out[which], 0, null, 0, CHUNK_BYTES, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
}

/* Whether the stream's next bytes still go to the slot's memory. */
static int fits_inline(struct collecting *run, u64 total) {
    return run->limit <= INLINE_BYTES || total < INLINE_BYTES;
}

/* Returns the bytes taken from the pipe, 0 at its end, or an error. The reaper tells a run's end after the second TOUCH, when they are
 * counted. */
static long take_output(struct collecting *run, int which) {
    u64 total = LOAD_OF(&run->slot->total[which]);
    u32 at, room = room_at(run, total, &at);
    u32 over = MEET_TOLD | MEET_OVERLOADED;
    if (!fits_inline(run, total) && !(run->filed & 1 << which) && !move_to_file(run, which)) end_run(run, MEET_OVERLOADED);
    TOUCH(run->slot);
    u32 met = LOAD_OF(&run->slot->meet) | (run->is_sent ? MEET_TOLD : 0);
    int is_kept = room && !(met & over);
    long n = !is_kept ? throw_away(run, which)
           : fits_inline(run, total) ? keep_inline(run, which, at, room) : keep_in_file(run, which, at, room);
    if (n > 0) reach(run->slot, AT_FIRST_BYTE);
    if (n > 0 && !(met & MEET_TOLD)) {
        STORE_TO(&run->slot->total[which], total + (u64)n);
        if (is_kept && !fits_inline(run, total) && total < run->limit && !count(run, (u64)n)) end_run(run, MEET_OVERLOADED);
        if (total + (u64)n > run->limit && run->slot->flags & F_LIMIT_KILLS) end_run(run, MEET_LIMITED);
    }
    TOUCH(run->slot);
    return n;
}

static void on_output(struct collecting *run, int which) {
    long n = take_output(run, which);
    if (!n || (n < 0 && n != -EAGAIN && n != -EINTR)) touched_close(run, &run->pipes->out[which]);
}

/* What of a stream is in the file. */
static void send_stream(struct collecting *run, int which, char *room) {
    u64 total = LOAD_OF(&run->slot->total[which]), end = total < run->limit ? total : run->limit;
    long n = 0;
    for (u64 at = 0; at < end; at += (u64)n) {
        u64 most = end - at < SENT_BYTES ? end - at : SENT_BYTES;
        if ((n = SYS(pread64, run->file, room, most, (u64)which * run->limit + at)) <= 0) return;
        struct event event = {.op = STORE, .id = run->id, .a = which, .b = (int)at};
        struct iovec parts[2] = {{&event, sizeof event}, {room, (size_t)n}};
        send_frame(channel, parts, 2, NULL, 0, NULL);
    }
}

static void send_file(struct collecting *run) {
    if (!(welcome_flags & W_GVISOR) || run->is_sent) return;
    run->is_sent = 1;
    char *room = run->filed ? map(SENT_BYTES, -1) : NULL;
    for (int i = 0; room && i < 2; i++) if (run->filed & 1 << i) send_stream(run, i, room);
    if (room) SYS(munmap, room, SENT_BYTES);
}

static void wake_reaper(struct slot *slot) {
    if (!unpark(&slot->meet)) SYS(kill, slot->pid, SIGUSR1);
}

/* Takes the bytes that are in the pipes now, and no more: a process may write to them for ever. */
static void take_last(struct collecting *run) {
    for (int i = 0; i < 2; i++) {
        int left = 0;
        if (run->pipes->out[i] < 0) continue;
        TOUCH(run->slot);
        SYS(ioctl, run->pipes->out[i], FIONREAD, &left);
        TOUCH(run->slot);
        for (long n = 1; left > 0 && (n > 0 || n == -EINTR); left -= n > 0 ? (int)n : 0) n = take_output(run, i);
    }
    send_file(run);
    ADD_BITS(&run->slot->meet, MEET_DRAINED);
    wake_reaper(run->slot);
}

/* A run has no clients: messages come from its reaper only. */
static void on_message(struct collecting *run) {
    struct control head;
    struct passed passed;
    if (next_message(run->slot, run->pipes->inbox, &head, sizeof head, &passed) == sizeof head) reject_message(&head, &passed);
    close_passed(&passed);
    if ((LOAD_OF(&run->slot->meet) & (MEET_LAST | MEET_DRAINED)) == MEET_LAST) take_last(run);
}

/* --- stdin --- */

static void on_input(struct collecting *run, int events) {
    struct job *job = run->job;
    long n = -EPIPE;
    TOUCH(run->slot);
    if (!(events & POLLERR) && run->input) n = SYS(write, run->pipes->in, job->input, run->input);
    else if (!(events & POLLERR) && job->input_file >= 0)
        n = SYS(splice, job->input_file, 0, run->pipes->in, 0, CHUNK_BYTES, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    TOUCH(run->slot);
    if (n > 0) run->slot->taken += (u64)n;
    if (n > 0 && run->input) { job->input += n; run->input -= (u32)n; }
    int is_through = job->input_file < 0 && !run->input;
    if (is_through || !n || (n < 0 && n != -EAGAIN && n != -EINTR)) touched_close(run, &run->pipes->in);
}

/* --- the turns --- */

static void tell_started(struct collecting *run) {
    run->is_told = 1;
    tell_reached(run->slot, STARTED, run->id, 0, (int)(run->slot - slots));
}

static void turn(struct collecting *run) {
    struct pipes *pipes = run->pipes;
    struct pollfd of[4] = {{pipes->out[0], POLLIN, 0}, {pipes->out[1], POLLIN, 0}, {pipes->in, POLLOUT, 0}, {pipes->inbox, POLLIN, 0}};
    struct moment pause = {0, SHORT_MS * 1000000};
    long n = SYS(ppoll, of, 4, run->is_told ? 0 : &pause, 0, 8);
    if (!run->is_told && (!n || ++run->turns > SHORT_TURNS)) tell_started(run);
    if (n <= 0) return;
    for (int i = 0; i < 2; i++) if (of[i].revents) on_output(run, i);
    if (of[2].revents) on_input(run, of[2].revents);
    if (of[3].revents) on_message(run);
}

/* The streams are closed. Usually the command has ended, and the reaper says so within microseconds; else STARTED is told. */
static void tell_if_it_goes_on(struct collecting *run) {
    u64 until = now_ms() + SHORT_MS;
    u32 met;
    while (!((met = LOAD_OF(&run->slot->meet)) & MEET_EXIT) && now_ms() < until) park(&run->slot->meet, met, SHORT_MS);
    if (!(met & MEET_EXIT)) tell_started(run);
}

/* Wakes a reaper that has told the end or waits for it, since the slot's next process waits for that. */
static void meet_reaper(struct collecting *run) {
    u32 met = ADD_BITS(&run->slot->meet, MEET_OVER);
    if (!(met & (MEET_EXIT | MEET_TOLD)) && !run->is_told) tell_if_it_goes_on(run);
    if (!(met & MEET_EXIT)) return;
    if (met & MEET_TOLD) tell(FREE, run->id, 0, 0);
    else tell_done(run->slot, run->id, WITH_FREE | (met & MEET_EMPTY ? WITH_EMPTY : 0));
    wake_reaper(run->slot);
}

void collect(struct slot *slot, struct job *job, struct pipes *pipes, u32 id) {
    struct start *request = job->request;
    struct collecting run = {slot, pipes, job, id, request->head, request->limit, request->input, -1, 0, 0, 0, 0};
    while (pipes->out[0] >= 0 || pipes->out[1] >= 0 || pipes->in >= 0) turn(&run);
    send_file(&run);
    if (run.file >= 0) SYS(close, run.file);
    uncount(slot);
    meet_reaper(&run);
}
