#include "compat.h"

#include "search.h"

#include <stdlib.h>

/* What a search has found: strong references, at most `cap`. */
typedef struct {
    PyTypeObject *kind;
    PyTypeObject *latest; /* the type asked about last, and the answer */
    int is_of_kind;
    size_t count, cap;
    PyObject **found;
} search;

/* 1: go on. Runs no Python code: a type is asked for its bases only, never an object for
 * its `__class__`, which a proxy answers with code of the application's. */
static int
visit(PyObject *object, void *argument)
{
    search *self = argument;
    PyTypeObject *type = Py_TYPE(object);
    if (type != self->latest) {
        self->latest = type;
        self->is_of_kind = PyType_IsSubtype(type, self->kind);
    }
    /* One whose memory is about to go is still in the collector's lists for a moment. */
    if (self->is_of_kind && Py_REFCNT(object) > 0) {
        self->found[self->count++] = Py_NewRef(object);
    }
    return self->count < self->cap;
}

/* instances_of(type, cap) -> list. */
static PyObject *
instances_of(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyTypeObject *kind;
    Py_ssize_t cap;
    if (!PyArg_ParseTuple(args, "O!n", &PyType_Type, &kind, &cap)) {
        return NULL;
    }
    search all = {kind, NULL, 0, 0, cap > 0 ? (size_t)cap : 0, NULL};
    if (all.cap == 0) {
        return PyList_New(0);
    }
    all.found = malloc(all.cap * sizeof *all.found);
    if (all.found == NULL) {
        return PyErr_NoMemory();
    }
    sb_visit_tracked(visit, &all);
    PyObject *list = PyList_New((Py_ssize_t)all.count);
    for (size_t i = 0; i < all.count; i++) {
        if (list != NULL) {
            PyList_SET_ITEM(list, (Py_ssize_t)i, all.found[i]);
        }
        else {
            Py_DECREF(all.found[i]);
        }
    }
    free(all.found);
    return list;
}

static PyMethodDef methods[] = {
    {"instances_of", instances_of, METH_VARARGS, "Tracked objects of a type."},
    {NULL, NULL, 0, NULL},
};

int
sb_search_init(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
