/* The C engine's door: LabelCell, LABELS and the calls that stroboscope._core.native
 * makes. An implementation detail; please do not use it directly.
 *
 * State is the process's, not the module's: signals, timers and their handler are.
 * Hence one interpreter only.
 */
#include <Python.h>
#include <structmember.h>

#include "births.h"
#include "cell.h"
#include "contention.h"
#include "copies.h"
#include "drainer.h"
#include "extras.h"
#include "greet.h"
#include "heap.h"
#include "ledger.h"
#include "locks.h"
#include "method.h"
#include "rest.h"
#include "sampler.h"
#include "samples.h"
#include "search.h"
#include "stacks.h"
#include "timeline.h"
#include "trace.h"
#include "turn.h"
#include "waits.h"
#include "wall.h"
#include "watch.h"
#include "window.h"

#include <time.h>

static PyObject *
start(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long long period_ns = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (period_ns < 100000 || sb_sampler_active()) {
        PyErr_SetString(PyExc_ValueError, "period below 100 us, or already started");
        return NULL;
    }
    if (sb_sampler_start(period_ns, sb_windows_before_code_dies) < 0) {
        return NULL;
    }
    sb_publishing(1);
    return PyBool_FromLong(sb_drainer_begin());
}

static PyObject *
drain(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    sb_drain();
    Py_RETURN_NONE;
}

static PyObject *
set_period(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long long period_ns = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (period_ns < 100000) {
        PyErr_SetString(PyExc_ValueError, "period below 100 us");
        return NULL;
    }
    sb_sampler_set_period(period_ns);
    Py_RETURN_NONE;
}

static PyObject *
contexts(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return sb_cells_of_threads();
}

static PyObject *
stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    sb_drainer_end();
    sb_sampler_stop();
    sb_windows_drain();
    Py_RETURN_NONE;
}

static PyObject *
forget(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    sb_publishing(0);
    Py_RETURN_NONE;
}

static PyObject *
check(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    int equal = sb_sampler_check();
    return equal < 0 ? NULL : PyBool_FromLong(equal);
}

static PyObject *
before_fork(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    sb_turn_before_fork();
    Py_RETURN_NONE;
}

static PyObject *
after_fork_in_parent(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    sb_turn_after_fork(0);
    Py_RETURN_NONE;
}

static PyObject *
after_fork(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    sb_sampler_after_fork();
    sb_drainer_after_fork();
    sb_windows_after_fork();
    sb_watch_after_fork();
    sb_rest_after_fork();
    sb_wall_after_fork();
    sb_turn_after_fork(1);
    sb_samples_after_fork();
    sb_copies_after_fork();
    sb_births_after_fork();
    sb_publishing(0);
    sb_heap_after_fork();
    sb_ledgers_after_fork();
    sb_trace_after_fork();
    sb_extras_after_fork();
    sb_contention_after_fork();
    Py_RETURN_NONE;
}

static PyObject *
exclude_current_thread(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    sb_sampler_exclude_current();
    Py_RETURN_NONE;
}

static PyObject *
include_current_thread(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    sb_sampler_include_current();
    Py_RETURN_NONE;
}

static PyObject *
info(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    sb_counters now = sb_sampler_counters();
#define N(field) #field, (unsigned long long)now.field
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:i,s:i,s:i}",
                         N(samples), N(overruns), N(lost_full), N(lost_fault),
                         N(lost_torn), N(lost_unguarded), N(stray), N(foreign), N(handler_ns),
                         N(threads), N(threads_refused), "drainer_ns",
                         (unsigned long long)sb_drainer_cpu_ns(), "active", sb_sampler_active(),
                         "sigprof", sb_sigprof_owner(), "robbed",
                         sb_drainer_was_robbed());
#undef N
}

static PyObject *
window_open(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_ssize_t moments;
    unsigned long long start_ns;
    int copies;
    if (!PyArg_ParseTuple(args, "nKp", &moments, &start_ns, &copies)) {
        return NULL;
    }
    if (moments < 0) {
        PyErr_SetString(PyExc_ValueError, "fewer moments than none");
        return NULL;
    }
    int handle = sb_window_open((size_t)moments, start_ns, copies);
    if (handle == -1) {
        PyErr_SetString(PyExc_RuntimeError, "all windows are in use");
    }
    return handle < 0 ? NULL : PyLong_FromLong(handle);
}

/* The handle, or -1 with an exception. */
static int
handle_of(PyObject *argument)
{
    long handle = PyLong_AsLong(argument);
    if (handle < 0 || handle >= SB_WINDOWS_MAX) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "no such window");
        }
        return -1;
    }
    return (int)handle;
}

static PyObject *
window_stop(PyObject *Py_UNUSED(module), PyObject *argument)
{
    int handle = handle_of(argument);
    if (handle < 0) {
        return NULL;
    }
    sb_window_stop(handle);
    return sb_window_extent(handle);
}

static PyObject *
window_free(PyObject *Py_UNUSED(module), PyObject *argument)
{
    int handle = handle_of(argument);
    if (handle < 0) {
        return NULL;
    }
    sb_window_free(handle);
    Py_RETURN_NONE;
}

static PyObject *
window_rows(PyObject *Py_UNUSED(module), PyObject *args)
{
    int handle;
    Py_ssize_t first, count;
    if (!PyArg_ParseTuple(args, "inn", &handle, &first, &count)) {
        return NULL;
    }
    if (handle < 0 || handle >= SB_WINDOWS_MAX || first < 0 || count < 0) {
        PyErr_SetString(PyExc_ValueError, "no such rows");
        return NULL;
    }
    return sb_window_rows(handle, (size_t)first, (size_t)count);
}

static PyObject *
window_moments(PyObject *Py_UNUSED(module), PyObject *argument)
{
    int handle = handle_of(argument);
    return handle < 0 ? NULL : sb_window_moments(handle);
}

static PyObject *
all_of(PyObject *args, PyObject *(*read)(sb_stacks_kind, PyObject *))
{
    int of_ledgers;
    PyObject *ids;
    if (!PyArg_ParseTuple(args, "pO!", &of_ledgers, &PyList_Type, &ids)) {
        return NULL;
    }
    return read(of_ledgers ? SB_OF_LEDGERS : SB_OF_WINDOWS, ids);
}

static PyObject *
stacks_of(PyObject *Py_UNUSED(module), PyObject *args)
{
    return all_of(args, sb_stacks_of);
}

static PyObject *
frames_of(PyObject *Py_UNUSED(module), PyObject *args)
{
    return all_of(args, sb_frames_of);
}

static PyObject *
live_sampled(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return sb_cells_live_sampled();
}

static PyObject *
chain_of(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long long serial = PyLong_AsUnsignedLongLong(argument);
    return PyErr_Occurred() ? NULL : sb_chain_of(serial);
}

static PyObject *
rest(PyObject *Py_UNUSED(module), PyObject *argument)
{
    double seconds = PyFloat_AsDouble(argument);
    if (PyErr_Occurred()) {
        return NULL;
    }
    struct timespec time = {(time_t)seconds,
                            (long)((seconds - (double)(time_t)seconds) * 1e9)};
    Py_BEGIN_ALLOW_THREADS
    nanosleep(&time, NULL);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *
turn_counts(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    unsigned asked, offered;
    sb_turn_counts(&asked, &offered);
    return Py_BuildValue("II", asked, offered);
}

static PyObject *
misarm(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long ident = PyLong_AsUnsignedLong(argument);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(sb_sampler_misarm(ident));
}

static PyObject *
storm(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long count;
    unsigned int hz;
    if (!PyArg_ParseTuple(args, "KI", &count, &hz)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    sb_sampler_storm(count, hz);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* ---- threads that start while the sampler runs ------------------------------------ */

/* Stands in for threading.Thread._bootstrap_inner: a C function, so that it is no
 * frame in anybody's stack. */
static PyObject *
thread_entry(PyObject *original, PyObject *thread)
{
    int armed = sb_sampler_arm_current();
    PyObject *result = PyObject_CallOneArg(original, thread);
    if (armed) {
        sb_sampler_disarm_current();
    }
    return result;
}

static PyMethodDef thread_entry_def = {"_bootstrap_inner", thread_entry, METH_O, NULL};

static PyObject *
wrap_bootstrap(PyObject *Py_UNUSED(module), PyObject *original)
{
    return sb_method_over(&thread_entry_def, original, original);
}

static PyMethodDef methods[] = {
    {"start", start, METH_O, "Start at a period in ns; whether a thread has to `drain`."},
    {"drain", drain, METH_NOARGS, "Drain on this thread until `stop`."},
    {"set_period", set_period, METH_O, "Sample at another period in ns."},
    {"contexts", contexts, METH_NOARGS, "The label cell of each thread, by ident."},
    {"stop", stop, METH_NOARGS, "Stop sampling; windows stay readable."},
    {"forget", forget, METH_NOARGS, "Drop the labels of finished requests."},
    {"check", check, METH_NOARGS, "Whether frames and contexts read as expected."},
    {"before_fork", before_fork, METH_NOARGS, "Let what must not be forked end."},
    {"after_fork_in_parent", after_fork_in_parent, METH_NOARGS, "Go on."},
    {"after_fork", after_fork, METH_NOARGS, "Begin anew in a forked child."},
    {"exclude_current_thread", exclude_current_thread, METH_NOARGS,
     "Never sample the calling thread."},
    {"include_current_thread", include_current_thread, METH_NOARGS,
     "No longer keep the calling thread out, which ends."},
    {"info", info, METH_NOARGS, "Counters and states."},
    {"window_open", window_open, METH_VARARGS, "Open a window from a moment on."},
    {"window_stop", window_stop, METH_O, "Stop a window; its extent."},
    {"window_free", window_free, METH_O, "Forget a window."},
    {"window_rows", window_rows, METH_VARARGS, "Rows of a window, a slice."},
    {"window_moments", window_moments, METH_O, "Its samples, one by one."},
    {"stacks_of", stacks_of, METH_VARARGS, "The stacks of a list of ids."},
    {"frames_of", frames_of, METH_VARARGS, "The frames of a list of ids."},
    {"live_sampled", live_sampled, METH_NOARGS, "Live cells that were sampled."},
    {"chain_of", chain_of, METH_O, "Label overlays of a serial, root first."},
    {"wrap_bootstrap", wrap_bootstrap, METH_O, "Arm threads as they start."},
    {"sleep", rest, METH_O, "Sleep, whatever patched time.sleep."},
    {"turn_counts", turn_counts, METH_NOARGS,
     "How often the main thread was asked for the GIL, and came."},
    {"misarm", misarm, METH_O, "Arm a thread on the caller's clock, for a test."},
    {"storm", storm, METH_VARARGS, "Send sampler signals to random threads."},
    {NULL, NULL, 0, NULL},
};

static int
execute(PyObject *module)
{
    int failed = sb_method_init(module) < 0 || sb_cells_init(module) < 0 ||
                 sb_ledgers_init(module) < 0 || sb_heap_init(module) < 0 || sb_watch_init(module) < 0 ||
                 sb_samples_init(module) < 0 || sb_copies_init(module) < 0 ||
                 sb_trace_init(module) < 0 || sb_timeline_init(module) < 0 ||
                 sb_extras_init(module) < 0 ||
                 sb_contention_init(module) < 0 ||
                 sb_locks_init(module) < 0 || sb_waits_init(module) < 0 ||
                 sb_rest_init(module) < 0 || sb_rest_threads_init(module) < 0 ||
                 sb_wall_init(module) < 0 ||
                 sb_births_init(module) < 0 || sb_search_init(module) < 0 ||
                 sb_greet_init(module) < 0;
    return failed ? -1 : 0;
}

static int
traverse(PyObject *Py_UNUSED(module), visitproc visit, void *arg)
{
    return sb_cells_traverse(visit, arg);
}

static int
clear(PyObject *Py_UNUSED(module))
{
    sb_cells_clear();
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_doc = "The C engine of stroboscope. An implementation detail.",
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
