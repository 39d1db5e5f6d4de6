/* Watching the locks of `_thread` and the queues of `_queue`, every one of them,
 * whenever it was made.
 *
 * The methods of these types live in tables of function pointers, one per method and
 * process. While contention is counted, the pointers of those that can block and of
 * those that let go lead here; else they are the interpreter's own. So no lock is of
 * another type than before, none is missed, none has to be told apart, and switching
 * off leaves nothing behind. A call that does not wait does what it always did, plus one
 * look at whether it would.
 *
 * Chosen over types of our own for `threading.Lock`: those miss each lock made before,
 * or by a name bound before, which are most; and live on after the switch.
 */
#ifndef SB_LOCKS_H
#define SB_LOCKS_H

#include <Python.h>

/* Adds locks_attach, locks_switch and locks_watched to the module. */
int sb_locks_init(PyObject *module);

#endif
