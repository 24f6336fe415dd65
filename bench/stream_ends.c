/* The client's end of a stream. END is a descriptor, or the path of a socket to connect to.
 *
 *   stream_ends read END BYTES CHECK   says `ready`, waits for a line, reads so many bytes, tells what that took, and
 *                                      keeps the stream open until its own stdin ends; CHECK 1 looks at every byte
 *   stream_ends ping END COUNT         round trips of 200 bytes, one after the other, after some to warm up
 *
 * Prints a line of JSON: `read` {"seconds", "right"}, `ping` that of measure.h.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "measure.h"

enum { BLOCK = 64 << 10, PING = 200, WARM_UP = 200 };

static int end_of(const char *name) {
    if (*name != '/') return atoi(name);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, name, sizeof address.sun_path - 1);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) fail(name);
    return fd;
}

static void wait_for_line(void) {
    char byte = 0;
    while (byte != '\n' && read(0, &byte, 1) == 1) continue;
}

/* Bytes count up from 0 to 255 over and over, so each one's value is known from its place. */
static int is_right(const unsigned char *block, size_t size, size_t place) {
    for (size_t i = 0; i < size; i++)
        if (block[i] != (unsigned char)(place + i)) return 0;
    return 1;
}

static void read_all(int fd, size_t total, int check) {
    static unsigned char block[BLOCK];
    int right = 1;
    puts("ready");
    fflush(stdout);
    wait_for_line();
    double began = now_s();
    for (size_t got = 0; got < total;) {
        ssize_t size = read(fd, block, sizeof block);
        if (size <= 0) fail("the stream has ended too early");
        if (check) right = right && is_right(block, (size_t)size, got);
        got += (size_t)size;
        right = right && got <= total;
    }
    printf("{\"seconds\":%.9f,\"right\":%s}\n", now_s() - began, right ? "true" : "false");
    fflush(stdout);
    wait_for_line();
}

static double round_trip(int fd, const char *data) {
    char answer[PING];
    double began = now_s();
    if (write(fd, data, PING) != PING) fail("ping");
    for (size_t got = 0; got < PING;) {
        ssize_t size = read(fd, answer + got, PING - got);
        if (size <= 0) fail("pong");
        got += (size_t)size;
    }
    double took = now_s() - began;
    if (memcmp(answer, data, PING)) fail("another answer");
    return took;
}

static void ping(int fd, size_t count) {
    char data[PING];
    for (size_t i = 0; i < PING; i++) data[i] = (char)i;
    double *times = calloc(count, sizeof *times), began = 0;
    for (size_t i = 0; i < WARM_UP; i++) round_trip(fd, data);
    began = now_s();
    for (size_t i = 0; i < count; i++) times[i] = round_trip(fd, data);
    report_times(now_s() - began, times, count);
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int fd = end_of(argv[2]);
    size_t size = strtoul(argv[3], NULL, 10);
    if (!strcmp(argv[1], "read")) read_all(fd, size, argc > 4 && atoi(argv[4]));
    else ping(fd, size);
    return 0;
}
