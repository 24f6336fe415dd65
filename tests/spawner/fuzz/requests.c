/* Requests by chance, sound ones and broken ones, through the spawner's parser, and what it makes of them through all that a command
 * does before its execve, with a failure at any step. The real start.c: only its system calls are played.
 *
 * Each request lies in memory of exactly its own size, and so do the pointers: one byte too far is seen by AddressSanitizer. */
#include "inside.h"
#include "start.c"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_TRIED = 512, SPILLED_BYTES = 1 << 16 };

struct slot *slots;
u32 used_slots, reaper_uid = NO_USER, welcome_flags, main_pid, held_caps, command_caps;
int control, channel, post, forks, null, dying, is_batch;
static u64 seed;
static long deny; /* the number of the system call that fails; 0: none */
static int denied_step, calls, tried_count;
static char tried[MOST_TRIED][PATH_BYTES];
static long tried_errors[MOST_TRIED];

void step(void) {}
long slurp(const char *path, char *to, size_t bytes) { (void)path, (void)to, (void)bytes; return -ENOENT; }

static u32 any(u32 below) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (u32)((seed * 0x2545f4914f6cdd1dull) >> 33) % below;
}

static _Noreturn void fail(const char *what) {
    fprintf(stderr, "WRONG: %s\n", what);
    abort();
}

/* AddressSanitizer looks on. */
static void look_at(const void *at, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) (void)*((const volatile unsigned char *)at + i);
}

/* --- the system calls of a command before its execve --- */

static long try_path(const char *path) {
    static const int errors[] = {ENOENT, ENOENT, ENOENT, ENOTDIR, ELOOP, EACCES, ENOEXEC, E2BIG, ENOMEM};
    size_t bytes = strlen(path);
    if (tried_count == MOST_TRIED) return -E2BIG;
    snprintf(tried[tried_count], PATH_BYTES, "%s", bytes < PATH_BYTES ? path : "too long");
    return tried_errors[tried_count++] = -errors[any(sizeof errors / sizeof *errors)];
}

static int step_of(long n) {
    switch (n) {
    case __NR_dup3: case __NR_fcntl: return STEP_PROCESS;
    case __NR_ioctl: return STEP_TTY;
    case __NR_prlimit64: return STEP_LIMIT;
    case __NR_setgroups: case __NR_setresgid: case __NR_setresuid: return STEP_USER;
    case __NR_chdir: return STEP_DIRECTORY;
    case __NR_write: return STEP_JOIN;
    default: return 0; /* whose failure is none: setsid, prctl, sched_setscheduler, rt_sigprocmask, capset */
    }
}

/* --- the files that it looks at once its execve is refused --- */

/* A script, a program with a loader somewhere, or anything. */
static long read_any(char *into, size_t bytes) {
    static const char script[] = "#! \t/bin/sh\r -x\n", program[] = "\x7f" "ELF\2\1\1";
    size_t given = any(3) ? bytes : any((u32)bytes + 1);
    look_at(into, bytes);
    for (size_t i = 0; i < given; i++) into[i] = any(4) ? (char)any(4) : (char)any(256);
    if (any(2)) memcpy(into, script, sizeof script < given ? sizeof script : given);
    else if (given > 60) { memcpy(into, program, sizeof program); into[4] = (char)(1 + any(2)); into[54] = 56; into[56] = (char)any(80); }
    return any(9) ? (long)given : -EINTR;
}

static long play_files(long n, long b, long c, long e) {
    static const int errors[] = {ENOENT, EACCES, ENOTDIR, EMFILE};
    if (n == __NR_pread64) return read_any((char *)b, (size_t)c);
    if (n == __NR_close) return 0;
    if (n == __NR_statx) {
        ((struct statx *)e)->stx_mode = any(4) ? S_IFREG : S_IFDIR;
        ((struct statx *)e)->stx_rdev_major = ((struct statx *)e)->stx_rdev_minor = 0;
        return 0;
    }
    look_at((const void *)b, strlen((const char *)b));
    return any(4) ? n == __NR_openat ? 70 : 0 : -errors[any(4)];
}

static void check_finding(struct finding *found) {
    if (found->name_bytes >= PATH_BYTES || found->head_bytes > PROGRAM_HEAD_BYTES || found->depth > 5) fail("a finding has no bounds");
}

long hooked(long n, long a, long b, long c, long d, long e, long f) {
    (void)d, (void)f;
    if (n == __NR_openat || n == __NR_statx || n == __NR_pread64 || n == __NR_faccessat || n == __NR_close) return play_files(n, b, c, e);
    if (n == __NR_execve) {
        if (denied_step) fail("a step has failed, and execve is called");
        return try_path((const char *)a);
    }
    if (n == __NR_exit_group) fail("it ends itself");
    if (n == __NR_prlimit64) look_at((const void *)c, 2 * sizeof(u64));
    if (n == __NR_setgroups) look_at((const void *)b, (size_t)a * sizeof(u32));
    if (n == __NR_chdir) look_at((const void *)a, strlen((const char *)a));
    if (++calls != deny || !step_of(n)) return 0;
    denied_step = step_of(n);
    return -EPERM;
}

/* --- what a sound request must look like, by another way --- */

static void check_parts(struct job *job, struct start *request, size_t bytes) {
    char *end = (char *)request + bytes;
    if ((char *)job->strings > end || job->input > end || job->window > job->input) fail("a part lies behind the frame");
    look_at(job->limits, request->limits * sizeof *job->limits);
    look_at(job->groups, request->groups * sizeof *job->groups);
    if (!(request->flags & F_SPILLED)) look_at(job->strings, request->bytes);
    if (request->flags & F_TTY) look_at(job->window, sizeof(struct winsize));
    look_at(job->input, request->input);
    if (job->input + request->input != end) fail("its input is not its end");
}

/* The strings lie one after the other from the first to the last byte. */
static void check_strings(struct job *job, struct start *request) {
    char *at = job->strings;
    for (u32 i = 0; i < request->argc; at += strlen(at) + 1, i++) if (job->argv[i] != at) fail("an argument is not where it should be");
    if (job->argv[request->argc] || job->envp != job->argv + request->argc + 1) fail("the arguments do not end");
    for (u32 i = 0; i < request->envc; at += strlen(at) + 1, i++) if (job->envp[i] != at) fail("a variable is not where it should be");
    if (job->envp[request->envc]) fail("the environment does not end");
    if (!!job->directory != !!(request->flags & F_DIRECTORY)) fail("the directory is another");
    if (job->directory) { if (job->directory != at) fail("the directory is not where it should be"); at += strlen(at) + 1; }
    if (at != job->strings + request->bytes) fail("something is left over");
}

/* execvp(3)'s walk, written anew. */
static long expected_walk(struct job *job) {
    const char *name = job->argv[0], *path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    long said = -ENOENT;
    int at = 0;
    if (strchr(name, '/')) {
        if (tried_count != 1 || strcmp(tried[0], strlen(name) < PATH_BYTES ? name : "too long")) fail("a path is not tried as it is");
        return tried_errors[0];
    }
    for (char **entry = job->envp; *entry; entry++) if (!strncmp(*entry, "PATH=", 5)) { path = *entry + 5; break; }
    for (;; path++) {
        size_t prefix = strcspn(path, ":");
        if (prefix + strlen(name) + 2 <= PATH_BYTES) {
            if (at == MOST_TRIED) return -E2BIG;
            char expected[PATH_BYTES];
            snprintf(expected, sizeof expected, "%.*s%s%s", (int)prefix, path, prefix ? "/" : "", name);
            if (at >= tried_count || strcmp(tried[at], expected)) fail("another path is tried");
            long error = tried_errors[at++];
            if (error == -EACCES) said = error;
            else if (error != -ENOENT && error != -ENOTDIR && error != -ELOOP) break;
        }
        path += prefix;
        if (!*path) { if (at != tried_count) fail("more paths are tried"); return said; }
    }
    if (at != tried_count) fail("more paths are tried");
    return tried_errors[at - 1];
}

/* --- one request --- */

static void run_command(struct job *job) {
    job->stdio[0] = job->stdio[1] = job->stdio[2] = 50;
    job->control = any(2) ? 3 : 77;
    calls = denied_step = tried_count = 0;
    deny = any(3) ? 0 : 1 + (long)any(24);
    welcome_flags = any(2) ? W_CONFINE : 0;
    if (command(job) != 127) fail("a command that was not executed has another exit code");
    if (denied_step) {
        if ((int)job->slot->step != denied_step || job->slot->error != EPERM) fail("the step that failed is not told");
    } else if (job->slot->step == STEP_EXEC && job->slot->error != (u32)-expected_walk(job)) {
        fail("execve's error is another");
    } else if (job->slot->step == STEP_EXEC) {
        check_finding((struct finding *)inline_store(job->slot, 0));
    } else if (!job->slot->step || !job->slot->error) {
        fail("a refusal has no error");
    }
}

static char *spilled_strings(u32 bytes) {
    char *strings = malloc(bytes ? bytes : 1);
    for (u32 i = 0; i < bytes; i++) strings[i] = any(5) ? (char)('a' + any(26)) : 0;
    if (bytes && any(4)) strings[bytes - 1] = 0;
    return strings;
}

static int is_plausible(struct start *request) {
    return request->bytes <= SPILLED_BYTES && pointer_bytes(request) <= SPILLED_BYTES;
}

/* Returns how far it came. */
static int try_request(const void *frame, size_t bytes, int fds) {
    struct slot slot = {.memory = malloc(SLOT_BYTES)};
    struct passed passed = {fds, {60, 61, 62, 63, 64}};
    struct start *request = malloc(bytes ? bytes : 1);
    struct job job = {.slot = &slot, .request = request, .stdio = {-1, -1, -1}, .control = -1};
    char *strings = NULL, **pointers = NULL;
    int came = 0;
    memcpy(request, frame, bytes);
    if (parse(&job, request, (long)bytes, &passed)) {
        came = 1;
        check_parts(&job, request, bytes);
        if (request->flags & F_SPILLED && is_plausible(request)) job.strings = strings = spilled_strings(request->bytes);
        if (!(request->flags & F_WORKER) && (strings || !(request->flags & F_SPILLED)) && is_plausible(request)) {
            pointers = malloc(pointer_bytes(request) + PATH_BYTES);
            if (lay_out(&job, pointers)) { came = 2; check_strings(&job, request); run_command(&job); }
        }
    }
    free(slot.memory);
    free(strings);
    free(pointers);
    free(request);
    return came;
}

/* --- requests by chance --- */

static size_t add_string(char *at) {
    static const char *const known[] = {"PATH=", "PATH=/a:/b", "PATH=:", "PATH=::/x:", "true", "./x", "/bin/true", "", "PATHS=1", "PATH"};
    size_t bytes = 0;
    if (any(2)) { const char *text = known[any(10)]; bytes = strlen(text); memcpy(at, text, bytes); }
    if (!any(10)) { memcpy(at + bytes, "PATH=", 5); bytes += 5; for (u32 n = any(4200); n; n--) at[bytes++] = any(9) ? 'p' : ':'; }
    for (u32 n = any(3) ? any(4) : any(300); n; n--) at[bytes++] = any(8) ? (char)('a' + any(26)) : ":/="[any(3)];
    at[bytes] = 0;
    return bytes + 1;
}

static u32 flag_by_chance(u32 flag, u32 one_in) { return any(one_in) ? 0 : flag; }

static size_t make_request(char *frame) {
    struct start request = {.op = START, .id = 1 + any(1000), .place = any(4) ? 0 : any(MAX_REAPERS + 2)};
    char *at = frame + sizeof request, *strings;
    request.flags = flag_by_chance(F_DIRECTORY, 3) | flag_by_chance(F_NULL_STDIN, 3) | flag_by_chance(F_IDENTITY, 2) |
                    flag_by_chance(F_SPILLED, 6) | flag_by_chance(F_TTY, 6) | flag_by_chance(F_TEMPLATE, 6) |
                    flag_by_chance(F_WORKER, 8) | flag_by_chance(F_RUN, 3) | flag_by_chance(F_MERGE, 5) | flag_by_chance(F_INPUT_FILE, 6);
    request.joins = any(4) ? 0 : any(MAX_JOINS + 2);
    request.argc = 1 + any(4);
    request.envc = any(4);
    request.limits = any(2) ? 0 : any(MAX_LIMITS + 2);
    request.groups = any(2) ? 0 : any(any(9) ? 6 : MAX_GROUPS + 2);
    request.limit = any(5) ? any(1 << 20) : any(2 * MAX_OUTPUT_BYTES);
    request.head = any(5) ? request.limit / 2 : any(1 << 20);
    at += request.limits * sizeof(struct limit) + request.groups * sizeof(u32);
    strings = at;
    if (!(request.flags & F_SPILLED))
        for (u32 n = request.argc + request.envc + !!(request.flags & F_DIRECTORY); n; n--) at += add_string(at);
    request.bytes = request.flags & F_SPILLED ? any(SPILLED_BYTES) : (u32)(at - strings);
    if (request.flags & F_TTY) at += sizeof(struct winsize);
    at += request.input = any(2) ? 0 : any(200);
    memcpy(frame, &request, sizeof request);
    return (size_t)(at - frame);
}

/* Flips, other counts, a longer or shorter frame. */
static size_t break_it(char *frame, size_t bytes) {
    static const u32 odd[] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff, 0xfffffff0, 1 << 20, 8 << 20};
    for (u32 n = any(4); n; n--) {
        u32 *word = (u32 *)(void *)frame + any(sizeof(struct start) / sizeof(u32));
        switch (any(5)) {
        case 0: *word = odd[any(8)]; break;
        case 1: *word += any(3) - 1; break;
        case 2: frame[any((u32)bytes)] ^= (char)(1 << any(8)); break;
        case 3: bytes = any(2) ? any((u32)bytes + 1) : bytes; break;
        default: bytes += any(9); break;
        }
        if (bytes < sizeof(struct start)) break;
    }
    return bytes;
}

/* FIRST COUNT: those requests. */
int main(int argc, char **argv) {
    u64 first = argc > 1 ? strtoull(argv[1], NULL, 10) : 0, count = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    static _Alignas(16) char frame[8 * FRAME_BYTES];
    u64 came[3] = {0};
    for (u64 i = 0; i < count; i++) {
        seed = (first + i + 1) * 0x9e3779b97f4a7c15ull;
        for (u32 k = 0; k < 8; k++) any(2);
        memset(frame, 0, sizeof frame);
        size_t bytes = make_request(frame);
        u32 flags = ((struct start *)(void *)frame)->flags;
        int fds = (int)((struct start *)(void *)frame)->joins + !!(flags & F_WORKER) + !!(flags & F_INPUT_FILE) + !!(flags & F_SPILLED);
        if (any(3)) bytes = break_it(frame, bytes);
        if (bytes > FRAME_BYTES) continue;
        came[try_request(frame, bytes, any(20) ? fds : (int)any(MAX_FDS + 1))]++;
    }
    printf("%llu requests: %llu refused, %llu read, %llu tried\n", (unsigned long long)count, (unsigned long long)came[0],
           (unsigned long long)came[1], (unsigned long long)came[2]);
    return 0;
}
