#include "window.h"

#include <string.h>

#include "sampler.h"
#include "table.h"

typedef struct {
    uint64_t count, ns;
} amount;

static struct window {
    int in_use;
    uint64_t start_ns, stop_ns; /* CLOCK_MONOTONIC; stop 0 while it runs */
    uint64_t full;              /* samples lost because a table was full */
    sb_table rows;              /* key: stack, serial low, serial high */
    amount *amounts;
    size_t amount_room;
} windows[SB_WINDOWS_MAX];

static sb_table codes;  /* key: pointer low, pointer high */
static sb_table frames; /* key: code id, instruction offset */
static sb_table stacks; /* key: frame ids, leaf first; TRUNCATED marks a cut root */

static PyCodeObject **code_objects; /* strong, by code id */
static size_t code_room;
static int32_t *frame_lines; /* by frame id */
static size_t frame_room;
static int draining;

#define TRUNCATED UINT32_MAX

/* Room for `id` in an array of items of `size`; 0, or -1 without memory. */
static int
reserve(void **array, size_t *room, size_t id, size_t size)
{
    if (id < *room) {
        return 0;
    }
    size_t wanted = (id + 32) * 2;
    void *grown = PyMem_RawRealloc(*array, wanted * size);
    if (grown == NULL) {
        return -1;
    }
    *array = grown;
    *room = wanted;
    return 0;
}

/* ---- draining --------------------------------------------------------------------- */

/* The caller knows the code to be alive. */
static int64_t
code_id(PyCodeObject *code)
{
    uint64_t pointer = (uint64_t)(uintptr_t)code;
    uint32_t key[2] = {(uint32_t)pointer, (uint32_t)(pointer >> 32)};
    int64_t known = sb_table_find(&codes, key, 2);
    if (known >= 0) {
        return known;
    }
    /* Room first: an id without its reference could become somebody else's name. */
    int fresh;
    if (reserve((void **)&code_objects, &code_room, codes.count,
                sizeof *code_objects) < 0) {
        return -1;
    }
    int64_t id = sb_table_intern(&codes, key, 2, &fresh);
    if (id >= 0) {
        code_objects[id] = (PyCodeObject *)Py_NewRef((PyObject *)code);
    }
    return id;
}

static int64_t
frame_id(PyCodeObject *code, int32_t offset)
{
    int64_t owner = code_id(code);
    if (owner < 0) {
        return -1;
    }
    uint32_t key[2] = {(uint32_t)owner, (uint32_t)offset};
    int64_t known = sb_table_find(&frames, key, 2);
    if (known >= 0) {
        return known;
    }
    int fresh;
    if (reserve((void **)&frame_lines, &frame_room, frames.count,
                sizeof *frame_lines) < 0) {
        return -1;
    }
    int64_t id = sb_table_intern(&frames, key, 2, &fresh);
    if (id >= 0) {
        int line = offset < 0 ? code->co_firstlineno : PyCode_Addr2Line(code, offset);
        frame_lines[id] = line > 0 ? line : code->co_firstlineno;
    }
    return id;
}

static int64_t
stack_id(const sb_sample *sample)
{
    uint32_t key[SB_DEPTH_MAX + 1];
    uint32_t length = 0;
    for (uint32_t i = 0; i < sample->depth; i++) {
        int64_t id = frame_id(sample->frames[i].code, sample->frames[i].offset);
        if (id < 0) {
            return -1;
        }
        key[length++] = (uint32_t)id;
    }
    if (sample->truncated) {
        key[length++] = TRUNCATED;
    }
    int fresh;
    return sb_table_intern(&stacks, key, length, &fresh);
}

static void
add_row(struct window *window, int64_t stack, const sb_sample *sample)
{
    uint32_t key[3] = {(uint32_t)stack, (uint32_t)sample->serial,
                       (uint32_t)(sample->serial >> 32)};
    int fresh = 0;
    int64_t id = -1;
    if (stack >= 0 && reserve((void **)&window->amounts, &window->amount_room,
                              window->rows.count, sizeof *window->amounts) == 0) {
        id = sb_table_intern(&window->rows, key, 3, &fresh);
    }
    if (id < 0) {
        window->full += sample->weight;
        return;
    }
    if (fresh) {
        window->amounts[id] = (amount){0, 0};
    }
    window->amounts[id].count += sample->weight;
    window->amounts[id].ns += sample->weight * sample->period_ns;
}

static void
consume(const sb_sample *sample)
{
    int64_t stack = 0;
    int resolved = 0;
    for (int i = 0; i < SB_WINDOWS_MAX; i++) {
        struct window *window = &windows[i];
        if (!window->in_use || sample->time_ns < window->start_ns ||
            (window->stop_ns && sample->time_ns >= window->stop_ns)) {
            continue;
        }
        if (!resolved) {
            stack = stack_id(sample);
            resolved = 1;
        }
        add_row(window, stack, sample);
    }
}

void
sb_windows_drain(void)
{
    /* Dropping the tables' own references is a death too, and may come back here. */
    if (draining) {
        return;
    }
    draining = 1;
    sb_sampler_drain(SIZE_MAX, consume);
    draining = 0;
}

void
sb_windows_before_code_dies(void)
{
    if (sb_sampler_pending()) {
        sb_windows_drain();
    }
}

/* ---- windows ---------------------------------------------------------------------- */

int
sb_windows_open(void)
{
    int open = 0;
    for (int i = 0; i < SB_WINDOWS_MAX; i++) {
        open += windows[i].in_use;
    }
    return open;
}

int
sb_window_open(void)
{
    for (int i = 0; i < SB_WINDOWS_MAX; i++) {
        if (!windows[i].in_use) {
            memset(&windows[i], 0, sizeof windows[i]);
            windows[i].in_use = 1;
            windows[i].start_ns = sb_now_ns();
            return i;
        }
    }
    return -1;
}

void
sb_window_stop(int handle)
{
    sb_windows_drain();
    if (windows[handle].stop_ns == 0) {
        windows[handle].stop_ns = sb_now_ns();
    }
    sb_windows_drain();
}

static void
free_tables(void)
{
    PyCodeObject **held = code_objects;
    size_t count = codes.count;
    code_objects = NULL;
    code_room = 0;
    sb_table_clear(&codes);
    sb_table_clear(&frames);
    sb_table_clear(&stacks);
    PyMem_RawFree(frame_lines);
    frame_lines = NULL;
    frame_room = 0;
    for (size_t i = 0; i < count; i++) {
        Py_DECREF(held[i]);
    }
    PyMem_RawFree(held);
}

void
sb_window_free(int handle)
{
    struct window *window = &windows[handle];
    sb_table_clear(&window->rows);
    PyMem_RawFree(window->amounts);
    memset(window, 0, sizeof *window);
    if (sb_windows_open() == 0) {
        sb_windows_drain();
        free_tables();
    }
}

void
sb_windows_after_fork(void)
{
    draining = 0;
    for (int i = 0; i < SB_WINDOWS_MAX; i++) {
        if (windows[i].in_use) {
            sb_window_free(i);
        }
    }
}

/* ---- reading out ------------------------------------------------------------------ */

PyObject *
sb_window_extent(int handle)
{
    const struct window *window = &windows[handle];
    return Py_BuildValue(
        "{s:K,s:K,s:n,s:n,s:n,s:K}", "start_ns", (unsigned long long)window->start_ns,
        "stop_ns", (unsigned long long)window->stop_ns, "rows",
        (Py_ssize_t)window->rows.count, "stacks", (Py_ssize_t)stacks.count, "frames",
        (Py_ssize_t)frames.count, "full", (unsigned long long)window->full);
}

static size_t
slice_length(size_t total, size_t first, size_t count)
{
    size_t left = first < total ? total - first : 0;
    return count < left ? count : left;
}

PyObject *
sb_window_rows(int handle, size_t first, size_t count)
{
    const struct window *window = &windows[handle];
    size_t length = slice_length(window->rows.count, first, count);
    PyObject *list = PyList_New((Py_ssize_t)length);
    for (size_t i = 0; list != NULL && i < length; i++) {
        uint32_t words;
        const uint32_t *key = sb_table_key(&window->rows, first + i, &words);
        const amount *total = &window->amounts[first + i];
        PyObject *row = Py_BuildValue(
            "(IKKK)", key[0], (unsigned long long)((uint64_t)key[2] << 32 | key[1]),
            (unsigned long long)total->count, (unsigned long long)total->ns);
        if (row == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, row);
    }
    return list;
}

static PyObject *
stack_tuple(size_t id)
{
    uint32_t length;
    const uint32_t *key = sb_table_key(&stacks, id, &length);
    PyObject *tuple = PyTuple_New(length);
    for (uint32_t i = 0; tuple != NULL && i < length; i++) {
        long value = key[i] == TRUNCATED ? -1 : (long)key[i];
        PyObject *number = PyLong_FromLong(value);
        if (number == NULL) {
            Py_CLEAR(tuple);
            break;
        }
        PyTuple_SET_ITEM(tuple, i, number);
    }
    return tuple;
}

static PyObject *
frame_tuple(size_t id)
{
    uint32_t words;
    const uint32_t *key = sb_table_key(&frames, id, &words);
    PyCodeObject *code = code_objects[key[0]];
    return Py_BuildValue("(OOii)", code->co_filename, code->co_qualname,
                         code->co_firstlineno, (int)frame_lines[id]);
}

static PyObject *
slice(size_t total, size_t first, size_t count, PyObject *(*make)(size_t))
{
    size_t length = slice_length(total, first, count);
    PyObject *list = PyList_New((Py_ssize_t)length);
    for (size_t i = 0; list != NULL && i < length; i++) {
        PyObject *item = make(first + i);
        if (item == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, item);
    }
    return list;
}

PyObject *
sb_window_stacks(size_t first, size_t count)
{
    return slice(stacks.count, first, count, stack_tuple);
}

PyObject *
sb_window_frames(size_t first, size_t count)
{
    return slice(frames.count, first, count, frame_tuple);
}
