/* Rows of the tables in which types of the interpreter keep their methods. */
#ifndef SB_METHODS_H
#define SB_METHODS_H

#include <Python.h>

/* The row of a method of exactly this type, or NULL without an exception. */
PyMethodDef *sb_method_of(PyTypeObject *type, const char *name);
/* The function of a method without arguments, to ask with; or NULL. */
PyCFunction sb_method_asked(PyTypeObject *type, const char *name);
/* Whether the row can be written to: the kernel writes what is there already, and says
 * so where it may not instead of ending the process. */
int sb_method_is_writable(PyMethodDef *row);

#endif
