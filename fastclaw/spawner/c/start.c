/* A START: checks it, and, in the vforked child, turns it into a command. */
#include "spawner.h"

static int refuse(struct job *job, int step, long error) {
    job->slot->step = (u32)step;
    job->slot->error = (u32)-error;
    return 127;
}

/* The memory is still shared with main: a change of the user must not make it dumpable (prctl(2), PR_SET_DUMPABLE). */
static long change_user(struct job *job) {
    struct start *request = job->request;
    long error = 0;
    if (request->flags & F_IDENTITY) {
        if (is_own_user(request->uid)) return -EPERM;
        if ((error = SYS(setgroups, request->groups, job->groups))) return error;
        if ((error = SYS(setresgid, request->gid, request->gid, request->gid))) return error;
        if ((error = SYS(setresuid, request->uid, request->uid, request->uid))) return error;
        SYS(prctl, PR_SET_DUMPABLE, 0);
    }
    if (welcome_flags & W_CONFINE) leave_capabilities(request->flags & F_IDENTITY ? request->uid : 0);
    return 0;
}

/* Where a name without a slash is looked up (environ(7)); NULL for a path. */
static const char *search_path(struct job *job) {
    for (const char *c = job->argv[0]; *c; c++) if (*c == '/') return NULL;
    for (char **entry = job->envp; *entry; entry++)
        if ((*entry)[0] == 'P' && (*entry)[1] == 'A' && (*entry)[2] == 'T' && (*entry)[3] == 'H' && (*entry)[4] == '=') return *entry + 5;
    return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
}

/* The next file of that name, into the job's path; 0 after the last. */
static int next_candidate(struct job *job, const char **from) {
    size_t bytes = length(job->argv[0]);
    while (*from) {
        const char *start = *from, *end = start;
        while (*end && *end != ':') end++;
        *from = *end ? end + 1 : NULL;
        size_t prefix = (size_t)(end - start);
        if (prefix + bytes + 2 > PATH_BYTES) continue;
        char *at = job->path;
        memcpy(at, start, prefix);
        at += prefix;
        if (prefix) *at++ = '/';
        memcpy(at, job->argv[0], bytes + 1);
        return 1;
    }
    return 0;
}

/* execvp(3) without its shell for files that are no program. EACCES wins over "not found". */
static long execute(struct job *job) {
    const char *from = search_path(job);
    long said = -ENOENT;
    if (!from) return SYS(execve, job->argv[0], job->argv, job->envp);
    while (next_candidate(job, &from)) {
        long error = SYS(execve, job->path, job->argv, job->envp);
        if (error == -EACCES) said = error;
        else if (error != -ENOENT && error != -ENOTDIR && error != -ELOOP) return error;
    }
    return said;
}

/* After a failed execve: looks again at its file, or at the first one on the search path. */
static int report_refusal(struct job *job, long error) {
    const char *from = search_path(job), *path = from ? job->path : job->argv[0];
    struct finding *found = (struct finding *)inline_store(job->slot, 0);
    *found = (struct finding){0}; /* before slot->error is set: if the child is killed in here, this is sent */
    refuse(job, STEP_EXEC, error);
    job->path[0] = 0; /* if no candidate is short enough */
    while (from && next_candidate(job, &from) && SYS(faccessat, AT_FDCWD, job->path, 0)) {}
    find_out(path, error, found);
    return 127;
}

static long pass_fd(int fd, int as) { return fd == as ? SYS(fcntl, fd, F_SETFD, 0) : SYS(dup3, fd, as, 0); }

/* Each is a file of a control group, open for writing, of which the kernel asks whether its opener might: "0" is who writes (cgroups(7)).
 * Of version 1 it is `tasks`, by which one thread goes alone: a whole process would wait for all processors (cgroup_threadgroup_rwsem). */
static long join(struct job *job) {
    for (u32 i = 0; i < job->request->joins; i++) {
        long n = SYS(write, job->joins[i], "0", 1);
        if (n < 0) return n;
    }
    return 0;
}

/* Runs in the vforked child, in the pump's memory: writes nothing but its slot. */
int command(void *argument) {
    struct job *job = argument;
    struct start *request = job->request;
    u64 none = 0;
    int priority = 0;
    long error;
    if ((error = join(job))) return refuse(job, STEP_JOIN, error);
    SYS(setsid);
    if (is_batch) SYS(sched_setscheduler, 0, SCHED_OTHER, &priority);
    int dies_with_parent = !(welcome_flags & W_GVISOR); /* where its parent ends at once, see start_apart */
    if (dies_with_parent) SYS(prctl, PR_SET_PDEATHSIG, SIGKILL); /* and again below: changing users takes it away */
    for (int i = 0; i < 3; i++) /* never 0-2 already: main keeps those open on /dev/null */
        if ((error = SYS(dup3, job->stdio[i], i, 0)) < 0) return refuse(job, STEP_PROCESS, error);
    if (request->flags & F_TTY && (error = SYS(ioctl, 1, TIOCSCTTY, 0)) < 0) return refuse(job, STEP_TTY, error);
    for (u32 i = 0; i < request->limits; i++) {
        u64 pair[2] = {job->limits[i].soft, job->limits[i].hard};
        if ((error = SYS(prlimit64, 0, job->limits[i].which, pair, 0)) < 0) return refuse(job, STEP_LIMIT, error);
    }
    if (request->flags & F_TEMPLATE && (error = pass_fd(job->control, 3)) < 0) return refuse(job, STEP_PROCESS, error);
    if ((error = change_user(job)) < 0) return refuse(job, STEP_USER, error);
    if (job->directory && (error = SYS(chdir, job->directory)) < 0) return refuse(job, STEP_DIRECTORY, error);
    if (dies_with_parent) SYS(prctl, PR_SET_PDEATHSIG, SIGKILL);
    SYS(rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
    return report_refusal(job, execute(job));
}

/* Fills in pointers to `count` consecutive strings. False where they are not all there. */
static int fill_pointers(char ***into, u32 count, char **at, const char *end) {
    char **pointers = *into;
    for (u32 i = 0; i < count; i++) {
        pointers[i] = *at;
        while (*at < end && **at) ++*at;
        if (*at == end) return 0;
        ++*at;
    }
    pointers[count] = NULL;
    *into = pointers + count + 1;
    return 1;
}

int lay_out(struct job *job, char **pointers) {
    struct start *request = job->request;
    char *at = job->strings, *end = at + request->bytes;
    job->argv = pointers;
    if (!fill_pointers(&pointers, request->argc, &at, end)) return 0;
    job->envp = pointers;
    if (!fill_pointers(&pointers, request->envc, &at, end)) return 0;
    job->directory = NULL;
    if (request->flags & F_DIRECTORY) {
        job->directory = at;
        while (at < end && *at) at++;
        if (at++ == end) return 0;
    }
    job->path = (char *)pointers;
    return at == end;
}

/* A worker has a JSON text for its template instead of arguments, and no stdio of its own making. */
static int counts_fit(struct start *request, struct passed *passed) {
    u32 flags = request->flags, is_worker = flags & F_WORKER;
    if (flags & ~(u32)F_ALL || (flags & F_TTY && flags & (F_TEMPLATE | F_WORKER | F_RUN | F_MERGE))) return 0;
    if (flags & F_TEMPLATE && flags & (F_WORKER | F_RUN)) return 0;
    if (is_worker && (request->place >= MAX_REAPERS || !request->bytes)) return 0;
    if (!is_worker && (!request->argc || request->argc > MAX_STRINGS || request->envc > MAX_STRINGS)) return 0;
    if (request->groups > MAX_GROUPS || request->limits > MAX_LIMITS || request->bytes > (is_worker ? MAX_REQUEST_BYTES : MAX_STRINGS_BYTES)) return 0;
    if (request->input > FRAME_BYTES || request->limit > MAX_OUTPUT_BYTES || request->head > request->limit) return 0;
    if (request->joins > (is_worker ? 0 : MAX_JOINS)) return 0;
    return passed->count == (int)request->joins + !!is_worker + !!(flags & F_INPUT_FILE) + !!(flags & F_SPILLED);
}

/* Checks the counts against each other and the frame; sets the pointers to its parts. */
int parse(struct job *job, struct start *request, long bytes, struct passed *passed) {
    if (bytes < (long)sizeof *request || request->op != START || !request->id || !counts_fit(request, passed)) return 0;
    u32 spilled = request->flags & F_SPILLED;
    job->limits = (struct limit *)(request + 1);
    job->groups = (u32 *)(job->limits + request->limits);
    job->strings = (char *)(job->groups + request->groups);
    long fixed = job->strings - (char *)request, window = request->flags & F_TTY ? (long)sizeof(struct winsize) : 0;
    if (bytes != fixed + (spilled ? 0 : (long)request->bytes) + window + (long)request->input) return 0;
    job->input = (char *)request + bytes - request->input;
    job->window = job->input - window;
    int next = (int)request->joins;
    job->joins = passed->fd;
    job->go = request->flags & F_WORKER ? passed->fd[next++] : -1;
    job->input_file = request->flags & F_INPUT_FILE ? passed->fd[next] : -1;
    return 1;
}

size_t pointer_bytes(struct start *request) {
    return ((size_t)request->argc + request->envc + 2) * sizeof(char *);
}
