#include "heap.h"

#include "heap_parts.h"

static uint64_t times_cut;
static int was_fine; /* hooks are full for a rate that is no more */

/* Whether hooks that leave most frees alone may do: samples are few enough to round up,
 * and none of RAW's own is among them. */
static int
may_be_lean(double rate)
{
    return !sb_heap.is_raw_on && rate >= SB_HEAP_LEAN_RATE;
}

/* See to it that all that is wanted is hooked. Where it was and is no more, somebody
 * has put back what was there before us: what was freed meanwhile is unknown.
 * 1 when hooks are new, 0, or -1 with an exception. */
static int
mend(double rate)
{
    int was_cut = sb_heap_hook_all(sb_heap.is_raw_on, may_be_lean(rate));
    if (was_cut > 0 && sb_heap.is_on) {
        times_cut++;
        sb_heap_accounts_forget_live();
    }
    return was_cut;
}

static int
stop(void)
{
    sb_heap.is_on = sb_heap.is_raw_on = 0;
    int are_gone = sb_heap_unhook_all();
    sb_heap_accounts_forget_live();
    return are_gone;
}

/* While on, from a rate to one that the hooks there cannot do, or back from one that only
 * full hooks could; what lives stays known: with the GIL nobody frees meanwhile. Back only
 * when nearly all of it does, so it is tried again at each reading. 0, or -1 with an
 * exception. */
static int
change_hooks(double rate)
{
    int wants_lean = may_be_lean(rate), is_back = wants_lean && was_fine;
    was_fine |= !wants_lean;
    if (!sb_heap.is_on) {
        was_fine = !wants_lean;
        return 0;
    }
    if (sb_heap_are_lean() ? wants_lean : !is_back || !sb_heap_accounts_few_are_pooled()) {
        return 0;
    }
    was_fine = !wants_lean;
    sb_heap_unhook_all();
    if (sb_heap_hook_all(0, wants_lean) < 0) {
        return -1;
    }
    if (sb_heap_are_lean()) {
        sb_heap_accounts_forget_pooled();
    }
    sb_heap_count_down_all(0);
    return 0;
}

/* heap_start(rate, with_raw). */
static PyObject *
heap_start(PyObject *Py_UNUSED(module), PyObject *args)
{
    double rate;
    int with_raw = 0;
    if (!PyArg_ParseTuple(args, "d|p", &rate, &with_raw)) {
        return NULL;
    }
    if (!(rate >= 1)) {
        PyErr_SetString(PyExc_ValueError, "a sample every so many bytes, at least 1");
        return NULL;
    }
    if (with_raw != sb_heap.is_raw_on && sb_heap.is_on) {
        stop(); /* whose a block is changes with it: what lives is counted anew */
    }
    sb_heap.is_raw_on = with_raw;
    if (sb_heap_accounts_open() < 0 || change_hooks(rate) < 0 || mend(rate) < 0) {
        return NULL;
    }
    sb_heap.home = PyInterpreterState_Get();
    sb_heap.is_on = 1;
    sb_heap.rate = rate;
    sb_heap_count_down_all(with_raw);
    Py_RETURN_NONE;
}

static PyObject *
heap_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(stop());
}

static PyObject *
heap_copy(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    if (!sb_heap_accounts_are_open()) {
        Py_RETURN_NONE;
    }
    if (change_hooks(sb_heap.rate) < 0) {
        return NULL;
    }
    int was_cut = sb_heap.is_on ? mend(sb_heap.rate) : 0;
    if (was_cut < 0) {
        return NULL;
    }
    if (was_cut) {
        sb_heap_count_down_all(sb_heap.is_raw_on);
    }
    return sb_heap_accounts_copy();
}

static PyObject *
heap_info(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    typedef unsigned long long count;
    sb_heap_counts counts = sb_heap_accounts_counts();
    return Py_BuildValue(
        "{s:i,s:i,s:d,s:K,s:n,s:K,s:K,s:K,s:i,s:i,s:i}", "on", sb_heap.is_on, "raw",
        sb_heap.is_raw_on, "rate", sb_heap.rate, "samples", (count)counts.samples, "live",
        (Py_ssize_t)counts.live, "live_lost", (count)counts.live_lost, "unsettled_lost",
        (count)counts.unsettled_lost, "cut", (count)times_cut, "in_chain",
        sb_heap_are_hooked(sb_heap.is_raw_on), "lean", sb_heap_are_lean(), "layers",
        sb_heap_layer_count());
}

static PyMethodDef functions[] = {
    {"heap_start", heap_start, METH_VARARGS, "Sample one block in so many bytes."},
    {"heap_stop", heap_stop, METH_NOARGS, "Stop; whether the hooks are gone."},
    {"heap_copy", heap_copy, METH_NOARGS, "The totals now, or None before a start."},
    {"heap_info", heap_info, METH_NOARGS, "Counters and states."},
    {NULL, NULL, 0, NULL},
};

int
sb_heap_init(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}

void
sb_heap_after_fork(void)
{
    stop();
    sb_heap_accounts_after_fork();
}
