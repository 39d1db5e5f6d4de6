#include "cell.h"

#include <stddef.h>
#include <structmember.h>

#include "guard.h"
#include "owner.h"
#include "table.h"
#include "trace.h"

/* ---- the context's map, mirrored --------------------------------------------------
 * Source: Python/hamt.c and Include/internal/pycore_context.h, the same from 3.11 to
 * 3.15. sb_cells_check refuses the engine where it is not.
 */
typedef struct {
    PyObject_HEAD
    PyObject *previous;
    PyObject *vars;
} context_head;

typedef struct {
    PyObject_HEAD
    PyObject *root;
} hamt_head;

typedef struct {
    PyObject_VAR_HEAD
    uint32_t bitmap;
    PyObject *pairs[1];
} bitmap_node;

typedef struct {
    PyObject_HEAD
    PyObject *children[32];
} array_node;

typedef struct {
    PyObject_VAR_HEAD
    int32_t hash;
    PyObject *pairs[1];
} collision_node;

enum { HASH_BITS = 32, LEVEL_BITS = 5, LEVEL_MASK = 31 };

/* The handler needs them without a module at hand; set once, by the one interpreter
 * this module can live in. */
static struct {
    PyTypeObject *cell_type, *bitmap_type, *array_type;
    PyObject *labels_var;
    int32_t var_hash;
    uint64_t last_serial;
    sb_cell *live; /* head of the list of all cells */
    int keep_published;
    uint32_t epoch; /* counts the times keeping began */
    sb_table published;
    struct publication {
        PyObject *labels;
        uint64_t parent;
    } *publications;
    size_t publication_room;
} cells;

SB_READS_STALE static PyObject *
find_in_collision(const collision_node *node)
{
    for (Py_ssize_t i = 0; i + 1 < Py_SIZE(node); i += 2) {
        if (node->pairs[i] == cells.labels_var) {
            return node->pairs[i + 1];
        }
    }
    return NULL;
}

SB_READS_STALE static PyObject *
find_value(PyObject *context)
{
    PyObject *vars = context ? ((context_head *)context)->vars : NULL;
    PyObject *node = vars ? ((hamt_head *)vars)->root : NULL;
    uint32_t hash = (uint32_t)cells.var_hash;
    for (int shift = 0; node && shift < HASH_BITS + LEVEL_BITS; shift += LEVEL_BITS) {
        uint32_t index = shift < HASH_BITS ? (hash >> shift) & LEVEL_MASK : 0;
        if (Py_TYPE(node) == cells.array_type) {
            node = ((array_node *)node)->children[index];
            continue;
        }
        if (Py_TYPE(node) != cells.bitmap_type) {
            return find_in_collision((collision_node *)node);
        }
        bitmap_node *bitmap = (bitmap_node *)node;
        uint32_t bit = (uint32_t)1 << index;
        if (!(bitmap->bitmap & bit)) {
            return NULL;
        }
        int at = 2 * __builtin_popcount(bitmap->bitmap & (bit - 1));
        if (bitmap->pairs[at] != NULL) {
            return bitmap->pairs[at] == cells.labels_var ? bitmap->pairs[at + 1] : NULL;
        }
        node = bitmap->pairs[at + 1];
    }
    return NULL;
}

SB_READS_STALE sb_cell *
sb_cell_of_context(PyObject *context)
{
    PyObject *value = find_value(context);
    if (value == NULL || Py_TYPE(value) != cells.cell_type) {
        return NULL;
    }
    return (sb_cell *)value;
}

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

/* ---- publication: serial -> labels, for samples whose request is over ------------- */

static int64_t
publication_id(uint64_t serial, int make, int *fresh)
{
    uint32_t key[2] = {(uint32_t)serial, (uint32_t)(serial >> 32)};
    return make ? sb_table_intern(&cells.published, key, 2, fresh)
                : sb_table_find(&cells.published, key, 2);
}

/* Remember the cell's labels and its ancestors'. Never fails: without memory the
 * sample stays unlabelled. */
static void
publish(sb_cell *first)
{
    first->published = cells.epoch;
    sb_cell *cell = first;
    for (; cell != NULL && cells.keep_published; cell = cell->parent) {
        int fresh;
        atomic_store(&cell->sampled, 1);
        int64_t id = publication_id(cell->serial, 1, &fresh);
        if (id < 0) {
            return;
        }
        if ((size_t)id >= cells.publication_room) {
            size_t room = ((size_t)id + 32) * 2;
            void *grown =
                PyMem_RawRealloc(cells.publications, room * sizeof(struct publication));
            if (grown == NULL) {
                return;
            }
            cells.publications = grown;
            memset(cells.publications + cells.publication_room, 0,
                   (room - cells.publication_room) * sizeof(struct publication));
            cells.publication_room = room;
        }
        struct publication *row = &cells.publications[id];
        row->parent = cell->parent ? cell->parent->serial : 0;
        Py_XINCREF(cell->labels);
        Py_XSETREF(row->labels, cell->labels);
    }
}

void
sb_publishing(int on)
{
    cells.epoch += on && !cells.keep_published;
    cells.keep_published = on;
    if (on) {
        return;
    }
    struct publication *rows = cells.publications;
    size_t count = cells.published.count < cells.publication_room
                       ? cells.published.count
                       : cells.publication_room;
    cells.publications = NULL;
    cells.publication_room = 0;
    sb_table_clear(&cells.published);
    for (size_t i = 0; i < count; i++) {
        Py_XDECREF(rows[i].labels);
    }
    PyMem_RawFree(rows);
}

PyObject *
sb_chain_of(uint64_t serial)
{
    PyObject *chain = PyList_New(0);
    while (chain != NULL && serial != 0) {
        int64_t id = publication_id(serial, 0, NULL);
        if (id < 0 || (size_t)id >= cells.publication_room) {
            break;
        }
        struct publication *row = &cells.publications[id];
        if (row->labels != NULL && row->labels != Py_None &&
            PyList_Append(chain, row->labels) < 0) {
            Py_CLEAR(chain);
            break;
        }
        serial = row->parent;
    }
    if (chain == NULL || PyList_Reverse(chain) < 0) {
        Py_XDECREF(chain);
        return NULL;
    }
    PyObject *tuple = PyList_AsTuple(chain);
    Py_DECREF(chain);
    return tuple;
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
    return 0;
}

/* The labels are final. May run Python code; leaves no exception. */
static void
end(sb_cell *self)
{
    self->ended = 1;
    publish(self);
    sb_owner_cell_ended(self);
}

/* Background work may be sampled after its request ended: the last chance to find the
 * labels is the cell's own end. May run Python code, as finalizers may. */
static void
cell_finalize(PyObject *object)
{
    sb_cell *self = (sb_cell *)object;
    int is_unpublished = cells.keep_published && self->published != cells.epoch;
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
        publish((sb_cell *)object);
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
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef cell_getset[] = {
    {"sampled", cell_get_sampled, NULL, "Whether a sample was taken under it.", NULL},
    {"shown", cell_get_shown, cell_set_shown, "The endpoint, once it is known.", NULL},
    {"ended", cell_get_ended, NULL, "Whether its labels are final.", NULL},
    {"task", sb_task_serial, NULL, "Serial of the task it belongs to, or 0.", NULL},
    {"recorded", sb_task_recorded, NULL, "Whether its task is recorded now.", NULL},
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

/* ---- learning and checking -------------------------------------------------------- */

/* Fill the current context with `count` variables. 0, or -1 with an exception. */
static int
set_variables(int count)
{
    for (int i = 0; i < count; i++) {
        PyObject *var = PyContextVar_New("stroboscope_probe", NULL);
        PyObject *token = var ? PyContextVar_Set(var, Py_None) : NULL;
        Py_XDECREF(var);
        if (token == NULL) {
            return -1;
        }
        Py_DECREF(token);
    }
    return 0;
}

/* The type of the map's root in a context of `count` variables, borrowed. */
static PyTypeObject *
root_type(int count)
{
    PyObject *context = PyContext_New();
    if (context == NULL || PyContext_Enter(context) < 0) {
        Py_XDECREF(context);
        return NULL;
    }
    int status = set_variables(count);
    PyTypeObject *type = Py_TYPE(((hamt_head *)((context_head *)context)->vars)->root);
    PyContext_Exit(context);
    Py_DECREF(context);
    return status < 0 ? NULL : type;
}

static int
check_one(int count)
{
    PyObject *context = PyContext_New();
    if (context == NULL || PyContext_Enter(context) < 0) {
        Py_XDECREF(context);
        return -1;
    }
    int equal = -1;
    PyObject *token = NULL;
    PyObject *cell = PyObject_CallNoArgs((PyObject *)cells.cell_type);
    if (cell == NULL || set_variables(count / 2) < 0) {
        goto done;
    }
    equal = sb_cell_of_context(context) == NULL;
    token = PyContextVar_Set(cells.labels_var, cell);
    if (token == NULL || set_variables(count - count / 2) < 0) {
        equal = -1;
        goto done;
    }
    equal = equal && (PyObject *)sb_cell_of_context(context) == cell;
done:
    Py_XDECREF(token);
    PyContext_Exit(context);
    Py_DECREF(context);
    Py_XDECREF(cell);
    return equal;
}

int
sb_cells_check(void)
{
    static const int COUNTS[3] = {1, 17, 200};
    for (int i = 0; i < 3; i++) {
        int equal = check_one(COUNTS[i]);
        if (equal <= 0) {
            return equal;
        }
    }
    return 1;
}

int
sb_cells_init(PyObject *module)
{
    cells.cell_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &cell_spec, NULL);
    if (cells.cell_type == NULL || PyModule_AddType(module, cells.cell_type) < 0) {
        return -1;
    }
    cells.labels_var = PyContextVar_New("stroboscope_labels", Py_None);
    if (cells.labels_var == NULL ||
        PyModule_AddObjectRef(module, "LABELS", cells.labels_var) < 0) {
        return -1;
    }
    /* Source: hamt_hash in Python/hamt.c, which folds 64 bits into 32. */
    Py_hash_t hash = PyObject_Hash(cells.labels_var);
    int32_t folded = (int32_t)((uint64_t)hash & 0xffffffffu) ^
                     (int32_t)((uint64_t)hash >> 32);
    cells.var_hash = folded == -1 ? -2 : folded;
    cells.bitmap_type = root_type(1);
    cells.array_type = root_type(40);
    return cells.bitmap_type == NULL || cells.array_type == NULL ? -1 : 0;
}

int
sb_cells_traverse(visitproc visit, void *arg)
{
    Py_VISIT(cells.cell_type);
    Py_VISIT(cells.labels_var);
    return 0;
}

void
sb_cells_clear(void)
{
    sb_publishing(0);
}
