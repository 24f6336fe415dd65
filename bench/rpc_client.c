/* The least that a supervisor can do over the wire of a served runtime that is up already, in C.
 *
 *   rpc_client OUT IN COUNT AT_ONCE METHOD HEALTH PARAMS [WORD…]
 *
 * OUT and IN are the runtime's stdin and stdout. METHOD `run` is one request for each command, `exec` two: exec, then
 * wait. PARAMS are those of run or exec, as JSON. Each last answer must hold every WORD (such as "exit_code":0), else
 * this ends with 1 and shows it. With HEALTH > 0, `health` is asked every so many milliseconds until all have ended,
 * whether the call before has been answered or not: who waited for it would ask least where it takes longest.
 * Prints a line of JSON (measure.h) for the commands, then one for `health`.
 *
 * An answer is not parsed: it is a line whose id is looked for, and the words. A client that reads JSON would hide what
 * the runtime costs. A write may wait: the runtime goes on reading, since it holds megabytes of answers back.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "measure.h"

enum {
    DEADLINE_S = 30,        /* of all of it: a runtime that hangs is a failure, not a bench that never ends */
    LINE_BYTES = 1 << 20,   /* of an answer */
    REQUEST_BYTES = 256,    /* of a request, without its params */
    MOST_HEALTH = DEADLINE_S * 1000, /* one each millisecond */
};

/* Ids: command n is exec or run 2n+1, and wait 2n+2; health follows all of them. */
static struct {
    int out, in, waits;
    size_t count, at_once, begun, ended;
    const char *method, *params, **words;
    double *began, *times; /* of each command */
    double health_s;       /* between two calls */
    double *asked, *health_times;
    size_t health_asked, health_answered;
    char *request; /* what is to be sent next, in one write */
    size_t size;
} job;

static void on_alarm(int signal) {
    (void)signal;
    static const char text[] = "no answer within 30 s: the runtime hangs\n";
    if (write(2, text, sizeof text - 1)) _exit(1);
    _exit(1);
}

static _Noreturn void refuse(const char *answer) {
    fprintf(stderr, "not what was expected: %s\n", answer);
    exit(1);
}

static void add(size_t id, const char *method, const char *params) {
    static const char form[] = "{\"jsonrpc\":\"2.0\",\"id\":%zu,\"method\":\"%s\",\"params\":%s}\n";
    job.size += (size_t)sprintf(job.request + job.size, form, id, method, params);
}

static void add_command(void) {
    job.began[job.begun] = now_s();
    add(2 * job.begun++ + 1, job.method, job.params);
}

/* Asks for health if it is due; the milliseconds until it is due next. */
static int add_health(void) {
    double now = now_s(), due = job.health_asked ? job.asked[job.health_asked - 1] + job.health_s : now;
    if (now >= due && job.health_asked < MOST_HEALTH) {
        job.asked[job.health_asked] = now;
        add(2 * job.count + 1 + job.health_asked++, "health", "{}");
        due = now + job.health_s;
    }
    return 1 + (int)((due - now) * 1000);
}

static void add_wait(size_t id, const char *answer) {
    static const char key[] = "\"process_id\":\"";
    const char *name = strstr(answer, key), *end = name ? strchr(name + sizeof key, '"') : NULL;
    char params[REQUEST_BYTES / 2];
    if (!end || end - name > REQUEST_BYTES / 4) refuse(answer);
    sprintf(params, "{%.*s\"}", (int)(end - name), name);
    add(id + 1, "wait", params);
}

static void send_all(void) {
    for (size_t sent = 0; sent < job.size;) {
        ssize_t written = write(job.out, job.request + sent, job.size - sent);
        if (written < 0) fail("write");
        sent += (size_t)written;
    }
    job.size = 0;
}

static void take_health(size_t number, const char *line) {
    if (!strstr(line, "\"status\":\"healthy\"") || number >= job.health_asked) refuse(line);
    job.health_times[job.health_answered++] = now_s() - job.asked[number];
}

static void take_end(size_t id, const char *line) {
    for (const char **word = job.words; *word; word++)
        if (!strstr(line, *word)) refuse(line);
    size_t number = (id - 1) / 2;
    job.times[job.ended++] = now_s() - job.began[number];
    if (job.begun < job.count) add_command();
}

static void take_line(const char *line) {
    const char *id_at = strstr(line, "\"id\":");
    if (!id_at || strstr(line, "\"error\":")) refuse(line);
    size_t id = strtoul(id_at + 5, NULL, 10);
    if (id > 2 * job.count) take_health(id - 2 * job.count - 1, line);
    else if (job.waits && id % 2) add_wait(id, line);
    else take_end(id, line);
}

/* One read; then every whole line of it, and one write of what they led to. The rest of a line stays for the next. */
static size_t take(char *buffer, size_t held) {
    ssize_t size = read(job.in, buffer + held, LINE_BYTES - held);
    if (size <= 0) fail("the runtime's stdout has ended, or a line is too long");
    char *line = buffer, *end, *searched = buffer + held;
    held += (size_t)size;
    while ((end = memchr(searched, '\n', (size_t)(buffer + held - searched)))) {
        *end = 0;
        take_line(line);
        line = searched = end + 1;
    }
    if (job.size) send_all();
    held -= (size_t)(line - buffer);
    memmove(buffer, line, held);
    return held;
}

/* Whether there is something to read before `health` is due. */
static int is_readable(int milliseconds) {
    struct pollfd in = {.fd = job.in, .events = POLLIN};
    return poll(&in, 1, milliseconds) > 0;
}

static void run(void) {
    char *buffer = malloc(LINE_BYTES);
    size_t held = 0;
    while (job.begun < job.count && job.begun < job.at_once) add_command();
    send_all();
    while (job.ended < job.count || job.health_answered < job.health_asked) {
        int due_ms = job.health_s > 0 && job.ended < job.count ? add_health() : -1;
        if (job.size) send_all();
        if (due_ms < 0 || is_readable(due_ms)) held = take(buffer, held);
    }
}

int main(int argc, const char **argv) {
    if (argc < 8) return 2;
    job.out = atoi(argv[1]);
    job.in = atoi(argv[2]);
    job.count = strtoul(argv[3], NULL, 10);
    job.at_once = strtoul(argv[4], NULL, 10);
    job.method = argv[5];
    job.waits = !strcmp(argv[5], "exec");
    job.health_s = atoi(argv[6]) / 1000.0;
    job.params = argv[7];
    job.words = argv + 8;
    job.began = calloc(job.count, sizeof *job.began);
    job.times = calloc(job.count, sizeof *job.times);
    job.asked = calloc(MOST_HEALTH, sizeof *job.asked);
    job.health_times = calloc(MOST_HEALTH, sizeof *job.health_times);
    job.request = malloc((job.at_once + 1) * (REQUEST_BYTES + strlen(job.params)));
    signal(SIGALRM, on_alarm);
    alarm(DEADLINE_S);
    double began = now_s();
    run();
    report_times(now_s() - began, job.times, job.count);
    if (job.health_answered) report_times(now_s() - began, job.health_times, job.health_answered);
    return 0;
}
