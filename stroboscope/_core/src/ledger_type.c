#include "ledger.h"

#include <stdlib.h>
#include <string.h>

#include "owner.h"
#include "stacks.h"

/* ---- LedgerCopy ------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    sb_ledger_line *lines; /* `owner` is a position in `owners` */
    uint32_t count;
    int width;
    PyObject *owners;
} copy_object;

static PyTypeObject *copy_type;

/* The position of an owner in `owners`, appended with its parents if need be, or -1.
 * `positions` has one more than the position for each owner seen. */
static int64_t
position_of(uint32_t owner, uint32_t *positions, PyObject *owners)
{
    if (positions[owner] != 0) {
        return positions[owner] - 1;
    }
    PyObject *described = sb_owner_described(owner);
    const char *kind;
    PyObject *object, *entry = NULL;
    unsigned int parent;
    if (described == NULL || !PyArg_ParseTuple(described, "sOI", &kind, &object, &parent)) {
        goto failed;
    }
    int64_t above = parent ? position_of(parent, positions, owners) : 0;
    entry = above < 0 ? NULL : Py_BuildValue("(sOL)", kind, object, (long long)above);
    if (entry == NULL || PyList_Append(owners, entry) < 0) {
        goto failed;
    }
    Py_DECREF(entry);
    Py_DECREF(described);
    positions[owner] = (uint32_t)PyList_GET_SIZE(owners);
    return positions[owner] - 1;
failed:
    Py_XDECREF(entry);
    Py_XDECREF(described);
    return -1;
}

PyObject *
sb_ledger_copy(const sb_ledger *ledger)
{
    copy_object *self = (copy_object *)copy_type->tp_alloc(copy_type, 0);
    if (self == NULL) {
        return NULL;
    }
    /* Python's allocator may run the collector or a hook that counts into this ledger:
     * what is copied is copied in one piece, before any object is made. */
    self->width = sb_ledger_width(ledger);
    self->count = sb_ledger_count(ledger);
    self->lines = malloc(self->count * sizeof *self->lines);
    if (self->lines == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    sb_ledger_lines(ledger, self->lines);
    uint32_t *positions = calloc(sb_owners_room(), sizeof *positions);
    self->owners = positions ? PyList_New(0) : NULL;
    int is_enabled = PyGC_Disable(); /* an end of a cell would move owners meanwhile */
    for (uint32_t i = 0; self->owners != NULL && i < self->count; i++) {
        int64_t position =
            position_of(self->lines[i].owner, positions, self->owners);
        if (position < 0) {
            Py_CLEAR(self->owners);
            break;
        }
        self->lines[i].owner = (uint32_t)position;
    }
    if (is_enabled) {
        PyGC_Enable();
    }
    free(positions);
    if (self->owners == NULL) {
        Py_DECREF(self);
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void
copy_dealloc(PyObject *object)
{
    copy_object *self = (copy_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    free(self->lines);
    Py_XDECREF(self->owners);
    type->tp_free(object);
    Py_DECREF(type);
}

static Py_ssize_t
copy_length(PyObject *object)
{
    return (Py_ssize_t)((copy_object *)object)->count;
}

static PyObject *
copy_get_owners(PyObject *object, void *Py_UNUSED(closure))
{
    return Py_NewRef(((copy_object *)object)->owners);
}

static int64_t
cell_of(const sb_ledger_line *line, int column)
{
    if (column == 0) {
        return line->stack == SB_LEDGER_NO_STACK ? -1 : (int64_t)line->stack;
    }
    return column == 1 ? (int64_t)line->owner : line->values[column - 2];
}

/* Numbers, not objects: tens of thousands of tuples would set the garbage collector
 * off, and the application would wait for it. */
static PyObject *
copy_column(PyObject *object, PyObject *argument)
{
    copy_object *self = (copy_object *)object;
    long column = PyLong_AsLong(argument);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (column < 0 || column >= 2 + self->width) {
        PyErr_SetString(PyExc_ValueError, "no such column");
        return NULL;
    }
    PyObject *bytes = PyBytes_FromStringAndSize(
        NULL, (Py_ssize_t)(self->count * sizeof(int64_t)));
    if (bytes == NULL) {
        return NULL;
    }
    char *at = PyBytes_AS_STRING(bytes);
    for (uint32_t i = 0; i < self->count; i++) {
        int64_t number = cell_of(&self->lines[i], (int)column);
        memcpy(at + i * sizeof number, &number, sizeof number);
    }
    return bytes;
}

static PyGetSetDef copy_getset[] = {
    {"owners", copy_get_owners, NULL, "(kind, object, parent position).", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef copy_methods[] = {
    {"column", copy_column, METH_O, "Stack, owner position or a value of all rows."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot copy_slots[] = {
    {Py_tp_dealloc, copy_dealloc},
    {Py_sq_length, copy_length},
    {Py_tp_getset, copy_getset},
    {Py_tp_methods, copy_methods},
    {Py_tp_doc, "A ledger's rows as they stood at one moment."},
    {0, NULL},
};

static PyType_Spec copy_spec = {
    .name = "stroboscope._core._native.LedgerCopy",
    .basicsize = sizeof(copy_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = copy_slots,
};

/* ---- Ledger ----------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    sb_ledger *ledger;
} ledger_object;

static PyObject *
ledger_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"width", NULL};
    int width;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i:Ledger", names, &width)) {
        return NULL;
    }
    ledger_object *self = (ledger_object *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->ledger = sb_ledger_new(width);
    if (self->ledger == NULL) {
        Py_DECREF(self);
        PyErr_SetString(PyExc_ValueError, "a ledger has 1 to 4 values");
        return NULL;
    }
    return (PyObject *)self;
}

static void
ledger_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    sb_ledger_free(((ledger_object *)object)->ledger);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *
ledger_row(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLongLong(sb_ledger_row(((ledger_object *)object)->ledger,
                                             sb_stack_of_current(SB_DEPTH_MAX),
                                             sb_current_cell()));
}

static PyObject *
ledger_add(PyObject *object, PyObject *args)
{
    sb_ledger *ledger = ((ledger_object *)object)->ledger;
    long long row, v[SB_LEDGER_WIDTH_MAX] = {0};
    if (!PyArg_ParseTuple(args, "LL|LLL", &row, &v[0], &v[1], &v[2], &v[3])) {
        return NULL;
    }
    int64_t values[SB_LEDGER_WIDTH_MAX] = {v[0], v[1], v[2], v[3]};
    sb_ledger_add(ledger, row, values);
    Py_RETURN_NONE;
}

/* Row ids are believed: this type is for collectors and tests. */
static PyObject *
ledger_hold(PyObject *object, PyObject *argument)
{
    long long row = PyLong_AsLongLong(argument);
    if (PyErr_Occurred()) {
        return NULL;
    }
    sb_ledger_hold(((ledger_object *)object)->ledger, row);
    Py_RETURN_NONE;
}

static PyObject *
ledger_drop(PyObject *object, PyObject *argument)
{
    long long row = PyLong_AsLongLong(argument);
    if (PyErr_Occurred()) {
        return NULL;
    }
    sb_ledger_drop(((ledger_object *)object)->ledger, row);
    Py_RETURN_NONE;
}

static PyObject *
ledger_copy(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    return sb_ledger_copy(((ledger_object *)object)->ledger);
}

static PyObject *
ledger_clear(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    sb_ledger_clear(((ledger_object *)object)->ledger);
    Py_RETURN_NONE;
}

static PyMethodDef ledger_methods[] = {
    {"row", ledger_row, METH_NOARGS, "The row of the caller's stack and labels."},
    {"add", ledger_add, METH_VARARGS, "Add values to a row."},
    {"hold", ledger_hold, METH_O, "Keep a row id valid."},
    {"drop", ledger_drop, METH_O, "End a hold."},
    {"copy", ledger_copy, METH_NOARGS, "All rows at this moment."},
    {"clear", ledger_clear, METH_NOARGS, "Forget all values."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot ledger_slots[] = {
    {Py_tp_new, ledger_new},
    {Py_tp_dealloc, ledger_dealloc},
    {Py_tp_methods, ledger_methods},
    {Py_tp_doc, "Totals by stack and labels."},
    {0, NULL},
};

static PyType_Spec ledger_spec = {
    .name = "stroboscope._core._native.Ledger",
    .basicsize = sizeof(ledger_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = ledger_slots,
};

/* ---- the module's ----------------------------------------------------------------- */

static PyObject *
configure_owners(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *extend, *overflow;
    unsigned int cap;
    if (!PyArg_ParseTuple(args, "OOI", &extend, &overflow, &cap)) {
        return NULL;
    }
    sb_owners_configure(extend == Py_None ? NULL : extend,
                        overflow == Py_None ? NULL : overflow, cap);
    Py_RETURN_NONE;
}

static PyObject *
count_owners(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLong(sb_owners_count());
}

static PyMethodDef functions[] = {
    {"configure_owners", configure_owners, METH_VARARGS, "How label sets are made."},
    {"count_owners", count_owners, METH_NOARGS, "Owners in use."},
    {NULL, NULL, 0, NULL},
};

int
sb_ledgers_init(PyObject *module)
{
    copy_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &copy_spec, NULL);
    PyObject *type = PyType_FromModuleAndSpec(module, &ledger_spec, NULL);
    int failed = copy_type == NULL || type == NULL ||
                 PyModule_AddType(module, copy_type) < 0 ||
                 PyModule_AddType(module, (PyTypeObject *)type) < 0 ||
                 PyModule_AddFunctions(module, functions) < 0;
    Py_XDECREF(type);
    return failed ? -1 : 0;
}
