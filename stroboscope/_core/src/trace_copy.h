/* Copies of the box, for whoever reads it: all of it now, or what comes over a while.
 *
 * A copy is a block as in box.h; that of a capture has its events in a row and texts of
 * its own.
 */
#ifndef SB_TRACE_COPY_H
#define SB_TRACE_COPY_H

#include <Python.h>

int sb_copy_init(PyObject *module);
void sb_copy_after_fork(void);

#endif
