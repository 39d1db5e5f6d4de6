/* Turning ring slots into counted stacks, for every open window.
 *
 * Code objects are resolved before they can die: the drainer does it ten times a
 * second, and the death of any code object does it at once. A code object that was
 * sampled is then held until no window is open, so a pointer stays one name.
 *
 * Everything here holds the GIL.
 */
#ifndef SB_WINDOW_H
#define SB_WINDOW_H

#include <Python.h>
#include <stdint.h>

#define SB_WINDOWS_MAX 16

/* Open a window for samples from now on, or from a later moment of CLOCK_MONOTONIC; its
 * handle, or -1 when all are in use. It keeps the moments of its first `moments` samples
 * as well; with `copies`, which one at a time may have, their C stacks. -2 with an
 * exception where those cannot be had. */
int sb_window_open(size_t moments, uint64_t start_ns, int copies);
/* Close it for samples; it can still be read. */
void sb_window_stop(int handle);
/* Forget it. */
void sb_window_free(int handle);
int sb_windows_open(void);
/* Drain everything pending. */
void sb_windows_drain(void);
/* The same, cheaply when nothing is pending. */
void sb_windows_before_code_dies(void);
void sb_windows_after_fork(void);

/* A sample by itself; Python's side knows it as well. */
typedef struct {
    uint64_t time_ns, serial;
    uint32_t stack, tid, weight, copy; /* the number of its C stack, 0 without one */
} sb_moment;

/* {"start_ns", "stop_ns", "rows", "full", "late"}: periods that found a table full, and
 * those of samples beyond the limit of moments; NULL on error. */
PyObject *sb_window_extent(int handle);
/* A slice of at most `count` rows (stack, serial, count, ns) from `first`, so that no
 * call holds the GIL long. A new list, NULL on error. */
PyObject *sb_window_rows(int handle, size_t first, size_t count);
/* Every moment, as bytes of rows; not in order. NULL on error. */
PyObject *sb_window_moments(int handle);

#endif
