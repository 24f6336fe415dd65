/* The content of one file, out and in. */
#include "files.h"

enum { MOST_LINKS = 40 }; /* that a path may go through (path_resolution(7)) */

/* What is no file is refused without a look inside: opening a FIFO waits, and opening some devices does something. Between the two looks
 * it may be replaced: O_NONBLOCK keeps the open from waiting then, too. */
static int open_file(const char *path, int flags, struct statx *about) {
    long found = look(AT_FDCWD, path, 0, about);
    if (!found && kind(about) == S_IFDIR) fail(EISDIR, "", "");
    if (!found && kind(about) != S_IFREG) fail(NOT_REGULAR, "", "");
    long fd = SYS(openat, AT_FDCWD, path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0666);
    if (fd < 0) return (int)fd;
    must(look((int)fd, "", AT_EMPTY_PATH, about), "");
    if (kind(about) != S_IFREG) fail(NOT_REGULAR, "", "");
    return (int)fd;
}

/* --- out --- */

/* A file without a size is read to its end; with `is_part` no more than `most` of it is wanted. */
static void read_pseudo(int fd, u64 most, int is_part) {
    for (;;) {
        u64 left = most - done_bytes;
        if (is_part && !left) return;
        u64 wanted = is_part && left < COPY_BYTES ? left : COPY_BYTES;
        long n = SYS(read, fd, copy_buffer, wanted);
        if (n == -EINTR) continue;
        if (!must(n, "")) return;
        if ((u64)n > left) fail(TOO_LARGE, "", "");
        write_out(copy_buffer, (size_t)n);
        done_bytes += (u64)n;
    }
}

/* What is added to the file from now on is not given; where it is cut meanwhile, its end comes sooner. */
static void read_sized(int fd, u64 bytes) {
    int copies = 0;
    if (bytes > 64 << 10) grow_pipe(1);
    while (bytes) {
        long n = copies ? SYS(read, fd, copy_buffer, bytes > COPY_BYTES ? COPY_BYTES : bytes)
                        : splice_output(fd, NULL, bytes);
        if (n == -EINTR || (n == -EINVAL && !copies++)) continue;
        if (!must(n, "")) return;
        if (copies) write_out(copy_buffer, (size_t)n);
        bytes -= (u64)n;
        done_bytes += (u64)n;
    }
}

/* PATH OFFSET LIMIT part|whole: with `whole`, more than LIMIT is an error. The count that is told is the file's size. */
void read_content(char **arguments) {
    u64 offset, most;
    struct statx about;
    int is_part = same(arguments[3], "part");
    if (!parse_u64(arguments[1], &offset) || !parse_u64(arguments[2], &most)) fail(USAGE, "", "");
    int fd = (int)must(open_file(arguments[0], O_RDONLY, &about), "");
    u64 size = about.stx_size, left = offset < size ? size - offset : 0;
    done_count = size;
    if (is_pseudo(fd)) {
        must(SYS(lseek, fd, offset, SEEK_SET), "");
        read_pseudo(fd, most, is_part);
        return;
    }
    must(SYS(lseek, fd, offset < size ? offset : size, SEEK_SET), "");
    if (left > most && !is_part) fail(TOO_LARGE, "", "");
    read_sized(fd, left > most ? most : left);
}

/* --- in --- */

void make_parents(char *path) {
    for (char *at = path; *at; at++) {
        if (*at != '/' || at == path) continue;
        *at = 0;
        long made = SYS(mkdirat, AT_FDCWD, path, 0777);
        if (made < 0 && made != -EEXIST) fail(made, "", "");
        *at = '/';
    }
}

/* All of stdin. `wanted`: how much there has to be. */
static void take_content(int fd, const char *wanted) {
    u64 size = ~0ull;
    int copies = 0, is_sized = *wanted != '-';
    if (is_sized && !parse_u64(wanted, &size)) fail(USAGE, "", "");
    if (size > 64 << 10) grow_pipe(0);
    while (done_bytes < size) {
        u64 left = size - done_bytes;
        long n = copies ? take_input(copy_buffer, left > COPY_BYTES ? COPY_BYTES : left) : splice_input(fd, left);
        if (n == -EINVAL && !copies++) continue;
        if (!must(n, "")) break;
        if (copies) write_file(fd, copy_buffer, (size_t)n, "");
        else done_bytes += (u64)n;
    }
    if (is_sized && (done_bytes < size || take_input(copy_buffer, 1) > 0)) fail(WRONG_SIZE, done_bytes < size ? "short" : "long", "");
}

static void close_written(int fd) { must(SYS(close, fd), ""); } /* where a network's file system says what failed */

static void write_through(char *path, const char *mode, const char *size, int has_parents) {
    struct statx about;
    int fd = open_file(path, O_WRONLY | O_CREAT, &about);
    if (fd == -ENOENT && has_parents) {
        make_parents(path);
        fd = open_file(path, O_WRONLY | O_CREAT, &about);
    }
    if (fd == -ENXIO) fail(NOT_REGULAR, "", ""); /* a FIFO, since the look */
    must(fd, "");
    must(SYS(ftruncate, fd, 0), "");
    take_content(fd, size);
    u64 bits;
    if (*mode != '-' && parse_u64(mode, &bits)) must(SYS(fchmod, fd, bits), "");
    close_written(fd);
}

static char last_name[NAME_MAX_BYTES];

/* The directory that has a path's last name, and that name. */
static long open_directory_of(int from, const char *path) {
    static char directory[PATH_BYTES];
    size_t bytes = length(path), slash = bytes;
    while (slash && path[slash - 1] != '/') slash--;
    if (bytes - slash >= sizeof last_name) return -ENAMETOOLONG;
    if (bytes == slash) return bytes ? -EISDIR : -ENOENT;
    put(last_name, path + slash)[0] = 0;
    if (!slash) return SYS(openat, from, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    memcpy(directory, path, slash);
    directory[slash] = 0;
    return SYS(openat, from, directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

/* A rename would take the place of a link: what it leads to is meant. */
static int open_place(char *path, int has_parents) {
    static char text[PATH_BYTES];
    int from = AT_FDCWD;
    if (length(path) >= sizeof text) fail(ENAMETOOLONG, "", "");
    put(text, path)[0] = 0;
    for (int links = 0; links <= MOST_LINKS; links++) {
        long fd = open_directory_of(from, text);
        if (fd == -ENOENT && !links && has_parents) {
            make_parents(path);
            fd = open_directory_of(from, text);
        }
        long n = SYS(readlinkat, must(fd, ""), last_name, text, sizeof text - 1);
        if (n < 0) return (int)fd;
        text[n] = 0;
        from = (int)fd;
    }
    fail(ELOOP, "", "");
}

/* What is replaced has to be a file that may be written to, as without `atomic`. Returns whether there is one. */
static int find_replaced(int directory, struct statx *about) {
    long found = look(directory, last_name, AT_SYMLINK_NOFOLLOW, about);
    if (found == -ENOENT) return 0;
    must(found, "");
    if (kind(about) == S_IFDIR) fail(EISDIR, "", "");
    if (kind(about) != S_IFREG) fail(NOT_REGULAR, "", "");
    must(SYS(faccessat, directory, last_name, 2 /* W_OK */), "");
    return 1;
}

/* Owner and mode of what is replaced, as far as that is permitted; who may not give the owner gives no set-user-ID either. */
static void take_over(int fd, struct statx *replaced, const char *mode) {
    u64 bits;
    if (replaced) {
        long refused = SYS(fchown, fd, replaced->stx_uid, replaced->stx_gid);
        bits = replaced->stx_mode & (refused ? 01777 : 07777);
    } else {
        long mask = SYS(umask, 0);
        SYS(umask, mask);
        bits = 0666 & ~(u64)mask;
    }
    if (*mode != '-' && !parse_u64(mode, &bits)) fail(USAGE, "", "");
    must(SYS(fchmod, fd, bits), "");
}

/* A file without a name, where there can be one: whatever ends us, nothing is left of it. Else one with a name, which TERM takes away. */
static int open_fresh(int directory, const char *temporary, int *is_named) {
    long fd = SYS(openat, directory, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    if ((*is_named = fd < 0)) {
        fd = must(SYS(openat, directory, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600), "");
        undo_with(directory, temporary);
    }
    return (int)fd;
}

static void name_it(int fd, int directory, const char *temporary) {
    char self[32];
    *put_number(put(self, "/proc/self/fd/"), (u32)fd) = 0; /* open(2), O_TMPFILE */
    must(SYS(linkat, AT_FDCWD, self, directory, temporary, AT_SYMLINK_FOLLOW), "");
    undo_with(directory, temporary);
}

/* Whoever reads meanwhile sees the old content or the new one. Not written through to the disk: the environment does not outlive a crash. */
static void write_beside(char *path, const char *mode, const char *size, int has_parents) {
    static char temporary[NAME_MAX_BYTES];
    struct statx replaced;
    int directory = open_place(path, has_parents), is_there = find_replaced(directory, &replaced), is_named;
    draw_name(temporary);
    int fd = open_fresh(directory, temporary, &is_named);
    take_content(fd, size);
    if (!is_named) name_it(fd, directory, temporary);
    take_over(fd, is_there ? &replaced : NULL, mode);
    close_written(fd);
    must(SYS(renameat2, directory, temporary, directory, last_name, 0), "");
    undo_with(0, NULL);
}

/* PATH MODE SIZE FLAGS: mode in decimal, or `-`; size, or `-` for all that comes; flags `p` for parents and `a` for atomic. */
void write_content(char **arguments) {
    int has_parents = 0, is_atomic = 0;
    for (char *flag = arguments[3]; *flag; flag++) { has_parents |= *flag == 'p'; is_atomic |= *flag == 'a'; }
    hear_terminate();
    (is_atomic ? write_beside : write_through)(arguments[0], arguments[1], arguments[2], has_parents);
}
