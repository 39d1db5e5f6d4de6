#include "window.h"

#include <stdlib.h>
#include <string.h>

#include "copies.h"
#include "sampler.h"
#include "stacks.h"
#include "table.h"

typedef struct {
    uint64_t count, ns;
} amount;

static struct window {
    int in_use;
    int copies;                 /* C stacks are taken for it */
    uint64_t start_ns, stop_ns; /* CLOCK_MONOTONIC; stop 0 while it runs */
    uint64_t full;              /* samples lost because a table was full */
    sb_table rows;              /* key: stack, serial low, serial high */
    amount *amounts;
    size_t amount_room;
    sb_moment *moments;
    size_t moment_count, moment_room, moments_max;
    uint64_t late; /* samples beyond it, in periods */
} windows[SB_WINDOWS_MAX];

static int draining;

/* ---- draining --------------------------------------------------------------------- */

/* Whether it was counted. */
static int
add_row(struct window *window, int64_t stack, const sb_sample *sample)
{
    uint32_t key[3] = {(uint32_t)stack, (uint32_t)sample->serial,
                       (uint32_t)(sample->serial >> 32)};
    int fresh = 0;
    int64_t id = -1;
    if (stack >= 0 && sb_reserve((void **)&window->amounts, &window->amount_room,
                                 window->rows.count, sizeof *window->amounts) == 0) {
        id = sb_table_intern(&window->rows, key, 3, &fresh);
    }
    if (id < 0) {
        window->full += sample->weight;
        return 0;
    }
    if (fresh) {
        window->amounts[id] = (amount){0, 0};
    }
    window->amounts[id].count += sample->weight;
    window->amounts[id].ns += sample->weight * sample->period_ns;
    return 1;
}

/* The number its C stack has from now on, 0 where it is not kept. */
static uint32_t
add_moment(struct window *window, int64_t stack, const sb_sample *sample)
{
    if (window->moment_count == window->moments_max ||
        sb_reserve((void **)&window->moments, &window->moment_room, window->moment_count,
                   sizeof *window->moments) < 0) {
        window->late += sample->weight;
        return 0;
    }
    uint32_t copy = window->copies && sample->copy ? sb_copy_number(sample->copy) : 0;
    window->moments[window->moment_count++] =
        (sb_moment){sample->time_ns, sample->serial, (uint32_t)stack,
                    sample->tid,     sample->weight, copy};
    return copy;
}

static void
consume(const sb_sample *sample)
{
    int64_t stack = 0;
    int resolved = 0;
    uint32_t copy = 0;
    for (int i = 0; i < SB_WINDOWS_MAX; i++) {
        struct window *window = &windows[i];
        if (!window->in_use || sample->time_ns < window->start_ns ||
            (window->stop_ns && sample->time_ns >= window->stop_ns)) {
            continue;
        }
        if (!resolved) {
            stack = sb_stack_of_sample(sample);
            resolved = 1;
        }
        if (add_row(window, stack, sample) && window->moments_max) {
            copy |= add_moment(window, stack, sample);
        }
    }
    if (sample->copy && !copy) {
        sb_copy_free(sample->copy);
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
sb_window_open(size_t moments, uint64_t start_ns, int copies)
{
    for (int i = 0; i < SB_WINDOWS_MAX; i++) {
        if (!windows[i].in_use) {
            if (copies && sb_copies_begin() < 0) {
                return -2;
            }
            memset(&windows[i], 0, sizeof windows[i]);
            windows[i].in_use = 1;
            windows[i].copies = copies;
            windows[i].moments_max = moments;
            sb_stacks_use(SB_OF_WINDOWS);
            uint64_t now_ns = sb_now_ns();
            windows[i].start_ns = start_ns > now_ns ? start_ns : now_ns;
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
        /* One that ends before it began is empty, not shorter than nothing. */
        uint64_t now_ns = sb_now_ns(), start_ns = windows[handle].start_ns;
        windows[handle].stop_ns = now_ns > start_ns ? now_ns : start_ns;
    }
    sb_windows_drain();
}

void
sb_window_free(int handle)
{
    struct window *window = &windows[handle];
    if (window->copies) {
        sb_copies_end();
    }
    sb_table_clear(&window->rows);
    free(window->amounts);
    free(window->moments);
    memset(window, 0, sizeof *window);
    if (sb_windows_open() == 0) {
        sb_windows_drain(); /* what nobody waits for any more */
    }
    sb_stacks_leave(SB_OF_WINDOWS);
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
        "{s:K,s:K,s:n,s:K,s:K}", "start_ns", (unsigned long long)window->start_ns, "stop_ns",
        (unsigned long long)window->stop_ns, "rows", (Py_ssize_t)window->rows.count,
        "full", (unsigned long long)window->full, "late",
        (unsigned long long)window->late);
}

PyObject *
sb_window_rows(int handle, size_t first, size_t count)
{
    const struct window *window = &windows[handle];
    size_t length = sb_slice_length(window->rows.count, first, count);
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

PyObject *
sb_window_moments(int handle)
{
    const struct window *window = &windows[handle];
    return PyBytes_FromStringAndSize(
        (const char *)window->moments,
        (Py_ssize_t)(window->moment_count * sizeof *window->moments));
}
