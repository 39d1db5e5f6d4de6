#include "spans.h"

#include <stdlib.h>
#include <string.h>

#include "box.h"
#include "map.h"

#define NO_ROW UINT32_MAX

/* While reading. */
typedef struct {
    sb_timeline *out;
    const sb_box *box;
    const char *block;
    map tasks; /* serial -> row */
    map open;  /* pair -> row of the span that is open */
    map threads; /* index -> row of its run that goes on */
    map calls;   /* index -> row of the exact run of the call there */
} reading;

/* ---- rows ------------------------------------------------------------------------ */

static void *
add_row(reading *read, sb_rows *rows)
{
    if (rows->count == rows->room) {
        size_t room = rows->room ? rows->room * 2 : 256;
        void *grown = realloc(rows->items, room * rows->size);
        if (grown == NULL) {
            read->out->no_memory = 1;
            return NULL;
        }
        rows->items = grown;
        rows->room = room;
    }
    void *row = (char *)rows->items + rows->count++ * rows->size;
    memset(row, 0, rows->size);
    return row;
}

/* ---- tasks ------------------------------------------------------------------------ */

static sb_task_out *
task_at(reading *read, size_t row)
{
    return (sb_task_out *)read->out->tasks.items + row;
}

static sb_task_out *
task_of(reading *read, uint64_t serial, const sb_event *event)
{
    int64_t known = map_get(&read->tasks, serial);
    if (known >= 0) {
        return task_at(read, (size_t)known);
    }
    sb_task_out *task = add_row(read, &read->out->tasks);
    if (task == NULL || map_set(&read->tasks, serial, read->out->tasks.count - 1) < 0) {
        read->out->no_memory = 1;
        return NULL;
    }
    task->serial = serial;
    task->flags = SB_OPEN_LEFT | SB_OPEN_RIGHT;
    task->tracks = 1;
    if (event != NULL) {
        task->lane = event->lane;
        task->thread = (event->head >> 8) & 0xffff;
    }
    return task;
}

static void
read_task_event(const sb_event *event, sb_task_out *task)
{
    uint64_t both = (uint64_t)event->argument << 32 | event->name;
    switch (event->head & 0xff) {
    case SB_TASK_BEGIN:
        task->begin_ns = event->time_ns;
        task->name = event->name;
        task->kind = event->argument;
        task->lane = event->lane;
        task->flags &= ~(uint32_t)SB_OPEN_LEFT;
        break;
    case SB_TASK_END:
        task->end_ns = event->time_ns;
        task->name = event->name ? event->name : task->name;
        task->status = event->argument;
        task->flags &= ~(uint32_t)SB_OPEN_RIGHT;
        break;
    case SB_TASK_NAME:
        task->name = event->name;
        break;
    case SB_TASK_TRACE:
        memcpy(task->trace_id, &event->time_ns, 8);
        memcpy(task->trace_id + 8, &both, 8);
        break;
    case SB_TASK_SPAN:
        memcpy(task->span_id, &both, 8);
        break;
    case SB_TASK_PARENT:
        task->parent = both;
        break;
    default:
        break;
    }
}

/* Tasks that were alive when the block was left: their names and beginnings are known
 * however long ago they began. */
static void
read_live_tasks(reading *read)
{
    const sb_task_row *rows =
        (const sb_task_row *)(const void *)(read->block + read->box->tasks_at);
    for (uint64_t i = 0; i < read->box->tasks_count; i++) {
        const sb_task_row *row = &rows[i];
        sb_task_out *task;
        if (row->serial == 0 || row->serial >> 40 ||
            (task = task_of(read, row->serial, NULL)) == NULL ||
            !(task->flags & SB_OPEN_RIGHT)) {
            continue;
        }
        task->begin_ns = row->begin_ns;
        task->name = row->name ? row->name : task->name;
        task->kind = row->kind;
        task->flags = (task->flags & ~(uint32_t)SB_OPEN_LEFT) | SB_ALIVE;
        memcpy(task->trace_id, row->trace_id, sizeof task->trace_id);
        memcpy(task->span_id, row->span_id, sizeof task->span_id);
        if (row->region && row->region_begin_ns < read->out->from_ns) {
            sb_span_out *span = add_row(read, &read->out->spans);
            if (span != NULL) { /* its begin is overwritten, and it has not ended */
                *span = (sb_span_out){.begin_ns = row->region_begin_ns,
                                      .task = row->serial,
                                      .name = row->region,
                                      .lane = row->lane,
                                      .flags = SB_OPEN_RIGHT};
            }
        }
    }
}

/* ---- spans, notes and runs -------------------------------------------------------- */

static void
begin_span(reading *read, const sb_event *event, uint64_t serial, uint32_t flags)
{
    sb_span_out *span = add_row(read, &read->out->spans);
    if (span == NULL) {
        return;
    }
    uint32_t thread = (event->head >> 8) & 0xffff;
    *span = (sb_span_out){event->time_ns, 0,      serial, event->name,
                          thread,         thread, event->lane, 0,
                          flags | SB_OPEN_RIGHT};
    if (map_set(&read->open, event->argument, read->out->spans.count - 1) < 0) {
        read->out->no_memory = 1;
    }
}

static void
end_span(reading *read, const sb_event *event, uint64_t serial, uint32_t flags)
{
    int64_t row = map_get(&read->open, event->argument);
    sb_span_out *span =
        row < 0 ? NULL : (sb_span_out *)read->out->spans.items + (size_t)row;
    if (span == NULL || span->task != serial || !(span->flags & SB_OPEN_RIGHT) ||
        span->name != event->name) {
        span = add_row(read, &read->out->spans);
        if (span == NULL) {
            return;
        }
        *span = (sb_span_out){.begin_ns = read->out->from_ns,
                              .task = serial,
                              .name = event->name,
                              .lane = event->lane,
                              .thread = (event->head >> 8) & 0xffff,
                              .flags = flags | SB_OPEN_LEFT};
    }
    span->end_ns = event->time_ns < span->begin_ns ? span->begin_ns : event->time_ns;
    span->end_thread = (event->head >> 8) & 0xffff;
    span->flags = (span->flags & ~(uint32_t)SB_OPEN_RIGHT) | flags;
    span->lane = flags & SB_FREED ? event->lane : span->lane;
}

static void
add_note(reading *read, const sb_event *event, uint64_t serial)
{
    sb_note_out *note = add_row(read, &read->out->notes);
    if (note != NULL) {
        *note = (sb_note_out){event->time_ns,         serial,
                              event->head & 0xff,     event->name,
                              event->argument,        (event->head >> 8) & 0xffff,
                              event->lane,            0};
    }
}

/* A thread is at work for a task from the first to the last of events in a row. */
static void
note_run(reading *read, const sb_event *event, uint64_t serial)
{
    uint32_t thread = (event->head >> 8) & 0xffff;
    int64_t row = map_get(&read->threads, thread);
    sb_run_out *run = row < 0 || row == NO_ROW
                          ? NULL
                          : (sb_run_out *)read->out->runs.items + (size_t)row;
    if (run != NULL && run->task == serial) {
        run->end_ns = event->time_ns;
        return;
    }
    if (serial == 0) { /* of nobody: whatever went on there is over */
        return;
    }
    run = add_row(read, &read->out->runs);
    if (run == NULL || map_set(&read->threads, thread, read->out->runs.count - 1) < 0) {
        read->out->no_memory = 1;
        return;
    }
    *run = (sb_run_out){event->time_ns, event->time_ns, serial, thread, 0};
}

/* A call on a thread is exactly when it is at work for the call's task. */
static void
begin_call(reading *read, const sb_event *event, uint64_t serial)
{
    uint32_t thread = (event->head >> 8) & 0xffff;
    int is_known = event->lane != UINT32_MAX;
    begin_span(read, event, serial, SB_OF_THREAD | (is_known ? SB_QUEUED : 0));
    sb_run_out *run = serial ? add_row(read, &read->out->runs) : NULL;
    if (run != NULL) {
        *run = (sb_run_out){event->time_ns, event->time_ns, serial, thread, 1};
    }
    uint32_t row = run ? (uint32_t)(read->out->runs.count - 1) : NO_ROW;
    if (map_set(&read->threads, thread, row) < 0 ||
        map_set(&read->calls, thread, row) < 0) {
        read->out->no_memory = 1;
    }
}

static void
end_call(reading *read, const sb_event *event, uint64_t serial)
{
    uint32_t thread = (event->head >> 8) & 0xffff;
    end_span(read, event, serial, SB_OF_THREAD);
    int64_t row = map_get(&read->calls, thread);
    if (row >= 0 && row != NO_ROW) {
        ((sb_run_out *)read->out->runs.items)[row].end_ns = event->time_ns;
    }
    if (row >= 0) { /* what comes next there is another run */
        map_set(&read->threads, thread, NO_ROW);
        map_set(&read->calls, thread, NO_ROW);
    }
}

static void
add_count(reading *read, const sb_event *event)
{
    sb_count_out *count = add_row(read, &read->out->counts);
    if (count != NULL) {
        uint64_t value = (uint64_t)event->lane << 32 | event->argument;
        *count = (sb_count_out){event->time_ns, (int64_t)value, event->name,
                                (event->head >> 8) & 0xffff};
    }
}

static void
add_run(reading *read, const sb_event *event, uint64_t serial)
{
    sb_run_out *run = add_row(read, &read->out->runs);
    if (run != NULL) {
        uint64_t length = (uint64_t)event->lane << 32 | event->argument;
        *run = (sb_run_out){event->time_ns, event->time_ns + length, serial,
                            (event->head >> 8) & 0xffff, 1};
    }
}

static void
read_event(reading *read, const sb_event *event)
{
    uint64_t serial = event->head >> 24;
    uint32_t kind = event->head & 0xff;
    if (kind == SB_CALL_BEGIN) { /* whose lane is none */
        begin_call(read, event, serial);
        return;
    }
    if (kind == SB_CALL_END) {
        end_call(read, event, serial);
        return;
    }
    sb_task_out *task = serial ? task_of(read, serial, event) : NULL;
    switch (kind) {
    case SB_REGION_BEGIN:
        begin_span(read, event, serial, 0);
        break;
    case SB_REGION_END:
    case SB_REGION_FAILED:
        end_span(read, event, serial, kind == SB_REGION_FAILED ? SB_FAILED : 0);
        break;
    case SB_WAIT_BEGIN:
        begin_span(read, event, serial, SB_WAITS);
        break;
    case SB_WAIT_END:
        end_span(read, event, serial, SB_WAITS);
        break;
    case SB_THREAD_BEGIN:
        begin_span(read, event, serial, SB_OF_THREAD);
        return;
    case SB_THREAD_END:
        end_span(read, event, serial, SB_OF_THREAD);
        return;
    case SB_GC_END:
        end_span(read, event, serial, SB_OF_THREAD | SB_FREED);
        return;
    case SB_COUNTER:
        add_count(read, event);
        return;
    case SB_RUN:
        add_run(read, event, serial);
        return;
    case SB_LOG:
    case SB_EXCEPTION:
    case SB_TASK_LABEL:
    case SB_INSTANT:
        add_note(read, event, serial);
        break;
    default:
        if (task != NULL) {
            read_task_event(event, task);
        }
        break;
    }
    if (kind != SB_TASK_TRACE && kind != SB_INSTANT) { /* whose time is no time */
        note_run(read, event, serial);
    }
}

/* ---- the whole -------------------------------------------------------------------- */

static void
read_events(reading *read)
{
    const sb_box *box = read->box;
    const sb_event *events =
        (const sb_event *)(const void *)(read->block + box->events_at);
    uint64_t head = box->events_head, room = box->events_count;
    uint64_t first = head > room ? head - room : 0;
    for (uint64_t sequence = first; sequence < head; sequence++) {
        sb_event event = events[sequence % room];
        if (event.check != sb_event_check(sequence, &event)) {
            read->out->torn++;
            continue;
        }
        read->out->events++;
        if ((event.head & 0xff) != SB_TASK_TRACE) {
            /* A capture says from when on. The first event is not always the earliest:
             * clocks may step. */
            if (box->from_ns == 0 &&
                (read->out->from_ns == 0 || event.time_ns < read->out->from_ns)) {
                read->out->from_ns = event.time_ns;
            }
            if (event.time_ns > read->out->to_ns) {
                read->out->to_ns = event.time_ns;
            }
        }
        read_event(read, &event);
        if (read->out->no_memory) {
            return;
        }
    }
}

/* What is open ends where the recording does. */
static void
close_rows(reading *read)
{
    sb_timeline *out = read->out;
    out->to_ns = read->box->end_ns > out->to_ns ? read->box->end_ns : out->to_ns;
    if (out->from_ns == 0) { /* nothing happened */
        out->from_ns = out->to_ns = read->box->begin_ns;
    }
    sb_task_out *tasks = out->tasks.items;
    for (size_t i = 0; i < out->tasks.count; i++) {
        if (tasks[i].flags & SB_OPEN_LEFT) {
            tasks[i].begin_ns = out->from_ns;
        }
        if (tasks[i].flags & SB_OPEN_RIGHT) {
            tasks[i].end_ns = out->to_ns;
        }
        if (tasks[i].end_ns < tasks[i].begin_ns) {
            tasks[i].end_ns = tasks[i].begin_ns;
        }
    }
    sb_span_out *spans = out->spans.items;
    for (size_t i = 0; i < out->spans.count; i++) {
        if (spans[i].flags & SB_OPEN_RIGHT) {
            spans[i].end_ns =
                out->to_ns > spans[i].begin_ns ? out->to_ns : spans[i].begin_ns;
        }
    }
}

void
sb_timeline_read(sb_timeline *out, const char *block, size_t bytes)
{
    memset(out, 0, sizeof *out);
    out->tasks.size = sizeof(sb_task_out);
    out->spans.size = sizeof(sb_span_out);
    out->notes.size = sizeof(sb_note_out);
    out->runs.size = sizeof(sb_run_out);
    out->counts.size = sizeof(sb_count_out);
    out->problem = sb_block_problem(block, bytes);
    if (out->problem != NULL) {
        return;
    }
    reading read = {.out = out, .box = (const sb_box *)(const void *)block, .block = block};
    out->lost = read.box->events_lost;
    out->from_ns = read.box->from_ns;
    read_events(&read);
    read_live_tasks(&read);
    close_rows(&read);
    map_free(&read.tasks);
    map_free(&read.open);
    map_free(&read.threads);
    map_free(&read.calls);
    if (!out->no_memory) {
        out->no_memory = sb_lay_tracks(out) < 0;
    }
}

void
sb_timeline_free(sb_timeline *timeline)
{
    free(timeline->tasks.items);
    free(timeline->spans.items);
    free(timeline->notes.items);
    free(timeline->runs.items);
    free(timeline->counts.items);
}
