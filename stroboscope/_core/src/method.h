/* A method of ours in the place of a Python function of somebody's class.
 *
 * It binds, and is found on its class, as the function it stands in for, so that who
 * saves and restores it gets what he saved. All else is the original's.
 */
#ifndef SB_METHOD_H
#define SB_METHOD_H

#include <Python.h>

/* Called with the instance as first argument; `definition` lives for ever and gets
 * `self` as its own. New reference, or NULL with an exception. */
PyObject *sb_method_over(PyMethodDef *definition, PyObject *self, PyObject *original);
/* Before anybody makes one. 0, or -1 with an exception. */
int sb_method_init(PyObject *module);

#endif
