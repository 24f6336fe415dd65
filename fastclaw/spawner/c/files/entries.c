/* What is said of files, and of a directory's entries; directories that are made, and names that are changed. */
#include "files.h"

/* PATH follow|link */
void say_stat(char **arguments) {
    struct statx about;
    int flags = same(arguments[1], "follow") ? 0 : AT_SYMLINK_NOFOLLOW;
    must(look(AT_FDCWD, arguments[0], flags, &about), "");
    put_entry(&about, "", AT_FDCWD, arguments[0]);
}

/* --- a page of a directory --- */

/* The first names of a page: a heap with the last of them on top, so that a directory of any size takes the memory of one page. */
static char page[MAX_PAGE][NAME_MAX_BYTES];
static unsigned short heap[MAX_PAGE + 1]; /* from 1; children of n: 2n and 2n + 1 */

static void exchange(u32 one, u32 other) {
    unsigned short number = heap[one];
    heap[one] = heap[other];
    heap[other] = number;
}

static int is_before(u32 one, u32 other) { return compare(page[heap[one]], page[heap[other]]) < 0; }

static void sink(u32 at, u32 count) {
    for (u32 child = 2 * at; child <= count; at = child, child = 2 * at) {
        if (child < count && is_before(child, child + 1)) child++;
        if (!is_before(at, child)) return;
        exchange(at, child);
    }
}

static void rise(u32 at) {
    for (; at > 1 && is_before(at / 2, at); at /= 2) exchange(at / 2, at);
}

static u32 keep(const char *name, u32 count, u32 most) {
    if (length(name) >= NAME_MAX_BYTES) return count;
    if (count < most) {
        heap[count + 1] = (unsigned short)count;
        put(page[count], name)[0] = 0;
        rise(++count);
    } else if (compare(name, page[heap[1]]) < 0) {
        put(page[heap[1]], name)[0] = 0;
        sink(1, count);
    }
    return count;
}

static u32 gather(int fd, const char *after, u32 most) {
    u32 count = 0;
    for (;;) {
        long n = must(SYS(getdents64, fd, copy_buffer, sizeof copy_buffer), "");
        if (!n) return count;
        for (char *at = copy_buffer; at < copy_buffer + n; at += ((struct dirent64 *)(void *)at)->bytes) {
            const char *name = ((struct dirent64 *)(void *)at)->name;
            if (same(name, ".") || same(name, "..") || (*after && compare(name, after) <= 0)) continue;
            done_count++;
            count = keep(name, count, most);
        }
    }
}

/* Hexadecimal digits, or `-`: names may have any bytes. */
static int read_name(const char *digits, char *name) {
    size_t n = 0;
    if (*digits == '-') digits++;
    for (; digits[0] && digits[1] && n < NAME_MAX_BYTES - 1; digits += 2) {
        int value = 0;
        for (int i = 0; i < 2; i++) {
            char c = digits[i];
            int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
            if (digit < 0) return 0;
            value = value * 16 + digit;
        }
        name[n++] = (char)value;
    }
    name[n] = 0;
    return !*digits;
}

/* PATH LIMIT AFTER: entries in the order of their bytes. The count that is told is how many there are after AFTER. */
void list_entries(char **arguments) {
    static char after[NAME_MAX_BYTES];
    struct statx about;
    u64 most;
    if (!parse_u64(arguments[1], &most) || !most || most > MAX_PAGE || !read_name(arguments[2], after)) fail(USAGE, "", "");
    int fd = (int)must(SYS(openat, AT_FDCWD, arguments[0], O_RDONLY | O_DIRECTORY | O_CLOEXEC), "");
    u32 count = gather(fd, after, (u32)most);
    for (u32 left = count; left > 1; left--) { /* the last ones to the end: in order then */
        exchange(1, left);
        sink(1, left - 1);
    }
    for (u32 i = 1; i <= count; i++) {
        const char *name = page[heap[i]];
        long found = look(fd, name, AT_SYMLINK_NOFOLLOW, &about);
        if (found == -ENOENT) continue; /* removed meanwhile */
        must(found, name);
        put_entry(&about, name, fd, name);
    }
}

/* --- names --- */

/* PATH MODE FLAGS: `p` with parents, `e` no error where the directory is there. */
void make_directory(char **arguments) {
    struct statx about;
    int has_parents = 0, may_exist = 0;
    u64 mode;
    for (char *flag = arguments[2]; *flag; flag++) { has_parents |= *flag == 'p'; may_exist |= *flag == 'e'; }
    for (size_t n = length(arguments[0]); n > 1 && arguments[0][n - 1] == '/'; n--) arguments[0][n - 1] = 0;
    long made = SYS(mkdirat, AT_FDCWD, arguments[0], 0777);
    if (made == -ENOENT && has_parents) {
        make_parents(arguments[0]);
        made = SYS(mkdirat, AT_FDCWD, arguments[0], 0777);
    }
    if (made == -EEXIST && may_exist && !look(AT_FDCWD, arguments[0], 0, &about) && kind(&about) == S_IFDIR) return;
    must(made, "");
    if (*arguments[1] != '-' && parse_u64(arguments[1], &mode)) must(SYS(fchmodat, AT_FDCWD, arguments[0], mode), "");
}

/* FROM TO FLAGS: `o` takes the place of what is there. */
void move_entry(char **arguments) {
    enum { NOREPLACE = 1 };
    struct statx about;
    int keeps = *arguments[2] != 'o';
    long moved = SYS(renameat2, AT_FDCWD, arguments[0], AT_FDCWD, arguments[1], keeps ? NOREPLACE : 0);
    if (moved == -EINVAL && keeps) { /* or a file system that does not know how to keep what is there */
        if (!look(AT_FDCWD, arguments[1], AT_SYMLINK_NOFOLLOW, &about)) fail(EEXIST, "", arguments[1]);
        moved = SYS(renameat2, AT_FDCWD, arguments[0], AT_FDCWD, arguments[1], 0);
    }
    must(moved, moved == -EEXIST || moved == -ENOTEMPTY || moved == -EISDIR ? arguments[1] : "");
}
