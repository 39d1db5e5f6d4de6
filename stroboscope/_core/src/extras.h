/* What a capture adds to the recorder's events: collections, counters, and calls that
 * waited in a queue (an event loop's callbacks, a pool's work), waits of threads. Nothing of it is hooked
 * but by `stroboscope/tracing/extras`, and all of it is silent without a capture.
 */
#ifndef SB_EXTRAS_H
#define SB_EXTRAS_H

#include <Python.h>
#include <stdint.h>

/* A slice on the thread's own track that is open; none for generation 0. */
typedef struct {
    uint32_t generation, pair, name;
    uint64_t task;
} sb_slice;

/* The running thread begins to wait, in this code or NULL: for a lock, or for news.
 * Nothing without a capture. */
sb_slice sb_extras_wait_begins(int for_lock, PyCodeObject *code);
void sb_extras_wait_ends(const sb_slice *wait);
/* The same of a coroutine: a slice on its task's track. May call the middleware for the
 * task's name; sets no exception. `*lane` goes with the slice. */
sb_slice sb_extras_coroutine_waits(int for_lock, PyCodeObject *code, uint32_t *lane);
void sb_extras_coroutine_waited(const sb_slice *wait, uint32_t lane);

int sb_extras_init(PyObject *module);
void sb_extras_after_fork(void);

#endif
