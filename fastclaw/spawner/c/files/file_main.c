/* The file helper's beginning and its end: which operation is asked for, what came of it; and what the operations share. */
#include "files.h"
#include <linux/magic.h>
#include <sys/signalfd.h>

u64 done_count, done_bytes;
char copy_buffer[COPY_BYTES];

static struct { int directory; char name[NAME_MAX_BYTES]; } half; /* a file that is not finished */
static int terminate = -1;

/* --- the outcome --- */

static void say(long code, const char *why, const char *name) {
    static char line[128 + TREE_PATH_BYTES];
    char *at = put_u64(line, (u64)code);
    *at++ = '\t';
    at = put_u64(at, done_count);
    *at++ = '\t';
    at = put_u64(at, done_bytes);
    *at++ = '\t';
    at = put(at, why);
    *at++ = '\t';
    for (size_t n = 0; *name && n < TREE_PATH_BYTES; n++) *at++ = *name++;
    *at++ = '\n';
    SYS(write, 2, line, at - line);
}

_Noreturn void finish(const char *why, const char *name) {
    say(0, why, name);
    exit_process(0);
}

_Noreturn void fail(long code, const char *why, const char *name) {
    if (code < 0) code = -code;
    if (*half.name) SYS(unlinkat, half.directory, half.name, 0);
    say(code, why, name);
    exit_process(code > 0 && code < 256 ? (int)code : EIO);
}

void undo_with(int directory, const char *name) {
    half.directory = directory;
    half.name[0] = 0;
    if (name && length(name) < sizeof half.name) put(half.name, name)[0] = 0;
}

/* --- bytes --- */

void write_out(const void *data, size_t bytes) {
    const char *at = data;
    while (bytes) {
        long n = SYS(write, 1, at, bytes);
        if (n == -EINTR) continue;
        must(n, "");
        at += n;
        bytes -= (size_t)n;
    }
}

void write_file(int fd, const char *data, size_t bytes, const char *name) {
    while (bytes) {
        long n = SYS(write, fd, data, bytes);
        if (n == -EINTR) continue;
        must(n, name);
        data += n;
        bytes -= (size_t)n;
        done_bytes += (u64)n;
    }
}

/* TERM is heard between two pieces of input, so that what is half written can be taken away. */
void hear_terminate(void) {
    u64 mask = bit(SIGTERM);
    SYS(rt_sigprocmask, SIG_BLOCK, &mask, 0, sizeof mask);
    terminate = (int)SYS(signalfd4, -1, &mask, sizeof mask, SFD_CLOEXEC);
}

static void await_input(void) {
    struct pollfd of[2] = {{0, POLLIN, 0}, {terminate, POLLIN, 0}};
    while (SYS(ppoll, of, 2, 0, 0, 8) == -EINTR) {}
    if (of[1].revents) fail(EINTR, "", "");
}

long take_input(void *to, size_t bytes) {
    long n;
    do { await_input(); n = SYS(read, 0, to, bytes); } while (n == -EINTR || n == -EAGAIN);
    return n;
}

/* EINVAL where the two cannot be spliced. */
long splice_input(int to, u64 bytes) {
    long n;
    do { await_input(); n = SYS(splice, 0, 0, to, 0, bytes > CHUNK ? CHUNK : bytes, SPLICE_F_MOVE); } while (n == -EINTR || n == -EAGAIN);
    return n;
}

/* gVisor takes the file's O_NONBLOCK for the pipe's: then there is a wait for room. */
long splice_output(int from, u64 *offset, u64 bytes) {
    struct pollfd out = {1, POLLOUT, 0};
    long n;
    while ((n = SYS(splice, from, offset, 1, 0, bytes > CHUNK ? CHUNK : bytes, SPLICE_F_MOVE | SPLICE_F_MORE)) == -EAGAIN) SYS(ppoll, &out, 1, 0, 0, 8);
    return n;
}

/* As busy as it gets, fewer turns are fewer wake-ups. Refused where the user has too many pages in pipes (pipe(7)). */
void grow_pipe(int fd) { SYS(fcntl, fd, F_SETPIPE_SZ, CHUNK); }

/* --- what is there --- */

long look(int directory, const char *name, int flags, struct statx *about) {
    return SYS(statx, directory, name, flags | AT_NO_AUTOMOUNT, STATX_BASIC_STATS, about);
}

int is_mounted(int fd) {
    enum { ATTRIBUTE_MOUNT_ROOT = 0x2000 }; /* statx(2), STATX_ATTR_MOUNT_ROOT; not in each libc's headers */
    struct statx about;
    return !look(fd, "", AT_EMPTY_PATH, &about) && about.stx_attributes & ATTRIBUTE_MOUNT_ROOT;
}

/* Whether what the kernel makes up while it is read is there: its size says nothing. */
int is_pseudo(int fd) {
    struct { u64 type, rest[32]; } about = {0}; /* struct statfs begins with it, as a long */
    static const u32 made_up[] = {PROC_SUPER_MAGIC, SYSFS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, TRACEFS_MAGIC,
                                  SECURITYFS_MAGIC, BPF_FS_MAGIC, DEVPTS_SUPER_MAGIC};
    if (SYS(fstatfs, fd, &about)) return 0;
    for (u32 i = 0; i < sizeof made_up / sizeof *made_up; i++) if ((u32)about.type == made_up[i]) return 1;
    return 0;
}

void draw_name(char *to) {
    unsigned char random[8];
    must(SYS(getrandom, random, sizeof random, 0) == sizeof random ? 0 : -EIO, "");
    to = put(to, ".fastclaw-");
    for (u32 i = 0; i < sizeof random; i++) { *to++ = "0123456789abcdef"[random[i] >> 4]; *to++ = "0123456789abcdef"[random[i] & 15]; }
    *to = 0;
}

static char *put_nanoseconds(char *at, struct statx_timestamp *time) {
    int64_t total = time->tv_sec * 1000000000 + time->tv_nsec;
    if (time->tv_sec > INT64_MAX / 1000000000 - 1 || time->tv_sec < INT64_MIN / 1000000000 + 1) total = time->tv_sec < 0 ? INT64_MIN + 1 : INT64_MAX;
    if (total < 0) *at++ = '-';
    return put_u64(at, (u64)(total < 0 ? -total : total));
}

/* One entry on stdout: numbers, name and a link's target, each of the three ended by a NUL. `place`: what to open for the target. */
void put_entry(struct statx *about, const char *name, int directory, const char *place) {
    static char line[256 + NAME_MAX_BYTES + PATH_BYTES];
    u64 numbers[] = {about->stx_size, about->stx_mode & 07777, about->stx_uid, about->stx_gid, about->stx_nlink};
    char *at = line;
    *at++ = "?pc?d?b?f?l?s???"[kind(about) >> 12];
    for (u32 i = 0; i < 5; i++) { *at++ = ' '; at = put_u64(at, numbers[i]); }
    *at++ = ' ';
    at = put_nanoseconds(at, &about->stx_mtime);
    *at++ = 0;
    at = put(at, name);
    *at++ = 0;
    long n = kind(about) == S_IFLNK ? SYS(readlinkat, directory, place, at, PATH_BYTES) : 0;
    if (n > 0) at += n;
    *at++ = 0;
    write_out(line, (size_t)(at - line));
}

/* --- the beginning --- */

struct operation { const char *name; int arguments; void (*run)(char **arguments); };

static const struct operation OPERATIONS[] = {
    {"read", 4, read_content}, {"write", 4, write_content}, {"stat", 2, say_stat}, {"list", 3, list_entries},
    {"mkdir", 3, make_directory}, {"move", 3, move_entry}, {"remove", 2, remove_entry}, {"pack", -1, pack}, {"unpack", 1, unpack},
};

_Noreturn void file_helper(int count, char **arguments) {
    for (u32 i = 0; count && i < sizeof OPERATIONS / sizeof *OPERATIONS; i++) {
        const struct operation *operation = &OPERATIONS[i];
        if (!same(arguments[0], operation->name)) continue;
        if (operation->arguments < 0 ? count < 2 : count - 1 != operation->arguments) break;
        operation->run(arguments + 1);
        finish("", "");
    }
    fail(USAGE, "", "");
}
