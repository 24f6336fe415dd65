/* A file system whose files answer late: `slow_file DIRECTORY SECONDS [NAMESPACE]` mounts it there, in that mount
 * namespace (/proc/PID/ns/mnt), says "up" and serves until its stdin ends. test_pipe_locks.py puts it into a workspace: a mapped page of such a file comes only after SECONDS, which
 * is what a network file system, or a disk under load, does to any command.
 *
 * Every name in it is a file of one page, and each lookup of one is a new file, so that no page is there already. For
 * the words see fuse(4) and <linux/fuse.h>.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, REQUEST = 1 << 17, MAX_LATE = 4096, TURN_MS = 50 };

static struct { unsigned long long id; time_t due; } late[MAX_LATE];
static int device, delay;
static unsigned long long next_file = 2;

static time_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec;
}

/* Whoever asked may be gone: that is no failure of ours. */
static void answer(unsigned long long id, int error, const void *data, size_t size) {
    struct fuse_out_header head = {(unsigned)(sizeof head + size), -error, id};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)data, size}};
    (void)!writev(device, parts, size ? 2 : 1);
}

static struct fuse_attr attributes(unsigned long long file) {
    int root = file == FUSE_ROOT_ID;
    return (struct fuse_attr){.ino = file, .size = root ? 0 : PAGE, .blocks = 8, .blksize = PAGE, .nlink = 1,
        .mode = root ? S_IFDIR | 0755 : S_IFREG | 0644};
}

static void answer_later(unsigned long long id) {
    for (int i = 0; i < MAX_LATE; i++) {
        if (late[i].id) continue;
        late[i].id = id, late[i].due = now() + delay;
        return;
    }
    answer(id, EIO, NULL, 0);
}

static void answer_due(void) {
    static const char page[PAGE];
    for (int i = 0; i < MAX_LATE; i++) {
        if (!late[i].id || late[i].due > now()) continue;
        answer(late[i].id, 0, page, sizeof page);
        late[i].id = 0;
    }
}

/* Who asked for it was sent a signal. */
static void interrupt(unsigned long long id) {
    for (int i = 0; i < MAX_LATE; i++) {
        if (late[i].id != id) continue;
        answer(id, EINTR, NULL, 0);
        late[i].id = 0;
    }
}

static void serve(struct fuse_in_header *in) {
    void *body = in + 1;
    struct fuse_init_out hello = {.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION,
        .max_readahead = PAGE, .flags = FUSE_ASYNC_READ, .max_background = MAX_LATE, .max_write = PAGE};
    struct fuse_attr_out found = {.attr = attributes(in->nodeid)};
    struct fuse_open_out opened = {0};
    struct fuse_entry_out entry = {0};
    switch (in->opcode) {
    case FUSE_INIT: answer(in->unique, 0, &hello, sizeof hello); return;
    case FUSE_GETATTR: answer(in->unique, 0, &found, sizeof found); return;
    case FUSE_LOOKUP:
        entry.nodeid = next_file++;
        entry.attr = attributes(entry.nodeid);
        answer(in->unique, 0, &entry, sizeof entry);
        return;
    case FUSE_OPEN: case FUSE_OPENDIR: answer(in->unique, 0, &opened, sizeof opened); return;
    case FUSE_READ: answer_later(in->unique); return;
    case FUSE_INTERRUPT: interrupt(((struct fuse_interrupt_in *)body)->unique); return;
    case FUSE_RELEASE: case FUSE_RELEASEDIR: case FUSE_FLUSH: answer(in->unique, 0, NULL, 0); return;
    case FUSE_FORGET: case FUSE_BATCH_FORGET: return; /* these have no answer */
    default: answer(in->unique, ENOSYS, NULL, 0);
    }
}

int main(int argc, char **argv) {
    static char request[REQUEST];
    char options[128];
    if (argc < 3) return 64;
    delay = atoi(argv[2]);
    int elsewhere = argc > 3 ? setns(open(argv[3], O_RDONLY | O_CLOEXEC), CLONE_NEWNS) : 0;
    device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
    if (elsewhere || device < 0 || mount("slow", argv[1], "fuse", MS_NOSUID | MS_NODEV, options)) {
        printf("not available: %s\n", strerror(errno));
        return 67;
    }
    puts("up");
    fflush(stdout);
    struct pollfd ready[] = {{device, POLLIN, 0}, {0, 0, 0}};
    while (poll(ready, 2, TURN_MS) >= 0 && !(ready[1].revents & POLLHUP)) {
        ssize_t size = ready[0].revents & POLLIN ? read(device, request, sizeof request) : 0;
        if (size < 0 && errno != EINTR && errno != ENOENT) break; /* ENOENT: it was interrupted before we had it */
        if (size > 0) serve((struct fuse_in_header *)request);
        answer_due();
    }
    umount2(argv[1], MNT_DETACH);
    return 0;
}
