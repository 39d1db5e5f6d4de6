#define PY_SSIZE_T_CLEAN
#include "extras.h"

#include <string.h>

#include "method.h"
#include "trace.h"

static int
is_capturing(void)
{
    return sb_trace.box != NULL && (sb_trace.wanted & SB_TRACE_CAPTURE) != 0;
}

static sb_slice
begin_slice(uint64_t now_ns, uint32_t kind, uint64_t task, uint32_t name, uint32_t lane)
{
    uint32_t pair = sb_trace_pair();
    sb_trace_put(now_ns, kind, task, name, pair, lane);
    return (sb_slice){sb_trace.generation, pair, name, task};
}

static void
end_slice(const sb_slice *open, uint32_t kind, uint32_t lane)
{
    if (open->generation == sb_trace.generation && sb_trace.box != NULL &&
        sb_trace.wanted) {
        sb_trace_put(sb_trace_now_ns(), kind, open->task, open->name, open->pair, lane);
    }
}

/* ---- collections ------------------------------------------------------------------ */

static sb_slice collection;

/* trace_gc(phase, info): one of gc.callbacks. Collections do not nest. */
static PyObject *
trace_gc(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyUnicode_Check(args[0]) || !PyDict_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "trace_gc(phase, info)");
        return NULL;
    }
    if (PyUnicode_CompareWithASCIIString(args[0], "start") != 0) {
        PyObject *freed = PyDict_GetItemString(args[1], "collected");
        unsigned long number = freed ? PyLong_AsUnsignedLongMask(freed) : 0;
        PyErr_Clear();
        end_slice(&collection, SB_GC_END,
                  number < UINT32_MAX ? (uint32_t)number : UINT32_MAX);
        collection.generation = 0;
    }
    else if (is_capturing()) {
        PyObject *which = PyDict_GetItemString(args[1], "generation");
        PyObject *name = which ? PyUnicode_FromFormat("gc generation %S", which) : NULL;
        uint32_t id = name ? sb_trace_name(name, 1) : SB_NAME_OVERFLOW;
        Py_XDECREF(name);
        PyErr_Clear();
        collection = begin_slice(sb_trace_now_ns(), SB_THREAD_BEGIN, 0, id, 0);
    }
    Py_RETURN_NONE;
}

/* ---- counters --------------------------------------------------------------------- */

/* trace_count(name, value): a counter's value now. */
static PyObject *
trace_count(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *name;
    long long value;
    if (!PyArg_ParseTuple(args, "UL", &name, &value)) {
        return NULL;
    }
    if (is_capturing()) {
        sb_trace_put(sb_trace_now_ns(), SB_COUNTER, 0, sb_trace_name(name, 1),
                     (uint32_t)value, (uint32_t)((uint64_t)value >> 32));
    }
    Py_RETURN_NONE;
}

/* ---- waits of threads -------------------------------------------------------------- */

static uint32_t
name_of_wait(int for_lock, PyCodeObject *code)
{
    const char *what = for_lock ? "wait for lock" : "wait for news";
    PyObject *name = code ? PyUnicode_FromFormat("%s in %U", what, code->co_qualname)
                          : PyUnicode_FromString(what);
    uint32_t id = name ? sb_trace_name(name, 0) : SB_NAME_OVERFLOW;
    Py_XDECREF(name);
    PyErr_Clear();
    return id;
}

sb_slice
sb_extras_wait_begins(int for_lock, PyCodeObject *code)
{
    if (!is_capturing()) {
        return (sb_slice){0, 0, 0, 0};
    }
    uint32_t id = name_of_wait(for_lock, code);
    return begin_slice(sb_trace_now_ns(), SB_THREAD_BEGIN, 0, id, 0);
}

void
sb_extras_wait_ends(const sb_slice *wait)
{
    if (wait->generation) {
        end_slice(wait, SB_THREAD_END, 0);
    }
}

/* ---- waits of coroutines ----------------------------------------------------------- */

sb_slice
sb_extras_coroutine_waits(int for_lock, PyCodeObject *code, uint32_t *lane)
{
    sb_slice none = {0, 0, 0, 0};
    if (!is_capturing()) {
        return none;
    }
    uint32_t name = name_of_wait(for_lock, code); /* while the frame keeps the code */
    PyThreadState *tstate = PyThreadState_Get();
    int is_declined;
    sb_cell *task = sb_trace_task(tstate, &is_declined);
    if (is_declined || !is_capturing()) {
        return none;
    }
    *lane = sb_trace_lane(tstate);
    return begin_slice(sb_trace_now_ns(), SB_WAIT_BEGIN, task ? task->serial : 0, name,
                       *lane);
}

void
sb_extras_coroutine_waited(const sb_slice *wait, uint32_t lane)
{
    if (wait->generation) {
        end_slice(wait, SB_WAIT_END, lane);
    }
}

/* ---- since when something waits --------------------------------------------------- */

/* Moments by the address of what waits; an older one gives way, and is then unknown. */
enum { STAMPS = 8192 };
static struct {
    uintptr_t key;
    uint64_t time_ns;
} stamps[STAMPS];

static uint32_t
stamp_slot(uintptr_t key)
{
    return (uint32_t)((uint64_t)key * 0x9E3779B97F4A7C15u >> 32) % STAMPS;
}

static void
stamp(PyObject *waiting)
{
    if (waiting != NULL && is_capturing()) {
        uintptr_t key = (uintptr_t)waiting;
        uint32_t at = stamp_slot(key);
        stamps[at].key = key;
        stamps[at].time_ns = sb_trace_now_ns();
    }
}

/* Since when it waited, or 0; it does no more. */
static uint64_t
take_stamp(PyObject *waiting)
{
    uint32_t at = stamp_slot((uintptr_t)waiting);
    if (stamps[at].key != (uintptr_t)waiting) {
        return 0;
    }
    stamps[at].key = 0;
    return stamps[at].time_ns;
}

/* As an event says it: microseconds, UINT32_MAX for unknown. */
static uint32_t
waited_us(uint64_t since_ns, uint64_t now_ns)
{
    uint64_t us = now_ns > since_ns ? (now_ns - since_ns) / 1000 : 0;
    return since_ns == 0 || us >= UINT32_MAX ? UINT32_MAX : (uint32_t)us;
}

/* ---- whose call it is ------------------------------------------------------------- */

static PyObject *text_self, *text_coro, *text_qualname, *text_callback, *text_context,
    *text_when, *text_fn, *text_func, *text_args;

/* An attribute where to read it runs no code of the user's; NULL without exception. */
static PyObject *
plain_attribute(PyObject *object, PyObject *name)
{
    PyObject *value = NULL;
    if (Py_TYPE(object)->tp_getattro == PyObject_GenericGetAttr ||
        PyFunction_Check(object) || PyCFunction_Check(object)) {
        value = PyObject_GetAttr(object, name);
        if (value == NULL) {
            PyErr_Clear();
        }
    }
    return value;
}

static int
is_named(PyObject *object, const char *type)
{
    const char *name = Py_TYPE(object)->tp_name;
    const char *dot = strrchr(name, '.');
    return strcmp(dot ? dot + 1 : name, type) == 0;
}

/* What a callable is for: a task's coroutine, what a partial or a context runs. New
 * reference. `*context` becomes a context it runs in, borrowed from the callable. */
static PyObject *
purpose_of(PyObject *callable, PyObject **context)
{
    PyObject *found = Py_NewRef(callable);
    for (int hops = 0; hops < 8; hops++) {
        PyObject *next = NULL;
        if (PyMethod_Check(found)) {
            next = Py_NewRef(PyMethod_GET_FUNCTION(found));
        }
        else if (is_named(found, "partial")) {
            PyObject *inner = plain_attribute(found, text_func);
            PyObject *args = plain_attribute(found, text_args);
            if (inner != NULL && PyCFunction_Check(inner) &&
                PyCFunction_GET_SELF(inner) != NULL &&
                PyContext_CheckExact(PyCFunction_GET_SELF(inner)) && args != NULL &&
                PyTuple_Check(args) && PyTuple_GET_SIZE(args) > 0) {
                *context = PyCFunction_GET_SELF(inner); /* the partial keeps it */
                Py_SETREF(inner, Py_NewRef(PyTuple_GET_ITEM(args, 0)));
            }
            Py_XDECREF(args);
            next = inner;
        }
        else if (is_named(found, "TaskStepMethWrapper") ||
                 (PyCFunction_Check(found) && PyCFunction_GET_SELF(found) != NULL &&
                  !PyModule_Check(PyCFunction_GET_SELF(found)))) {
            PyObject *task = plain_attribute(found, text_self);
            next = task ? plain_attribute(task, text_coro) : NULL;
            Py_XDECREF(task);
        }
        if (next == NULL) {
            break;
        }
        Py_SETREF(found, next);
    }
    return found;
}

/* The id of a callable's qualified name; of its type where it has none. */
static uint32_t
name_of(PyObject *callable, PyObject **context)
{
    PyObject *purpose = purpose_of(callable, context);
    PyObject *name = NULL;
    if (PyFunction_Check(purpose) || PyCFunction_Check(purpose) ||
        PyCoro_CheckExact(purpose) || PyGen_CheckExact(purpose)) {
        name = plain_attribute(purpose, text_qualname);
    }
    uint32_t id = name && PyUnicode_Check(name)
                      ? sb_trace_name(name, 0)
                      : sb_trace_name_of(Py_TYPE(purpose)->tp_name);
    Py_XDECREF(name);
    Py_DECREF(purpose);
    return id;
}

/* The serial of the recorded task whose context this is, or 0. */
static uint64_t
task_of(PyObject *context)
{
    sb_cell *cell = context != NULL && PyContext_CheckExact(context)
                        ? sb_cell_of_context(context)
                        : NULL;
    const sb_cell *task = cell ? cell->task : NULL;
    return task != NULL && task->mark == sb_trace.generation && !task->over
               ? task->serial
               : 0;
}

/* ---- calls ------------------------------------------------------------------------ */

/* Below, `self` is (what is replaced, a type or None), and args[0] the instance. */
#define ORIGINAL(self) PyTuple_GET_ITEM(self, 0)

/* Call what is replaced, as a slice of its own. Steals nothing. */
static PyObject *
call_watched(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names,
             PyObject *callable, PyObject *context, uint64_t since_ns)
{
    sb_slice open = {0, 0, 0, 0};
    if (is_capturing() && callable != NULL) {
        uint32_t name = name_of(callable, &context);
        uint64_t now_ns = sb_trace_now_ns();
        open = begin_slice(now_ns, SB_CALL_BEGIN, task_of(context), name,
                           waited_us(since_ns, now_ns));
    }
    PyObject *result = PyObject_Vectorcall(ORIGINAL(self), args, (size_t)count, names);
    if (open.generation) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        end_slice(&open, SB_CALL_END, 0);
        PyErr_Restore(type, value, traceback);
    }
    return result;
}

/* Handle._run */
static PyObject *
run_handle(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    if (count < 1 || !is_capturing()) {
        return PyObject_Vectorcall(ORIGINAL(self), args, (size_t)count, names);
    }
    PyObject *handle = args[0];
    PyObject *callback = plain_attribute(handle, text_callback);
    PyObject *context = plain_attribute(handle, text_context);
    uint64_t since_ns = take_stamp(handle);
    if (Py_IS_TYPE(handle, (PyTypeObject *)PyTuple_GET_ITEM(self, 1))) { /* a timer */
        PyObject *when = plain_attribute(handle, text_when);
        double when_s = when && PyFloat_Check(when) ? PyFloat_AS_DOUBLE(when) : 0;
        since_ns = when_s > 0 && when_s < 1e9 ? (uint64_t)(when_s * 1e9) : 0;
        Py_XDECREF(when);
    }
    PyObject *result =
        call_watched(self, args, count, names, callback, context, since_ns);
    Py_XDECREF(callback);
    Py_XDECREF(context);
    return result;
}

/* _WorkItem.run of a pool of threads */
static PyObject *
run_work(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    if (count < 1 || !is_capturing()) {
        return PyObject_Vectorcall(ORIGINAL(self), args, (size_t)count, names);
    }
    PyObject *function = plain_attribute(args[0], text_fn);
    PyObject *callable = function ? function : Py_NewRef(args[0]);
    PyObject *result =
        call_watched(self, args, count, names, callable, NULL, take_stamp(args[0]));
    Py_DECREF(callable);
    return result;
}

/* What gives back what then waits. */
static PyObject *
stamp_result(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *result = PyObject_Vectorcall(ORIGINAL(self), args, (size_t)count, names);
    stamp(result);
    return result;
}

/* What is given, or made of, what then waits: its last argument. */
static PyObject *
stamp_last(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    stamp(count ? args[count - 1] : NULL);
    return PyObject_Vectorcall(ORIGINAL(self), args, (size_t)count, names);
}

/* A constructor: its instance. */
static PyObject *
stamp_first(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    stamp(count ? args[0] : NULL);
    return PyObject_Vectorcall(ORIGINAL(self), args, (size_t)count, names);
}

#define CALL(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL | METH_KEYWORDS, NULL}
static PyMethodDef calls[] = {CALL(run_handle), CALL(run_work), CALL(stamp_result),
                              CALL(stamp_last), CALL(stamp_first)};
#undef CALL

/* watched(how, original, type): a method in the place of a function, which it calls. */
static PyObject *
watched(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *how;
    PyObject *original, *type;
    if (!PyArg_ParseTuple(args, "sOO!", &how, &original, &PyType_Type, &type)) {
        return NULL;
    }
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        if (strcmp(calls[i].ml_name, how) == 0) {
            PyObject *pair = PyTuple_Pack(2, original, type);
            PyObject *method = pair ? sb_method_over(&calls[i], pair, original) : NULL;
            Py_XDECREF(pair);
            return method;
        }
    }
    PyErr_SetString(PyExc_ValueError, "no such way to watch");
    return NULL;
}

void
sb_extras_after_fork(void)
{
    collection.generation = 0;
    memset(stamps, 0, sizeof stamps);
}

/* trace_stamps_clear(): nothing waits since a moment that is known. */
static PyObject *
stamps_clear(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    memset(stamps, 0, sizeof stamps);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"trace_gc", (PyCFunction)(void (*)(void))trace_gc, METH_FASTCALL,
     "One of gc.callbacks."},
    {"trace_count", trace_count, METH_VARARGS, "A counter's value now."},
    {"trace_watched", watched, METH_VARARGS, "A method that calls another one."},
    {"trace_stamps_clear", stamps_clear, METH_NOARGS, "Forget since when things wait."},
    {NULL, NULL, 0, NULL},
};

int
sb_extras_init(PyObject *module)
{
    if (text_self == NULL) {
        text_coro = PyUnicode_InternFromString("_coro");
        text_qualname = PyUnicode_InternFromString("__qualname__");
        text_callback = PyUnicode_InternFromString("_callback");
        text_context = PyUnicode_InternFromString("_context");
        text_when = PyUnicode_InternFromString("_when");
        text_fn = PyUnicode_InternFromString("fn");
        text_func = PyUnicode_InternFromString("func");
        text_args = PyUnicode_InternFromString("args");
        text_self = PyUnicode_InternFromString("__self__");
        if (PyErr_Occurred()) {
            return -1;
        }
    }
    return PyModule_AddFunctions(module, methods);
}
