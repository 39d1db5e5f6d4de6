#include "compat.h"

#include "waits.h"

#include "contention.h"
#include "extras.h"
#include "method.h"
#include "stacks.h"

/* ---- a wait that has begun -------------------------------------------------------- */

/* Remembers who waits since when; called once, at the end of the wait. */
typedef struct {
    PyObject_HEAD
    int64_t begin_ns; /* 0 when it is over */
    int64_t stack;
    int is_counted; /* else it is only traced, or charged to its holder */
    uint32_t lane;  /* of `traced` */
    sb_slice traced;
    PyObject *cell; /* strong, or NULL */
    PyObject *lock; /* strong, or NULL where no holder is charged */
} wait_object;

static PyTypeObject *wait_type;

/* A wait of the running thread's context and stack, below `leaf` where it is not NULL.
 * New reference, or NULL with an exception. */
static PyObject *
wait_new(PyCodeObject *leaf, PyObject *lock)
{
    wait_object *self = (wait_object *)wait_type->tp_alloc(wait_type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->begin_ns = sb_now_ns();
    self->is_counted = sb_blocks_are_counted();
    self->stack = self->is_counted ? sb_stack_of_current_under(leaf, SB_DEPTH_MAX) : -1;
    self->cell = Py_XNewRef((PyObject *)sb_current_cell());
    if (lock != NULL && sb_wait_begins(lock, self->begin_ns)) {
        self->lock = Py_NewRef(lock);
    }
    return (PyObject *)self;
}

/* The wait is over; charges it unless it was dropped. */
static void
wait_end(wait_object *self, sb_wait_end how)
{
    if (self->begin_ns == 0) {
        return;
    }
    int64_t now_ns = sb_now_ns(), begin_ns = self->begin_ns;
    self->begin_ns = 0;
    if (self->lock != NULL) {
        sb_wait_ends(self->lock, now_ns, how);
    }
    sb_extras_coroutine_waited(&self->traced, self->lane);
    if (how != SB_WAIT_DROPPED && self->is_counted) {
        sb_charge_block(now_ns - begin_ns, self->stack, (sb_cell *)self->cell);
    }
}

/* As a future's callback: runs right before the task that waits for it. */
static PyObject *
wait_call(PyObject *object, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    sb_wait_end how = SB_WAIT_ACQUIRED;
    PyObject *future;
    if (!PyArg_UnpackTuple(args, "wait", 1, 1, &future)) {
        return NULL;
    }
    PyObject *cancelled = PyObject_CallMethod(future, "cancelled", NULL);
    if (cancelled == NULL) {
        PyErr_Clear();
    }
    if (cancelled == Py_True) {
        how = SB_WAIT_GIVEN_UP;
    }
    Py_XDECREF(cancelled);
    wait_end((wait_object *)object, how);
    Py_RETURN_NONE;
}

static int
wait_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((wait_object *)object)->cell);
    Py_VISIT(((wait_object *)object)->lock);
    return 0;
}

static int
wait_clear(PyObject *object)
{
    wait_end((wait_object *)object, SB_WAIT_DROPPED);
    Py_CLEAR(((wait_object *)object)->cell);
    Py_CLEAR(((wait_object *)object)->lock);
    return 0;
}

static void
wait_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    wait_clear(object);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyType_Slot wait_slots[] = {
    {Py_tp_call, wait_call},
    {Py_tp_traverse, wait_traverse},
    {Py_tp_clear, wait_clear},
    {Py_tp_dealloc, wait_dealloc},
    {Py_tp_doc, "A wait that has begun; call it with the future that ended."},
    {0, NULL},
};

static PyType_Spec wait_spec = {
    .name = "stroboscope._core._native.Wait",
    .basicsize = sizeof(wait_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = wait_slots,
};

/* ---- asyncio ---------------------------------------------------------------------- */

/* Every primitive of asyncio asks for its loop when it has to wait, and at no other
 * time, in order to make the future it waits for. It gets this in the loop's place. */
typedef struct {
    PyObject_HEAD
    PyObject *loop;
    PyObject *primitive;
} front_object;

static PyTypeObject *front_type;
static PyObject *asyncio_lock_type;

static PyObject *
front_create_future(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    front_object *self = (front_object *)object;
    PyObject *future = PyObject_CallMethod(self->loop, "create_future", NULL);
    if (future == NULL || !sb_contention_is_on) {
        return future;
    }
    int is_lock = PyObject_TypeCheck(self->primitive, (PyTypeObject *)asyncio_lock_type);
    sb_site site = sb_site_of_current();
    PyCodeObject *code = sb_site_code; /* of a frame below us, which keeps it */
    if (site == SB_SITE_PLUMBING) {
        return future;
    }
    wait_object *wait = (wait_object *)wait_new(NULL, is_lock ? self->primitive : NULL);
    PyObject *done = NULL;
    if (wait != NULL) {
        wait->traced =
            sb_extras_coroutine_waits(site == SB_SITE_LOCK, code, &wait->lane);
    }
    if (wait != NULL) {
        done = PyObject_CallMethod(future, "add_done_callback", "O", wait);
    }
    if (done == NULL) {
        PyErr_Clear(); /* not counted, nothing else */
    }
    Py_XDECREF(done);
    Py_XDECREF(wait);
    return future;
}

/* All else is the loop's. */
static PyObject *
front_getattro(PyObject *object, PyObject *name)
{
    if (PyUnicode_CompareWithASCIIString(name, "create_future") == 0) {
        return PyObject_GenericGetAttr(object, name);
    }
    return PyObject_GetAttr(((front_object *)object)->loop, name);
}

static int
front_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((front_object *)object)->loop);
    Py_VISIT(((front_object *)object)->primitive);
    return 0;
}

static int
front_clear(PyObject *object)
{
    Py_CLEAR(((front_object *)object)->loop);
    Py_CLEAR(((front_object *)object)->primitive);
    return 0;
}

static void
front_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    front_clear(object);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyMethodDef front_methods[] = {
    {"create_future", front_create_future, METH_NOARGS, "A future whose wait counts."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot front_slots[] = {
    {Py_tp_getattro, front_getattro},
    {Py_tp_traverse, front_traverse},
    {Py_tp_clear, front_clear},
    {Py_tp_dealloc, front_dealloc},
    {Py_tp_methods, front_methods},
    {Py_tp_doc, "A loop as one asyncio primitive sees it."},
    {0, NULL},
};

static PyType_Spec front_spec = {
    .name = "stroboscope._core._native.LoopFront",
    .basicsize = sizeof(front_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = front_slots,
};

/* These stand in for methods; each is bound to the method it replaced. */

/* _LoopBoundMixin._get_loop(self) */
static PyObject *
get_loop(PyObject *original, PyObject *primitive)
{
    PyObject *loop = PyObject_CallOneArg(original, primitive);
    if (loop == NULL || !sb_contention_is_on) {
        return loop;
    }
    front_object *self = (front_object *)front_type->tp_alloc(front_type, 0);
    if (self == NULL) {
        PyErr_Clear();
        return loop;
    }
    self->loop = loop;
    self->primitive = Py_NewRef(primitive);
    return (PyObject *)self;
}

/* Lock._wake_up_first(self): what release calls, on the stack of the holder. */
static PyObject *
wake_up_first(PyObject *original, PyObject *lock)
{
    if (sb_contended_locks != 0) {
        sb_lock_released(lock);
    }
    return PyObject_CallOneArg(original, lock);
}

/* ---- executors -------------------------------------------------------------------- */

static PyObject *word_wait; /* the attribute of a work item */
static PyCodeObject *queued_leaf; /* stands for the time in the queue */

/* _WorkItem.__init__(self, ...), called by submit. */
static PyObject *
work_item(PyObject *original, PyObject *args, PyObject *kwargs)
{
    PyObject *result = PyObject_Call(original, args, kwargs);
    if (result == NULL || !sb_contention_is_on || PyTuple_GET_SIZE(args) == 0) {
        return result;
    }
    PyObject *wait = wait_new(queued_leaf, NULL);
    if (wait == NULL ||
        PyObject_SetAttr(PyTuple_GET_ITEM(args, 0), word_wait, wait) < 0) {
        PyErr_Clear();
    }
    Py_XDECREF(wait);
    return result;
}

/* _WorkItem.run(self, ...), called by the thread that takes it. */
static PyObject *
work_run(PyObject *original, PyObject *args, PyObject *kwargs)
{
    if (PyTuple_GET_SIZE(args) > 0) {
        PyObject *item = PyTuple_GET_ITEM(args, 0);
        PyObject *wait = PyObject_GetAttr(item, word_wait);
        if (wait != NULL && Py_TYPE(wait) == wait_type) {
            wait_end((wait_object *)wait, SB_WAIT_ACQUIRED);
        }
        Py_XDECREF(wait);
        PyErr_Clear();
    }
    return PyObject_Call(original, args, kwargs);
}

/* ---- wrapping --------------------------------------------------------------------- */

static PyMethodDef get_loop_def = {"_get_loop", get_loop, METH_O, NULL};
static PyMethodDef wake_up_def = {"_wake_up_first", wake_up_first, METH_O, NULL};
static PyMethodDef work_item_def = {"__init__", (PyCFunction)(void (*)(void))work_item,
                                    METH_VARARGS | METH_KEYWORDS, NULL};
static PyMethodDef work_run_def = {"run", (PyCFunction)(void (*)(void))work_run,
                                   METH_VARARGS | METH_KEYWORDS, NULL};

static PyObject *
wrap_get_loop(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *original, *lock_type;
    if (!PyArg_ParseTuple(args, "OO!", &original, &PyType_Type, &lock_type)) {
        return NULL;
    }
    Py_INCREF(lock_type);
    Py_XSETREF(asyncio_lock_type, lock_type);
    return sb_method_over(&get_loop_def, original, original);
}

static PyObject *
wrap_wake_up(PyObject *Py_UNUSED(module), PyObject *original)
{
    return sb_method_over(&wake_up_def, original, original);
}

static PyObject *
wrap_work_item(PyObject *Py_UNUSED(module), PyObject *original)
{
    return sb_method_over(&work_item_def, original, original);
}

static PyObject *
wrap_work_run(PyObject *Py_UNUSED(module), PyObject *original)
{
    return sb_method_over(&work_run_def, original, original);
}

static PyMethodDef methods[] = {
    {"wrap_get_loop", wrap_get_loop, METH_VARARGS, "Time what asyncio waits for."},
    {"wrap_wake_up", wrap_wake_up, METH_O, "Charge who lets go of an asyncio lock."},
    {"wrap_work_item", wrap_work_item, METH_O, "Begin the wait of work in a queue."},
    {"wrap_work_run", wrap_work_run, METH_O, "End the wait of work in a queue."},
    {NULL, NULL, 0, NULL},
};

int
sb_waits_init(PyObject *module)
{
    wait_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &wait_spec, NULL);
    front_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &front_spec, NULL);
    queued_leaf = PyCode_NewEmpty("", "[queued in an executor]", 0);
    word_wait = PyUnicode_InternFromString("_stroboscope_wait");
    if (wait_type == NULL || front_type == NULL || queued_leaf == NULL ||
        word_wait == NULL) {
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
