/* Waits that are no lock's: asyncio's primitives and queues, and work that is queued in
 * an executor. The methods of Python classes that pass by when something has to wait are
 * replaced by C functions, which are no frame in anybody's stack.
 *
 * All with the GIL, in the main interpreter.
 */
#ifndef SB_WAITS_H
#define SB_WAITS_H

#include <Python.h>

/* Adds wrap_get_loop, wrap_wake_up, wrap_work_item and wrap_work_run to the module. */
int sb_waits_init(PyObject *module);

#endif
