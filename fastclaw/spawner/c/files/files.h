/* The file helper: the same binary as the spawner, run as an ordinary command (`fastclaw-init --file OPERATION ARGUMENT...`), so with
 * the user, limits, root directory and end of any command. Contents and archives go by stdin and stdout; the outcome is the exit code
 * (an errno, or one of the numbers below; 0: done) and one line on stderr: code, count, bytes, why and name, between tabs.
 * fastclaw/files/helper.py is the other side.
 *
 * What it reads may be hostile: archives, and directories that somebody changes meanwhile. Every buffer is bounded, nothing recurses, and
 * an archive writes by openat2(2), RESOLVE_BENEATH, so that no name and no link leads out of its directory.
 *
 * Facts: openat2(2), statx(2), splice(2), lseek(2), getdents64(2), renameat2(2), tar(5), pax(1). */
#ifndef FILES_H
#define FILES_H
#include "../spawner.h"

enum { NOT_REGULAR = 200, TOO_LARGE, BAD_ARCHIVE, OUTSIDE, WRONG_SIZE, UNSUPPORTED, USAGE };

enum {
    CHUNK = 1 << 20,      /* one splice; the largest pipe that everybody may ask for */
    COPY_BYTES = 256 << 10,
    DEEPEST_LEVEL = 512,  /* directories within each other that are open at a time */
    NAME_MAX_BYTES = 256, /* with its NUL */
    TREE_PATH_BYTES = DEEPEST_LEVEL * NAME_MAX_BYTES,
    MAX_PAGE = 4096,      /* entries of one page of a directory; see fastclaw/limits.py */
    BLOCK = 512,          /* of an archive */
    PAX_BYTES = 1 << 20,  /* extended headers of one member */
    MAX_SEGMENTS = 64 << 10, /* pieces of a sparse file */
};

struct dirent64 { u64 ino; int64_t next; unsigned short bytes; unsigned char type; char name[]; };
struct segment { u64 offset, bytes; };

/* --- texts (text.c) --- */

int same(const char *one, const char *other);
int compare(const char *one, const char *other);
char *put_u64(char *at, u64 number);
int parse_u64(const char *text, u64 *number);

/* --- the outcome and what all operations share (file_main.c) --- */

extern u64 done_count, done_bytes;
extern char copy_buffer[COPY_BYTES];

_Noreturn void fail(long code, const char *why, const char *name); /* code: as the exit code, or a negative errno */
_Noreturn void finish(const char *why, const char *name);
static inline long must(long result, const char *name) { if (result < 0) fail(result, "", name); return result; }
void undo_with(int directory, const char *name); /* a file that goes where the operation does not finish; NULL: it has */
void write_out(const void *data, size_t bytes);
void hear_terminate(void);
long take_input(void *to, size_t bytes); /* what there is, at most `bytes`; 0 at the end; ends the helper on TERM */
long splice_input(int to, u64 bytes);    /* the same, into a file */
long splice_output(int from, u64 *offset, u64 bytes);
void write_file(int fd, const char *data, size_t bytes, const char *name);
long look(int directory, const char *name, int flags, struct statx *about);
static inline u32 kind(struct statx *about) { return about->stx_mode & S_IFMT; }
int is_pseudo(int fd);
int is_mounted(int fd); /* the top of what is mounted there */
void draw_name(char *to); /* a name that nobody has; 32 bytes */
void put_entry(struct statx *about, const char *name, int directory, const char *place);
void grow_pipe(int fd);

/* --- the operations --- */

void read_content(char **arguments);    /* content.c */
void write_content(char **arguments);
void make_parents(char *path);
void say_stat(char **arguments);        /* entries.c */
void list_entries(char **arguments);
void make_directory(char **arguments);
void move_entry(char **arguments);
void remove_entry(char **arguments);    /* remove.c */
void pack(char **arguments);            /* pack.c */
void unpack(char **arguments);          /* unpack.c */

/* --- archives (tar_format.c): no system call is in there --- */

struct member {
    int type, mtime_ns, is_sparse; /* the last: bits of what its records say of it */
    u32 mode;
    u64 uid, gid, size, real_size;
    int64_t mtime;
    char name[PATH_BYTES], link[PATH_BYTES];
    const char *map; /* of a sparse file, where its headers have it */
};
struct pending { int has_name, has_link, has_size, has_uid, has_gid, has_mtime; struct member said; }; /* what extended headers say */

const char *read_header(const char *block, struct member *member); /* NULL, or why not */
const char *read_pax(const char *records, size_t bytes, struct pending *pending);
const char *apply_pax(struct pending *pending, struct member *member);
int is_zero_block(const char *block);
int has_data(struct member *member);
int tidy_name(char *name); /* 0: it leads out */
int read_segments(const char *text, size_t bytes, u32 *count, struct segment *segments, const char *separators);
size_t write_header(char *to, struct member *member); /* `to`: HEADER_BYTES */
size_t write_map(char *to, struct segment *segments, u32 count); /* `to`: MAP_BYTES */
enum { HEADER_BYTES = 4 * BLOCK + 2 * PATH_BYTES, MAP_BYTES = MAX_SEGMENTS * 40 + 2 * BLOCK };

int matches(const char *pattern, const char *path); /* globs.c */
#endif
