/* The floor under `exec` and `run`: posix_spawn and wait, with nobody to talk to and nothing around the command.
 *
 *   run_floor loop|threads COUNT AT_ONCE bare|pipes INPUT OUTPUT PATH ARGV…
 *
 * Starts PATH so many times, so many at once. `bare`: no streams. `pipes`: stdout and stderr are pipes that are read to
 * their end; with INPUT > 0 stdin is a third one that so many bytes go into, else it is this program's. stdout must
 * bring OUTPUT bytes, stderr none, and the exit code must be 0. Prints a line of JSON (measure.h).
 *
 * Two ways, since both are honest and they answer different questions (2 cores, Linux 6.18, a static program, pipes, 16
 * at once):
 *   loop     one thread, as a supervisor with an event loop has it. vfork suspends it until the child has called
 *            execve, so the second core is idle for part of the time: 3 200/s.
 *   threads  one for each command, each a plain blocking loop: only the thread that starts something is suspended.
 *            Both cores are full with the kernel's own part of a start and an end: 4 050/s. Hardly more can be had:
 *            4 400/s with processes in place of the threads, which is no longer one supervisor.
 * One at a time both are the plain blocking loop: an epoll would only add to it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "measure.h"

enum { MOST_AT_ONCE = 64, BLOCK = 64 << 10 };

extern char **environ;

struct command {
    pid_t pid;
    int streams[2]; /* stdout, stderr */
    int open;
    size_t got;
    double began;
};

static struct {
    size_t count, at_once, input, output;
    int pipes;
    char *path, **argv, *data;
    double *times;
} job;

static size_t begun, ended; /* of all threads */
static int watched = -1;    /* the loop's epoll */

static void make_pipe(int pair[2]) {
    if (pipe2(pair, O_CLOEXEC)) fail("pipe2");
}

static void spawn(struct command *command, posix_spawn_file_actions_t *actions) {
    errno = posix_spawn(&command->pid, job.path, actions, NULL, job.argv, environ);
    if (errno) fail("posix_spawn");
}

/* INPUT is at most what a pipe holds, so the write never waits. */
static void spawn_with_pipes(struct command *command) {
    int pairs[3][2], first = job.input ? 0 : 1;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    for (int fd = first; fd < 3; fd++) {
        make_pipe(pairs[fd]);
        posix_spawn_file_actions_adddup2(&actions, pairs[fd][fd > 0], fd);
    }
    spawn(command, &actions);
    posix_spawn_file_actions_destroy(&actions);
    for (int fd = first; fd < 3; fd++) close(pairs[fd][fd > 0]);
    if (job.input) {
        if (write(pairs[0][1], job.data, job.input) != (ssize_t)job.input) fail("input");
        close(pairs[0][1]);
    }
    command->streams[0] = pairs[1][0];
    command->streams[1] = pairs[2][0];
}

static void start(struct command *command) {
    command->began = now_s();
    command->got = 0;
    command->open = job.pipes ? 2 : 0;
    if (job.pipes) spawn_with_pipes(command);
    else spawn(command, NULL);
}

/* Whether there may be more to read from a stream, 0 or 1; closes it at its end. A child in its execve may still have a
 * copy (execve ends the vfork before it closes what is CLOEXEC), so closing alone does not take it out of epoll. */
static int take(struct command *command, int stream) {
    char block[BLOCK];
    ssize_t size = read(command->streams[stream], block, sizeof block);
    if (size < 0) fail("read");
    if (size > 0 && stream == 1) fail("the command wrote to stderr");
    command->got += (size_t)size;
    if (size > 0) return 1;
    if (watched >= 0) epoll_ctl(watched, EPOLL_CTL_DEL, command->streams[stream], NULL);
    close(command->streams[stream]);
    command->open--;
    return 0;
}

static void finish(struct command *command) {
    int status;
    if (waitpid(command->pid, &status, 0) != command->pid) fail("waitpid");
    if (status != 0 || (job.pipes && command->got != job.output)) fail("not what was expected of the command");
    job.times[__atomic_fetch_add(&ended, 1, __ATOMIC_RELAXED)] = now_s() - command->began;
}

static void *run_thread(void *unused) {
    struct command command;
    while (__atomic_fetch_add(&begun, 1, __ATOMIC_RELAXED) < job.count) {
        start(&command);
        for (int stream = 0; job.pipes && stream < 2; stream++)
            while (take(&command, stream)) continue;
        finish(&command);
    }
    return unused;
}

static void run_threads(void) {
    pthread_t threads[MOST_AT_ONCE];
    for (size_t i = 0; i < job.at_once; i++)
        if (pthread_create(&threads[i], NULL, run_thread, NULL)) fail("pthread_create");
    for (size_t i = 0; i < job.at_once; i++) pthread_join(threads[i], NULL);
}

/* Without streams there is nothing to wait for but the ends, in the order of the starts. */
static void run_loop_bare(void) {
    struct command commands[MOST_AT_ONCE];
    while (ended < job.count) {
        if (begun < job.count && begun - ended < job.at_once) start(&commands[begun++ % job.at_once]);
        else finish(&commands[ended % job.at_once]);
    }
}

static void start_watched(struct command *command, size_t place) {
    start(command);
    begun++;
    for (unsigned stream = 0; stream < 2; stream++) {
        struct epoll_event event = {EPOLLIN, {.u64 = place << 1 | stream}};
        if (epoll_ctl(watched, EPOLL_CTL_ADD, command->streams[stream], &event)) fail("epoll_ctl");
    }
}

static void run_loop(void) {
    struct command commands[MOST_AT_ONCE];
    struct epoll_event events[2 * MOST_AT_ONCE];
    watched = epoll_create1(EPOLL_CLOEXEC);
    for (size_t place = 0; place < job.at_once && begun < job.count; place++)
        start_watched(&commands[place], place);
    while (ended < job.count) {
        int ready = epoll_wait(watched, events, 2 * MOST_AT_ONCE, -1);
        for (int i = 0; i < ready; i++) {
            size_t place = events[i].data.u64 >> 1;
            struct command *command = &commands[place];
            if (take(command, events[i].data.u64 & 1) || command->open) continue;
            finish(command);
            if (begun < job.count) start_watched(command, place);
        }
    }
}

int main(int argc, char **argv) {
    if (argc < 9) return 2;
    job.count = strtoul(argv[2], NULL, 10);
    job.at_once = strtoul(argv[3], NULL, 10);
    job.pipes = !strcmp(argv[4], "pipes");
    job.input = strtoul(argv[5], NULL, 10);
    job.output = strtoul(argv[6], NULL, 10);
    job.path = argv[7];
    job.argv = argv + 8;
    if (job.at_once < 1 || job.at_once > MOST_AT_ONCE || job.input > BLOCK) return 2;
    job.times = calloc(job.count, sizeof *job.times);
    job.data = memset(malloc(BLOCK), 'x', BLOCK);
    double began = now_s();
    if (job.at_once == 1) run_thread(NULL);
    else if (!strcmp(argv[1], "threads")) run_threads();
    else if (job.pipes) run_loop();
    else run_loop_bare();
    report_times(now_s() - began, job.times, job.count);
    return 0;
}
