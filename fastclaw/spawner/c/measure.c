/* MEASURE: what processes take, by /proc as it is seen inside and by what their pumps have moved. An idle pump looks, as for READ. */
#include "spawner.h"

enum { AT_ONCE = 16, STAT_FIELDS = 11 }; /* rows in one write; fields of a stat from utime (14) to rss (24) */

static void add_process(u32 pid, struct usage *usage) {
    u64 of[STAT_FIELDS];
    if (!read_usage(pid, of, STAT_FIELDS)) return;
    for (int i = 0; i < 4; i++) usage->ticks += of[i]; /* user, system, and of children that were waited for */
    usage->pages += of[STAT_FIELDS - 1];
    usage->processes++;
}

/* The tree of a command is all below its reaper but the pump, orphans included; a worker's is the worker and all below it. */
static void add_tree(u32 root, u32 spared, struct usage *usage, struct descendant *tree, u32 *left) {
    if (!spared) add_process(root, usage);
    u32 count = add_children(root, tree, 0, *left);
    for (u32 at = 0; at < count; at++) {
        if (tree[at].pid == spared) continue;
        add_process(tree[at].pid, usage);
        count = add_children(tree[at].pid, tree, count, *left);
    }
    *left -= count;
}

static u32 worker_pid(struct slot *template, u32 id) {
    struct worker_table *table = template->worker_table;
    for (u32 i = 0; table && i < table->used; i++)
        if (table->workers[i].id == id && LOAD_OF(&table->workers[i].state) == KEPT) return table->workers[i].pid;
    return 0;
}

static void look_at(struct asked_usage *asked, struct usage *usage, struct descendant *tree, u32 *left) {
    *usage = (struct usage){0};
    if (asked->place >= used_slots || LOAD_OF(&slots[asked->place].id) != asked->id || !*left) return;
    struct slot *slot = &slots[asked->place];
    u32 spared = slot->pump, root = slot->pid;
    if (slot->flags & F_WORKER) { spared = 0; root = asked->template < used_slots ? worker_pid(&slots[asked->template], asked->id) : 0; }
    usage->input = __atomic_load_n(&slot->taken, __ATOMIC_RELAXED);
    for (int i = 0; i < 2; i++) usage->output += __atomic_load_n(&slot->total[i], __ATOMIC_RELAXED);
    if (root) add_tree(root, spared, usage, tree, left);
    usage->is_known = usage->processes && LOAD_OF(&slot->id) == asked->id; /* else it has ended, or the slot is another process's by now */
}

/* Returns 0 for an invalid frame. */
int tell_usage(struct control *asked, long bytes, struct passed *passed) {
    struct asked_usage *rows = (struct asked_usage *)(asked + 1);
    struct usage told[AT_ONCE];
    u32 count = asked->a, left = MAX_LOOKED_AT;
    if (passed->count != 1 || count > MAX_USAGE_ROWS || bytes != (long)(sizeof *asked + count * sizeof *rows)) return 0;
    struct descendant *tree = map(sizeof *tree * MAX_LOOKED_AT, -1);
    long error = tree ? 0 : -ENOMEM;
    for (u32 at = 0; at < count && !error; at += AT_ONCE) {
        u32 some = count - at < AT_ONCE ? count - at : AT_ONCE;
        for (u32 i = 0; i < some; i++) look_at(&rows[at + i], &told[i], tree, &left);
        long n = SYS(write, passed->fd[0], told, some * sizeof *told);
        if (n != (long)(some * sizeof *told)) error = n < 0 ? n : -ENOSPC;
    }
    if (tree) SYS(munmap, tree, sizeof *tree * MAX_LOOKED_AT);
    close_passed(passed);
    tell(ANSWER, asked->id, error < 0 ? (int)-error : 0, (int)count);
    return 1;
}
