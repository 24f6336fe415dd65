/* Fibers that take turns by chance, and the clock that moves when all of them wait. */
#include "world.h"
#include <execinfo.h>
#include <sanitizer/common_interface_defs.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

enum { STACK_BYTES = 256 << 10, SWITCH_ONE_IN = 3 };

struct fiber fibers[MAX_FIBERS], *me;
int fiber_count, is_loud;
u64 calls;
u64 virtual_ms = 1000;
static struct { ucontext_t at; char *stack; void *fake; int (*fn)(void *); void *argument; } contexts[MAX_FIBERS];
static ucontext_t scheduler;
static void *scheduler_fake;
static const void *scheduler_stack;
static size_t scheduler_bytes;
extern u64 seed;

u32 any(u32 below) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (u32)((seed * 0x2545f4914f6cdd1dull) >> 33) % below;
}

static const char *name_of(struct fiber *fiber) {
    static char text[32];
    if (!fiber) return "story";
    snprintf(text, sizeof text, "%s %d", fiber->kind == MAIN ? "main" : fiber->kind == REAPER ? "reaper" : "pump",
             fiber->slot ? (int)(fiber->slot - slots) : 0);
    return text;
}

void note(const char *format, ...) {
    if (!is_loud) return;
    va_list rest;
    va_start(rest, format);
    fprintf(stderr, "%6llu %-9s ", (unsigned long long)virtual_ms, name_of(me));
    vfprintf(stderr, format, rest);
    fputc('\n', stderr);
    va_end(rest);
}

void fail(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    fprintf(stderr, "WRONG (%s): ", name_of(me));
    vfprintf(stderr, format, rest);
    fputc('\n', stderr);
    va_end(rest);
    __sanitizer_print_stack_trace();
    _Exit(3);
}

static void to_scheduler(int is_last) {
    int number = (int)(me - fibers);
    __sanitizer_start_switch_fiber(is_last ? NULL : &contexts[number].fake, scheduler_stack, scheduler_bytes);
    swapcontext(&contexts[number].at, &scheduler);
    __sanitizer_finish_switch_fiber(contexts[number].fake, NULL, NULL);
}

static void enter(int number) {
    __sanitizer_finish_switch_fiber(NULL, &scheduler_stack, &scheduler_bytes);
    contexts[number].fn(contexts[number].argument);
    end_fiber();
}

struct fiber *begin_fiber(enum kind kind, struct slot *slot, int (*fn)(void *), void *argument) {
    int number = fiber_count++;
    if (number >= MAX_FIBERS) fail("more fibers than are provided for");
    struct fiber *fiber = &fibers[number];
    *fiber = (struct fiber){.kind = kind, .slot = slot, .pid = (u32)(MAIN_PID + number), .parent = me ? me->pid : 1};
    contexts[number].fn = fn;
    contexts[number].argument = argument;
    contexts[number].stack = malloc(STACK_BYTES);
    getcontext(&contexts[number].at);
    contexts[number].at.uc_stack.ss_sp = contexts[number].stack;
    contexts[number].at.uc_stack.ss_size = STACK_BYTES;
    makecontext(&contexts[number].at, (void (*)(void))enter, 1, number);
    return fiber;
}

void end_fiber(void) {
    me->is_over = 1;
    close_kept(me);
    tell_parent(me);
    to_scheduler(1);
    abort();
}

void step(void) {
    if (me && !any(SWITCH_ONE_IN)) to_scheduler(0);
}

int expired(u64 deadline) { return deadline && virtual_ms >= deadline; }

void block(u64 deadline) {
    me->is_blocked = 1;
    me->deadline = deadline;
    to_scheduler(0);
}

static void resume(struct fiber *fiber) {
    me = fiber;
    fiber->is_blocked = 0;
    __sanitizer_start_switch_fiber(&scheduler_fake, contexts[fiber - fibers].stack, STACK_BYTES);
    swapcontext(&scheduler, &contexts[fiber - fibers].at);
    __sanitizer_finish_switch_fiber(scheduler_fake, NULL, NULL);
    me = NULL;
}

/* Each gets its turn, from one that is chosen by chance on; who still waits for the same lets the next one go. */
int schedule(void) {
    int first = (int)any((u32)fiber_count);
    for (int i = 0; i < fiber_count; i++) {
        struct fiber *fiber = &fibers[(first + i) % fiber_count];
        u64 before = calls;
        if (fiber->is_over) continue;
        resume(fiber);
        if (fiber->is_over || !fiber->is_blocked || calls != before) return 1;
    }
    return 0;
}

u64 next_deadline(void) {
    u64 next = 0;
    for (int i = 0; i < fiber_count; i++) {
        struct fiber *fiber = &fibers[i];
        if (!fiber->is_over && fiber->deadline && fiber->is_blocked && (!next || fiber->deadline < next)) next = fiber->deadline;
    }
    return next;
}
