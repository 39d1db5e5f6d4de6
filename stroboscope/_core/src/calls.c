#include "calls.h"

static PyObject *word_blocking, *word_block, *word_timeout;

/* One argument, borrowed, or NULL when it is not there. `*used` counts those found. */
static PyObject *
argument(const sb_call *c, Py_ssize_t at, PyObject *name, Py_ssize_t *used)
{
    PyObject *found = NULL;
    if (c->convention & METH_FASTCALL) {
        Py_ssize_t names = c->names ? PyTuple_GET_SIZE(c->names) : 0;
        if (at < c->count) {
            found = c->positional[at];
        }
        for (Py_ssize_t i = 0; found == NULL && i < names; i++) {
            if (PyTuple_GET_ITEM(c->names, i) == name) { /* both are interned */
                found = c->positional[c->count + i];
            }
        }
    }
    else {
        if (at < PyTuple_GET_SIZE(c->args)) {
            found = PyTuple_GET_ITEM(c->args, at);
        }
        else if (c->kwargs != NULL) {
            found = PyDict_GetItemWithError(c->kwargs, name);
        }
    }
    *used += found != NULL;
    return found;
}

static Py_ssize_t
arguments_count(const sb_call *c)
{
    if (c->convention & METH_FASTCALL) {
        return c->count + (c->names ? PyTuple_GET_SIZE(c->names) : 0);
    }
    if (!(c->convention & METH_KEYWORDS)) {
        return 0;
    }
    return PyTuple_GET_SIZE(c->args) + (c->kwargs ? PyDict_GET_SIZE(c->kwargs) : 0);
}

static int
is_a_wait(PyObject *timeout, int is_queue)
{
    double seconds;
    if (timeout == NULL || (timeout == Py_None && is_queue)) {
        return 1;
    }
    if (PyFloat_CheckExact(timeout)) {
        seconds = PyFloat_AS_DOUBLE(timeout);
    }
    else if (PyLong_CheckExact(timeout)) {
        int overflow;
        seconds = (double)PyLong_AsLongAndOverflow(timeout, &overflow);
        if (overflow) {
            return 0;
        }
    }
    else {
        return 0;
    }
    return (seconds == -1 && !is_queue) ||
           (seconds > 0 && seconds < (double)PY_TIMEOUT_MAX / 1e6);
}

int
sb_call_may_wait(const sb_call *c, int is_queue)
{
    Py_ssize_t given = arguments_count(c), used = 0;
    if (given == 0) {
        return 1;
    }
    PyObject *block = argument(c, 0, is_queue ? word_block : word_blocking, &used);
    PyObject *timeout = argument(c, 1, word_timeout, &used);
    if (used != given) {
        return 0;
    }
    if (block != NULL && block != Py_True &&
        !(PyLong_CheckExact(block) && PyObject_IsTrue(block))) {
        return 0;
    }
    return is_a_wait(timeout, is_queue);
}

int
sb_calls_init(void)
{
    word_blocking = PyUnicode_InternFromString("blocking");
    word_block = PyUnicode_InternFromString("block");
    word_timeout = PyUnicode_InternFromString("timeout");
    return word_blocking && word_block && word_timeout ? 0 : -1;
}
