/* Archives by chance through the reader of their headers: numbers, names, pax records, maps of sparse files, patterns. What is read is
 * written again, and has to come out the same. */
#include "files/files.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static u64 state;

/* Of the spawner's other modules: nothing in here makes a system call. */
long hooked(long n, long a, long b, long c, long d, long e, long f) { return (void)n, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, abort(), 0; }
void step(void) {}

static u32 chance(u32 below) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (u32)(state >> 33) % below;
}

static const char *const KEYS[] = {
    "path", "linkpath", "size", "uid", "gid", "mtime", "GNU.sparse.major", "GNU.sparse.name", "GNU.sparse.realsize", "GNU.sparse.map",
    "GNU.sparse.size", "comment",
};
static const char *const VALUES[] = {"1", "0", "-1", "a/b", "../x", "18446744073709551615", "9223372036854775807", "1.5", "-1.25", "0,5,9,1", "", "./a//b/"};

#define ANY(of) of[chance(sizeof of / sizeof *of)]

static void spoil(char *at, size_t bytes) {
    for (u32 n = chance(6); n; n--) at[chance((u32)bytes)] = chance(3) ? (char)chance(256) : "0/.=\n 79"[chance(8)];
}

static void require(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "%s\n", what);
    exit(1);
}

/* A header that is nearly right, with its checksum right more often than not. */
static void make_header(char *block) {
    struct member member = {.type = "0123456xgLKS"[chance(12)], .mode = chance(010000), .size = chance(5000), .uid = chance(1 << 30), .mtime = chance(1 << 30)};
    char *text = malloc(HEADER_BYTES);
    snprintf(member.name, sizeof member.name, "%s", ANY(VALUES));
    snprintf(member.link, sizeof member.link, "%s", ANY(VALUES));
    size_t bytes = write_header(text, &member);
    memcpy(block, text + bytes - BLOCK, BLOCK);
    free(text);
    spoil(block, BLOCK);
    if (!chance(4)) return;
    u32 sum = 0;
    memset(block + 148, ' ', 8);
    for (int i = 0; i < BLOCK; i++) sum += (unsigned char)block[i];
    snprintf(block + 148, 8, "%06o", sum);
}

static size_t make_records(char *at) {
    char *const begin = at;
    for (u32 n = chance(6); n; n--) {
        char body[256];
        int bytes = snprintf(body, sizeof body, " %s=%s\n", ANY(KEYS), ANY(VALUES));
        at += sprintf(at, "%d%s", bytes + (bytes + 2 > 99 ? 3 : bytes + 1 > 9 ? 2 : 1), body);
    }
    if (at > begin) spoil(begin, (size_t)(at - begin));
    return (size_t)(at - begin);
}

/* Each buffer has its own bounds, so that a look beyond one is seen. */
static void read_one(void) {
    struct member *member = calloc(1, sizeof *member);
    struct pending *pending = calloc(1, sizeof *pending);
    char *block = malloc(BLOCK), *records = malloc(4096);
    make_header(block);
    size_t bytes = make_records(records);
    records = realloc(records, bytes + 1); /* as the helper has them: with a NUL behind */
    records[bytes] = 0;
    const char *wrong = read_header(block, member);
    if (!wrong) wrong = read_pax(records, bytes, pending);
    if (!wrong) wrong = apply_pax(pending, member);
    if (!wrong && member->map) {
        struct segment segments[8];
        size_t n = 0;
        while (member->map[n] != '\n') n++;
        u32 count = chance(8);
        read_segments(member->map, n + 1, &count, segments, ",\n");
    }
    if (!wrong) {
        char *name = malloc(length(member->name) + 1);
        strcpy(name, member->name);
        if (tidy_name(name)) {
            require(*name != '/' && !strstr(name, "//"), "a name was not tidied");
            for (char *at = name; (at = strstr(at, "..")); at++)
                require(!((at == name || at[-1] == '/') && (!at[2] || at[2] == '/')), "a name goes up");
        }
        matches(records, name);
        free(name);
    }
    free(records);
    free(block);
    free(pending);
    free(member);
}

/* What was written is read as it was. */
static void write_one(void) {
    struct member *wrote = calloc(1, sizeof *wrote), *found = calloc(1, sizeof *found);
    struct pending *pending = calloc(1, sizeof *pending);
    char *text = malloc(HEADER_BYTES);
    wrote->type = "0256"[chance(4)];
    wrote->mode = chance(010000);
    wrote->uid = chance(2) ? chance(100) : chance(1u << 31);
    wrote->gid = chance(2) ? chance(100) : chance(1u << 31);
    wrote->size = chance(2) ? chance(1000) : (u64)chance(1u << 31) << chance(30);
    wrote->mtime = chance(2) ? (int64_t)chance(1u << 31) : -(int64_t)chance(1u << 31) * (int64_t)(1 + chance(5));
    wrote->mtime_ns = chance(2) ? 0 : (int)chance(1000000000);
    u32 bytes = chance(2) ? chance(90) + 1 : chance(PATH_BYTES - 2) + 1;
    for (u32 i = 0; i < bytes; i++) wrote->name[i] = (char)(1 + chance(255));
    u32 link = wrote->type == '2' ? chance(PATH_BYTES - 2) + 1 : 0;
    for (u32 i = 0; i < link; i++) wrote->link[i] = (char)(1 + chance(255));
    size_t all = write_header(text, wrote);
    require(all <= HEADER_BYTES && all % BLOCK == 0, "headers have another length");
    if (all > BLOCK) {
        require(!read_header(text, found) && found->type == 'x', "the extended header is none");
        require(!read_pax(text + BLOCK, found->size, pending), "the records are none");
    }
    require(!read_header(text + all - BLOCK, found), "the header is none");
    require(!apply_pax(pending, found), "the records do not fit");
    int is_same = found->type == wrote->type && found->mode == wrote->mode && found->uid == wrote->uid && found->gid == wrote->gid;
    require(is_same && found->size == wrote->size, "numbers came out otherwise");
    require(found->mtime == wrote->mtime && found->mtime_ns == wrote->mtime_ns, "the time came out otherwise");
    require(!strcmp(found->name, wrote->name) && !strcmp(found->link, wrote->link), "names came out otherwise");
    free(text);
    free(pending);
    free(found);
    free(wrote);
}

int main(int count, char **words) {
    u64 first = count > 1 ? strtoull(words[1], NULL, 10) : 0, many = count > 2 ? strtoull(words[2], NULL, 10) : 1;
    for (u64 number = first; number < first + many; number++) {
        state = number * 2654435761u + 1;
        read_one();
        write_one();
    }
    printf("%llu archives\n", (unsigned long long)many);
}
