#include "methods.h"

#include <unistd.h>

PyMethodDef *
sb_method_of(PyTypeObject *type, const char *name)
{
    PyObject *found = PyObject_GetAttrString((PyObject *)type, name);
    if (found == NULL) {
        PyErr_Clear();
        return NULL;
    }
    PyMethodDef *definition = NULL;
    if (Py_TYPE(found) == &PyMethodDescr_Type &&
        ((PyDescrObject *)found)->d_type == type) {
        definition = ((PyMethodDescrObject *)found)->d_method;
    }
    Py_DECREF(found); /* the type keeps it */
    return definition;
}

PyCFunction
sb_method_asked(PyTypeObject *type, const char *name)
{
    PyMethodDef *definition = sb_method_of(type, name);
    int fits = definition != NULL && definition->ml_flags == METH_NOARGS;
    return fits ? definition->ml_meth : NULL;
}

int
sb_method_is_writable(PyMethodDef *definition)
{
    int ends[2];
    if (pipe(ends) < 0) {
        return 0;
    }
    size_t size = sizeof definition->ml_meth;
    int done = write(ends[1], &definition->ml_meth, size) == (ssize_t)size &&
               read(ends[0], &definition->ml_meth, size) == (ssize_t)size;
    close(ends[0]);
    close(ends[1]);
    return done;
}
