/* A file or a whole tree that goes. Links are removed, never followed; what is mounted in the tree is left, and is an error.
 *
 * The directories on the way down are held open, so that a name that becomes a link meanwhile leads nowhere. Deeper than that, a
 * directory is first moved up to the top. */
#include "files.h"

enum { LIST_BYTES = 8 << 10, MOST_RESTARTS = 16 };
struct level { int fd; u32 path_bytes; u64 next; int has_removed, restarts; };

static struct level levels[DEEPEST_LEVEL];
static char path[TREE_PATH_BYTES + PATH_BYTES]; /* of what is looked at, for the outcome */
static char list[LIST_BYTES] __attribute__((aligned(8)));
static u32 moved_up;

static void open_level(u32 depth, int directory, const char *name, u32 path_bytes) {
    long fd = must(SYS(openat, directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), path);
    if (depth && is_mounted((int)fd)) fail(EBUSY, "mounted", path);
    levels[depth] = (struct level){(int)fd, path_bytes, 0, 0, 0};
}

static void move_up(struct level *level, const char *name) {
    char place[32];
    for (;;) {
        put_number(put(place, ".fastclaw-deep-"), moved_up++)[0] = 0;
        long moved = SYS(renameat2, level->fd, name, levels[0].fd, place, 1 /* RENAME_NOREPLACE */);
        if (moved == -EEXIST) continue;
        must(moved, path);
        level->has_removed = levels[0].has_removed = 1;
        return;
    }
}

/* Removes what can be removed at once. Returns whether it is a directory that has something in it. */
static int is_full(int directory, const char *name) {
    long gone = SYS(unlinkat, directory, name, 0);
    if (gone == -EISDIR || gone == -EPERM) {
        long error = gone;
        gone = SYS(unlinkat, directory, name, AT_REMOVEDIR);
        if (gone == -ENOTDIR) gone = error;
    }
    if (gone == -ENOTEMPTY || gone == -EEXIST) return 1;
    if (gone != -ENOENT) must(gone, path);
    done_count += gone == 0;
    return 0;
}

static void enter_name(struct level *level, const char *name) {
    char *at = path + level->path_bytes;
    if (level->path_bytes && at[-1] != '/') *at++ = '/';
    put(at, name)[0] = 0;
}

/* Looks at entries until one has to be gone into. False at the directory's end. */
static int clear_until_full(struct level *level, const char **full) {
    long n;
    while ((n = must(SYS(getdents64, level->fd, list, sizeof list), path)) > 0) {
        for (char *at = list; at < list + n; at += ((struct dirent64 *)(void *)at)->bytes) {
            struct dirent64 *entry = (struct dirent64 *)(void *)at;
            if (same(entry->name, ".") || same(entry->name, "..")) continue;
            enter_name(level, entry->name);
            level->next = (u64)entry->next;
            *full = entry->name;
            if (is_full(level->fd, entry->name)) return 1;
            level->has_removed = 1;
        }
    }
    return 0;
}

/* The directory of this level is at its end: it goes, unless something was put into it meanwhile. Returns whether it is gone. */
static int leave(u32 depth, int top, const char *name) {
    struct level *level = &levels[depth];
    path[level->path_bytes] = 0;
    int directory = depth ? levels[depth - 1].fd : top;
    const char *own = depth ? path + levels[depth - 1].path_bytes + (path[levels[depth - 1].path_bytes] == '/') : name;
    long gone = SYS(unlinkat, directory, own, AT_REMOVEDIR);
    if ((gone == -ENOTEMPTY || gone == -EEXIST) && (level->has_removed || level->restarts++ < MOST_RESTARTS)) {
        level->has_removed = 0;
        SYS(lseek, level->fd, 0, SEEK_SET);
        return 0;
    }
    if (gone != -ENOENT) must(gone, path);
    done_count += gone == 0;
    SYS(close, level->fd);
    if (depth) levels[depth - 1].has_removed = 1;
    return 1;
}

static void remove_tree(int top, const char *name, u32 path_bytes) {
    u32 depth = 0;
    open_level(0, top, name, path_bytes);
    for (;;) {
        struct level *level = &levels[depth];
        const char *full;
        if (clear_until_full(level, &full)) {
            if (depth + 1 == DEEPEST_LEVEL) { move_up(level, full); continue; }
            open_level(depth + 1, level->fd, full, (u32)length(path));
            SYS(lseek, level->fd, level->next, SEEK_SET);
            depth++;
        } else if (leave(depth, top, name)) {
            if (!depth--) return;
        }
    }
}

/* PATH FLAGS: `r` with all that is in it. */
void remove_entry(char **arguments) {
    char *name = arguments[0];
    size_t bytes = length(name);
    if (bytes >= PATH_BYTES) fail(ENAMETOOLONG, "", "");
    while (bytes > 1 && name[bytes - 1] == '/') name[--bytes] = 0; /* else a link's target would be meant */
    const char *last = name + bytes;
    while (last > name && last[-1] != '/') last--;
    if (same(last, ".") || same(last, "..")) fail(EINVAL, "", "");
    struct statx about;
    must(look(AT_FDCWD, name, AT_SYMLINK_NOFOLLOW, &about), "");
    if (!is_full(AT_FDCWD, name)) return;
    if (*arguments[1] != 'r') fail(ENOTEMPTY, "", "");
    remove_tree(AT_FDCWD, name, 0);
}
