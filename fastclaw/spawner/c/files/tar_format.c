/* The bytes of an archive: ustar headers with pax records on top of them, as POSIX has them (pax(1)); GNU's long names, large numbers and
 * sparse files (GNU tar manual, "Basic Tar Format", "PAX 1"). Reads hostile bytes; no system call is in here. */
#include "files.h"

enum {
    AT_NAME = 0, AT_MODE = 100, AT_UID = 108, AT_GID = 116, AT_SIZE = 124, AT_MTIME = 136, AT_SUM = 148, AT_TYPE = 156, AT_LINK = 157,
    AT_MAGIC = 257, AT_PREFIX = 345, NAME_BYTES = 100, PREFIX_BYTES = 155,
};
enum { MOST_ID = 07777777 }; /* of a header; larger ones have a pax record */
static const u64 MOST_SIZE = 077777777777;

/* --- reading: headers --- */

/* Octal digits, or with the first bit set a number of 256 to the power of its place. */
static int read_number(const char *at, size_t bytes, u64 *number) {
    size_t i = 0;
    *number = 0;
    if ((unsigned char)*at == 0x80) {
        for (i = 1; i < bytes; i++) {
            if (*number >> 55) return 0;
            *number = *number << 8 | (unsigned char)at[i];
        }
        return 1;
    }
    while (i < bytes && at[i] == ' ') i++;
    for (; i < bytes && at[i] >= '0' && at[i] <= '7'; i++) *number = *number * 8 + (u64)(at[i] - '0');
    return i == bytes || !at[i] || at[i] == ' ';
}

/* The same, which may be negative: before 1970. */
static int read_time(const char *at, int64_t *time) {
    u64 number = 0;
    if ((unsigned char)*at != 0xff) {
        if (!read_number(at, 12, &number) || number > INT64_MAX) return 0;
        *time = (int64_t)number;
        return 1;
    }
    for (size_t i = 4; i < 12; i++) number = number << 8 | (unsigned char)at[i];
    *time = (int64_t)number;
    return 1;
}

static size_t bounded_length(const char *at, size_t most) {
    size_t n = 0;
    while (n < most && at[n]) n++;
    return n;
}

static void put_bounded(char *to, const char *from, size_t most) {
    size_t n = bounded_length(from, most);
    memcpy(to, from, n);
    to[n] = 0;
}

static int has_sum(const char *block) {
    u64 said;
    u32 unsigned_sum = 0, signed_sum = 0; /* some old programs added up signed characters */
    for (int i = 0; i < BLOCK; i++) {
        char c = i >= AT_SUM && i < AT_SUM + 8 ? ' ' : block[i];
        unsigned_sum += (unsigned char)c;
        signed_sum += (u32)(signed char)c;
    }
    return read_number(block + AT_SUM, 8, &said) && (said == unsigned_sum || (u32)said == signed_sum);
}

int is_zero_block(const char *block) {
    for (int i = 0; i < BLOCK; i++) if (block[i]) return 0;
    return 1;
}

static int begins(const char *at, const char *with) {
    while (*with) if (*at++ != *with++) return 0;
    return 1;
}

const char *read_header(const char *block, struct member *member) {
    u64 mode;
    if (!has_sum(block)) return (unsigned char)block[0] == 0x1f && (unsigned char)block[1] == 0x8b ? "gzip" : "checksum";
    int has_ids = read_number(block + AT_MODE, 8, &mode) && read_number(block + AT_UID, 8, &member->uid) && read_number(block + AT_GID, 8, &member->gid);
    if (!has_ids || !read_number(block + AT_SIZE, 12, &member->size) || !read_time(block + AT_MTIME, &member->mtime)) return "number";
    if (member->size > INT64_MAX - BLOCK) return "size";
    member->mode = (u32)mode & 07777;
    member->mtime_ns = 0;
    member->is_sparse = 0;
    member->map = NULL;
    member->type = block[AT_TYPE];
    char *at = member->name;
    if (begins(block + AT_MAGIC, "ustar") && !block[AT_MAGIC + 5] && block[AT_PREFIX]) {
        put_bounded(at, block + AT_PREFIX, PREFIX_BYTES);
        at += length(at);
        *at++ = '/';
    }
    put_bounded(at, block + AT_NAME, NAME_BYTES);
    put_bounded(member->link, block + AT_LINK, NAME_BYTES);
    size_t bytes = length(member->name);
    if (!member->type) member->type = bytes && member->name[bytes - 1] == '/' ? '5' : '0'; /* before POSIX */
    if (member->type == '7') member->type = '0';
    return NULL;
}

/* What others say of links, directories and devices is no data (pax(1)). */
int has_data(struct member *member) { return member->type == '0' || member->type < '1' || member->type > '6'; }

/* --- reading: pax records --- */

static int is_key(const char *at, size_t bytes, const char *key) {
    return bytes == length(key) && begins(at, key);
}

static int read_text(const char *at, size_t bytes, char *to) {
    if (bytes >= PATH_BYTES || bounded_length(at, bytes) != bytes) return 0;
    put_bounded(to, at, bytes);
    return 1;
}

static int read_decimal(const char *at, size_t bytes, u64 *number) {
    char text[24];
    if (!bytes || bytes >= sizeof text) return 0;
    put_bounded(text, at, bytes);
    return length(text) == bytes && parse_u64(text, number);
}

static int read_moment(const char *at, size_t bytes, struct member *said) {
    int is_negative = bytes && *at == '-';
    size_t whole = (size_t)is_negative;
    u64 seconds;
    while (whole < bytes && at[whole] != '.') whole++;
    if (!read_decimal(at + is_negative, whole - (size_t)is_negative, &seconds) || seconds > INT64_MAX / 2) return 0;
    long part = 0, scale = 100000000;
    for (size_t i = whole + 1; i < bytes; i++, scale /= 10) {
        if (at[i] < '0' || at[i] > '9') return 0;
        part += scale * (at[i] - '0');
    }
    said->mtime = is_negative ? -(int64_t)seconds : (int64_t)seconds;
    if (is_negative && part) { said->mtime--; part = 1000000000 - part; }
    said->mtime_ns = (int)part;
    return 1;
}

/* Returns what is wrong with a record that is known. */
static const char *read_record(const char *key, size_t key_bytes, const char *value, size_t bytes, struct pending *pending) {
    struct member *said = &pending->said;
    u64 number;
    if (is_key(key, key_bytes, "path")) {
        if (!pending->said.is_sparse || !pending->has_name) pending->has_name = !!bytes;
        else return NULL; /* GNU.sparse.name was there */
        return read_text(value, bytes, said->name) ? NULL : "path";
    }
    if (is_key(key, key_bytes, "GNU.sparse.name")) {
        pending->has_name = !!bytes;
        said->is_sparse |= 1;
        return read_text(value, bytes, said->name) ? NULL : "path";
    }
    if (is_key(key, key_bytes, "linkpath")) {
        pending->has_link = 1;
        return read_text(value, bytes, said->link) ? NULL : "linkpath";
    }
    if (is_key(key, key_bytes, "mtime")) {
        pending->has_mtime = 1;
        return read_moment(value, bytes, said) ? NULL : "mtime";
    }
    if (is_key(key, key_bytes, "size")) {
        pending->has_size = 1;
        return read_decimal(value, bytes, &said->size) && said->size <= INT64_MAX - BLOCK ? NULL : "size";
    }
    if (is_key(key, key_bytes, "uid") || is_key(key, key_bytes, "gid")) {
        int is_user = *key == 'u';
        *(is_user ? &pending->has_uid : &pending->has_gid) = 1;
        return read_decimal(value, bytes, is_user ? &said->uid : &said->gid) ? NULL : "owner";
    }
    if (is_key(key, key_bytes, "GNU.sparse.realsize") || is_key(key, key_bytes, "GNU.sparse.size")) {
        said->is_sparse |= 1;
        return read_decimal(value, bytes, &said->real_size) && said->real_size <= INT64_MAX ? NULL : "sparse";
    }
    if (is_key(key, key_bytes, "GNU.sparse.major")) {
        said->is_sparse |= 2;
        return read_decimal(value, bytes, &number) && number == 1 ? NULL : "sparse";
    }
    if (is_key(key, key_bytes, "GNU.sparse.map")) {
        said->is_sparse |= 4;
        said->map = value;
        return NULL;
    }
    if (is_key(key, key_bytes, "GNU.sparse.offset")) return "sparse"; /* of GNU tar 1.14, 2004 */
    return NULL;
}

/* `LENGTH KEY=VALUE\n`, one after the other; what is there is kept as long as the records are. */
const char *read_pax(const char *records, size_t bytes, struct pending *pending) {
    while (bytes) {
        u64 record = 0;
        size_t at = 0;
        for (; at < bytes && records[at] >= '0' && records[at] <= '9' && record <= PAX_BYTES; at++) record = record * 10 + (u64)(records[at] - '0');
        if (!at || at >= bytes || records[at++] != ' ' || record > bytes || record < at + 2 || records[record - 1] != '\n') return "pax";
        size_t equal = at;
        while (equal < record - 1 && records[equal] != '=') equal++;
        if (equal == record - 1) return "pax";
        const char *wrong = read_record(records + at, equal - at, records + equal + 1, (size_t)record - equal - 2, pending);
        if (wrong) return wrong;
        records += record;
        bytes -= (size_t)record;
    }
    return NULL;
}

const char *apply_pax(struct pending *pending, struct member *member) {
    struct member *said = &pending->said;
    if (pending->has_name) put_bounded(member->name, said->name, PATH_BYTES - 1);
    if (pending->has_link) put_bounded(member->link, said->link, PATH_BYTES - 1);
    if (pending->has_size) member->size = said->size;
    if (pending->has_uid) member->uid = said->uid;
    if (pending->has_gid) member->gid = said->gid;
    if (pending->has_mtime) { member->mtime = said->mtime; member->mtime_ns = said->mtime_ns; }
    if (!said->is_sparse) return NULL;
    if (member->type != '0' || !(said->is_sparse & 1) || !(said->is_sparse & 6)) return "sparse";
    member->is_sparse = said->is_sparse;
    member->real_size = said->real_size;
    member->map = said->map;
    return NULL;
}

/* Pairs of offset and length, each number followed by one of `separators`; they must be in order. */
int read_segments(const char *text, size_t bytes, u32 *count, struct segment *segments, const char *separators) {
    u64 numbers[2], end = 0;
    size_t at = 0;
    for (u32 i = 0; i < *count; i++) {
        for (int which = 0; which < 2; which++) {
            size_t from = at;
            while (at < bytes && text[at] >= '0' && text[at] <= '9') at++;
            if (!read_decimal(text + from, at - from, &numbers[which]) || at >= bytes) return 0;
            if (text[at] != separators[0] && text[at] != separators[1]) return 0;
            at++;
        }
        if (numbers[0] < end || numbers[0] > INT64_MAX || numbers[1] > INT64_MAX - numbers[0]) return 0;
        end = numbers[0] + numbers[1];
        segments[i] = (struct segment){numbers[0], numbers[1]};
    }
    return 1;
}

/* Without `./`, doubled slashes and those at the end; empty for the top itself. */
int tidy_name(char *name) {
    char *to = name, *from = name;
    if (*name == '/') return 0;
    while (*from) {
        char *end = from;
        while (*end && *end != '/') end++;
        size_t bytes = (size_t)(end - from);
        if (bytes == 2 && from[0] == '.' && from[1] == '.') return 0;
        if (bytes && !(bytes == 1 && *from == '.')) {
            if (to != name) *to++ = '/';
            while (from < end) *to++ = *from++;
        }
        from = *end ? end + 1 : end;
    }
    *to = 0;
    return 1;
}

/* --- writing --- */

static void put_octal(char *at, int bytes, u64 number) {
    at[--bytes] = 0;
    while (bytes) { at[--bytes] = (char)('0' + (number & 7)); number >>= 3; }
}

/* The length of a record counts its own digits. */
static char *put_record(char *at, const char *key, const char *value) {
    size_t bytes = length(key) + length(value) + 3, digits = 1;
    for (size_t most = 10; bytes + digits >= most; most *= 10) digits++;
    at = put_u64(at, bytes + digits);
    *at++ = ' ';
    at = put(at, key);
    *at++ = '=';
    at = put(at, value);
    *at++ = '\n';
    return at;
}

static char *put_number_record(char *at, const char *key, u64 number) {
    char text[24];
    *put_u64(text, number) = 0;
    return put_record(at, key, text);
}

static char *put_time_record(char *at, struct member *member) {
    char text[40], *to = text;
    int64_t seconds = member->mtime;
    u32 part = (u32)member->mtime_ns;
    if (seconds < 0) {
        *to++ = '-';
        if (part) { seconds++; part = 1000000000 - part; }
        seconds = -seconds;
    }
    to = put_u64(to, (u64)seconds);
    if (part) {
        *to++ = '.';
        for (u32 scale = 100000000; scale; scale /= 10) *to++ = (char)('0' + part / scale % 10);
        while (to[-1] == '0') to--;
    }
    *to = 0;
    return put_record(at, "mtime", text);
}

static int is_plain(const char *name) {
    for (; *name; name++) if ((unsigned char)*name >= 0x80) return 0;
    return 1;
}

static char *put_records(char *at, struct member *member) {
    if (member->is_sparse) {
        at = put_record(at, "GNU.sparse.major", "1");
        at = put_record(at, "GNU.sparse.minor", "0");
        at = put_record(at, "GNU.sparse.name", member->name);
        at = put_number_record(at, "GNU.sparse.realsize", member->real_size);
    } else if (length(member->name) > NAME_BYTES || !is_plain(member->name)) at = put_record(at, "path", member->name);
    if (length(member->link) > NAME_BYTES || !is_plain(member->link)) at = put_record(at, "linkpath", member->link);
    if (member->size > MOST_SIZE) at = put_number_record(at, "size", member->size);
    if (member->uid > MOST_ID) at = put_number_record(at, "uid", member->uid);
    if (member->gid > MOST_ID) at = put_number_record(at, "gid", member->gid);
    if (member->mtime_ns || member->mtime < 0 || (u64)member->mtime > MOST_SIZE) at = put_time_record(at, member);
    return at;
}

static void put_block(char *block, struct member *member, int type, const char *name, u64 size) {
    u32 sum = 0;
    memset(block, 0, BLOCK);
    memcpy(block + AT_NAME, name, bounded_length(name, NAME_BYTES));
    put_octal(block + AT_MODE, 8, member->mode);
    put_octal(block + AT_UID, 8, member->uid > MOST_ID ? 0 : member->uid);
    put_octal(block + AT_GID, 8, member->gid > MOST_ID ? 0 : member->gid);
    put_octal(block + AT_SIZE, 12, size > MOST_SIZE ? 0 : size);
    put_octal(block + AT_MTIME, 12, member->mtime < 0 || (u64)member->mtime > MOST_SIZE ? 0 : (u64)member->mtime);
    memset(block + AT_SUM, ' ', 8);
    block[AT_TYPE] = (char)type;
    if (type == member->type) memcpy(block + AT_LINK, member->link, bounded_length(member->link, NAME_BYTES));
    memcpy(block + AT_MAGIC, "ustar\0" "00", 8);
    for (int i = 0; i < BLOCK; i++) sum += (unsigned char)block[i];
    put_octal(block + AT_SUM, 7, sum);
}

/* The headers of one member. With segments it is sparse, and what its data begins with, the map, follows by `write_map`. */
size_t write_header(char *to, struct member *member) {
    char *records = to + BLOCK, *end = put_records(records, member);
    const char *name = member->is_sparse ? "GNUSparseFile.0" : member->name;
    if (end != records) {
        u64 bytes = (u64)(end - records);
        struct member plain = {.mode = 0644};
        put_block(to, &plain, 'x', "PaxHeader", bytes);
        while ((end - to) % BLOCK) *end++ = 0;
    } else end = to;
    put_block(end, member, member->type, name, member->size);
    return (size_t)(end - to) + BLOCK;
}

/* Into `to`, MAP_BYTES; returns how many, whole blocks. */
size_t write_map(char *to, struct segment *segments, u32 count) {
    char *at = put_u64(to, count);
    *at++ = '\n';
    for (u32 i = 0; i < count; i++) {
        at = put_u64(at, segments[i].offset);
        *at++ = '\n';
        at = put_u64(at, segments[i].bytes);
        *at++ = '\n';
    }
    while ((at - to) % BLOCK) *at++ = 0;
    return (size_t)(at - to);
}
