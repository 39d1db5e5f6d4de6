#include "perfetto.h"

#include "writing.h"

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
compare_labels(const void *one, const void *other)
{
    const sb_note_out *a = *(const sb_note_out *const *)one;
    const sb_note_out *b = *(const sb_note_out *const *)other;
    return a->task == b->task ? (a->time_ns > b->time_ns) - (a->time_ns < b->time_ns)
           : a->task < b->task ? -1
                               : 1;
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
        sb_slices_write(&w);
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
