/* One story by chance: what fastclaw asks for, what its clients do and what the commands do; then everything is brought to its end. */
#include "ledger.h"
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

enum { REAPERS = 3, MOST_BYTES = 100000, MAX_ROUNDS = 200000, MAX_MS = 100000, MAX_MEASURED = 40 };

u64 seed;
int is_hostile;
static int host_control, host_channel, actions, reapers_lost;
static u32 last_id;
static struct { u32 id, count; int file; struct asked_usage rows[MAX_MEASURED]; } measured; /* a MEASURE that is not answered yet */
static unsigned char bytes[MOST_BYTES];

static u32 size_by_chance(void) {
    switch (any(4)) {
    case 0: return 1 + any(20);
    case 1: return 1 + any(3000);
    case 2: return any(2) ? 4096 : 65536;
    default: return 1 + any(MOST_BYTES - 1);
    }
}

static void fill(u32 key, u64 at, u32 count) { for (u32 i = 0; i < count; i++) bytes[i] = letter(key, at + i); }

/* --- fastclaw --- */

static int send_to_spawner(int to, const void *frame, size_t size, const int *fds, int count) {
    _Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int) * 4)] = {0};
    struct iovec part = {(void *)(uintptr_t)frame, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count) {
        message.msg_control = space;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count);
        memcpy(CMSG_DATA(head), fds, sizeof(int) * (size_t)count);
    }
    acted++;
    return sendmsg(to, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

static int order_main(u32 op, u32 id, u32 a, int fd) {
    struct tree *tree = tree_of_id(id);
    u32 place = tree && any(2) ? (u32)(tree->slot - slots) : ~0u;
    struct control frame = {op, id, a, 0, place};
    note("fastclaw orders %u for %u: %u", op, id, a);
    return send_to_spawner(host_control, &frame, sizeof frame, &fd, fd >= 0);
}

/* No write of a MEASURE may be cut short, but here they are: then it says so. */
static void check_measured(struct event *event) {
    struct usage usage;
    if (!measured.id || event->id != measured.id) fail("an answer to %u, which has not been asked", event->id);
    for (u32 i = 0; !event->a && i < measured.count; i++) {
        struct want *want = want_of(measured.rows[i].id);
        if (pread(measured.file, &usage, sizeof usage, (off_t)(i * sizeof usage)) != sizeof usage) fail("%u of %u are measured", i, measured.count);
        if (!usage.is_known || want->flags & F_TTY) continue; /* a terminal echoes */
        if (usage.output > want->written[0] + want->written[1]) fail("%u is said to have written %lu bytes", want->id, (long)usage.output);
        if (usage.processes > MAX_MEMBERS || usage.pages != usage.processes) fail("%u is said to have %u processes", want->id, usage.processes);
    }
    close(measured.file);
    measured.id = 0;
}

static int hear(int from) {
    static _Alignas(8) char frame[sizeof(struct done) + 2 * INLINE_BYTES];
    _Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int))];
    struct iovec part = {frame, sizeof frame};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    ssize_t n = recvmsg(from, &message, MSG_DONTWAIT);
    int fd = -1;
    if (n < 0) return 0;
    if (!n) fail("the spawner has given up");
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head) memcpy(&fd, CMSG_DATA(head), sizeof fd);
    if (from == host_channel && ((struct event *)frame)->op == ANSWER) check_measured((struct event *)frame);
    else if (from == host_channel) check_event(frame, n, fd);
    acted++;
    return 1;
}

static int idle_reapers(void) {
    int idle = REAPERS - reapers_lost - (measured.id > 0);
    for (int i = 0; i < want_count; i++) idle -= !is_settled(&wants[i]);
    return idle;
}

static u32 flags_by_chance(void) {
    u32 flags = any(2) ? F_RUN : 0;
    if (!any(4)) flags |= F_NULL_STDIN;
    if (!flags && !any(6)) flags |= F_TTY;
    if (!(flags & F_TTY) && !any(6)) flags |= F_MERGE;
    if (!any(6)) flags |= F_END_ORPHANS;
    if (any(2)) flags |= F_HOLD;
    if (flags & F_RUN && any(2)) flags |= F_LIMIT_KILLS;
    return flags;
}

static u32 limit_by_chance(void) {
    static const u32 limits[] = {0, 1, 10, 1000, INLINE_BYTES - 1, INLINE_BYTES, INLINE_BYTES + 1, 20000, 65536, 1 << 20};
    return limits[any(sizeof limits / sizeof *limits)];
}

/* `place` of what is kept here: the bytes of a run's input. */
static void start_one(void) {
    static _Alignas(8) char frame[FRAME_BYTES];
    struct start *request = (struct start *)frame;
    char *at = frame + sizeof *request;
    u32 id = ++last_id, flags = flags_by_chance(), given = 0;
    int file = -1;
    if (want_count == MAX_WANTS || idle_reapers() < 1) return;
    memset(frame, 0, sizeof frame);
    *request = (struct start){.op = START, .id = id, .flags = flags, .argc = 2, .envc = 1, .bytes = 13};
    memcpy(at, "/bin/x\0y\0A=b\0", 13);
    at += 13;
    if (flags & F_TTY) { struct winsize size = {24, 80, 0, 0}; memcpy(at, &size, sizeof size); at += sizeof size; }
    if (flags & F_RUN) {
        request->limit = limit_by_chance();
        request->head = request->limit > 100 && any(3) ? request->limit / 2 : any(2) || request->limit <= 100 ? request->limit : 0;
        request->drain_ms = any(2) ? 200 : any(20);
        given = flags & F_NULL_STDIN ? 0 : any(3) ? any(8000) : size_by_chance();
    }
    if (given > 8000) {
        request->flags = flags |= F_INPUT_FILE;
        file = memfd_create("input", 0);
        fill(id + 5000, 0, given);
        if (write(file, bytes, given) != (ssize_t)given || lseek(file, 0, SEEK_SET)) abort();
    } else {
        fill(id + 5000, 0, given);
        memcpy(at, bytes, given);
        at += request->input = given;
    }
    if (send_to_spawner(host_channel, frame, (size_t)(at - frame), &file, file >= 0)) {
        wants[want_count] = (struct want){.request = *request, .id = id, .flags = flags, .file = -1};
        wants[want_count++].request.place = given;
        note("fastclaw starts %u, flags %u, limit %u, input %u", id, flags, request->limit, given);
    }
    if (file >= 0) close(file);
}

static struct want *some_want(void) { return want_count ? &wants[any((u32)want_count)] : NULL; }

static void write_client(struct client *client) {
    u32 most = size_by_chance();
    if (client->is_closed || client->has_half_closed) return;
    fill(client->key, client->sent, most);
    ssize_t n = send(client->fd, bytes, most, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) { client->sent += (u64)n; acted++; note("  client of %u sends %zd", client->id, n); }
}

/* As spawner/pump_streams.py: one at a time for each of the two sockets, and none once they are closed. */
static void connect_one(void) {
    struct want *want = some_want();
    int which = (int)any(2), ends[2], small = 4608;
    if (!want || client_count == MAX_CLIENTS || want->flags & F_RUN || !want->started || is_settled(want)) return;
    if (want->connected[which] || want->is_free || want->released) return;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) abort();
    for (int i = 0; i < 2; i++) if (!any(3)) setsockopt(ends[i], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    struct client *client = &clients[client_count];
    *client = (struct client){.fd = ends[0], .id = want->id, .which = which, .key = (u32)(9000 + client_count)};
    if (!any(3)) write_client(client);
    if (order_main(ATTACH, want->id, (u32)which, ends[1])) {
        client->is_sender = !which && !(want->flags & F_NULL_STDIN);
        client_count++;
        want->connected[which] = 1;
    } else {
        close(ends[0]);
    }
    close(ends[1]);
}

static void order_something(void) {
    struct want *want = some_want();
    if (!want || is_settled(want)) return;
    switch (any(9)) {
    case 0: case 1: order_main(LOOK, want->id, any(2), -1); break;
    case 2: if (want->flags & F_TTY) order_main(RESIZE, want->id, any(100) << 16 | any(100), -1); break;
    case 3: order_main(SIGNAL, want->id, (1 + any(64)) | (any(2) ? SIGNAL_GROUP : 0), -1); want->kill_asked = 1; break;
    case 4: if (!any(3)) { want->term_asked = 1; order_main(END, want->id, LEVEL_TERM, -1); } break;
    case 5: if (!any(3)) { want->kill_asked = 1; order_main(END, want->id, LEVEL_KILL, -1); } break;
    default:
        if (want->flags & F_RUN || !want->ended || want->is_free) break;
        want->released = 1;
        order_main(RELEASE, want->id, any(2), -1);
    }
}

/* Of anybody, also of those that are long gone. */
static void measure_some(void) {
    static struct { struct control head; struct asked_usage rows[MAX_MEASURED]; } frame;
    if (measured.id || !want_count || idle_reapers() < 1) return;
    measured.count = any(MAX_MEASURED + 1);
    for (u32 i = 0; i < measured.count; i++) {
        struct want *want = some_want();
        struct tree *tree = tree_of_id(want->id);
        measured.rows[i] = (struct asked_usage){want->id, tree ? (u32)(tree->slot - slots) : any(2) ? ~0u : any(REAPERS), ~0u};
    }
    frame.head = (struct control){MEASURE, ++last_id, measured.count, 0, ~0u};
    memcpy(frame.rows, measured.rows, sizeof frame.rows);
    measured.file = memfd_create("usage", 0);
    if (send_to_spawner(host_channel, &frame, sizeof frame.head + measured.count * sizeof *frame.rows, &measured.file, 1)) measured.id = last_id;
    else close(measured.file);
    note("fastclaw measures %u", measured.count);
}

/* --- clients --- */

static int read_client(struct client *client, u32 most) {
    ssize_t n = client->is_closed || client->has_end ? -1 : read(client->fd, bytes, most);
    if (n < 0 && errno == ECONNRESET && is_hostile) n = 0;
    if (n < 0 && errno == ECONNRESET) fail("a client of %u, %d reads a reset", client->id, client->which);
    if (n < 0) return 0;
    if (!n) client->has_end = 1;
    else add_text(&client->got, bytes, (size_t)n);
    acted++;
    return 1;
}

static void close_one_client(struct client *client) {
    struct pollfd one = {client->fd, POLLRDHUP, 0};
    int unread = 0;
    if (client->is_closed) return;
    ioctl(client->fd, FIONREAD, &unread);
    client->has_missed = unread > 0;
    client->was_unread = unread && !poll(&one, 1, 0); /* else its pump has said the end, and closed */
    client->is_closed = 1;
    close(client->fd);
    acted++;
    note("  client of %u, %d closes, %d unread", client->id, client->which, unread);
}

static void act_as_client(void) {
    struct client *client = client_count ? &clients[any((u32)client_count)] : NULL;
    if (!client || client->is_closed) return;
    switch (any(10)) {
    case 0: case 1: case 2: write_client(client); break;
    case 3: if (!any(3)) { shutdown(client->fd, SHUT_WR); client->has_half_closed = 1; acted++; } break;
    case 4: if (!any(2)) close_one_client(client); break;
    default: read_client(client, size_by_chance());
    }
}

/* --- commands --- */

int must_not_die(struct tree *tree) {
    struct want *want = want_of(tree->id);
    int is_orphaned = want->flags & F_END_ORPHANS && tree->members[0].end != LIVES;
    int is_over = want->cut_down || (want->flags & F_LIMIT_KILLS && !want->ended && (want->written[0] > want->request.limit || want->written[1] > want->request.limit));
    return living(tree) && !(want->kill_asked || want->term_asked || is_orphaned || is_over || overload_possible || (fault_one_in && want->flags & F_RUN) || is_hostile || want->lost);
}

void on_birth(struct tree *tree, struct start *request) {
    struct want *want = want_of(request->id);
    struct termios raw;
    if (!(want->flags & F_TTY)) return;
    want->is_raw = !!any(2);
    if (!want->is_raw || tcgetattr(tree->members[0].fd[1], &raw)) return;
    cfmakeraw(&raw);
    tcsetattr(tree->members[0].fd[1], TCSANOW, &raw);
}

void on_end(struct tree *tree) {
    struct want *want = want_of(tree->id);
    want->ended_at = virtual_ms;
    for (int i = 0; i < 2; i++) want->written_at_end[i] = want->written[i];
}

/* With F_MERGE its stderr is its stdout. */
static int stream_of(struct want *want, int which) { return which == 1 && want->flags & (F_MERGE | F_TTY) ? 0 : which; }

static void write_output(struct want *want, struct member *member, int which) {
    int fd = member->fd[1 + which], stream = stream_of(want, which);
    u32 most = size_by_chance();
    if (fd < 0) return;
    fill(output_key(want->id, stream), want->written[stream], most);
    ssize_t n = write(fd, bytes, most);
    if (n > 0) { want->written[stream] += (u64)n; acted++; note("  %u of %u writes %zd to %d", member->pid, want->id, n, which); }
    if (n < 0 && errno == EPIPE && !is_hostile && !want->kill_asked) fail("%u gets a SIGPIPE", want->id);
}

static int read_input(struct want *want, struct member *member, u32 most) {
    ssize_t n = member->fd[0] < 0 || want->flags & F_NULL_STDIN ? -1 : read(member->fd[0], bytes, most);
    if (n > 0) add_text(&want->input, bytes, (size_t)n);
    if (!n) want->has_read_input_end = 1;
    acted += n > 0;
    return n > 0;
}

static void close_stream(struct want *want, struct member *member, int which) {
    if (member->fd[which] < 0) return;
    close(member->fd[which]);
    member->fd[which] = -1;
    if (!which) want->has_closed_input = 1;
    acted++;
    note("  %u of %u closes its %d", member->pid, want->id, which);
}

static void leave_orphan(struct tree *tree, struct member *parent) {
    for (int i = 1; i < MAX_MEMBERS; i++) {
        struct member *member = &tree->members[i];
        if (member->is_there) continue;
        *member = (struct member){.is_there = 1, .pid = parent->pid + 10000 * (u32)i};
        for (int k = 0; k < 3; k++) member->fd[k] = parent->fd[k] >= 0 && any(3) ? fcntl(parent->fd[k], F_DUPFD_CLOEXEC, 100) : -1;
        note("  %u of %u forks %u", parent->pid, tree->id, member->pid);
        acted++;
        return;
    }
}

static void get_through_execve(struct tree *tree) {
    struct slot *slot = tree->slot;
    acted++;
    if (any(6)) { tree->is_before_exec = 0; return; }
    *(struct finding *)(void *)inline_store(slot, 0) = (struct finding){.error = ENOENT, .name_bytes = any(PATH_BYTES), .head_bytes = any(PROGRAM_HEAD_BYTES)};
    slot->step = STEP_EXEC;
    slot->error = ENOENT;
    die(tree, &tree->members[0], 127 << 8);
}

static void lock_some(struct want *want, struct member *member) {
    int which = (int)any(3);
    if (member->fd[which] < 0) return;
    lock_pipe(member, which);
    want->had_lock = 1;
    note("  %u of %u locks its %d", member->pid, want->id, which);
    acted++;
}

static void act_as_member(struct tree *tree, struct member *member) {
    struct want *want = want_of(tree->id);
    if (!member->is_there || member->end != LIVES || !want) return;
    if (!member->pid || (tree->is_before_exec && member == tree->members)) { get_through_execve(tree); return; }
    switch (any(16)) {
    case 0: case 1: case 2: case 3: write_output(want, member, 0); break;
    case 4: case 5: write_output(want, member, 1); break;
    case 6: case 7: case 8: read_input(want, member, size_by_chance()); break;
    case 9: close_stream(want, member, (int)any(3)); break;
    case 10: leave_orphan(tree, member); break;
    case 11: if (!any(3)) lock_some(want, member); break;
    case 12: if (member->fd[1] >= 0) fcntl(member->fd[1], F_SETPIPE_SZ, 4096); break;
    case 13: case 14: die(tree, member, 0); break;
    default: break;
    }
}

static void act_as_command(void) {
    struct tree *tree = tree_count ? &trees[any((u32)tree_count)] : NULL;
    if (tree) act_as_member(tree, &tree->members[any(3) ? 0 : any(MAX_MEMBERS)]);
}

/* --- the story --- */

static void kill_one(void) {
    struct fiber *fiber = &fibers[any((u32)fiber_count)];
    if (fiber->kind == MAIN || fiber->is_over || !fiber->slot->id || reapers_lost + 1 >= REAPERS) return;
    reapers_lost++;
    kill_fiber(fiber);
    acted++;
}

static void act(void) {
    switch (any(13)) {
    case 0: start_one(); break;
    case 9: measure_some(); break;
    case 1: connect_one(); break;
    case 2: order_something(); break;
    case 3: case 4: act_as_client(); break;
    case 5: case 6: hear(host_channel); hear(host_control); break;
    case 7: if (is_hostile && !any(20)) kill_one(); break;
    case 8: if (is_early) virtual_ms += any(4) ? any(3) : any(300); break;
    default: act_as_command();
    }
}

/* What everybody does who wants nothing but an end: 1 while there is something to do. */
static int go_on(void) {
    int did = hear(host_channel) | hear(host_control);
    for (int i = 0; i < client_count; i++) did |= read_client(&clients[i], MOST_BYTES);
    for (int i = 0; i < tree_count; i++)
        for (int k = 0; k < MAX_MEMBERS; k++) {
            struct member *member = &trees[i].members[k];
            if (!member->is_there || member->end != LIVES) continue;
            if (!k && trees[i].is_before_exec) { get_through_execve(&trees[i]); did = 1; }
            else did |= read_input(want_of(trees[i].id), member, MOST_BYTES);
        }
    return did;
}

static int end_all(void) {
    int did = 0;
    for (int i = 0; i < tree_count; i++)
        for (int k = 0; k < MAX_MEMBERS; k++)
            if (trees[i].members[k].is_there && trees[i].members[k].end == LIVES) { die(&trees[i], &trees[i].members[k], 0); did = 1; }
    return did;
}

/* As SpawnStreams does for who is connected when the tree is gone, twice; then whatever is left is released. */
static int close_all(int phase) {
    int did = 0;
    for (int i = 0; i < want_count; i++) {
        struct want *want = &wants[i];
        if (is_settled(want) || want->flags & F_RUN) continue;
        did = 1;
        want->released = 1;
        order_main(RELEASE, want->id, phase > 0, -1);
    }
    return did;
}

static int close_clients(void) {
    int did = 0;
    for (int i = 0; i < client_count; i++) {
        struct client *client = &clients[i];
        if (client->is_closed) continue;
        if (!client->has_end && !want_of(client->id)->lost) fail("a client of %u, %d reads no end, and nobody writes", client->id, client->which);
        close_one_client(client);
        did = 1;
    }
    return did;
}

/* All wait. 0: there is nothing more to do. */
static int bring_to_end(void) {
    static int phase;
    if (go_on()) return 1;
    for (int i = 0; i < want_count; i++) if (wants[i].flags & F_TTY && !is_settled(&wants[i]) && phase < 5) usleep(500); /* tty(7) has a thread */
    if (go_on()) return 1;
    u64 next = next_deadline();
    if (next) { virtual_ms = next > virtual_ms ? next : virtual_ms; return 1; }
    for (; phase < 5; phase++) {
        note("--- the end, phase %d", phase);
        if (end_all()) { phase = 0; return 1; } /* also those that begin late, since a reaper on whom they counted was killed */
        if (phase == 1 && close_clients()) return 1;
        if (phase > 1 && phase < 4 && close_all(phase - 2)) { phase++; return 1; }
    }
    return 0;
}

static void live(void) {
    for (long round = 0; round < MAX_ROUNDS; round++) {
        if (actions > 0 && !any(4)) {
            for (u32 much = any(20) ? 1 : any(20); much && actions > 0; much--) { actions--; act(); } /* while all others stand still */
            continue;
        }
        if (schedule()) continue;
        if (actions > 0 && !any(4) && next_deadline() > virtual_ms) { virtual_ms = next_deadline(); continue; }
        if (actions > 0) { actions--; act(); continue; }
        if (!bring_to_end()) {
            if (measured.id) fail("a MEASURE has no answer");
            check_end();
            return;
        }
        if (virtual_ms > MAX_MS) fail("it takes for ever");
    }
    fail("it never comes to an end");
}

static void place_at(int fd, int number) {
    if (dup2(fd, number) < 0) abort();
    close(fd);
}

static int above(int fd) {
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, 50);
    close(fd);
    fcntl(moved, F_SETFL, O_NONBLOCK);
    return moved;
}

static void make_world(void) {
    int pair[2], other[2];
    for (int fd = 3; fd < 40; fd++) close(fd);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair)) abort();
    host_control = above(pair[1]);
    if (pair[0] != CONTROL_FD) place_at(pair[0], CONTROL_FD);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, other)) abort();
    host_channel = above(other[1]);
    int theirs = fcntl(other[0], F_DUPFD, 60);
    close(other[0]);
    int device = open("/dev/null", O_RDWR);
    if (device != 4) place_at(device, 4);
    place_at(theirs, 7);
    overload_possible = !any(8);
    begin_main(overload_possible ? 100000 : 1ull << 30);
    begin_fiber(MAIN, NULL, run_main, NULL);
    order_main(GROW, 0, REAPERS, -1);
}

static void one_story(u64 number) {
    seed = (number + 1) * 0x9e3779b97f4a7c15ull;
    for (int i = 0; i < 8; i++) any(2);
    make_world();
    is_early = !any(3);
    is_hostile = !any(8);
    for (int i = 0; i < 2000 && schedule(); i++) {}
    fault_one_in = any(3) ? 0 : 30 + any(100);
    actions = 30 + (int)any(600);
    live();
}

/* Each in a process of its own: a descriptor that is lost in one must not be found in the next. */
static int run_story(u64 number) {
    int status;
    pid_t child = fork();
    if (!child) {
        alarm(20);
        one_story(number);
        _exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) abort();
    if (status) fprintf(stderr, "story %llu: status %d\n", (unsigned long long)number, status);
    return status;
}

/* FIRST COUNT: those stories, until one goes wrong. One alone is told, and with a third argument each call. */
int main(int argc, char **argv) {
    u64 first = argc > 1 ? strtoull(argv[1], NULL, 10) : 0, count = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    signal(SIGPIPE, SIG_IGN);
    is_loud = count > 1 ? 0 : argc > 3 ? 2 : 1;
    for (u64 i = 0; i < count; i++) if (run_story(first + i)) return 1;
    printf("%llu stories\n", (unsigned long long)count);
    return 0;
}
