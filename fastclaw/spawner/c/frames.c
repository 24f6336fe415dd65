/* Frames on packet sockets, with the descriptors that go along. */
#include "spawner.h"

/* One frame; its descriptors are close-on-exec. -EBADMSG for a truncated one. */
long receive(int from, void *frame, size_t bytes, struct passed *passed, int flags) {
    _Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int) * MAX_FDS)];
    struct iovec part = {frame, bytes};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space};
    message.msg_controllen = CMSG_LEN(sizeof(int) * MAX_FDS); /* without the padding, in which one more has room */
    passed->count = 0;
    long n = SYS(recvmsg, from, &message, MSG_CMSG_CLOEXEC | flags);
    if (n < 0) return n; /* an empty frame may have some, too */
    struct cmsghdr *head = (struct cmsghdr *)space;
    if (message.msg_controllen >= sizeof *head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
        passed->count = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(passed->fd, CMSG_DATA(head), sizeof(int) * (size_t)passed->count);
    }
    return message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ? -EBADMSG : n;
}

void close_passed(struct passed *passed) {
    while (passed->count > 0) SYS(close, passed->fd[--passed->count]);
}

/* Ends a client that is not served. Its input is read, since unread input would make the client read a reset instead of EOF. Main, which
 * has a duplicate, sees a hang-up. */
void end_client(int fd) {
    char nowhere[2048];
    SYS(shutdown, fd, SHUT_RDWR);
    while (SYS(recvfrom, fd, nowhere, sizeof nowhere, MSG_DONTWAIT, 0, 0) > 0) {}
}

/* A message to a pump that came too late, or is for another process: its sender must not wait for an answer. */
void reject_message(struct control *head, struct passed *passed) {
    if (head->op == ATTACH && passed->count) end_client(passed->fd[0]);
    if (head->op == FORK) tell(REFUSED, head->id, ESRCH, STEP_ADOPT);
    close_passed(passed);
}

/* `whom`: for a datagram socket, on which a send never blocks; else NULL. */
long send_frame(int to, struct iovec *parts, int count, const int *fds, int passed, struct address *whom) {
    _Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int) * MAX_FDS)] = {0};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count, .msg_name = whom ? &whom->name : NULL, .msg_namelen = whom ? whom->bytes : 0};
    if (passed) {
        struct cmsghdr *head = (struct cmsghdr *)space;
        head->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)passed);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        memcpy(CMSG_DATA(head), fds, sizeof(int) * (size_t)passed);
        message.msg_control = space;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)passed);
    }
    long n;
    while ((n = SYS(sendmsg, to, &message, MSG_NOSIGNAL | (whom ? MSG_DONTWAIT : 0))) == -EINTR) {}
    return n;
}

/* A datagram socket with an address of its own, which receives from `peer` only, if there is one (unix(7): autobind, connect). */
long open_post(struct address *own, struct address *peer) {
    long fd = SYS(socket, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return fd;
    own->name = (struct sockaddr_un){.sun_family = AF_UNIX};
    own->bytes = sizeof own->name;
    long error = SYS(bind, fd, &own->name, sizeof own->name.sun_family);
    if (!error) error = SYS(getsockname, fd, &own->name, &own->bytes);
    if (!error && peer) error = SYS(connect, fd, &peer->name, peer->bytes);
    if (!error) return fd;
    SYS(close, fd);
    return error;
}

void tell_with(u32 op, u32 id, int a, int b, int fd) {
    struct event event = {.op = op, .id = id, .a = a, .b = b};
    struct iovec part = {&event, sizeof event};
    send_frame(channel, &part, 1, &fd, fd >= 0, NULL);
}

void tell(u32 op, u32 id, int a, int b) { tell_with(op, id, a, b, -1); }

static u64 microseconds(struct timeval *of) { return (u64)of->tv_sec * 1000000 + (u64)of->tv_usec; }

/* Once for each process: where reaper and pump both know of a stage, the first of them counts. */
void reach(struct slot *slot, int stage) {
    u64 not_yet = 0;
    if (!LOAD_OF(&slot->reached[stage]))
        __atomic_compare_exchange_n(&slot->reached[stage], &not_yet, now_ns(), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

void tell_reached(struct slot *slot, u32 op, u32 id, int a, int b) {
    struct event event = {.op = op, .id = id, .a = a, .b = b};
    struct iovec part = {&event, sizeof event};
    memcpy(event.reached, slot->reached, sizeof event.reached);
    send_frame(channel, &part, 1, NULL, 0, NULL);
}

static struct event end_of(struct slot *slot, u32 op, u32 id, int flags) {
    struct event event = {.op = op, .id = id, .a = slot->status, .b = flags, .user_us = microseconds(&slot->used.ru_utime),
                          .system_us = microseconds(&slot->used.ru_stime), .max_rss_kb = (u64)slot->used.ru_maxrss};
    memcpy(event.reached, slot->reached, sizeof event.reached);
    return event;
}

void tell_exit(struct slot *slot, u32 id, int flags) {
    struct event event = end_of(slot, EXITED, id, flags);
    struct iovec part = {&event, sizeof event};
    send_frame(channel, &part, 1, NULL, 0, NULL);
}

/* A run's file is closed with its pump's descriptors. */
void uncount(struct slot *slot) {
    __atomic_sub_fetch(&collected_bytes, slot->counted, __ATOMIC_RELAXED);
    slot->counted = 0;
}

/* A run's end, with the output in memory; fastclaw has the file already. */
void tell_done(struct slot *slot, u32 id, int flags) {
    u32 meet = LOAD_OF(&slot->meet);
    flags |= (meet & MEET_LIMITED ? LIMITED : 0) | (meet & MEET_OVERLOADED ? OVERLOADED : 0);
    struct done done = {.event = end_of(slot, DONE, id, flags)};
    struct iovec parts[3] = {{&done, sizeof done}};
    for (int i = 0; i < 2; i++) {
        done.total[i] = LOAD_OF(&slot->total[i]);
        done.given[i] = done.total[i] < INLINE_BYTES ? (u32)done.total[i] : INLINE_BYTES;
        parts[1 + i] = (struct iovec){inline_store(slot, i), done.given[i]};
    }
    send_frame(channel, parts, 3, NULL, 0, NULL);
}

/* An execve that failed, with what find_out has found. */
void tell_no_program(struct slot *slot, u32 id) {
    struct event event = {.op = REFUSED, .id = id, .a = (int)slot->error, .b = (int)slot->step};
    struct finding *found = (struct finding *)inline_store(slot, 0);
    struct iovec parts[4] = {{&event, sizeof event}, {found, offsetof(struct finding, name)}, {found->name, found->name_bytes}, {found->head, found->head_bytes}};
    send_frame(channel, parts, 4, NULL, 0, NULL);
}
