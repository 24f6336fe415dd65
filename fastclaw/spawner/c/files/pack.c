/* A directory as an archive on stdout. Links are told as links; nothing is followed, and of /proc and its like only the directory is told.
 * Names are those beneath the directory. Sockets and devices are left out. */
#include "files.h"

enum { SMALL_BYTES = 64 << 10, MAX_LINKED = 64 << 10, LINKED_NAMES_BYTES = 16 << 20, LIST_BYTES = 8 << 10 };
enum { TO_DATA = 3, TO_HOLE = 4 }; /* lseek(2): SEEK_DATA, SEEK_HOLE */
struct level { int fd; u32 path_bytes; u64 next; };
struct linked { u64 device, inode; u32 name; };

static struct level levels[DEEPEST_LEVEL];
static char path[PATH_BYTES + NAME_MAX_BYTES], changed[PATH_BYTES + NAME_MAX_BYTES];
static char list[LIST_BYTES] __attribute__((aligned(8)));
static char out[COPY_BYTES], map_text[MAP_BYTES];
static size_t out_bytes;
static struct segment segments[MAX_SEGMENTS];
static struct member member;
static char **patterns;

/* --- the stream --- */

static void flush(void) {
    write_out(out, out_bytes);
    out_bytes = 0;
}

static char *make_room(size_t bytes) {
    if (out_bytes + bytes > sizeof out) flush();
    return out + out_bytes;
}

static void put_zeros(u64 bytes) {
    while (bytes) {
        size_t now = bytes > BLOCK ? BLOCK : (size_t)bytes;
        memset(make_room(now), 0, now);
        out_bytes += now;
        bytes -= now;
    }
}

static void put_bytes(const char *data, size_t bytes) {
    if (bytes > sizeof out) { flush(); write_out(data, bytes); return; }
    memcpy(make_room(bytes), data, bytes);
    out_bytes += bytes;
}

static void put_member(int type, const char *link, struct statx *about, u64 size) {
    if (length(path) + 2 > PATH_BYTES) fail(ENAMETOOLONG, "", path);
    member.type = type;
    member.mode = about->stx_mode & 07777;
    member.uid = about->stx_uid;
    member.gid = about->stx_gid;
    member.size = size;
    member.mtime = about->stx_mtime.tv_sec;
    member.mtime_ns = (int)about->stx_mtime.tv_nsec;
    char *end = put(member.name, path);
    if (type == '5') *end++ = '/';
    *end = 0;
    put(member.link, link)[0] = 0;
    out_bytes += write_header(make_room(HEADER_BYTES), &member);
    member.is_sparse = 0;
    done_count++;
}

/* --- one file --- */

static void tell_changed(void) { if (!*changed) put(changed, path); }

/* What a file lacks that was cut meanwhile comes as zeros: its header has left. */
static void put_piece(int fd, u64 offset, u64 bytes) {
    int copies = bytes <= SMALL_BYTES;
    if (!copies) { flush(); grow_pipe(1); }
    while (bytes) {
        long n;
        if (copies) {
            size_t now = bytes > SMALL_BYTES ? SMALL_BYTES : (size_t)bytes;
            n = SYS(pread64, fd, make_room(now), now, offset);
            if (n > 0) { out_bytes += (size_t)n; offset += (u64)n; }
        } else n = splice_output(fd, &offset, bytes);
        if (n == -EINTR || (n == -EINVAL && !copies++)) continue;
        if (!must(n, path)) { tell_changed(); put_zeros(bytes); return; }
        bytes -= (u64)n;
        done_bytes += (u64)n;
    }
}

static void pad(u64 bytes) { put_zeros((BLOCK - bytes % BLOCK) % BLOCK); }

/* Where a file has data; 0: it has no holes, or too many. Where it ends in one, an empty piece says where. */
static u32 find_segments(int fd, u64 size) {
    u32 count = 0;
    u64 at = 0;
    while (at < size) {
        long data = SYS(lseek, fd, at, TO_DATA);
        if (data == -ENXIO) break;
        if (data < 0 || count + 1 >= MAX_SEGMENTS) return 0;
        long hole = SYS(lseek, fd, data, TO_HOLE);
        if (hole < 0) return 0;
        u64 end = (u64)hole > size ? size : (u64)hole;
        if ((u64)data >= size) break;
        segments[count++] = (struct segment){(u64)data, end - (u64)data};
        at = end;
    }
    if (count == 1 && !segments[0].offset && segments[0].bytes == size) return 0;
    if (!count || at < size) segments[count++] = (struct segment){size, 0};
    return count;
}

static void put_sparse(int fd, struct statx *about, u32 count) {
    u64 bytes = 0;
    size_t map_bytes = write_map(map_text, segments, count);
    for (u32 i = 0; i < count; i++) bytes += segments[i].bytes;
    member.is_sparse = 1;
    member.real_size = about->stx_size;
    put_member('0', "", about, map_bytes + bytes);
    put_bytes(map_text, map_bytes);
    for (u32 i = 0; i < count; i++) put_piece(fd, segments[i].offset, segments[i].bytes);
    pad(bytes);
}

/* The name under which a file with several came first; NULL: now. What has no room is told as files of their own. */
static const char *first_name(struct statx *about) {
    static struct linked *table;
    static char *names;
    static u32 used, name_bytes = 1;
    if (!table) table = map(sizeof *table * 2 * MAX_LINKED, -1);
    if (!names) names = map(LINKED_NAMES_BYTES, -1);
    u64 device = (u64)about->stx_dev_major << 32 | about->stx_dev_minor;
    u32 bytes = (u32)length(path) + 1;
    if (!table || !names) return NULL;
    for (u64 at = about->stx_ino * 0x9e3779b97f4a7c15ull >> 40;; at++) {
        struct linked *found = &table[at % (2 * MAX_LINKED)];
        if (found->name && (found->device != device || found->inode != about->stx_ino)) continue;
        if (found->name) return names + found->name;
        if (used == MAX_LINKED || name_bytes + bytes > LINKED_NAMES_BYTES) return NULL;
        *found = (struct linked){device, about->stx_ino, name_bytes};
        memcpy(names + name_bytes, path, bytes);
        name_bytes += bytes;
        used++;
        return NULL;
    }
}

/* Opened without waiting and looked at again: it may have become something else. */
static void put_regular(int directory, const char *name, struct statx *about) {
    long fd = SYS(openat, directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd == -ENOENT || fd == -ELOOP || fd == -ENXIO) return;
    must(fd, path);
    must(look((int)fd, "", AT_EMPTY_PATH, about), path);
    const char *first = about->stx_nlink > 1 ? first_name(about) : NULL;
    u32 count = 0;
    if (kind(about) != S_IFREG) { SYS(close, fd); return; }
    if (first) put_member('1', first, about, 0);
    else if (about->stx_blocks * 512 < about->stx_size && (count = find_segments((int)fd, about->stx_size))) put_sparse((int)fd, about, count);
    else {
        put_member('0', "", about, about->stx_size);
        put_piece((int)fd, 0, about->stx_size);
        pad(about->stx_size);
    }
    SYS(close, fd);
}

static void put_link(int directory, const char *name, struct statx *about) {
    static char target[PATH_BYTES];
    long n = SYS(readlinkat, directory, name, target, sizeof target - 1);
    if (n == -ENOENT || n == -EINVAL) return;
    target[must(n, path)] = 0;
    put_member('2', target, about, 0);
}

static void put_other(int directory, const char *name, struct statx *about) {
    if (kind(about) == S_IFREG) put_regular(directory, name, about);
    else if (kind(about) == S_IFLNK) put_link(directory, name, about);
    else if (kind(about) == S_IFIFO) put_member('6', "", about, 0);
}

/* --- the tree --- */

/* A pattern with a slash is about the whole path, one without about each name. */
static int is_excluded(const char *name) {
    for (char **pattern = patterns; *pattern; pattern++) {
        const char *at = *pattern;
        int has_slash = 0;
        for (const char *c = at; *c; c++) has_slash |= *c == '/';
        if (*at == '/') at++;
        if (matches(at, has_slash ? path : name)) return 1;
    }
    return 0;
}

static void enter_name(struct level *level, const char *name) {
    char *at = path + level->path_bytes;
    if (level->path_bytes + length(name) + 2 > PATH_BYTES) fail(ENAMETOOLONG, "", path);
    if (level->path_bytes) *at++ = '/';
    put(at, name)[0] = 0;
}

/* Returns whether there is a directory to go into, open as `*inside`. */
static int put_entry_of(struct level *level, const char *name, long *inside) {
    struct statx about;
    enter_name(level, name);
    if (is_excluded(name)) return 0;
    long found = look(level->fd, name, AT_SYMLINK_NOFOLLOW, &about);
    if (found == -ENOENT) return 0;
    must(found, path);
    if (kind(&about) != S_IFDIR) { put_other(level->fd, name, &about); return 0; }
    *inside = SYS(openat, level->fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (*inside == -ENOENT || *inside == -ENOTDIR || *inside == -ELOOP) return 0;
    must(*inside, path);
    put_member('5', "", &about, 0);
    if (!is_mounted((int)*inside) || !is_pseudo((int)*inside)) return 1;
    SYS(close, *inside);
    return 0;
}

/* The level's entries until one is to be gone into. False at its end. */
static int put_entries(struct level *level, long *inside) {
    long n;
    while ((n = must(SYS(getdents64, level->fd, list, sizeof list), path)) > 0) {
        for (char *at = list; at < list + n; at += ((struct dirent64 *)(void *)at)->bytes) {
            struct dirent64 *entry = (struct dirent64 *)(void *)at;
            if (same(entry->name, ".") || same(entry->name, "..")) continue;
            level->next = (u64)entry->next;
            if (put_entry_of(level, entry->name, inside)) return 1;
        }
    }
    return 0;
}

static void put_tree(int top) {
    u32 depth = 0;
    levels[0] = (struct level){top, 0, 0};
    for (;;) {
        long inside;
        if (put_entries(&levels[depth], &inside)) {
            if (depth + 1 == DEEPEST_LEVEL) fail(ENAMETOOLONG, "", path);
            SYS(lseek, levels[depth].fd, levels[depth].next, SEEK_SET);
            levels[++depth] = (struct level){(int)inside, (u32)length(path), 0};
            continue;
        }
        SYS(close, levels[depth].fd);
        if (!depth--) return;
        path[levels[depth].path_bytes] = 0;
    }
}

/* PATH PATTERN... A single file is an archive of that. */
void pack(char **arguments) {
    struct statx about;
    const char *name = arguments[0];
    patterns = arguments + 1;
    must(look(AT_FDCWD, name, 0, &about), "");
    if (kind(&about) == S_IFDIR) put_tree((int)must(SYS(openat, AT_FDCWD, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC), ""));
    else if (kind(&about) != S_IFREG) fail(NOT_REGULAR, "", "");
    else {
        const char *last = name + length(name);
        while (last > name && last[-1] != '/') last--;
        long fd = must(SYS(openat, AT_FDCWD, name, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC), "");
        enter_name(&levels[0], last);
        must(look((int)fd, "", AT_EMPTY_PATH, &about), "");
        if (kind(&about) != S_IFREG) fail(NOT_REGULAR, "", "");
        put_member('0', "", &about, about.stx_size);
        put_piece((int)fd, 0, about.stx_size);
        pad(about.stx_size);
    }
    put_zeros(2 * BLOCK);
    flush();
    finish(*changed ? "changed" : "", changed);
}
