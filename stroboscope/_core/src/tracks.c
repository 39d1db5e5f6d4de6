/* Which span goes on which track: a viewer draws nested slices only, and a task's spans
 * need not nest. Coroutines and threads of one task run side by side, each in its lane;
 * blocks of suspended generators end crosswise even in one.
 */
#include <stdlib.h>
#include <string.h>

#include "box.h"
#include "spans.h"

/* Tracks that are looked at for one span; with more a new one is made. */
enum { LOOKS_MAX = 64 };

typedef struct {
    uint64_t *ends; /* of the spans that are open, outermost first */
    size_t depth, room;
    uint32_t lane;
} track;

typedef struct {
    track *items;
    size_t count, room;
} tracks;

static int
is_of_thread(const sb_span_out *span)
{
    return span->task == 0 || (span->flags & SB_OF_THREAD);
}

/* Threads' own first, by thread; then by task; within one by begin, longer first. */
static int
compare(const void *one, const void *other)
{
    const sb_span_out *a = one, *b = other;
    int a_thread = is_of_thread(a), b_thread = is_of_thread(b);
    if (a_thread != b_thread) {
        return b_thread - a_thread;
    }
    uint64_t a_group = a_thread ? a->thread : a->task;
    uint64_t b_group = b_thread ? b->thread : b->task;
    if (a_group != b_group) {
        return a_group < b_group ? -1 : 1;
    }
    if (a->begin_ns != b->begin_ns) {
        return a->begin_ns < b->begin_ns ? -1 : 1;
    }
    return a->end_ns == b->end_ns ? 0 : a->end_ns > b->end_ns ? -1 : 1;
}

static int
fits(track *one, const sb_span_out *span)
{
    while (one->depth && one->ends[one->depth - 1] <= span->begin_ns) {
        one->depth--;
    }
    return one->depth == 0 || one->ends[one->depth - 1] >= span->end_ns;
}

static int
push(track *one, uint64_t end_ns)
{
    if (one->depth == one->room) {
        size_t room = one->room ? one->room * 2 : 8;
        void *grown = realloc(one->ends, room * sizeof *one->ends);
        if (grown == NULL) {
            return -1;
        }
        one->ends = grown;
        one->room = room;
    }
    one->ends[one->depth++] = end_ns;
    return 0;
}

/* A new, empty track; its number, or -1. Stacks of an earlier task are used again. */
static int64_t
make_track(tracks *all, uint32_t lane)
{
    if (all->count == all->room) {
        size_t room = all->room ? all->room * 2 : 8;
        void *grown = realloc(all->items, room * sizeof *all->items);
        if (grown == NULL) {
            return -1;
        }
        all->items = grown;
        memset(all->items + all->room, 0, (room - all->room) * sizeof *all->items);
        all->room = room;
    }
    all->items[all->count].depth = 0;
    all->items[all->count].lane = lane;
    return (int64_t)all->count++;
}

/* The span's track: one of its lane where it nests, else another that is idle, else a
 * new one. Track 0 belongs to the task's own lane. */
static int64_t
place(tracks *all, const sb_span_out *span)
{
    size_t looks = all->count < LOOKS_MAX ? all->count : LOOKS_MAX;
    for (size_t i = 0; i < looks; i++) {
        /* the first tracks, and then the latest */
        size_t at = i < LOOKS_MAX / 2 ? i : all->count - (i - LOOKS_MAX / 2) - 1;
        if (all->items[at].lane == span->lane && fits(&all->items[at], span)) {
            return (int64_t)at;
        }
    }
    for (size_t i = 1; i < looks; i++) {
        if (fits(&all->items[i], span) && all->items[i].depth == 0) {
            all->items[i].lane = span->lane;
            return (int64_t)i;
        }
    }
    return make_track(all, span->lane);
}

static sb_task_out *
find_task(const sb_timeline *timeline, uint64_t serial)
{
    sb_task_out *tasks = timeline->tasks.items;
    size_t low = 0, high = timeline->tasks.count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (tasks[middle].serial < serial) {
            low = middle + 1;
        }
        else {
            high = middle;
        }
    }
    return low < timeline->tasks.count && tasks[low].serial == serial ? &tasks[low]
                                                                      : NULL;
}

static int
compare_tasks(const void *one, const void *other)
{
    uint64_t a = ((const sb_task_out *)one)->serial;
    uint64_t b = ((const sb_task_out *)other)->serial;
    return a < b ? -1 : a > b;
}

/* Lay out one group: spans of one task, or of one thread. */
static int
lay_group(tracks *all, sb_span_out *spans, size_t count, sb_task_out *task)
{
    all->count = 0;
    int is_thread = is_of_thread(spans);
    if (task != NULL && task->lane == 0) {
        task->lane = spans[0].lane; /* its context was made after it began */
    }
    if (make_track(all, task ? task->lane : 0) < 0 ||
        (task != NULL && push(&all->items[0], task->end_ns) < 0)) {
        return -1;
    }
    for (size_t i = 0; i < count; i++) {
        sb_span_out wanted = spans[i];
        wanted.lane = is_thread ? 0 : wanted.lane;
        int64_t at = place(all, &wanted);
        if (at < 0 || push(&all->items[at], spans[i].end_ns) < 0) {
            return -1;
        }
        spans[i].track = (uint32_t)at;
    }
    if (task != NULL) {
        task->tracks = (uint32_t)all->count;
        task->spans = (uint32_t)count;
    }
    return 0;
}

/* A note belongs on the track of the span it was made in. */
static void
lay_notes(sb_timeline *timeline)
{
    const sb_span_out *spans = timeline->spans.items;
    sb_note_out *notes = timeline->notes.items;
    for (size_t i = 0; i < timeline->notes.count; i++) {
        const sb_task_out *task =
            notes[i].task ? find_task(timeline, notes[i].task) : NULL;
        if (task == NULL || notes[i].lane == task->lane) {
            continue;
        }
        size_t low = task->first_span, high = low + task->spans;
        while (low < high) { /* the first span that begins after it */
            size_t middle = (low + high) / 2;
            if (spans[middle].begin_ns <= notes[i].time_ns) {
                low = middle + 1;
            }
            else {
                high = middle;
            }
        }
        for (size_t looks = 0; looks < LOOKS_MAX && low-- > task->first_span; looks++) {
            if (spans[low].lane == notes[i].lane &&
                spans[low].end_ns >= notes[i].time_ns) {
                notes[i].track = spans[low].track;
                break;
            }
        }
    }
}

int
sb_lay_tracks(sb_timeline *timeline)
{
    sb_span_out *spans = timeline->spans.items;
    size_t count = timeline->spans.count;
    if (count) {
        qsort(spans, count, sizeof *spans, compare);
    }
    if (timeline->tasks.count) {
        qsort(timeline->tasks.items, timeline->tasks.count, sizeof(sb_task_out),
              compare_tasks);
    }
    tracks all = {NULL, 0, 0};
    int failed = 0;
    for (size_t first = 0; first < count && !failed;) {
        size_t next = first + 1;
        int is_thread = is_of_thread(&spans[first]);
        while (next < count && is_of_thread(&spans[next]) == is_thread &&
               (is_thread ? spans[next].thread == spans[first].thread
                          : spans[next].task == spans[first].task)) {
            next++;
        }
        sb_task_out *task = is_thread ? NULL : find_task(timeline, spans[first].task);
        if (task != NULL) {
            task->first_span = (uint32_t)first;
        }
        failed = lay_group(&all, spans + first, next - first, task) < 0;
        first = next;
    }
    for (size_t i = 0; i < all.room; i++) {
        free(all.items[i].ends);
    }
    free(all.items);
    if (!failed) {
        lay_notes(timeline);
    }
    return failed ? -1 : 0;
}
