/* What fastclaw, its clients and the commands know of each process, and what must be true of it. */
#ifndef LEDGER_H
#define LEDGER_H
#include "world.h"

enum { MAX_WANTS = 24, MAX_CLIENTS = 96, TEXT_BYTES = 1 << 20 };

struct text { unsigned char *at; size_t bytes; };
struct client {
    int fd, which, is_closed, has_half_closed, has_end, has_left, was_unread, has_missed, is_sender;
    u32 id, key;
    u64 sent;
    struct text got;
};
struct want {
    struct start request;
    u32 id, flags;
    int started, refused, ended, empty, is_free, lost, released, stuck, gap, kill_asked, term_asked, exit_told, cut_down;
    int connected[2], ended_stream[2], file, is_raw, has_closed_input, has_read_input_end, had_lock;
    u64 written[2], written_at_end[2], ended_at, done_total[2];
    struct text input;
};

extern struct want wants[MAX_WANTS];
extern struct client clients[MAX_CLIENTS];
extern int want_count, client_count, is_early, is_hostile, overload_possible;

unsigned char letter(u32 key, u64 at);
u32 output_key(u32 id, int which);
struct want *want_of(u32 id);
void add_text(struct text *text, const void *from, size_t bytes);
void check_event(char *frame, long bytes, int fd);
void check_end(void);
int is_settled(struct want *want); /* nothing more is to come of it */
int is_held(struct want *want, int which); /* somebody may still write to it */
#endif
