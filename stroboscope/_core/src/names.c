/* Names of events as numbers: a table that only grows, of one box. See trace.h. */
#include "trace.h"

#include <string.h>

static PyObject *names; /* {str: id} of this box; bounded by SB_NAMES_MAX */
static uint32_t count;
static uint64_t refused;

/* ---- those used last -------------------------------------------------------------- */

/* In front of the table: a name found here is neither hashed nor looked up. One that was
 * made for the occasion, as by an f-string, has no hash yet; and there are few. */
enum { RECENT_BITS = 8, WORD = sizeof(uint64_t) };

static struct {
    PyObject *name; /* strong, exact and ASCII, or NULL */
    uint32_t id;
} recent[1 << RECENT_BITS];

/* Where a name of ASCII has its place: by its length and both its ends. */
static uint32_t
place_of(const char *text, size_t length)
{
    uint64_t head = 0, tail = 0;
    if (length >= WORD) {
        memcpy(&head, text, WORD);
        memcpy(&tail, text + length - WORD, WORD);
    }
    else {
        for (size_t i = 0; i < length; i++) {
            head = head << 8 | (unsigned char)text[i];
        }
    }
    uint64_t mixed = (head ^ (tail << 29 | tail >> 35) ^ length) * 0x9E3779B97F4A7C15u;
    return (uint32_t)((mixed ^ mixed >> 32) * 0xFF51AFD7ED558CCDu >> (64 - RECENT_BITS));
}

static inline int
is_same(PyObject *known, PyObject *name, const char *text, size_t length)
{
    return known == name ||
           (known != NULL && (size_t)PyUnicode_GET_LENGTH(known) == length &&
            memcmp(PyUnicode_1BYTE_DATA(known), text, length) == 0);
}

/* ---- the table -------------------------------------------------------------------- */

/* Add a name that is not there. Its id; SB_NAME_OVERFLOW when it cannot be. */
static uint32_t
add(PyObject *name, int is_ours)
{
    uint32_t limit = is_ours ? SB_NAMES_MAX : SB_NAMES_MAX / 4 * 3;
    PyObject *bytes = PyUnicode_AsEncodedString(name, "utf-8", "replace");
    PyObject *id = bytes ? PyLong_FromUnsignedLong(count) : NULL;
    uint32_t made = SB_NAME_OVERFLOW;
    if (id != NULL && count < limit) {
        const char *text = PyBytes_AS_STRING(bytes);
        size_t length = sb_utf8_cut(text, (size_t)PyBytes_GET_SIZE(bytes),
                                    SB_NAME_BYTES_MAX);
        if (PyDict_SetItem(names, name, id) == 0) {
            if (sb_box_add_name(sb_trace.box, text, length, is_ours) == 0) {
                made = count++;
            }
            else {
                PyDict_DelItem(names, name);
            }
        }
    }
    Py_XDECREF(id);
    Py_XDECREF(bytes);
    PyErr_Clear();
    if (made == SB_NAME_OVERFLOW) {
        atomic_store(&sb_trace.box->names_refused, ++refused);
    }
    return made;
}

/* Of an exact str that is not too long. */
static uint32_t
find_or_add(PyObject *name, int is_ours)
{
    PyObject *id = PyDict_GetItemWithError(names, name);
    if (id != NULL) {
        return (uint32_t)PyLong_AsUnsignedLong(id);
    }
    PyErr_Clear();
    return add(name, is_ours);
}

static uint32_t
cut_name(PyObject *name, int is_ours)
{
    PyObject *cut = PyUnicode_Substring(name, 0, SB_NAME_BYTES_MAX);
    PyObject *exact = cut ? PyUnicode_FromObject(cut) : NULL;
    uint32_t id = SB_NAME_OVERFLOW;
    if (exact == NULL) {
        PyErr_Clear();
    }
    else if (PyUnicode_CheckExact(exact) &&
             PyUnicode_GET_LENGTH(exact) <= SB_NAME_BYTES_MAX) {
        id = find_or_add(exact, is_ours);
    }
    Py_XDECREF(cut);
    Py_XDECREF(exact);
    return id;
}

uint32_t
sb_trace_name(PyObject *name, int is_ours)
{
    if (!PyUnicode_CheckExact(name) || PyUnicode_GET_LENGTH(name) > SB_NAME_BYTES_MAX) {
        return cut_name(name, is_ours);
    }
    if (!PyUnicode_IS_COMPACT_ASCII(name)) {
        return find_or_add(name, is_ours);
    }
    const char *text = (const char *)PyUnicode_1BYTE_DATA(name);
    size_t length = (size_t)PyUnicode_GET_LENGTH(name);
    uint32_t place = place_of(text, length);
    if (is_same(recent[place].name, name, text, length)) {
        return recent[place].id;
    }
    uint32_t id = find_or_add(name, is_ours);
    if (id != SB_NAME_OVERFLOW) {
        recent[place].id = id;
        Py_XSETREF(recent[place].name, Py_NewRef(name));
    }
    return id;
}

uint32_t
sb_trace_name_of(const char *name)
{
    PyObject *text = PyUnicode_DecodeUTF8(name, (Py_ssize_t)strlen(name), "replace");
    uint32_t id = text ? sb_trace_name(text, 1) : SB_NAME_OVERFLOW;
    Py_XDECREF(text);
    PyErr_Clear();
    return id;
}

/* ---- routes ----------------------------------------------------------------------- */

/* A template belongs to its route, so it is the same object each time. */
enum { ROUTES_BITS = 6 };

static struct {
    PyObject *template; /* strong, or NULL */
    uint32_t id;
} recent_routes[1 << ROUTES_BITS];

uint32_t
sb_trace_route_name(PyObject *template)
{
    uint64_t mixed = (uint64_t)(uintptr_t)template * 0x9E3779B97F4A7C15u;
    uint32_t place = (uint32_t)(mixed >> (64 - ROUTES_BITS));
    if (recent_routes[place].template == template) {
        return recent_routes[place].id;
    }
    PyObject *name = PyUnicode_FromFormat("http:%U", template);
    uint32_t id = name ? sb_trace_name(name, 1) : SB_NAME_OVERFLOW;
    PyErr_Clear();
    Py_XDECREF(name);
    if (id != SB_NAME_OVERFLOW) {
        recent_routes[place].id = id;
        Py_XSETREF(recent_routes[place].template, Py_NewRef(template));
    }
    return id;
}

/* ---- life ------------------------------------------------------------------------- */

uint32_t
sb_names_count(void)
{
    return count;
}

void
sb_names_forget(void)
{
    count = SB_NAME_FIRST;
    refused = 0;
    PyDict_Clear(names);
    for (size_t i = 0; i < sizeof recent / sizeof *recent; i++) {
        Py_CLEAR(recent[i].name);
    }
    for (size_t i = 0; i < sizeof recent_routes / sizeof *recent_routes; i++) {
        Py_CLEAR(recent_routes[i].template);
    }
}

int
sb_names_init(void)
{
    names = PyDict_New();
    return names == NULL ? -1 : 0;
}
