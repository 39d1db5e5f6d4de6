/* The object itself: LabelCell, and the list of all that live. See cell.h. */
#include "cell.h"

#include <stddef.h>
#include <structmember.h>

#include "lookup.h"
#include "owner.h"
#include "published.h"
#include "trace.h"

/* Of the one interpreter this module can live in. */
static struct {
    PyTypeObject *cell_type;
    uint64_t last_serial;
    sb_cell *live; /* head of the list of all cells */
} cells;

sb_cell *
sb_current_cell(void)
{
    return sb_cell_of_context(PyThreadState_Get()->context);
}

void
sb_cells_disown(void)
{
    for (sb_cell *cell = cells.live; cell != NULL; cell = cell->next) {
        cell->owner = SB_NOBODY;
    }
}

PyObject *
sb_cells_of_threads(void)
{
    PyObject *found = PyDict_New();
    PyThreadState *tstate = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    for (; found != NULL && tstate != NULL; tstate = PyThreadState_Next(tstate)) {
        sb_cell *cell = sb_cell_of_context(tstate->context);
        PyObject *ident = PyLong_FromUnsignedLong(tstate->thread_id);
        if (ident == NULL ||
            PyDict_SetItem(found, ident, cell ? (PyObject *)cell : Py_None) < 0) {
            Py_CLEAR(found);
        }
        Py_XDECREF(ident);
    }
    return found;
}

PyObject *
sb_cells_live_sampled(void)
{
    PyObject *list = PyList_New(0);
    for (sb_cell *cell = cells.live; list != NULL && cell != NULL; cell = cell->next) {
        /* A cell whose count is zero is on its way out and publishes by itself. */
        if (atomic_load(&cell->sampled) && Py_REFCNT(cell) > 0 &&
            PyList_Append(list, (PyObject *)cell) < 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

/* ---- the type --------------------------------------------------------------------- */

static PyObject *
cell_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"labels", "parent", NULL};
    PyObject *labels = Py_None, *parent = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:LabelCell", names, &labels,
                                     &parent)) {
        return NULL;
    }
    if (parent != Py_None && Py_TYPE(parent) != cells.cell_type) {
        PyErr_SetString(PyExc_TypeError, "parent must be a LabelCell or None");
        return NULL;
    }
    sb_cell *self = (sb_cell *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->serial = ++cells.last_serial;
    self->labels = labels == Py_None ? NULL : Py_NewRef(labels);
    self->parent = parent == Py_None ? NULL : (sb_cell *)Py_NewRef(parent);
    self->task = self->parent ? self->parent->task : NULL;
    self->slot = -1;
    self->next = cells.live;
    if (cells.live != NULL) {
        cells.live->previous = self;
    }
    cells.live = self;
    return (PyObject *)self;
}

static int
cell_traverse(PyObject *object, visitproc visit, void *arg)
{
    sb_cell *self = (sb_cell *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->parent);
    Py_VISIT(self->labels);
    Py_VISIT(self->source);
    Py_VISIT(self->scope);
    return 0;
}

static int
cell_clear(PyObject *object)
{
    sb_cell *self = (sb_cell *)object;
    if (self->task != self) {
        self->task = NULL; /* it lives as long as the parent holds it */
    }
    Py_CLEAR(self->parent);
    Py_CLEAR(self->labels);
    Py_CLEAR(self->source);
    Py_CLEAR(self->shown);
    Py_CLEAR(self->scope);
    return 0;
}

/* The labels are final. May run Python code; leaves no exception. */
static void
end(sb_cell *self)
{
    self->ended = 1;
    sb_publish(self);
    sb_owner_cell_ended(self);
}

/* Background work may be sampled after its request ended: the last chance to find the
 * labels is the cell's own end. May run Python code, as finalizers may. */
static void
cell_finalize(PyObject *object)
{
    sb_cell *self = (sb_cell *)object;
    int is_unpublished = sb_is_unpublished(self);
    if (!atomic_load(&self->sampled) || !(is_unpublished || sb_owner_is_open(self))) {
        return;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (!self->ended && self->source != NULL && self->source != Py_None) {
        PyObject *found = PyObject_CallNoArgs(self->source);
        if (found == NULL) {
            PyErr_Clear(); /* labels may be missing, nothing may break */
        }
        else if (found == Py_None) {
            Py_DECREF(found);
        }
        else {
            Py_XSETREF(self->labels, found);
        }
    }
    end(self);
    PyErr_Restore(type, value, traceback);
}

static void
cell_dealloc(PyObject *object)
{
    sb_cell *self = (sb_cell *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (PyObject_CallFinalizerFromDealloc(object) < 0) {
        return;
    }
    PyObject_GC_UnTrack(object);
    sb_owner_cell_gone(self);
    sb_task_gone(self);
    if (self->next != NULL) {
        self->next->previous = self->previous;
    }
    if (self->previous != NULL) {
        self->previous->next = self->next;
    }
    else {
        cells.live = self->next;
    }
    cell_clear(object);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *
cell_publish(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    sb_cell *self = (sb_cell *)object;
    self->ended = 1;
    if (atomic_load(&self->sampled)) {
        end(self);
    }
    Py_RETURN_NONE;
}

static PyObject *
cell_show(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    if (atomic_load(&((sb_cell *)object)->sampled)) {
        sb_publish((sb_cell *)object);
    }
    Py_RETURN_NONE;
}

static PyObject *
cell_get_ended(PyObject *object, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((sb_cell *)object)->ended);
}

static PyObject *
cell_get_sampled(PyObject *object, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(atomic_load(&((sb_cell *)object)->sampled));
}

/* T_OBJECT reads NULL as None; storing None keeps None, which every reader here
 * treats as nothing. */
/* Handlers read it without a reference, so what is there once stays there. */
static int
cell_set_shown(PyObject *object, PyObject *value, void *Py_UNUSED(closure))
{
    sb_cell *self = (sb_cell *)object;
    if (self->shown == NULL && value != NULL && PyUnicode_CheckExact(value)) {
        self->shown = Py_NewRef(value);
    }
    return 0;
}

static PyObject *
cell_get_shown(PyObject *object, void *Py_UNUSED(closure))
{
    PyObject *shown = ((sb_cell *)object)->shown;
    return Py_NewRef(shown != NULL ? shown : Py_None);
}

static PyMemberDef cell_members[] = {
    {"serial", T_ULONGLONG, offsetof(sb_cell, serial), READONLY, NULL},
    {"parent", T_OBJECT, offsetof(sb_cell, parent), READONLY, NULL},
    {"labels", T_OBJECT, offsetof(sb_cell, labels), 0, NULL},
    {"source", T_OBJECT, offsetof(sb_cell, source), 0, NULL},
    {"scope", T_OBJECT, offsetof(sb_cell, scope), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef cell_getset[] = {
    {"sampled", cell_get_sampled, NULL, "Whether a sample was taken under it.", NULL},
    {"shown", cell_get_shown, cell_set_shown, "The endpoint, once it is known.", NULL},
    {"ended", cell_get_ended, NULL, "Whether its labels are final.", NULL},
    {"task", sb_task_serial, NULL, "Serial of the task it belongs to, or 0.", NULL},
    {"recorded", sb_task_recorded, NULL, "Whether its task is recorded now.", NULL},
    {"wanted", sb_task_wanted, NULL, "Who wants its task's events; 0 for nobody.", NULL},
    {"trace_id", sb_task_trace_id, NULL, "OpenTelemetry's, in hexadecimal.", NULL},
    {"span_id", sb_task_span_id, NULL, "OpenTelemetry's, in hexadecimal.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef cell_methods[] = {
    {"publish", cell_publish, METH_NOARGS, "Hand the final labels over if sampled."},
    {"show", cell_show, METH_NOARGS, "Hand over what is known to windows, if sampled."},
    {"begin_task", (PyCFunction)(void (*)(void))sb_task_begin, METH_FASTCALL,
     "Become a task, recorded or not."},
    {"end_task", (PyCFunction)(void (*)(void))sb_task_end, METH_FASTCALL,
     "The task is over."},
    {"end_request", (PyCFunction)(void (*)(void))sb_task_end_request, METH_FASTCALL,
     "The task is over, named as its source says now."},
    {"name_task", sb_task_set_name, METH_O, "Name the task, as soon as it is known."},
    {"link_task", sb_task_link, METH_O, "Tie the task to a trace id and a span id."},
    {"label_task", sb_task_label, METH_O, "Note a label of the task, `key=value`."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot cell_slots[] = {
    {Py_tp_new, cell_new},
    {Py_tp_traverse, cell_traverse},
    {Py_tp_clear, cell_clear},
    {Py_tp_finalize, cell_finalize},
    {Py_tp_dealloc, cell_dealloc},
    {Py_tp_members, cell_members},
    {Py_tp_getset, cell_getset},
    {Py_tp_methods, cell_methods},
    {Py_tp_doc, "What the ContextVar holds for a request or a `do` block."},
    {0, NULL},
};

static PyType_Spec cell_spec = {
    .name = "stroboscope._core._native.LabelCell",
    .basicsize = sizeof(sb_cell),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = cell_slots,
};

int
sb_cells_init(PyObject *module)
{
    cells.cell_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &cell_spec, NULL);
    return cells.cell_type == NULL || PyModule_AddType(module, cells.cell_type) < 0 ||
                   sb_lookup_init(module, cells.cell_type) < 0
               ? -1
               : 0;
}

int
sb_cells_traverse(visitproc visit, void *arg)
{
    Py_VISIT(cells.cell_type);
    return sb_lookup_traverse(visit, arg);
}

void
sb_cells_clear(void)
{
    sb_publishing(0);
}
