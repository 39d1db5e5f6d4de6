#include "perfetto.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "box.h"

/* ---- protobuf --------------------------------------------------------------------- */

static int
reserve(sb_buffer *buffer, size_t more)
{
    if (buffer->length + more <= buffer->room) {
        return 0;
    }
    size_t room = buffer->room ? buffer->room + buffer->room / 2 : 4096;
    while (room < buffer->length + more) {
        room += room / 2;
    }
    void *grown = buffer->no_memory ? NULL : realloc(buffer->bytes, room);
    if (grown == NULL) {
        buffer->no_memory = 1;
        return -1;
    }
    buffer->bytes = grown;
    buffer->room = room;
    return 0;
}

static void
put_raw(sb_buffer *buffer, const void *bytes, size_t length)
{
    if (length && reserve(buffer, length) == 0) {
        memcpy(buffer->bytes + buffer->length, bytes, length);
        buffer->length += length;
    }
}

static void
put_varint(sb_buffer *buffer, uint64_t value)
{
    if (reserve(buffer, 10) < 0) {
        return;
    }
    while (value >= 0x80) {
        buffer->bytes[buffer->length++] = (unsigned char)(value | 0x80);
        value >>= 7;
    }
    buffer->bytes[buffer->length++] = (unsigned char)value;
}

static void
put_number(sb_buffer *buffer, uint32_t field, uint64_t value)
{
    put_varint(buffer, field << 3);
    put_varint(buffer, value);
}

static void
put_block(sb_buffer *buffer, uint32_t field, const void *bytes, size_t length)
{
    put_varint(buffer, field << 3 | 2);
    put_varint(buffer, length);
    put_raw(buffer, bytes, length);
}

static void
put_fixed64(sb_buffer *buffer, uint32_t field, uint64_t value)
{
    put_varint(buffer, field << 3 | 1);
    put_raw(buffer, &value, sizeof value);
}

/* ---- packets ---------------------------------------------------------------------- */

enum { SLICE_BEGIN = 1, SLICE_END = 2, INSTANT = 3, COUNTER = 4 };

/* What is open on a track while it is written. */
typedef struct {
    const sb_span_out **spans;
    size_t depth, room;
} stack;

typedef struct {
    const sb_perfetto_input *in;
    sb_buffer *out;
    sb_buffer event, packet, note; /* in the making */
    const char **names;
    uint8_t *name_lengths;
    size_t name_count;
    const char *block;
    const sb_note_out **labels; /* sorted by task */
    size_t label_count;
    stack *stacks;
    size_t stack_count;
    const sb_task_out *task; /* that is written, and its slice among the spans */
    sb_span_out task_span;
} writing;

static uint64_t
uuid(const writing *w, uint64_t number)
{
    return w->in->process << 32 | number;
}

/* A flow's id: the task's, of this process. */
static uint64_t
flow_of(const writing *w, uint64_t serial)
{
    return w->in->process << 40 | serial;
}

static void
begin_event(writing *w, uint32_t type, uint64_t number)
{
    w->event.length = 0;
    put_number(&w->event, 9, type);
    put_number(&w->event, 11, uuid(w, number));
}

static void
finish_event(writing *w, uint64_t time_ns)
{
    w->packet.length = 0;
    put_number(&w->packet, 8, time_ns);
    put_number(&w->packet, 10, w->in->process); /* the sequence */
    put_number(&w->packet, 13, 2); /* needs the interned names */
    put_block(&w->packet, 11, w->event.bytes, w->event.length);
    put_block(w->out, 1, w->packet.bytes, w->packet.length);
    w->out->no_memory |= w->event.no_memory | w->packet.no_memory | w->note.no_memory;
}

static void
put_note_number(writing *w, uint32_t name, uint64_t value)
{
    w->note.length = 0;
    put_number(&w->note, 1, name);
    put_number(&w->note, 3, value);
    put_block(&w->event, 4, w->note.bytes, w->note.length);
}

static void
put_note_text(writing *w, uint32_t name, const char *text, size_t length)
{
    w->note.length = 0;
    put_number(&w->note, 1, name);
    put_block(&w->note, 6, text, length);
    put_block(&w->event, 4, w->note.bytes, w->note.length);
}

static void
put_note_hex(writing *w, uint32_t name, const uint8_t *id, int bytes)
{
    char text[33] = "";
    int any = 0;
    for (int i = 0; i < bytes; i++) {
        snprintf(text + 2 * i, 3, "%02x", id[i]);
        any |= id[i];
    }
    if (any) {
        put_note_text(w, name, text, 2 * (size_t)bytes);
    }
}

static uint32_t
known(const writing *w, uint32_t name)
{
    return name < w->name_count ? name : SB_NAME_OVERFLOW;
}

/* Of ids from a file: names that are not there are the overflow's. */
static void
put_name(writing *w, uint32_t name)
{
    put_number(&w->event, 10, known(w, name) + 1);
}

static void
put_note_name(writing *w, uint32_t note, uint32_t name)
{
    name = known(w, name);
    if (name != SB_NAME_NONE) {
        put_note_text(w, note, w->names[name], w->name_lengths[name]);
    }
}

static void
put_note_open(writing *w, uint32_t flags)
{
    if (flags & SB_OPEN_LEFT) {
        put_note_text(w, SB_NOTE_OPEN, "left", 4);
    }
    else if (flags & SB_OPEN_RIGHT) {
        put_note_text(w, SB_NOTE_OPEN, "right", 5);
    }
}

/* A track that is named, below another. */
static void
put_track(writing *w, uint64_t number, uint64_t parent, const char *name, size_t length)
{
    w->event.length = 0;
    put_number(&w->event, 1, uuid(w, number));
    put_block(&w->event, 2, name, length);
    put_number(&w->event, 5, uuid(w, parent));
    w->packet.length = 0;
    put_number(&w->packet, 10, w->in->process);
    put_block(&w->packet, 60, w->event.bytes, w->event.length);
    put_block(w->out, 1, w->packet.bytes, w->packet.length);
}

/* ---- tasks ------------------------------------------------------------------------ */

static int
compare_labels(const void *one, const void *other)
{
    const sb_note_out *a = *(const sb_note_out *const *)one;
    const sb_note_out *b = *(const sb_note_out *const *)other;
    return a->task == b->task ? (a->time_ns > b->time_ns) - (a->time_ns < b->time_ns)
           : a->task < b->task ? -1
                               : 1;
}

static void
put_labels(writing *w, uint64_t serial)
{
    size_t low = 0, high = w->label_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (w->labels[middle]->task < serial) {
            low = middle + 1;
        }
        else {
            high = middle;
        }
    }
    for (; low < w->label_count && w->labels[low]->task == serial; low++) {
        uint32_t name = known(w, w->labels[low]->name);
        const char *text = w->names[name];
        const char *equals = memchr(text, '=', w->name_lengths[name]);
        if (equals == NULL) {
            continue;
        }
        size_t key = (size_t)(equals - text);
        w->note.length = 0;
        put_block(&w->note, 10, text, key);
        put_block(&w->note, 6, equals + 1, w->name_lengths[name] - key - 1);
        put_block(&w->event, 4, w->note.bytes, w->note.length);
    }
}

static void
write_task(writing *w, const sb_task_out *task, uint64_t number)
{
    char name[SB_NAME_BYTES_MAX + 32];
    uint32_t id = known(w, task->name);
    int length = snprintf(name, sizeof name, "%.*s #%llu", (int)w->name_lengths[id],
                          w->names[id], (unsigned long long)task->serial);
    put_track(w, number, SB_TRACK_PROCESS, name, (size_t)length);
    for (uint32_t track = 1; track < task->tracks; track++) {
        length = snprintf(name, sizeof name, "in parallel %u", track);
        put_track(w, number + track, number, name, (size_t)length);
    }
    begin_event(w, SLICE_BEGIN, number);
    put_name(w, task->name);
    put_note_number(w, SB_NOTE_TASK, task->serial);
    put_note_name(w, SB_NOTE_KIND, task->kind);
    put_note_hex(w, SB_NOTE_TRACE, task->trace_id, 16);
    put_note_hex(w, SB_NOTE_SPAN, task->span_id, 8);
    if (task->parent) {
        put_note_number(w, SB_NOTE_PARENT, task->parent);
        put_fixed64(&w->event, 47, flow_of(w, task->parent));
    }
    put_note_open(w, task->flags);
    put_fixed64(&w->event, 47, flow_of(w, task->serial));
    finish_event(w, task->begin_ns);
}

static void
end_task(writing *w, const sb_task_out *task, uint64_t number)
{
    if (task->flags & SB_OPEN_RIGHT) {
        return;
    }
    begin_event(w, SLICE_END, number);
    if (task->status) {
        put_note_number(w, SB_NOTE_STATUS, task->status);
    }
    put_labels(w, task->serial);
    finish_event(w, task->end_ns);
}

/* ---- spans ------------------------------------------------------------------------ */

static void
end_top(writing *w, stack *open, uint64_t number)
{
    const sb_span_out *span = open->spans[--open->depth];
    if (span->flags & SB_OPEN_RIGHT) {
        return; /* drawn to the end of the trace */
    }
    if (span == &w->task_span) {
        end_task(w, w->task, number);
        return;
    }
    begin_event(w, SLICE_END, number);
    if (span->end_thread != span->thread) {
        put_note_number(w, SB_NOTE_THREAD_END, span->end_thread);
    }
    if (span->flags & SB_FAILED) {
        put_note_text(w, SB_NOTE_FAILED, "yes", 3);
    }
    finish_event(w, span->end_ns);
}

static void
push(writing *w, stack *open, const sb_span_out *span)
{
    if (open->depth == open->room) {
        size_t room = open->room ? open->room * 2 : 8;
        void *grown = realloc(open->spans, room * sizeof *open->spans);
        if (grown == NULL) {
            w->out->no_memory = 1;
            return;
        }
        open->spans = grown;
        open->room = room;
    }
    open->spans[open->depth++] = span;
}

static void
begin_span(writing *w, const sb_span_out *span, uint64_t number, uint64_t flow)
{
    begin_event(w, SLICE_BEGIN, number);
    put_name(w, span->name);
    put_note_number(w, SB_NOTE_THREAD, span->thread);
    put_note_open(w, span->flags);
    if (flow) {
        put_fixed64(&w->event, 47, flow);
    }
    finish_event(w, span->begin_ns);
}

/* The stack of a track of the group that is written. NULL without memory. */
static stack *
stack_of(writing *w, uint32_t track)
{
    if (track >= w->stack_count) {
        size_t count = (size_t)track + 16;
        stack *grown = realloc(w->stacks, count * sizeof *grown);
        if (grown == NULL) {
            w->out->no_memory = 1;
            return NULL;
        }
        memset(grown + w->stack_count, 0, (count - w->stack_count) * sizeof *grown);
        w->stacks = grown;
        w->stack_count = count;
    }
    return &w->stacks[track];
}

/* Write a group's spans: `first` is the number of track 0, `others` that of track 1.
 * A hop to another lane or thread is a step of the task's flow. */
static void
write_spans(writing *w, const sb_span_out *spans, size_t count, uint64_t first,
            uint64_t others, const sb_task_out *task)
{
    uint32_t tracks = 0, thread = task ? task->thread : 0;
    stack *own = task ? stack_of(w, 0) : NULL;
    if (own != NULL) {
        w->task = task;
        w->task_span = (sb_span_out){.end_ns = task->end_ns, .flags = task->flags};
        push(w, own, &w->task_span);
        tracks = 1;
    }
    for (size_t i = 0; i < count && !w->out->no_memory; i++) {
        const sb_span_out *span = &spans[i];
        uint64_t number = span->track ? others + span->track - 1 : first;
        stack *open = stack_of(w, span->track);
        if (open == NULL) {
            return;
        }
        while (open->depth && open->spans[open->depth - 1]->end_ns <= span->begin_ns) {
            end_top(w, open, number);
        }
        int hops = task && ((span->track && open->depth == 0) || span->thread != thread);
        thread = span->thread;
        begin_span(w, span, number, hops ? flow_of(w, task->serial) : 0);
        push(w, open, span);
        tracks = span->track >= tracks ? span->track + 1 : tracks;
    }
    for (uint32_t track = 0; track < tracks; track++) {
        while (track < w->stack_count && w->stacks[track].depth) {
            end_top(w, &w->stacks[track], track ? others + track - 1 : first);
        }
    }
}

static const sb_task_out *
find_task(const writing *w, uint64_t serial)
{
    size_t low = 0, high = w->in->task_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (w->in->tasks[middle].serial < serial) {
            low = middle + 1;
        }
        else {
            high = middle;
        }
    }
    return low < w->in->task_count && w->in->tasks[low].serial == serial
               ? &w->in->tasks[low]
               : NULL;
}

/* Number the tracks of all tasks in a row; those of threads come after. */
static void
write_tasks_and_spans(writing *w)
{
    const sb_perfetto_input *in = w->in;
    uint64_t number = SB_TRACK_TASKS;
    for (size_t i = 0; i < in->task_count && !w->out->no_memory; i++) {
        const sb_task_out *task = &in->tasks[i];
        write_task(w, task, number);
        write_spans(w, in->spans + task->first_span, task->spans, number, number + 1,
                    task);
        number += task->tracks;
    }
    for (size_t first = 0; first < in->span_count && !w->out->no_memory;) {
        const sb_span_out *span = &in->spans[first];
        if (span->task != 0 && !(span->flags & SB_OF_THREAD)) {
            break; /* threads come first */
        }
        size_t next = first;
        uint32_t tracks = 1;
        for (; next < in->span_count && in->spans[next].thread == span->thread &&
               (in->spans[next].task == 0 || (in->spans[next].flags & SB_OF_THREAD));
             next++) {
            tracks = in->spans[next].track >= tracks ? in->spans[next].track + 1 : tracks;
        }
        for (uint32_t track = 1; track < tracks; track++) {
            put_track(w, number + track - 1, SB_TRACK_THREADS + span->thread,
                      "in parallel", 11);
        }
        write_spans(w, span, next - first, SB_TRACK_THREADS + span->thread, number, NULL);
        number += tracks - 1;
        first = next;
    }
}

/* ---- notes, runs, counters -------------------------------------------------------- */

static void
write_note(writing *w, const sb_note_out *note, const uint64_t *numbers)
{
    const sb_box *box = (const sb_box *)(const void *)w->block;
    const sb_task_out *task = note->task ? find_task(w, note->task) : NULL;
    uint64_t number = SB_TRACK_THREADS + note->thread;
    if (task != NULL && note->kind != SB_INSTANT) {
        uint32_t track = note->track < task->tracks ? note->track : 0;
        number = numbers[task - w->in->tasks] + track;
    }
    begin_event(w, INSTANT, number);
    put_name(w, note->name);
    if (note->kind == SB_LOG) {
        uint32_t length = 0;
        const char *text = sb_text_at(w->block + box->texts_at, box->texts_bytes,
                                      note->argument, &length);
        put_note_text(w, SB_NOTE_MESSAGE, text ? text : "(overwritten)",
                      text ? length : 13);
    }
    else if (note->kind == SB_EXCEPTION) {
        put_note_name(w, SB_NOTE_EXCEPTION, note->name);
    }
    finish_event(w, note->time_ns);
}

static void
write_notes(writing *w)
{
    const sb_perfetto_input *in = w->in;
    uint64_t *numbers = malloc((in->task_count + 1) * sizeof *numbers);
    if (numbers == NULL) {
        w->out->no_memory = 1;
        return;
    }
    numbers[0] = SB_TRACK_TASKS;
    for (size_t i = 0; i < in->task_count; i++) {
        numbers[i + 1] = numbers[i] + in->tasks[i].tracks;
    }
    for (size_t i = 0; i < in->note_count && !w->out->no_memory; i++) {
        if (in->notes[i].kind != SB_TASK_LABEL) {
            write_note(w, &in->notes[i], numbers);
        }
    }
    free(numbers);
}

/* What ran on a thread. Where a task goes on on another thread, its flow goes along. */
static void
write_runs(writing *w)
{
    const sb_perfetto_input *in = w->in;
    uint32_t *threads = calloc(in->task_count + 1, sizeof *threads);
    if (threads == NULL) {
        w->out->no_memory = 1;
        return;
    }
    for (size_t i = 0; i < in->run_count && !w->out->no_memory; i++) {
        const sb_run_out *run = &in->runs[i];
        const sb_task_out *task = find_task(w, run->task);
        uint64_t number = SB_TRACK_RUNS + run->thread;
        begin_event(w, SLICE_BEGIN, number);
        put_name(w, task ? task->name : SB_NAME_NONE);
        put_note_number(w, SB_NOTE_TASK, run->task);
        if (task != NULL && threads[task - in->tasks] != run->thread + 1) {
            threads[task - in->tasks] = run->thread + 1;
            put_fixed64(&w->event, 47, flow_of(w, run->task));
        }
        finish_event(w, run->begin_ns);
        begin_event(w, SLICE_END, number);
        finish_event(w, run->end_ns);
    }
    free(threads);
}

static void
write_counts(writing *w)
{
    for (size_t i = 0; i < w->in->count_count && !w->out->no_memory; i++) {
        const sb_count_out *count = &w->in->counts[i];
        begin_event(w, COUNTER, SB_TRACK_COUNTERS + (uint64_t)known(w, count->name));
        put_number(&w->event, 30, (uint64_t)count->value);
        finish_event(w, count->time_ns);
    }
}

/* ---- the whole -------------------------------------------------------------------- */

static int
find_names(writing *w)
{
    const sb_box *box = (const sb_box *)(const void *)w->block;
    const unsigned char *area = (const unsigned char *)w->block + box->names_at;
    uint64_t used = box->names_used <= box->names_bytes ? box->names_used : 0;
    w->names = malloc((SB_NAMES_MAX + SB_NAME_FIRST) * sizeof *w->names);
    w->name_lengths = malloc(SB_NAMES_MAX + SB_NAME_FIRST);
    if (w->names == NULL || w->name_lengths == NULL) {
        return -1;
    }
    w->names[0] = "";
    w->names[1] = "(overflow)";
    w->name_lengths[0] = 0;
    w->name_lengths[1] = 10;
    for (uint64_t at = 0; at < used && w->name_count < SB_NAMES_MAX;) {
        uint8_t length = area[at++];
        if (at + length > used) {
            break;
        }
        w->names[w->name_count] = (const char *)area + at;
        w->name_lengths[w->name_count++] = length;
        at += length;
    }
    if (w->name_count < SB_NAME_FIRST) {
        w->name_count = SB_NAME_FIRST;
    }
    return 0;
}

static int
find_labels(writing *w)
{
    w->labels = malloc((w->in->note_count + 1) * sizeof *w->labels);
    if (w->labels == NULL) {
        return -1;
    }
    for (size_t i = 0; i < w->in->note_count; i++) {
        if (w->in->notes[i].kind == SB_TASK_LABEL) {
            w->labels[w->label_count++] = &w->in->notes[i];
        }
    }
    if (w->label_count) {
        qsort(w->labels, w->label_count, sizeof *w->labels, compare_labels);
    }
    return 0;
}

void
sb_perfetto_write(const sb_perfetto_input *input, sb_buffer *out)
{
    writing w = {.in = input, .out = out, .block = input->block};
    if (find_names(&w) < 0 || find_labels(&w) < 0) {
        out->no_memory = 1;
    }
    else {
        write_tasks_and_spans(&w);
        write_notes(&w);
        write_runs(&w);
        write_counts(&w);
    }
    for (size_t i = 0; i < w.stack_count; i++) {
        free(w.stacks[i].spans);
    }
    free(w.stacks);
    free(w.names);
    free(w.name_lengths);
    free(w.labels);
    free(w.event.bytes);
    free(w.packet.bytes);
    free(w.note.bytes);
}
