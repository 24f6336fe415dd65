/* An archive from stdin into a directory. Nothing outside of it is written to: names that are absolute or go up are refused, and each
 * directory on the way is opened beneath it (openat2(2), RESOLVE_BENEATH), so links that lead out are, too, also those that the archive
 * itself, or somebody beside it, has just made. */
#include "files.h"
#include <linux/openat2.h>

enum { MAX_REMEMBERED_BYTES = 64 << 20, CHUNK_OF_MEMORY = 1 << 20, TRIES = 64, SMALL_BYTES = 64 << 10 };
struct remembered { struct remembered *previous; u32 mode, uid, gid, is_new; struct moment mtime; char name[]; };

static char in[COPY_BYTES], records[PAX_BYTES + BLOCK + 1], map_text[MAP_BYTES], said_name[PATH_BYTES];
static size_t in_at, in_end;
static struct segment segments[MAX_SEGMENTS];
static struct pending pending;
static struct member member;
static struct remembered *last_remembered;
static int top, has_openat2, parent = -1;
static char parent_name[PATH_BYTES];

static _Noreturn void refuse(long code, const char *why) { fail(code, why, said_name); }
static long need(long result) { if (result < 0) refuse(result == -EXDEV ? OUTSIDE : result, ""); return result; }

/* --- the stream --- */

/* At least `bytes` in the buffer, which starts at in + in_at; false at the end of the stream. */
static int fill(size_t bytes) {
    if (in_end - in_at >= bytes) return 1;
    memcpy(in, in + in_at, in_end - in_at);
    in_end -= in_at;
    in_at = 0;
    while (in_end < bytes) {
        long n = must(take_input(in + in_end, sizeof in - in_end), "");
        if (!n) return 0;
        in_end += (size_t)n;
    }
    return 1;
}

static const char *next_block(void) {
    if (!fill(BLOCK)) return NULL;
    in_at += BLOCK;
    return in + in_at - BLOCK;
}

static const char *need_block(void) {
    const char *block = next_block();
    if (!block) refuse(BAD_ARCHIVE, "truncated");
    return block;
}

/* The next bytes of the stream go to a file, or nowhere (-1). */
static void move_data(int fd, u64 bytes) {
    int copies = 0;
    while (bytes) {
        u64 here = in_end - in_at;
        if (!here && fd >= 0 && bytes > SMALL_BYTES && !copies) {
            long n = splice_input(fd, bytes);
            if (n == -EINVAL && !copies++) continue;
            if (!need(n)) refuse(BAD_ARCHIVE, "truncated");
            bytes -= (u64)n;
            done_bytes += (u64)n;
            continue;
        }
        if (!here && !fill(1)) refuse(BAD_ARCHIVE, "truncated");
        here = in_end - in_at;
        if (here > bytes) here = bytes;
        if (fd >= 0) write_file(fd, in + in_at, here, said_name);
        in_at += here;
        bytes -= here;
    }
}

static void skip_padding(u64 bytes) { move_data(-1, (BLOCK - bytes % BLOCK) % BLOCK); }

/* --- beneath the directory --- */

/* Where there is no openat2, no link is gone through at all. */
static long walk_beneath(const char *path, int flags) {
    char name[NAME_MAX_BYTES];
    struct statx about;
    long at = SYS(openat, top, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    while (at >= 0 && *path) {
        size_t n = 0;
        while (path[n] && path[n] != '/' && n < sizeof name - 1) { name[n] = path[n]; n++; }
        name[n] = 0;
        path += n;
        if (*path && *path != '/') { SYS(close, at); return -ENAMETOOLONG; }
        if (*path) path++;
        long next = SYS(openat, at, name, (*path ? O_PATH : flags) | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (next < 0 && next != -ENOENT && !look((int)at, name, AT_SYMLINK_NOFOLLOW, &about) && kind(&about) == S_IFLNK) next = -EXDEV;
        SYS(close, at);
        at = next;
    }
    return at;
}

static long open_beneath(const char *path, int flags) {
    struct open_how how = {(u64)(flags | O_DIRECTORY | O_CLOEXEC), 0, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    if (!*path) path = ".";
    if (!has_openat2) return walk_beneath(same(path, ".") ? "" : path, flags);
    for (int i = 0; i < TRIES; i++) { /* somebody renames what is on the way */
        long fd = SYS(openat2, top, path, &how, sizeof how);
        if (fd != -EAGAIN) return fd;
    }
    return -EBUSY;
}

/* Opens a directory, and makes it and those above it where they are missing. */
static long make_beneath(char *path) {
    long above = open_beneath("", O_PATH), fd = above;
    char *name = path;
    for (char *at = path; fd >= 0; at++) {
        if (*at && *at != '/') continue;
        char kept = *at;
        *at = 0;
        fd = open_beneath(path, O_PATH);
        if (fd == -ENOENT) {
            long made = SYS(mkdirat, above, name, 0777);
            fd = made < 0 && made != -EEXIST ? made : open_beneath(path, O_PATH);
        }
        *at = kept;
        SYS(close, above);
        above = fd;
        if (!kept) break;
        name = at + 1;
    }
    return fd;
}

static void forget_parent(void) {
    if (parent >= 0) SYS(close, parent);
    parent = -1;
}

/* The directory that is to have the member, and in `*last` its name there. The same one is usually wanted again. */
static int open_parent(char *name, char **last) {
    size_t slash = length(name);
    while (slash && name[slash] != '/') slash--;
    *last = slash ? name + slash + 1 : name;
    if (length(*last) >= NAME_MAX_BYTES) refuse(ENAMETOOLONG, "");
    char kept = name[slash];
    name[slash] = 0;
    if (parent < 0 || !same(name, parent_name)) {
        forget_parent();
        long fd = open_beneath(name, O_PATH);
        if (fd == -ENOENT) fd = make_beneath(name);
        parent = (int)need(fd);
        put(parent_name, name)[0] = 0;
    }
    name[slash] = kept;
    return parent;
}

/* What is there goes, unless it is a directory. */
static void clear_place(int directory, const char *name) {
    struct statx about;
    long gone = SYS(unlinkat, directory, name, 0);
    if (gone < 0 && !look(directory, name, AT_SYMLINK_NOFOLLOW, &about) && kind(&about) == S_IFDIR) refuse(EISDIR, "");
    if (gone != -ENOENT) need(gone);
}

/* --- attributes --- */

static int may_own(struct member *of) { return of->uid < NO_USER && of->gid < NO_USER; }

/* Owners as far as they may be given; without its owner, a file loses what it may do in his name. */
static void dress(int fd, struct member *as) {
    struct moment times[2] = {{0, UTIME_OMIT}, {as->mtime, as->mtime_ns}};
    u32 mode = as->mode;
    if (!may_own(as) || SYS(fchown, fd, as->uid, as->gid)) mode &= 01777;
    need(SYS(fchmod, fd, mode));
    SYS(utimensat, fd, 0, times, 0);
}

static void dress_link(int directory, const char *name, struct member *as) {
    struct moment times[2] = {{0, UTIME_OMIT}, {as->mtime, as->mtime_ns}};
    if (may_own(as)) SYS(fchownat, directory, name, as->uid, as->gid, AT_SYMLINK_NOFOLLOW);
    SYS(utimensat, directory, name, times, AT_SYMLINK_NOFOLLOW);
}

/* A directory gets its mode and time once everything is in it. */
static void remember(int is_new) {
    static char *memory;
    static size_t left, all;
    size_t bytes = (sizeof(struct remembered) + length(member.name) + 8) & ~7ul;
    if (bytes > left) {
        memory = all < MAX_REMEMBERED_BYTES ? map(CHUNK_OF_MEMORY, -1) : NULL;
        left = memory ? CHUNK_OF_MEMORY : 0;
        all += CHUNK_OF_MEMORY;
    }
    if (bytes > left) refuse(ENOMEM, "");
    struct remembered *kept = (struct remembered *)(void *)memory;
    *kept = (struct remembered){last_remembered, member.mode, may_own(&member) ? (u32)member.uid : NO_USER, may_own(&member) ? (u32)member.gid : NO_USER,
                                (u32)is_new, {member.mtime, member.mtime_ns}};
    put(kept->name, member.name)[0] = 0;
    last_remembered = kept;
    memory += bytes;
    left -= bytes;
}

/* The innermost first: who may not look into one any more has no need to. One that was there before may be another's. */
static void dress_directories(void) {
    for (struct remembered *kept = last_remembered; kept; kept = kept->previous) {
        struct moment times[2] = {{0, UTIME_OMIT}, kept->mtime};
        long fd = open_beneath(kept->name, O_RDONLY);
        u32 mode = kept->mode;
        if (fd < 0) continue;
        if (kept->uid == NO_USER || SYS(fchown, fd, kept->uid, kept->gid)) mode &= 01777;
        long changed = SYS(fchmod, fd, mode);
        if (kept->is_new) must(changed, kept->name);
        SYS(utimensat, fd, 0, times, 0);
        SYS(close, fd);
    }
}

/* --- members --- */

static int create(int directory, const char *name) {
    int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    long fd = SYS(openat, directory, name, flags, 0600);
    if (fd == -EEXIST) {
        clear_place(directory, name);
        fd = SYS(openat, directory, name, flags, 0600);
    }
    undo_with(directory, need(fd) < 0 ? NULL : name);
    return (int)fd;
}

/* What a sparse member's data begins with: a number, and so many pairs, in whole blocks. Returns their bytes. */
static u64 read_map(u32 *count) {
    u64 bytes = 0, lines = 0, wanted = 1, number = 0;
    size_t first = 0;
    while (lines < wanted) {
        if (bytes + BLOCK > MAP_BYTES || bytes + BLOCK > member.size) refuse(BAD_ARCHIVE, "sparse");
        memcpy(map_text + bytes, need_block(), BLOCK);
        for (u64 at = bytes; at < bytes + BLOCK && lines < wanted; at++) {
            if (map_text[at] != '\n') continue;
            if (lines++) continue;
            first = (size_t)at;
            map_text[at] = 0;
            if (!parse_u64(map_text, &number) || number > MAX_SEGMENTS) refuse(BAD_ARCHIVE, "sparse");
            wanted = 1 + 2 * number;
        }
        bytes += BLOCK;
    }
    *count = (u32)number;
    if (!read_segments(map_text + first + 1, bytes - first - 1, count, segments, "\n\n")) refuse(BAD_ARCHIVE, "sparse");
    return bytes;
}

static u32 read_map_record(void) {
    u32 commas = 0, count;
    size_t n = 0;
    for (; member.map[n] != '\n'; n++) commas += member.map[n] == ',';
    count = (commas + 1) / 2;
    if (count > MAX_SEGMENTS || !read_segments(member.map, n + 1, &count, segments, ",\n")) refuse(BAD_ARCHIVE, "sparse");
    return count;
}

static void put_sparse(int fd) {
    u32 count;
    u64 map_bytes = 0, bytes = 0;
    if (member.is_sparse & 2) map_bytes = read_map(&count);
    else count = read_map_record();
    for (u32 i = 0; i < count; i++) {
        bytes += segments[i].bytes;
        if (segments[i].offset + segments[i].bytes > member.real_size) refuse(BAD_ARCHIVE, "sparse");
    }
    if (map_bytes + bytes != member.size) refuse(BAD_ARCHIVE, "sparse");
    for (u32 i = 0; i < count; i++) {
        need(SYS(lseek, fd, segments[i].offset, SEEK_SET));
        move_data(fd, segments[i].bytes);
    }
    need(SYS(ftruncate, fd, member.real_size));
}

static void put_regular(int directory, const char *name) {
    int fd = create(directory, name);
    if (member.is_sparse) put_sparse(fd);
    else move_data(fd, member.size);
    skip_padding(member.size);
    dress(fd, &member);
    need(SYS(close, fd));
    undo_with(0, NULL);
}

static void put_directory(int directory, const char *name) {
    long made = SYS(mkdirat, directory, name, 0700);
    if (made == -EEXIST) SYS(close, need(open_beneath(member.name, O_PATH)));
    else need(made);
    remember(made == 0);
}

static void put_symbolic_link(int directory, const char *name) {
    if (!*member.link) refuse(BAD_ARCHIVE, "link");
    long made = SYS(symlinkat, member.link, directory, name);
    if (made == -EEXIST) {
        clear_place(directory, name);
        forget_parent();
        directory = open_parent(member.name, (char **)&name);
        made = SYS(symlinkat, member.link, directory, name);
    }
    need(made);
    dress_link(directory, name, &member);
}

/* By a name of its own first: what is replaced may be the very file that is meant. */
static void put_hard_link(int directory, const char *name) {
    char temporary[32], *last;
    if (!tidy_name(member.link)) refuse(OUTSIDE, "");
    if (!*member.link) refuse(BAD_ARCHIVE, "link");
    if (same(member.link, member.name)) return;
    int kept = (int)need(SYS(fcntl, directory, F_DUPFD_CLOEXEC, 3));
    draw_name(temporary);
    int from = open_parent(member.link, &last);
    need(SYS(linkat, from, last, kept, temporary, 0));
    undo_with(kept, temporary);
    need(SYS(renameat2, kept, temporary, kept, name, 0));
    SYS(unlinkat, kept, temporary, 0); /* where both were the same file, nothing was renamed */
    undo_with(0, NULL);
    SYS(close, kept);
}

static void put_fifo(int directory, const char *name) {
    long made = SYS(mknodat, directory, name, S_IFIFO | (member.mode & 0777), 0);
    if (made == -EEXIST) {
        clear_place(directory, name);
        made = SYS(mknodat, directory, name, S_IFIFO | (member.mode & 0777), 0);
    }
    need(made);
    dress_link(directory, name, &member);
}

static void put_member(void) {
    char *name;
    put(said_name, member.name)[0] = 0;
    if (!tidy_name(member.name)) refuse(OUTSIDE, "");
    if (!*member.name && member.type != '5') refuse(BAD_ARCHIVE, "name");
    if (member.type == '3' || member.type == '4') refuse(UNSUPPORTED, "device");
    if (member.type < '0' || member.type > '6') refuse(UNSUPPORTED, "type");
    if (!*member.name) return; /* the directory itself: whoever made it has said how it is to be */
    int directory = open_parent(member.name, &name);
    if (member.type == '0') put_regular(directory, name);
    else if (member.type == '1') put_hard_link(directory, name);
    else if (member.type == '2') put_symbolic_link(directory, name);
    else if (member.type == '5') put_directory(directory, name);
    else put_fifo(directory, name);
    done_count++;
}

/* --- headers --- */

/* The data of an extended header, as a text. Sparse maps stay where they are read: what comes behind one would be written over it. */
static void read_records(void) {
    if (member.size > PAX_BYTES) refuse(BAD_ARCHIVE, "pax");
    if (pending.said.is_sparse & 4) refuse(BAD_ARCHIVE, "sparse");
    for (u64 at = 0; at < member.size; at += BLOCK) memcpy(records + at, need_block(), BLOCK);
    records[member.size] = 0;
}

static void take_long_name(char *to, int *has) {
    read_records();
    if (length(records) >= PATH_BYTES) refuse(ENAMETOOLONG, "");
    put(to, records)[0] = 0;
    *has = 1;
}

static void take_member(const char *block) {
    const char *wrong = read_header(block, &member);
    if (wrong) refuse(BAD_ARCHIVE, wrong);
    if (member.type == 'x') {
        read_records();
        wrong = read_pax(records, member.size, &pending);
        if (wrong) refuse(BAD_ARCHIVE, wrong);
    } else if (member.type == 'g' || member.type == 'V') {
        move_data(-1, member.size);
        skip_padding(member.size);
    } else if (member.type == 'L') take_long_name(pending.said.name, &pending.has_name);
    else if (member.type == 'K') take_long_name(pending.said.link, &pending.has_link);
    else {
        wrong = apply_pax(&pending, &member);
        if (wrong) refuse(BAD_ARCHIVE, wrong);
        put_member();
        memset(&pending, 0, offsetof(struct pending, said));
        pending.said.is_sparse = 0;
        pending.said.real_size = 0;
    }
}

/* PATH. The count that is told is how many members were written. */
void unpack(char **arguments) {
    const char *block;
    top = (int)must(SYS(openat, AT_FDCWD, arguments[0], O_PATH | O_DIRECTORY | O_CLOEXEC), "");
    struct open_how how = {O_PATH | O_DIRECTORY | O_CLOEXEC, 0, RESOLVE_BENEATH};
    long probe = SYS(openat2, top, ".", &how, sizeof how);
    has_openat2 = probe >= 0;
    SYS(close, probe);
    SYS(umask, 022);
    hear_terminate();
    grow_pipe(0);
    while ((block = next_block()) && !is_zero_block(block)) take_member(block);
    if (!block) refuse(BAD_ARCHIVE, "truncated");
    while (must(take_input(in, sizeof in), "") > 0) {} /* blocks are written in dozens */
    dress_directories();
    if (pending.has_name) refuse(BAD_ARCHIVE, "truncated");
}
