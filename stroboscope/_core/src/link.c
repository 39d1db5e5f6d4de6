/* Where a request's trace id comes from. */
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

int
sb_link_read(sb_cell *cell, PyObject *link)
{
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
