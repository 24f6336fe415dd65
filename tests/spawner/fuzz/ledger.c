/* What must be true of each process, whatever the order of things was: see `check_event` for what is told, `check_end` for the rest. */
#include "ledger.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STUCK_MS = 100, SLACK_MS = 40 };

struct want wants[MAX_WANTS];
struct client clients[MAX_CLIENTS];
int want_count, client_count, is_early, overload_possible;

/* --- bytes --- */

unsigned char letter(u32 key, u64 at) {
    u64 mixed = ((u64)key << 40 ^ at) * 0x9e3779b97f4a7c15ull;
    mixed ^= mixed >> 29;
    return (unsigned char)(mixed * 0xbf58476d1ce4e5b9ull >> 33);
}

u32 output_key(u32 id, int which) { return id * 2 + (u32)which; }

void add_text(struct text *text, const void *from, size_t bytes) {
    text->at = realloc(text->at, text->bytes + bytes + 1);
    memcpy(text->at + text->bytes, from, bytes);
    text->bytes += bytes;
}

static int matches(struct text text, size_t from, size_t bytes, u32 key, u64 at) {
    for (size_t i = 0; i < bytes; i++) if (text.at[from + i] != letter(key, at + i)) return 0;
    return 1;
}

struct want *want_of(u32 id) {
    for (int i = 0; i < want_count; i++) if (wants[i].id == id) return &wants[i];
    return NULL;
}

int is_settled(struct want *want) { return want->refused || want->lost || (want->ended && want->empty && want->is_free); }

int is_held(struct want *want, int which) {
    struct tree *tree = tree_of_id(want->id);
    for (int i = 0; tree && i < MAX_MEMBERS; i++) {
        struct member *member = &tree->members[i];
        if (member->is_there && member->end == LIVES && member->fd[1 + which] >= 0) return 1;
    }
    return 0;
}

/* --- what is told --- */

static void check_empty(struct want *want, int may_be_known) {
    struct tree *tree = tree_of_id(want->id);
    if (want->empty++ && !may_be_known) fail("%u is told twice to be empty", want->id);
    for (int i = 0; tree && i < MAX_MEMBERS; i++)
        if (tree->members[i].is_there && tree->members[i].end != REAPED) fail("%u is told to be empty, and somebody lives", want->id);
}

/* What is kept of `total` bytes, as the pump laid it: the head, then a ring of the last. */
static void check_kept(struct want *want, int which, u64 total, struct text kept) {
    u32 head = want->request.head, limit = want->request.limit, ring = limit - head;
    for (u64 i = 0; i < kept.bytes; i++) {
        u64 at = i;
        if (i >= head && total > limit) {
            u64 turns = (total - head) / ring, place = i - head;
            at = head + place + ring * (place < (total - head) % ring ? turns : turns - 1);
        }
        if (kept.at[i] != letter(output_key(want->id, which), at)) fail("%u: byte %lu of stream %d is another", want->id, (long)i, which);
    }
}

static void check_collected(struct want *want, int which, u64 total, u32 given, const unsigned char *at, int flags) {
    u32 limit = want->request.limit;
    u64 most = total < limit ? total : limit;
    struct text kept = {NULL, 0};
    want->done_total[which] = total;
    if (total > want->written[which]) fail("%u wrote %lu bytes, and %lu are told", want->id, (long)want->written[which], (long)total);
    int is_whole = !(flags & (INCOMPLETE | OVERLOADED));
    if (is_whole && total < want->written_at_end[which])
        fail("%u wrote %lu bytes before it ended, and %lu are told", want->id, (long)want->written_at_end[which], (long)total);
    if (flags & (INCOMPLETE | OVERLOADED)) return;
    if ((given == total && total <= limit) || limit <= INLINE_BYTES) add_text(&kept, at, given < most ? given : most);
    else {
        kept.at = malloc(most + 1);
        if (want->file < 0) fail("%u: there is no file", want->id);
        if (pread(want->file, kept.at, most, (off_t)which * limit) != (ssize_t)most) fail("%u: its file is short", want->id);
        kept.bytes = most;
    }
    if (kept.bytes != most) fail("%u: %lu bytes of stream %d are given, and not %lu", want->id, (long)kept.bytes, which, (long)most);
    check_kept(want, which, total, kept);
    free(kept.at);
}

static void check_done(struct want *want, char *frame, long bytes) {
    struct done *done = (struct done *)frame;
    unsigned char *at = (unsigned char *)(done + 1);
    int flags = done->event.b;
    if (bytes != (long)(sizeof *done + done->given[0] + done->given[1])) fail("a DONE of %ld bytes", bytes);
    note("  done: %lu and %lu bytes, flags %d", (long)done->total[0], (long)done->total[1], flags);
    if (flags & OVERLOADED && !overload_possible && !fault_one_in) fail("%u is told to have overloaded", want->id);
    want->cut_down = flags & (LIMITED | OVERLOADED);
    if (flags & INCOMPLETE && !want->had_lock && !is_early && !is_hostile && !fault_one_in) fail("%u is told to be incomplete", want->id);
    if (flags & LIMITED && !(want->flags & F_LIMIT_KILLS)) fail("%u is told to have gone over its limit", want->id);
    for (int i = 0; i < 2; i++) { check_collected(want, i, done->total[i], done->given[i], at, flags); at += done->given[i]; }
}

void on_word(struct event *event) {
    struct want *want = want_of(event->id);
    if (!want || event->op != DONE || is_early || !want->ended_at) return;
    if (virtual_ms > want->ended_at + want->request.drain_ms + 2 * STUCK_MS + SLACK_MS)
        fail("%u is told after %lu ms", want->id, (long)(virtual_ms - want->ended_at));
}

static void check_told_end(struct want *want, int flags) {
    if (want->refused) fail("%u was refused, and has ended", want->id);
    if (want->ended++) fail("%u has ended twice", want->id);
    if (flags & WITH_EMPTY) check_empty(want, !!(want->flags & F_RUN));
    if (flags & WITH_FREE) want->is_free = 1;
}

/* Of a run it is told early where something that it left still holds its streams: its end, with what it wrote, is to come. */
static void check_exit(struct want *want, int flags) {
    if (!(want->flags & F_RUN)) { check_told_end(want, flags); return; }
    if (want->exit_told++) fail("the exit of %u is told twice", want->id);
    if (flags & WITH_FREE) fail("%u is told to be free before it is collected", want->id);
    if (flags & WITH_EMPTY && !want->ended) check_empty(want, 0);
}

static struct client *client_of(u32 id, int which) {
    for (int i = client_count - 1; i >= 0; i--)
        if (clients[i].id == id && clients[i].which == which && !clients[i].has_left) return &clients[i];
    return NULL;
}

static void check_left(struct want *want, int which, int is_gap) {
    struct client *client = client_of(want->id, which);
    if (!client || !want->connected[which]) fail("of %u nobody was connected to %d who could have left", want->id, which);
    int is_cut = is_hostile || want->released || want->stuck || want->lost || want->ended_stream[which];
    if (!client->is_closed && !is_cut && is_held(want, which)) fail("a client of %u, %d is there, and is told to have left", want->id, which);
    client->has_left = 1;
    want->connected[which] = 0;
    want->gap |= is_gap;
}

/* What main, a reaper and its pump have seen each tells on its own. That a run goes on its pump says when it has just looked, and its
 * reaper may tell the end in between; fastclaw knows by that end that it has started. */
static int may_be_late(struct want *want, u32 op) {
    if (op == STARTED) return want->flags & F_RUN && want->ended;
    return op == LEFT || op == ENDED || op == FREE || op == GAP || op == EXITED || op == LOST || op == STUCK;
}

void check_event(char *frame, long bytes, int fd) {
    struct event *event = (struct event *)frame;
    struct want *want = want_of(event->id);
    u32 op = event->op;
    note("fastclaw hears %u of %u: %d %d", op, event->id, event->a, event->b);
    if (op == LOST && !event->id) return;
    if (!want) fail("%u is told of %u, which is nobody", op, event->id);
    if (op == STORE) { if (want->file >= 0 || fd < 0) fail("%u has a second file, or none", want->id); want->file = fd; return; }
    if (fd >= 0) fail("a descriptor comes with %u", op);
    if (is_settled(want) && !may_be_late(want, op) && !want->lost) fail("%u is settled, and %u is told", want->id, op);
    if (op == STARTED) { if (want->started++) fail("%u has started twice", want->id); }
    else if (op == REFUSED) { if (want->refused++ || want->ended) fail("%u is refused twice, or late", want->id); }
    else if (op == EXITED) check_exit(want, event->b);
    else if (op == DONE) { check_done(want, frame, bytes); check_told_end(want, event->b); }
    else if (op == EMPTY) check_empty(want, 0);
    else if (op == FREE) want->is_free = 1;
    else if (op == LOST) want->lost = 1;
    else if (op == ENDED) want->ended_stream[event->a & 1] = 1;
    else if (op == LEFT) check_left(want, event->a, event->b);
    else if (op == GAP) want->gap = 1;
    else if (op == STUCK) {
        if (!want->had_lock && !is_early && !is_hostile) fail("%u is told to be stuck, and nobody has locked anything", want->id);
        want->stuck = 1;
    }
    else if (op != WAITING && op != BLOCKED) fail("%u is told, which is nothing", op);
}

/* --- at the end --- */

/* Each client has what comes next; what is missing between two is what one before left unread, or what was thrown away. */
static void check_output(struct want *want, int which) {
    u64 at = 0;
    int may_miss = want->released || want->stuck;
    for (int i = 0; i < client_count; i++) {
        struct client *client = &clients[i];
        if (client->id != want->id || client->which != which) continue;
        u64 from = at, last = may_miss ? want->written[which] : at;
        while (from <= last && !matches(client->got, 0, client->got.bytes, output_key(want->id, which), from)) from++;
        if (from > last) fail("of %u, %d client %d reads something else from byte %lu on", want->id, which, i, (long)at);
        at = from + client->got.bytes;
        may_miss |= client->has_missed;
        if (client->was_unread && !want->gap && !want->stuck) fail("of %u, %d client %d left bytes unread, and no gap is told", want->id, which, i);
    }
    if (!may_miss && want->ended_stream[which] && at != want->written[which])
        fail("%u wrote %lu bytes to %d, and its clients have read %lu", want->id, (long)want->written[which], which, (long)at);
}

/* The command reads its clients' bytes one client after the other. All of each, unless it has closed its stdin, or what came before
 * has ended it: a half-close; or that a client left, where it is not held, or has read the end of the output: its close cannot be
 * told from a half-close then. */
static void check_input(struct want *want) {
    size_t at = 0;
    int may_miss = want->has_closed_input || want->stuck;
    for (int i = 0; i < client_count; i++) {
        struct client *client = &clients[i];
        if (client->id != want->id || client->which) continue;
        size_t left = want->input.bytes - at, n = client->sent < left ? client->sent : left;
        if (!matches(want->input, at, n, client->key, 0)) {
            if (!may_miss) fail("%u reads something else from byte %zu on", want->id, at);
            n = 0;
        }
        at += n;
        if (n < client->sent && want->has_read_input_end && !may_miss)
            fail("%u reads %zu bytes of client %d and then the end, and that sent %lu", want->id, n, i, (long)client->sent);
        may_miss |= client->has_half_closed || (client->is_closed && (!(want->flags & F_HOLD) || want->ended_stream[0]));
    }
    if (at != want->input.bytes) fail("%u reads %zu bytes that nobody sent", want->id, want->input.bytes - at);
}

static void check_run_input(struct want *want) {
    if (!matches(want->input, 0, want->input.bytes, want->id + 5000, 0)) fail("%u reads other input", want->id);
    if (want->has_read_input_end && want->input.bytes != want->request.place && !want->has_closed_input)
        fail("%u reads %zu bytes of input, and not %u", want->id, want->input.bytes, want->request.place);
}

static void check_want(struct want *want) {
    if (!is_settled(want)) fail("%u: ended %d, empty %d, free %d: something was never told", want->id, want->ended, want->empty, want->is_free);
    if (want->lost || want->refused) return;
    if (want->flags & F_RUN) { check_run_input(want); return; }
    if (want->flags & F_TTY && !want->is_raw) return;
    for (int i = 0; i < 2; i++) check_output(want, i);
    if (!(want->flags & F_TTY)) check_input(want);
}

static void check_client(struct client *client) {
    struct want *want = want_of(client->id);
    if (!client->is_closed && !client->has_end) fail("a client of %u, %d hangs: it reads no end", client->id, client->which);
    if (!client->has_left && !want->lost) fail("nobody is told that a client of %u, %d has left", client->id, client->which);
}

void check_end(void) {
    for (int i = 0; i < client_count; i++) check_client(&clients[i]);
    for (int i = 0; i < want_count; i++) check_want(&wants[i]);
    if (collected_bytes) fail("%lu bytes count as collected, and nobody has them", (long)collected_bytes);
    for (u32 i = 0; i < used_slots; i++) {
        if (slots[i].id) fail("slot %u still has %u", i, slots[i].id);
        for (int k = 0; slots[i].pid && k < 2; k++) if (slots[i].client[k] >= 0) fail("main still has a client of slot %u", i);
    }
    for (int i = 0; i < fiber_count; i++)
        if (fibers[i].kind == PUMP && !fibers[i].is_over && open_by(&fibers[i]) != 1) fail("an idle pump has %d descriptors", open_by(&fibers[i]));
}
