/* Where a request's trace id comes from: its headers, or OpenTelemetry's span. */
#include "trace.h"

#include <string.h>

static int
nibble(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Whether so many digits are hexadecimal and not all zero. */
static int
read_hex(const char *text, uint8_t *out, int bytes)
{
    int any = 0;
    for (int i = 0; i < bytes; i++) {
        int high = nibble(text[2 * i]), low = nibble(text[2 * i + 1]);
        if (high < 0 || low < 0) {
            return 0;
        }
        out[i] = (uint8_t)(high << 4 | low);
        any |= out[i];
    }
    return any != 0;
}

/* Source: W3C Trace Context, `traceparent`. */
static int
read_traceparent(sb_cell *cell, const char *text, Py_ssize_t length)
{
    enum { TRACE_AT = 3, SPAN_AT = 36, LENGTH = 55 };
    uint8_t trace[16], span[8];
    if (length < LENGTH || text[2] != '-' || text[SPAN_AT - 1] != '-' ||
        memcmp(text, "ff", 2) == 0 || !read_hex(text + TRACE_AT, trace, 16) ||
        !read_hex(text + SPAN_AT, span, 8)) {
        return 0;
    }
    memcpy(cell->trace_id, trace, sizeof trace);
    memcpy(cell->span_id, span, sizeof span);
    return 1;
}

/* `traceparent` in an ASGI scope's headers, pairs of bytes. */
static int
read_headers(sb_cell *cell, PyObject *headers)
{
    static const char NAME[] = "traceparent";
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(headers); i++) {
        PyObject *pair = PyList_GET_ITEM(headers, i);
        PyObject *name, *value;
        if (PyTuple_Check(pair) && PyTuple_GET_SIZE(pair) == 2) {
            name = PyTuple_GET_ITEM(pair, 0);
            value = PyTuple_GET_ITEM(pair, 1);
        }
        else if (PyList_Check(pair) && PyList_GET_SIZE(pair) == 2) {
            name = PyList_GET_ITEM(pair, 0);
            value = PyList_GET_ITEM(pair, 1);
        }
        else {
            continue;
        }
        if (PyBytes_Check(name) && PyBytes_Check(value) &&
            PyBytes_GET_SIZE(name) == sizeof NAME - 1 &&
            memcmp(PyBytes_AS_STRING(name), NAME, sizeof NAME - 1) == 0) {
            return read_traceparent(cell, PyBytes_AS_STRING(value),
                                    PyBytes_GET_SIZE(value));
        }
    }
    return 0;
}

/* Where a request keeps its headers: ASGI a list of them, WSGI an entry of each. */
static PyObject *headers_key, *traceparent_key;

int
sb_link_read(sb_cell *cell, PyObject *link)
{
    if (PyDict_Check(link)) {
        PyObject *found = PyDict_GetItemWithError(link, headers_key);
        if (found == NULL && !PyErr_Occurred()) {
            found = PyDict_GetItemWithError(link, traceparent_key);
        }
        PyErr_Clear();
        link = found != NULL ? found : Py_None;
    }
    if (PyList_Check(link)) {
        return read_headers(cell, link);
    }
    if (PyUnicode_Check(link) && PyUnicode_IS_COMPACT_ASCII(link)) {
        return read_traceparent(cell, (const char *)PyUnicode_1BYTE_DATA(link),
                                PyUnicode_GET_LENGTH(link));
    }
    if (PyBytes_Check(link) && PyBytes_GET_SIZE(link) == 24) {
        memcpy(cell->trace_id, PyBytes_AS_STRING(link), 16);
        memcpy(cell->span_id, PyBytes_AS_STRING(link) + 16, 8);
        return 1;
    }
    return 0;
}

/* ---- OpenTelemetry's current span -------------------------------------------------- */

/* Where its API keeps the span, as stroboscope.tracing has learned it: a ContextVar, and
 * the key in the dict that the variable holds. NULL: not known. */
static PyObject *span_var, *span_key;
/* What asks the API itself: () -> span or None. */
static PyObject *ask_span;

/* set_span_place(ask, var or None, key or None) */
static PyObject *
set_span_place(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *ask, *var, *key;
    if (!PyArg_ParseTuple(args, "OOO:set_span_place", &ask, &var, &key)) {
        return NULL;
    }
    int is_known = PyContextVar_CheckExact(var) && PyUnicode_CheckExact(key);
    Py_XSETREF(ask_span, Py_NewRef(ask));
    Py_XSETREF(span_var, is_known ? Py_NewRef(var) : NULL);
    Py_XSETREF(span_key, is_known ? Py_NewRef(key) : NULL);
    Py_RETURN_NONE;
}

/* Whether nothing is where a span would be. 0 as well where that is not known. */
static int
has_no_span(void)
{
    PyObject *held = NULL;
    if (span_var == NULL || PyContextVar_Get(span_var, Py_None, &held) < 0) {
        PyErr_Clear();
        return 0;
    }
    int is_empty = held == Py_None ||
                   (PyDict_Check(held) &&
                    PyDict_GetItemWithError(held, span_key) == NULL && !PyErr_Occurred());
    PyErr_Clear();
    Py_DECREF(held);
    return is_empty;
}

/* current_span(): OpenTelemetry's, or None. Most requests of most services have none, and
 * that is told without a call of its API; where there is one the API says which. */
static PyObject *
current_span(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    if (ask_span == NULL || has_no_span()) {
        Py_RETURN_NONE;
    }
    return PyObject_CallNoArgs(ask_span);
}

static PyObject *
may_have_span(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(ask_span != NULL && !has_no_span());
}

static PyMethodDef methods[] = {
    {"set_span_place", set_span_place, METH_VARARGS, "Where the current span is."},
    {"may_have_span", may_have_span, METH_NOARGS, "Whether `current_span` may find one."},
    {"current_span", current_span, METH_NOARGS, "OpenTelemetry's current span, or None."},
    {NULL, NULL, 0, NULL},
};

int
sb_link_init(PyObject *module)
{
    Py_XSETREF(headers_key, PyUnicode_InternFromString("headers"));
    Py_XSETREF(traceparent_key, PyUnicode_InternFromString("HTTP_TRACEPARENT"));
    return headers_key == NULL || traceparent_key == NULL
               ? -1
               : PyModule_AddFunctions(module, methods);
}
