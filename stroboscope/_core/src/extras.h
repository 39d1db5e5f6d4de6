/* What a capture adds to the recorder's events: collections, counters, and calls that
 * waited in a queue (an event loop's callbacks, a pool's work). Nothing of it is hooked
 * but by `stroboscope/tracing/extras`, and all of it is silent without a capture.
 */
#ifndef SB_EXTRAS_H
#define SB_EXTRAS_H

#include <Python.h>

int sb_extras_init(PyObject *module);
void sb_extras_after_fork(void);

#endif
