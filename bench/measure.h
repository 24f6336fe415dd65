/* What every C end of a bench needs: the clock, and the one line of JSON that says what was measured. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline double now_s(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Ends this program: what follows a failure would measure something else. `what` is for people. */
static inline _Noreturn void fail(const char *what) {
    perror(what);
    exit(1);
}

static inline int compare_times(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* {"seconds", "calls", "min_us", "p50_us", "p99_us", "max_us"} of `count` times in seconds; sorts them. */
static inline void report_times(double seconds, double *times, size_t count) {
    qsort(times, count, sizeof *times, compare_times);
    printf("{\"seconds\":%.9f,\"calls\":%zu,\"min_us\":%.3f,\"p50_us\":%.3f,\"p99_us\":%.3f,\"max_us\":%.3f}\n", seconds,
           count, times[0] * 1e6, times[count / 2] * 1e6, times[count * 99 / 100] * 1e6, times[count - 1] * 1e6);
}
