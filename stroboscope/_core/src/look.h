/* A thread's stack and context of one moment, for the stall watch. */
#ifndef SB_LOOK_H
#define SB_LOOK_H

#include <Python.h>

/* Add `look` to the module. 0, or -1 with an exception. */
int sb_look_init(PyObject *module);

#endif
