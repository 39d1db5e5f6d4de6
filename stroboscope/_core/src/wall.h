/* Time that threads wait and tasks are suspended, by stack and labels.
 *
 * A tick reads the CPU clock of every thread: what of the time since the last tick it
 * did not burn it has waited, at the stack where it stands now. A thread whose clock
 * stood still has not moved, so its stack is not read again. Of the tasks a tick looks
 * at a few, each for all that it stands for.
 *
 * Everything here holds the GIL.
 */
#ifndef SB_WALL_H
#define SB_WALL_H

#include <Python.h>

/* Tasks looked at in one tick; of more than that each stands for its share. */
#define SB_WALL_TASKS 8
/* A set with more slots is not walked until they are found: of so many at most. */
#define SB_WALL_SLOTS 131072
#define SB_WALL_LOOKS 8192
#define SB_WALL_ROOM (4 * SB_WALL_TASKS)
#define SB_WALL_WINDOWS_MAX 16

/* Add wall_open and its like to the module. 0, or -1 with an exception. */
int sb_wall_init(PyObject *module);
void sb_wall_after_fork(void);

#endif
