/* From a block of events to what happened: tasks, spans, notes, runs and counters.
 *
 * The block may come from a file that a killed process left, or from anybody: every
 * number in it is checked before it is used. Nothing here needs the GIL.
 */
#ifndef SB_SPANS_H
#define SB_SPANS_H

#include <stddef.h>
#include <stdint.h>

/* The rows below are handed to Python as bytes; formats/timeline.py has their twins. */

enum {
    SB_OPEN_LEFT = 1,  /* it began before what the block holds */
    SB_OPEN_RIGHT = 2, /* it had not ended */
    SB_FAILED = 4,     /* it ended by an exception */
    SB_OF_THREAD = 8,  /* a span on the thread's own track, not the task's */
    SB_ALIVE = 16,     /* a task that was alive at the end */
    SB_QUEUED = 32,    /* a thread's span that had waited `lane` us for its turn */
    SB_FREED = 64,     /* a collection that freed `lane` objects */
    SB_WAITS = 128,    /* a task's span that is no region: it waits for a primitive */
};

typedef struct {
    uint64_t serial, begin_ns, end_ns, parent;
    uint32_t name, kind, status, flags;
    uint32_t tracks; /* how many it needs, its own included */
    uint32_t lane;   /* its own */
    uint32_t thread; /* where it was seen first */
    uint32_t first_span, spans;
    uint32_t reserved;
    uint8_t trace_id[16], span_id[8];
} sb_task_out;

typedef struct {
    uint64_t begin_ns, end_ns, task;
    uint32_t name, thread, end_thread, lane;
    uint32_t track; /* of the task: 0 its own, 1 and up for other lanes */
    uint32_t flags;
} sb_span_out;

typedef struct {
    uint64_t time_ns, task;
    uint32_t kind, name, argument, thread, lane, track;
} sb_note_out;

/* A stretch of time in which one thread was seen at work for one task. */
typedef struct {
    uint64_t begin_ns, end_ns, task;
    uint32_t thread, is_exact;
} sb_run_out;

typedef struct {
    uint64_t time_ns;
    int64_t value;
    uint32_t name, thread;
} sb_count_out;

typedef struct {
    void *items;
    size_t count, room, size;
} sb_rows;

typedef struct {
    sb_rows tasks, spans, notes, runs, counts;
    uint64_t from_ns, to_ns; /* the time the events cover */
    uint64_t events, torn, lost;
    const char *problem; /* why it cannot be read; else NULL */
    int no_memory;
} sb_timeline;

/* Read a block. On failure `problem` says why, or `no_memory`; free it in any case. */
void sb_timeline_read(sb_timeline *timeline, const char *block, size_t bytes);
void sb_timeline_free(sb_timeline *timeline);
/* Sort tasks by serial and spans by task and begin; give each span a track of its task so
 * that what is on one track nests, and each note the track of its lane: tracks.c.
 * 0, or -1 without memory. */
int sb_lay_tracks(sb_timeline *timeline);

#endif
