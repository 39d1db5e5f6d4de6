/* The newest samples with their names, in a file mapping that other processes may read.
 *
 * Where the GIL is held nobody else in the process can say where; the signal handler can:
 * it copies file, function and line as text, and whoever reads the file needs nothing of
 * this process. Names of places only, and the text of an endpoint that is known already.
 *
 * File: a head of SB_SAMPLES_SLOT bytes (magic, slot size, slots, process), then slots. A
 * slot: sequence, odd while it is written; a checksum of all that follows, so that what
 * was torn is never believed; time (CLOCK_MONOTONIC), serial of the label cell, thread,
 * flags, depth and length; then the endpoint (length, bytes) and the frames, leaf first
 * (line, two lengths, function, file).
 */
#ifndef SB_SAMPLES_H
#define SB_SAMPLES_H

#include <Python.h>
#include <stdint.h>

#define SB_SAMPLES_SLOT 4096
#define SB_SAMPLES_SLOTS 32

/* Flags of a sample. */
#define SB_SAMPLE_CUT 1    /* deeper frames did not fit */
#define SB_SAMPLE_HOLDER 2 /* its thread held the interpreter */
#define SB_SAMPLE_MAIN 4   /* its thread is the main one */

/* Add samples_open and samples_close to the module. 0, or -1 with an exception. */
int sb_samples_init(PyObject *module);
void sb_samples_after_fork(void);
int sb_samples_are_kept(void);
/* In the handler, on the thread of `tstate`, the guard being ours: leave a sample. Only
 * reads Python's memory; allocates nothing. 1 when it was left. */
int sb_samples_take(PyThreadState *tstate, uint32_t flags);

#endif
