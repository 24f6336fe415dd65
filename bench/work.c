/* What is started and measured, the same file on both sides: static, so that the dynamic linker is not half of it.
 *
 *   work out BYTES      so many bytes of text: the letters a to p over and over, in one write
 *   work cat            stdin to stdout to its end
 *   work flood BYTES    so many bytes, 0 to 255 over and over, 64 KiB a write; then waits for the end of stdin
 *   work lock           says so on stderr, then holds the mutex of its own stdout's pipe until it is killed
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BLOCK = 64 << 10, SOURCE = 64 << 20 }; /* made output does not lie in the CPU's cache: goes round in 64 MiB */

static int put(const char *from, size_t size) {
    while (size > 0) {
        ssize_t written = write(1, from, size);
        if (written <= 0) return 1;
        from += written;
        size -= (size_t)written;
    }
    return 0;
}

static int out(size_t size) {
    char *text = malloc(size + 1);
    for (size_t i = 0; i < size; i++) text[i] = (char)('a' + i % 16);
    return put(text, size);
}

static int cat(void) {
    static char block[BLOCK];
    ssize_t size;
    while ((size = read(0, block, sizeof block)) > 0)
        if (put(block, (size_t)size)) return 1;
    return size < 0;
}

static int flood(size_t left) {
    char *source = malloc(SOURCE), byte;
    for (size_t i = 0; i < SOURCE; i++) source[i] = (char)i;
    for (size_t at = 0; left > 0; at = (at + BLOCK) % SOURCE) {
        size_t size = left < BLOCK ? left : BLOCK;
        if (put(source + at, size)) return 1;
        left -= size;
    }
    while (read(0, &byte, 1) > 0) continue;
    return 0;
}

/* splice(2) from an empty socket into a pipe waits for data with the pipe locked (splice_file_to_pipe, fs/splice.c). */
static int lock(void) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || write(1, "x", 1) != 1 || write(2, "locking\n", 8) != 8) return 1;
    return splice(pair[0], NULL, 1, NULL, 1, 0) < 0;
}

int main(int argc, char **argv) {
    const char *word = argc > 1 ? argv[1] : "";
    size_t size = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    if (!strcmp(word, "out")) return out(size);
    if (!strcmp(word, "cat")) return cat();
    if (!strcmp(word, "flood")) return flood(size);
    return strcmp(word, "lock") ? 2 : lock();
}
