/* Threads that a server made behind CPython's back. */
#ifndef SB_GREET_H
#define SB_GREET_H

#include <Python.h>

/* Add `greet_thread` to the module. 0, or -1 with an exception. */
int sb_greet_init(PyObject *module);

#endif
