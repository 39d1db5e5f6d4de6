#include "compat.h"

#include "rest.h"

#include <string.h>

#include "stacks.h"

/* ---- await chains ----------------------------------------------------------------- */

/* Links of one chain looked at; a chain of this length takes about 0.3 ms. */
enum { LINKS_MAX = 4096 };

static struct {
    PyObject *cr_await, *gi_yieldfrom, *ag_await;
    PyObject *coro, *context, *state, *fut_waiter, *pending; /* names */
    PyTypeObject *task_type; /* asyncio's C task, once asyncio was imported */
    PyObject *done, *get_coro; /* its methods */
} names;

static int
is_generator(PyObject *object)
{
    return PyCoro_CheckExact(object) || PyGen_CheckExact(object) ||
           PyAsyncGen_CheckExact(object);
}

/* What stands between a coroutine and what it drives: `async for`, `anext`, a call of
 * `__await__`. Their types are private and have no attribute for what they hold, but the
 * garbage collector is told. */
static int
is_wrapper(PyObject *object)
{
    static const char *const NAMES[] = {"async_generator_asend", "async_generator_athrow",
                                        "coroutine_wrapper", "anext_awaitable"};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        if (strcmp(Py_TYPE(object)->tp_name, NAMES[i]) == 0) {
            return Py_TYPE(object)->tp_traverse != NULL;
        }
    }
    return 0;
}

static int
first_link(PyObject *object, void *found)
{
    if (object != NULL && (is_generator(object) || is_wrapper(object))) {
        *(PyObject **)found = object;
        return 1;
    }
    return 0;
}

static int
first_context(PyObject *object, void *found)
{
    if (object != NULL && Py_IS_TYPE(object, &PyContext_Type)) {
        *(PyObject **)found = object;
        return 1;
    }
    return 0;
}

/* The generator, coroutine or async generator that this one awaits: new reference, or
 * NULL at the end of the chain. The types are exact, so no application's code runs. */
static PyObject *
awaited(PyObject *generator)
{
    PyObject *name = PyCoro_CheckExact(generator)  ? names.cr_await
                     : PyGen_CheckExact(generator) ? names.gi_yieldfrom
                                                   : names.ag_await;
    PyObject *next = PyObject_GetAttr(generator, name);
    if (next == NULL) {
        PyErr_Clear();
        return NULL;
    }
    while (next != NULL && is_wrapper(next)) {
        PyObject *held = NULL;
        Py_TYPE(next)->tp_traverse(next, first_link, &held);
        Py_XINCREF(held);
        Py_SETREF(next, held);
    }
    if (next != NULL && !is_generator(next)) {
        Py_CLEAR(next);
    }
    return next;
}

/* Intern the chain that begins at `generator`, leaf first; what is cut is its root.
 * `*state` is the outermost's. -2 when there is no frame at all. */
static int64_t
stack_of_chain(PyObject *generator, int *state)
{
    uint32_t ring[SB_DEPTH_MAX], stack[SB_DEPTH_MAX + 1];
    uint32_t count = 0;
    int64_t status = 0;
    PyObject *link = Py_NewRef(generator);
    while (link != NULL && count < LINKS_MAX) {
        int now = 0;
        sb_frame *frame = sb_frame_of_generator(link, &now);
        status = frame != NULL ? sb_place_of_frame(frame) : -2;
        if (status < 0) {
            break;
        }
        *state = count == 0 ? now : *state;
        ring[count++ % SB_DEPTH_MAX] = (uint32_t)status;
        PyObject *next = now == 0 ? awaited(link) : NULL;
        Py_SETREF(link, next);
    }
    Py_XDECREF(link);
    if (status == -1 || count == 0) {
        return status == -1 ? -1 : -2;
    }
    uint32_t length = count < SB_DEPTH_MAX ? count : SB_DEPTH_MAX;
    for (uint32_t i = 0; i < length; i++) {
        stack[i] = ring[(count - 1 - i) % SB_DEPTH_MAX];
    }
    if (count > length) {
        stack[length++] = SB_TRUNCATED;
    }
    return sb_stack_of_ids(stack, length);
}

/* ---- tasks ------------------------------------------------------------------------ */

/* Learn asyncio's C task when the application has imported it. */
static int
knows_tasks(void)
{
    if (names.task_type != NULL) {
        return 1;
    }
    PyObject *name = PyUnicode_FromString("_asyncio");
    PyObject *module = name ? PyImport_GetModule(name) : NULL;
    PyObject *type = module ? PyObject_GetAttrString(module, "Task") : NULL;
    if (type != NULL && PyType_Check(type)) {
        names.done = PyObject_GetAttrString(type, "done");
        names.get_coro = PyObject_GetAttrString(type, "get_coro");
        if (names.done != NULL && names.get_coro != NULL) {
            names.task_type = (PyTypeObject *)Py_NewRef(type);
        }
    }
    Py_XDECREF(name);
    Py_XDECREF(module);
    Py_XDECREF(type);
    PyErr_Clear();
    return names.task_type != NULL;
}

/* 1 true, 0 false or unknown. Owns `value`. */
static int
is_true(PyObject *value)
{
    int is = value != NULL && PyObject_IsTrue(value) > 0;
    Py_XDECREF(value);
    PyErr_Clear();
    return is;
}

static int
is_pending(PyObject *task, int is_c)
{
    if (is_c) {
        PyObject *done = PyObject_CallOneArg(names.done, task);
        return done != NULL && !is_true(done);
    }
    PyObject *state = PyObject_GetAttr(task, names.state);
    PyObject *equal = state ? PyObject_RichCompare(state, names.pending, Py_EQ) : NULL;
    Py_XDECREF(state);
    return is_true(equal);
}

/* The task's context, borrowed from it. Before 3.12 a C task shows it to nobody but the
 * garbage collector, and shows it before those of its callbacks.
 * Source: TaskObj_traverse in Modules/_asynciomodule.c, 3.11 to 3.15. */
static PyObject *
context_of(PyObject *task, int is_c)
{
    PyObject *context = NULL;
    if (is_c) {
        names.task_type->tp_traverse(task, first_context, &context);
        return context;
    }
    context = PyObject_GetAttr(task, names.context);
    PyErr_Clear();
    if (context != NULL) {
        Py_DECREF(context); /* the task keeps it */
        return Py_IS_TYPE(context, &PyContext_Type) ? context : NULL;
    }
    return NULL;
}

void
sb_task_read(PyObject *task, sb_task *found)
{
    *found = (sb_task){SB_TASK_GONE, -1, NULL};
    int is_c = knows_tasks() && PyObject_TypeCheck(task, names.task_type);
    if (!is_pending(task, is_c)) {
        return;
    }
    PyObject *coro = is_c ? PyObject_CallOneArg(names.get_coro, task)
                          : PyObject_GetAttr(task, names.coro);
    PyErr_Clear();
    if (coro == NULL || !is_generator(coro)) {
        Py_XDECREF(coro);
        return;
    }
    int state = 0;
    found->stack = stack_of_chain(coro, &state);
    Py_DECREF(coro);
    if (found->stack == -2) {
        return;
    }
    found->state = state > 0   ? SB_TASK_RUNNING
                   : state < 0 ? SB_TASK_CREATED
                               : SB_TASK_SUSPENDED;
    PyObject *context = context_of(task, is_c);
    found->cell = context ? sb_cell_of_context(context) : NULL;
    Py_XINCREF(found->cell);
}

PyObject *
sb_task_of(PyObject *item)
{
    if (!PyWeakref_CheckRef(item)) {
        return Py_NewRef(item);
    }
#if PY_VERSION_HEX >= 0x030d0000
    PyObject *task = NULL;
    if (PyWeakref_GetRef(item, &task) < 0) {
        PyErr_Clear();
    }
    return task;
#else
    PyObject *task = PyWeakref_GET_OBJECT(item);
    return task == Py_None || Py_REFCNT(task) <= 0 ? NULL : Py_NewRef(task);
#endif
}

/* (stack, state, cell, task, waiter, item) of one task; NULL with an exception. */
static PyObject *
task_row(PyObject *item, PyObject *task, const sb_task *found)
{
    PyObject *waiter = PyObject_GetAttr(task, names.fut_waiter);
    PyErr_Clear();
    PyObject *row = Py_BuildValue(
        "(LiOOOO)", (long long)found->stack, found->state,
        found->cell ? (PyObject *)found->cell : Py_None, task, waiter ? waiter : Py_None,
        item);
    Py_XDECREF(waiter);
    return row;
}

/* walk_tasks(items, first, count) -> rows of those that are alive and unfinished. */
static PyObject *
walk_tasks(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *items;
    Py_ssize_t first, count;
    if (!PyArg_ParseTuple(args, "O!nn", &PyList_Type, &items, &first, &count)) {
        return NULL;
    }
    PyObject *rows = PyList_New(0);
    for (Py_ssize_t i = first < 0 ? 0 : first;
         rows != NULL && count-- > 0 && i < PyList_GET_SIZE(items); i++) {
        PyObject *item = Py_NewRef(PyList_GET_ITEM(items, i));
        PyObject *task = sb_task_of(item);
        if (task == NULL) {
            Py_DECREF(item);
            continue;
        }
        sb_task found;
        sb_task_read(task, &found);
        if (found.state != SB_TASK_GONE) {
            PyObject *row = task_row(item, task, &found);
            if (row == NULL || PyList_Append(rows, row) < 0) {
                Py_CLEAR(rows);
            }
            Py_XDECREF(row);
        }
        Py_XDECREF(found.cell);
        Py_DECREF(task);
        Py_DECREF(item);
    }
    return rows;
}

/* ---- keeping stacks ---------------------------------------------------------------- */

static int holds;

static PyObject *
hold_stacks(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    sb_stacks_use(SB_OF_LEDGERS);
    holds++;
    Py_RETURN_NONE;
}

static PyObject *
drop_stacks(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    if (holds > 0) {
        holds--;
        sb_stacks_leave(SB_OF_LEDGERS);
    }
    Py_RETURN_NONE;
}

/* Those who held are the parent's threads. */
void
sb_rest_after_fork(void)
{
    for (; holds > 0; holds--) {
        sb_stacks_leave(SB_OF_LEDGERS);
    }
}

static PyMethodDef methods[] = {
    {"walk_tasks", walk_tasks, METH_VARARGS, "Rows of unfinished tasks, a slice."},
    {"hold_stacks", hold_stacks, METH_NOARGS, "Keep the ids of stacks valid."},
    {"drop_stacks", drop_stacks, METH_NOARGS, "End what hold_stacks began."},
    {NULL, NULL, 0, NULL},
};

int
sb_rest_init(PyObject *module)
{
    static const struct {
        PyObject **name;
        const char *text;
    } TEXTS[] = {
        {&names.cr_await, "cr_await"},     {&names.gi_yieldfrom, "gi_yieldfrom"},
        {&names.ag_await, "ag_await"},     {&names.coro, "_coro"},
        {&names.context, "_context"},      {&names.state, "_state"},
        {&names.fut_waiter, "_fut_waiter"}, {&names.pending, "PENDING"},
    };
    for (size_t i = 0; i < sizeof TEXTS / sizeof *TEXTS; i++) {
        if (*TEXTS[i].name == NULL) {
            *TEXTS[i].name = PyUnicode_InternFromString(TEXTS[i].text);
        }
        if (*TEXTS[i].name == NULL) {
            return -1;
        }
    }
    return PyModule_AddFunctions(module, methods);
}
