/* Tasks and spans as tracks and slices; see perfetto.h. */
#include "writing.h"

/* ---- tasks ------------------------------------------------------------------------ */

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

/* Where the task's trace is shown: the template with both ids put in. */
static void
put_link(writing *w, const sb_task_out *task)
{
    static const char TRACE[] = "{trace_id}", SPAN[] = "{span_id}";
    static const uint8_t NONE[16];
    char url[1024];
    size_t used = 0;
    if (*w->in->trace_url == 0 || memcmp(task->trace_id, NONE, sizeof NONE) == 0) {
        return;
    }
    for (const char *at = w->in->trace_url; *at && used < sizeof url - 33;) {
        int is_trace = strncmp(at, TRACE, sizeof TRACE - 1) == 0;
        int is_span = !is_trace && strncmp(at, SPAN, sizeof SPAN - 1) == 0;
        const uint8_t *id = is_trace ? task->trace_id : task->span_id;
        if (!is_trace && !is_span) {
            url[used++] = *at++;
            continue;
        }
        for (int i = 0; i < (is_trace ? 16 : 8); i++) {
            used += (size_t)snprintf(url + used, 3, "%02x", id[i]);
        }
        at += is_trace ? sizeof TRACE - 1 : sizeof SPAN - 1;
    }
    put_note_text(w, SB_NOTE_LINK, url, used);
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
    put_link(w, task);
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

/* What a slice of a thread says beside its name. */
static void
put_note_of_thread(writing *w, const sb_span_out *span)
{
    if (span->task) {
        put_note_number(w, SB_NOTE_TASK, span->task);
    }
    if (span->flags & (SB_QUEUED | SB_FREED)) {
        uint32_t note = span->flags & SB_QUEUED ? SB_NOTE_QUEUED : SB_NOTE_FREED;
        put_note_number(w, note, span->lane);
    }
}

static void
begin_span(writing *w, const sb_span_out *span, uint64_t number, uint64_t flow)
{
    begin_event(w, SLICE_BEGIN, number);
    put_name(w, span->name);
    put_note_number(w, SB_NOTE_THREAD, span->thread);
    put_note_open(w, span->flags);
    if (span->flags & SB_OF_THREAD) {
        put_note_of_thread(w, span);
    }
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

/* Number the tracks of all tasks in a row; those of threads come after. */
void
sb_slices_write(writing *w)
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
