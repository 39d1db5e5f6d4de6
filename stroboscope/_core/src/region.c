/* `region`: what user code calls everywhere, so what has to cost nothing at rest. */
#include "trace.h"

#include <stddef.h>
#include <string.h>

/* One entry of a region, as it is entered; at rest only `context` means something. */
typedef struct {
    uint64_t task;
    uint64_t outer_begin_ns; /* of the region that its task was in before */
    uint32_t outer_region;
    uint32_t name;
    uint32_t pair;       /* ties the end to the begin */
    uint32_t generation; /* it was recorded in; 0 for not at all */
    uint32_t lane;
    int32_t slot;
    PyObject *end_span; /* strong, or NULL; means something where `generation` does */
} entry;

/* Of one `with`, as a rule; one that the user keeps may be entered many times at once. */
typedef struct {
    PyObject_HEAD
    PyObject *name;
    uint32_t entered;
    uint32_t room; /* of `more` */
    entry first;
    entry *more; /* the second and later entries */
} region;

enum { FREE_MAX = 128, ENTRIES_MAX = 1 << 16 };

static PyTypeObject *region_type;
static PyObject *ready; /* the awaitable that is done at once */
static PyObject *decorate; /* stroboscope.tracing's: (name, function) -> function */
/* Where regions are spans as well: (name) -> (failure or None) -> anything, or None. */
static PyObject *begin_span;
static region *free_list[FREE_MAX];
static int free_length;

/* ---- entering and leaving --------------------------------------------------------- */

static void
record_begin(region *self, entry *made, PyThreadState *tstate)
{
    int is_declined;
    sb_cell *task = sb_trace_task(tstate, &is_declined);
    if (is_declined || !sb_trace.wanted) {
        return;
    }
    made->name = sb_trace_name(self->name, 0);
    uint64_t now_ns = sb_trace_now_ns();
    made->task = task ? task->serial : 0;
    made->slot = task ? task->slot : -1;
    made->generation = sb_trace.generation;
    made->end_span = NULL;
    made->pair = sb_trace_pair();
    sb_trace_put(now_ns, SB_REGION_BEGIN, made->task, made->name, made->pair,
                 made->lane);
    sb_task_row *row = sb_trace_row(made->task, made->slot);
    if (row != NULL) {
        made->outer_region = row->region;
        made->outer_begin_ns = row->region_begin_ns;
        row->lane = made->lane;
        row->region_begin_ns = now_ns;
        row->region = made->name;
    }
}

/* End an entry that was recorded; `failure` is the exception's type, or NULL. */
static void
record_end(const entry *made, PyObject *failure)
{
    if (made->generation != sb_trace.generation || !sb_trace.wanted) {
        return;
    }
    uint64_t now_ns = sb_trace_now_ns();
    if (failure != NULL && PyType_Check(failure)) {
        const char *type = strrchr(((PyTypeObject *)failure)->tp_name, '.');
        type = type ? type + 1 : ((PyTypeObject *)failure)->tp_name;
        sb_trace_put(now_ns, SB_EXCEPTION, made->task, sb_trace_name_of(type), 0,
                     made->lane);
    }
    sb_trace_put(now_ns, failure ? SB_REGION_FAILED : SB_REGION_END, made->task,
                 made->name, made->pair, made->lane);
    sb_task_row *row = sb_trace_row(made->task, made->slot);
    if (row != NULL) {
        row->region = made->outer_region;
        row->region_begin_ns = made->outer_begin_ns;
    }
}

static entry *
entry_at(region *self, uint32_t index)
{
    return index == 0 ? &self->first : &self->more[index - 1];
}

/* Room for one more entry, or NULL: then it is not recorded. */
static entry *
next_entry(region *self)
{
    if (self->entered > self->room) {
        uint32_t room = self->room ? self->room * 2 : 4;
        entry *more = room > ENTRIES_MAX
                          ? NULL
                          : PyMem_Realloc(self->more, room * sizeof(entry));
        if (more == NULL) {
            return NULL;
        }
        self->more = more;
        self->room = room;
    }
    return entry_at(self, self->entered++);
}

/* Tell that a region ended. Steals `end`; runs Python code, sets no exception. */
static void
finish_span(PyObject *end, PyObject *failure)
{
    PyObject *done = PyObject_CallOneArg(end, failure ? failure : Py_None);
    if (done == NULL) {
        PyErr_Clear();
    }
    Py_XDECREF(done);
    Py_DECREF(end);
}

/* Begin the span of an entry that was recorded as `pair`. Runs Python code: other threads
 * may enter and leave this region meanwhile, and its entries move. */
static void
start_span(region *self, uint32_t pair)
{
    PyObject *begin = Py_NewRef(begin_span); /* it may be replaced meanwhile */
    PyObject *end = PyObject_CallOneArg(begin, self->name);
    Py_DECREF(begin);
    if (end == NULL) {
        PyErr_Clear();
        return;
    }
    if (end == Py_None) {
        Py_DECREF(end);
        return;
    }
    for (uint32_t at = 0; at < self->entered; at++) {
        entry *made = entry_at(self, at);
        if (made->generation && made->pair == pair && made->end_span == NULL) {
            made->end_span = end;
            return;
        }
    }
    finish_span(end, NULL); /* it was left by somebody else */
}

static inline void
enter(region *self)
{
    entry *made = self->entered ? next_entry(self) : &self->first;
    if (made == NULL) {
        return;
    }
    self->entered += made == &self->first;
    PyThreadState *tstate = PyThreadState_Get();
    made->lane = sb_trace_lane(tstate);
    made->generation = 0;
    if (sb_trace.wanted) {
        entry recorded = *made; /* asking for a name may enter this very region */
        uint32_t at = self->entered - 1;
        record_begin(self, &recorded, tstate);
        *entry_at(self, at) = recorded;
        if (begin_span != NULL && recorded.generation) {
            start_span(self, recorded.pair);
        }
    }
}

/* Take the entry that ends: the latest of this context, else the latest. 0 when there
 * is none: it is left more often than entered. */
static int
take_entry(region *self, entry *taken)
{
    if (self->entered == 1) {
        *taken = self->first;
        self->entered = 0;
        return 1;
    }
    if (self->entered == 0) {
        return 0;
    }
    uint32_t lane = sb_trace_lane(PyThreadState_Get());
    uint32_t at = self->entered - 1;
    while (at > 0 && entry_at(self, at)->lane != lane) {
        at--;
    }
    if (entry_at(self, at)->lane != lane) {
        at = self->entered - 1;
    }
    *taken = *entry_at(self, at);
    for (self->entered--; at < self->entered; at++) {
        *entry_at(self, at) = *entry_at(self, at + 1);
    }
    return 1;
}

static inline void
leave(region *self, PyObject *failure)
{
    entry taken;
    if (take_entry(self, &taken) && taken.generation) {
        record_end(&taken, failure);
        if (taken.end_span != NULL) {
            finish_span(taken.end_span, failure);
        }
    }
}

/* ---- the type --------------------------------------------------------------------- */

static PyObject *
region_make(PyObject *name)
{
    if (!PyUnicode_Check(name)) {
        PyErr_Format(PyExc_TypeError, "a region's name is a str, not %.80s",
                     Py_TYPE(name)->tp_name);
        return NULL;
    }
    region *self;
    if (free_length > 0) {
        self = free_list[--free_length];
        PyObject_Init((PyObject *)self, region_type);
    }
    else {
        self = PyObject_New(region, region_type);
        if (self == NULL) {
            return NULL;
        }
        self->more = NULL;
        self->room = 0;
    }
    self->entered = 0;
    self->name = Py_NewRef(name);
    return (PyObject *)self;
}

static PyObject *
region_vectorcall(PyObject *Py_UNUSED(type), PyObject *const *args, size_t flagged,
                  PyObject *keywords)
{
    Py_ssize_t count = PyVectorcall_NARGS(flagged);
    Py_ssize_t named = keywords ? PyTuple_GET_SIZE(keywords) : 0;
    if (count + named != 1 ||
        (named && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(keywords, 0), "name"))) {
        PyErr_SetString(PyExc_TypeError, "region() takes a name and nothing else");
        return NULL;
    }
    return region_make(args[0]);
}

static PyObject *
region_new(PyTypeObject *Py_UNUSED(type), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"name", NULL};
    PyObject *name;
    return PyArg_ParseTupleAndKeywords(args, kwargs, "O:region", names, &name)
               ? region_make(name)
               : NULL;
}

static void
region_dealloc(PyObject *object)
{
    region *self = (region *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->entered) { /* nobody can leave it any more */
        PyObject *error, *value, *traceback;
        PyErr_Fetch(&error, &value, &traceback);
        while (self->entered) {
            leave(self, NULL);
        }
        PyErr_Restore(error, value, traceback);
    }
    Py_CLEAR(self->name);
    if (free_length < FREE_MAX && self->more == NULL) {
        free_list[free_length++] = self;
    }
    else {
        PyMem_Free(self->more);
        PyObject_Free(self);
    }
    Py_DECREF(type);
}

static PyObject *
region_enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    enter((region *)self);
    Py_RETURN_NONE;
}

static PyObject *
region_exit(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    leave((region *)self, count && args[0] != Py_None ? args[0] : NULL);
    Py_RETURN_NONE;
}

static PyObject *
region_aenter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    enter((region *)self);
    return Py_NewRef(ready);
}

static PyObject *
region_aexit(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    leave((region *)self, count && args[0] != Py_None ? args[0] : NULL);
    return Py_NewRef(ready);
}

static PyObject *
region_call(PyObject *self, PyObject *args, PyObject *kwargs)
{
    PyObject *function;
    if ((kwargs && PyDict_GET_SIZE(kwargs)) ||
        !PyArg_ParseTuple(args, "O:region", &function)) {
        PyErr_SetString(PyExc_TypeError, "a region decorates one function");
        return NULL;
    }
    if (decorate == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "stroboscope.tracing is not imported");
        return NULL;
    }
    return PyObject_CallFunctionObjArgs(decorate, ((region *)self)->name, function, NULL);
}

static PyObject *
region_repr(PyObject *self)
{
    return PyUnicode_FromFormat("region(%R)", ((region *)self)->name);
}

static PyMethodDef region_methods[] = {
    {"__enter__", region_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))region_exit, METH_FASTCALL, NULL},
    {"__aenter__", region_aenter, METH_NOARGS, NULL},
    {"__aexit__", (PyCFunction)(void (*)(void))region_aexit, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(region_doc,
             "region(name)\n--\n\n"
             "A named part of the task that runs: a block, or a decorated function.\n\n"
             "    with region(\"db.fetch\"): ...\n"
             "    async with region(\"llm.call\"): ...\n"
             "    @region(\"render\")\n"
             "    def render(): ...\n\n"
             "Costs one check while nothing records. Names are few and fixed: those\n"
             "beyond some thousands are all shown as `(overflow)`.");

static PyType_Slot region_slots[] = {
    {Py_tp_new, region_new},         {Py_tp_dealloc, region_dealloc},
    {Py_tp_methods, region_methods}, {Py_tp_call, region_call},
    {Py_tp_repr, region_repr},       {Py_tp_doc, (void *)region_doc},
    {0, NULL},
};

static PyType_Spec region_spec = {
    .name = "stroboscope.region",
    .basicsize = sizeof(region),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = region_slots,
};

/* An awaitable that is done: what entering a block returns without waiting. */

static PyObject *
ready_next(PyObject *Py_UNUSED(self))
{
    return NULL; /* without an exception: StopIteration(None) */
}

static PySendResult
ready_send(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(value), PyObject **result)
{
    *result = Py_NewRef(Py_None);
    return PYGEN_RETURN;
}

static PyType_Slot ready_slots[] = {
    {Py_am_await, PyObject_SelfIter},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, ready_next},
    {Py_am_send, ready_send},
    {0, NULL},
};

static PyType_Spec ready_spec = {
    .name = "stroboscope._core._native.Ready",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = ready_slots,
};

/* ---- the module's part ------------------------------------------------------------- */

static PyObject *
set_decorator(PyObject *Py_UNUSED(module), PyObject *function)
{
    Py_XSETREF(decorate, Py_NewRef(function));
    Py_RETURN_NONE;
}

static PyObject *
set_spans(PyObject *Py_UNUSED(module), PyObject *begin)
{
    Py_XSETREF(begin_span, begin == Py_None ? NULL : Py_NewRef(begin));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"set_region_spans", set_spans, METH_O, "Whom to tell of regions."},
    {"set_region_decorator", set_decorator, METH_O, "What a region does to a function."},
    {NULL, NULL, 0, NULL},
};

int
sb_region_init(PyObject *module)
{
    region_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &region_spec, NULL);
    if (region_type == NULL) {
        return -1;
    }
    region_type->tp_vectorcall = region_vectorcall;
    PyTypeObject *kind = (PyTypeObject *)PyType_FromSpec(&ready_spec);
    ready = kind ? PyObject_New(PyObject, kind) : NULL;
    Py_XDECREF(kind);
    return ready == NULL || PyModule_AddObjectRef(module, "region",
                                                  (PyObject *)region_type) < 0
               ? -1
               : PyModule_AddFunctions(module, functions);
}
