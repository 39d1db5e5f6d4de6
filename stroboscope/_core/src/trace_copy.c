#include "trace_copy.h"

#include <stdlib.h>
#include <string.h>

#include "trace.h"

/* Events copied while the GIL is held: some 50 us. */
enum { SLICE = 4096, CHUNK = 1 << 16, CHUNKS_MAX = 64 };
#define CAPTURE_TEXTS_MAX ((size_t)16 << 20)
#define TEXT_LOST UINT32_MAX

/* The one capture, while there is one. */
static struct {
    int is_open, is_full;
    uint32_t generation;
    uint64_t next; /* the event to copy next */
    uint64_t lost, from_ns;
    size_t count, limit;
    sb_event *chunks[CHUNKS_MAX];
    char *texts;
    size_t texts_used, texts_room;
} capture;

static void
free_capture(void)
{
    for (int i = 0; i < CHUNKS_MAX; i++) {
        free(capture.chunks[i]);
    }
    free(capture.texts);
    memset(&capture, 0, sizeof capture);
}

void
sb_copy_after_fork(void)
{
    free_capture();
}

/* Append an event; 0, or -1 when there is no more room. */
static int
append(const sb_event *event)
{
    size_t chunk = capture.count / CHUNK;
    if (capture.count >= capture.limit || chunk >= CHUNKS_MAX) {
        return -1;
    }
    if (capture.chunks[chunk] == NULL) {
        capture.chunks[chunk] = malloc(CHUNK * sizeof(sb_event));
        if (capture.chunks[chunk] == NULL) {
            return -1;
        }
    }
    sb_event *place = &capture.chunks[chunk][capture.count % CHUNK];
    *place = *event;
    place->check = sb_event_check(capture.count++, place);
    return 0;
}

/* Copy a log's text; its position among the capture's, or TEXT_LOST. */
static uint32_t
copy_text(uint32_t position)
{
    const sb_box *box = sb_trace.box;
    uint32_t length;
    const char *text = sb_text_at((const char *)box + box->texts_at, box->texts_bytes,
                                  position, &length);
    if (text == NULL) {
        return TEXT_LOST;
    }
    if (capture.texts_used + length + 16 > capture.texts_room) {
        size_t room = capture.texts_room ? capture.texts_room * 2 : (size_t)1 << 18;
        char *grown = room > CAPTURE_TEXTS_MAX ? NULL : realloc(capture.texts, room);
        if (grown == NULL) {
            return TEXT_LOST;
        }
        capture.texts = grown;
        capture.texts_room = room;
    }
    return sb_text_put(capture.texts, capture.texts_room, &capture.texts_used, text,
                       length);
}

/* What is known of the tasks that are alive as the capture begins. */
static void
append_live_tasks(void)
{
    const sb_box *box = sb_trace.box;
    const sb_task_row *rows =
        (const sb_task_row *)((const char *)box + box->tasks_at);
    for (uint64_t i = 0; i < box->tasks_count; i++) {
        const sb_task_row *row = &rows[i];
        if (row->serial == 0) {
            continue;
        }
        sb_event begin = {row->begin_ns, sb_event_head(row->serial, 0, SB_TASK_BEGIN),
                          row->name, row->kind, 0, 0};
        uint64_t words[3];
        memcpy(words, row->trace_id, 16);
        memcpy(words + 2, row->span_id, 8);
        append(&begin);
        if (words[0] | words[1]) {
            sb_event trace = {words[0], sb_event_head(row->serial, 0, SB_TASK_TRACE),
                              (uint32_t)words[1], (uint32_t)(words[1] >> 32), 0, 0};
            sb_event span = {row->begin_ns, sb_event_head(row->serial, 0, SB_TASK_SPAN),
                             (uint32_t)words[2], (uint32_t)(words[2] >> 32), 0, 0};
            append(&trace);
            append(&span);
        }
    }
}

/* capture_begin(limit): from now on events are kept, at most so many. */
static PyObject *
capture_begin(PyObject *Py_UNUSED(module), PyObject *argument)
{
    Py_ssize_t limit = PyLong_AsSsize_t(argument);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (capture.is_open || sb_trace.box == NULL || limit < SLICE ||
        limit > (Py_ssize_t)CHUNK * CHUNKS_MAX) {
        PyErr_SetString(PyExc_RuntimeError, "no recorder, a capture, or a bad limit");
        return NULL;
    }
    capture.is_open = 1;
    capture.generation = sb_trace.generation;
    capture.limit = (size_t)limit;
    capture.from_ns = sb_trace_now_ns();
    capture.next = sb_trace.box->events_head;
    append_live_tasks();
    sb_trace.wanted |= SB_TRACE_CAPTURE;
    Py_RETURN_NONE;
}

/* Copy the next slice; how many events are left. A capture that is full takes none. */
static uint64_t
drain_slice(void)
{
    const sb_box *box = sb_trace.box;
    uint64_t head = box->events_head;
    if (head - capture.next > box->events_count) {
        uint64_t oldest = head - box->events_count;
        capture.lost += oldest - capture.next;
        capture.next = oldest;
    }
    const sb_event *events = (const sb_event *)((const char *)box + box->events_at);
    for (int i = 0; i < SLICE && capture.next < head && !capture.is_full; i++) {
        sb_event event = events[capture.next & (box->events_count - 1)];
        if ((event.head & 0xff) == SB_LOG) {
            event.argument = copy_text(event.argument);
        }
        capture.is_full = append(&event) < 0;
        capture.next += !capture.is_full;
    }
    return capture.is_full ? 0 : head - capture.next;
}

/* Whether the capture can go on: it is open, has room, and its box is still there. */
static PyObject *
capture_drain(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    while (capture.is_open && capture.generation == sb_trace.generation) {
        if (drain_slice() == 0) {
            return PyBool_FromLong(!capture.is_full);
        }
        Py_BEGIN_ALLOW_THREADS /* a breath for whoever waits for the GIL */
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_FALSE;
}

/* Fill a block of `bytes` zeros with the capture. Needs no GIL. */
static void
fill(sb_box *copy, const sb_box *box, size_t bytes)
{
    *copy = *box;
    copy->bytes = bytes;
    copy->texts_at = box->texts_at;
    copy->texts_bytes = capture.texts_used;
    copy->events_at = (copy->texts_at + copy->texts_bytes + 63) & ~(uint64_t)63;
    copy->events_count = capture.count;
    copy->from_ns = capture.from_ns;
    copy->end_ns = sb_trace_now_ns();
    atomic_store(&copy->events_head, capture.count);
    atomic_store(&copy->events_lost, capture.lost);
    size_t head = sizeof(sb_box);
    memcpy((char *)copy + head, (const char *)box + head, box->texts_at - head);
    if (capture.texts_used) {
        memcpy((char *)copy + copy->texts_at, capture.texts, capture.texts_used);
    }
    char *place = (char *)copy + copy->events_at;
    for (size_t i = 0; i * CHUNK < capture.count; i++) {
        size_t left = capture.count - i * CHUNK;
        size_t some = (left < CHUNK ? left : CHUNK) * sizeof(sb_event);
        memcpy(place + i * CHUNK * sizeof(sb_event), capture.chunks[i], some);
        free(capture.chunks[i]);
        capture.chunks[i] = NULL;
    }
}

/* The capture as a block, and its end; None when its box is gone. */
static PyObject *
capture_end(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    if (!capture.is_open || capture.generation != sb_trace.generation) {
        free_capture();
        Py_RETURN_NONE;
    }
    sb_trace.wanted &= ~(uint32_t)SB_TRACE_CAPTURE;
    const sb_box *box = sb_trace.box;
    size_t bytes = (size_t)box->texts_at + capture.texts_used + 64 +
                   capture.count * sizeof(sb_event);
    PyObject *block = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)bytes);
    if (block != NULL) {
        sb_trace.readers++;
        Py_BEGIN_ALLOW_THREADS
        char *place = PyBytes_AS_STRING(block);
        memset(place + bytes - capture.count * sizeof(sb_event) - 64, 0, 64);
        fill((sb_box *)(void *)place, box, bytes);
        Py_END_ALLOW_THREADS
        sb_trace.readers--;
    }
    free_capture();
    return block;
}

/* Copy the last events of a box, as many as there is room for, to where they are in a
 * ring of `copy->events_count`. Needs no GIL. */
static void
copy_last(sb_box *copy, const sb_box *box, uint64_t head)
{
    uint64_t room = copy->events_count;
    const sb_event *events = (const sb_event *)((const char *)box + box->events_at);
    sb_event *places = (sb_event *)((char *)copy + copy->events_at);
    for (uint64_t sequence = head > room ? head - room : 0; sequence < head; sequence++) {
        places[sequence % room] = events[sequence & (box->events_count - 1)];
    }
}

/* snapshot(limit): the box now, with at most so many events, the last, as a block; None
 * when there is no box. Writers go on meanwhile: what they overwrite fails its check. */
static PyObject *
snapshot(PyObject *Py_UNUSED(module), PyObject *argument)
{
    Py_ssize_t limit = PyLong_AsSsize_t(argument);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (limit < SB_RING_EVENTS_MIN) {
        PyErr_SetString(PyExc_ValueError, "too few events for a snapshot");
        return NULL;
    }
    const sb_box *box = sb_trace.box;
    if (box == NULL) {
        Py_RETURN_NONE;
    }
    uint64_t events = box->events_count;
    size_t bytes = (size_t)box->bytes;
    if ((uint64_t)limit < events) {
        events = (uint64_t)limit;
        bytes = (size_t)box->events_at + (size_t)events * sizeof(sb_event);
    }
    PyObject *block = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)bytes);
    if (block == NULL) {
        return NULL;
    }
    sb_box *copy = (sb_box *)(void *)PyBytes_AS_STRING(block);
    uint64_t head = box->events_head; /* all before it are whole: the GIL is held */
    sb_trace.readers++;
    Py_BEGIN_ALLOW_THREADS
    if (events == box->events_count) {
        memcpy(copy, box, bytes);
    } else {
        memcpy(copy, box, box->events_at);
        memset((char *)copy + box->events_at, 0, bytes - box->events_at);
        copy->bytes = bytes;
        copy->events_count = events;
        copy_last(copy, box, head);
    }
    atomic_store(&copy->events_head, head);
    copy->end_ns = sb_trace_now_ns();
    Py_END_ALLOW_THREADS
    sb_trace.readers--;
    return block;
}

static PyMethodDef methods[] = {
    {"trace_capture_begin", capture_begin, METH_O, "Keep events from now on."},
    {"trace_capture_drain", capture_drain, METH_NOARGS, "Copy what has come."},
    {"trace_capture_end", capture_end, METH_NOARGS, "The capture, as a block."},
    {"trace_snapshot", snapshot, METH_O, "The recorder's block, copied."},
    {NULL, NULL, 0, NULL},
};

int
sb_copy_init(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
