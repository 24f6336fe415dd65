/* Says how much each of its streams' pipes holds, and goes on living. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(void) {
    printf("%d %d %d\n", fcntl(0, F_GETPIPE_SZ), fcntl(1, F_GETPIPE_SZ), fcntl(2, F_GETPIPE_SZ));
    fflush(stdout);
    pause();
}
