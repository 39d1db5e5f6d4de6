/* The stall watch: hearts that beat on event loops, a thread that sees them late.
 *
 * A heart is a callable with a descriptor for an event loop to read. The ticker, a thread
 * of C's own, writes to it where a loop is not idle, and the loop beats as soon as it gets
 * to it. None of that needs the GIL or wakes an idle loop, so it costs next to nothing and
 * sees a process whose GIL is held. What is late it tells the watcher, a Python thread
 * that waits here.
 */
#ifndef SB_WATCH_H
#define SB_WATCH_H

#include <Python.h>

/* Add Heart, look and the calls of the watcher to the module. 0, or -1 with an exception. */
int sb_watch_init(PyObject *module);
/* The child of a fork has neither thread nor loop of its parent's. */
void sb_watch_after_fork(void);
/* Have the ticker look again at once. With the GIL. */
void sb_watch_hurry(void);

#endif
