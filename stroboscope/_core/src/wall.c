#define _GNU_SOURCE
#include "wall.h"

#include <sys/types.h>
#include <time.h>

#include "ledger.h"
#include "rest.h"
#include "sampler.h"
#include "stacks.h"
#include "turn.h"

/* The values of a row, in nanoseconds. */
enum { WAITING, SUSPENDED, RUNNING, WIDTH };

/* What the last tick knew of a thread. */
typedef struct {
    uint64_t tstate_id;
    unsigned long tid;
    uint64_t cpu_ns;
    uint64_t burnt_ns; /* CPU beyond the time that passed, by the clocks' own steps */
    uint64_t owed_ns;  /* it waited, and nobody saw where: it was at work in each tick */
    int64_t stack;
} seat;

static sb_ledger *windows[SB_WALL_WINDOWS_MAX];
static seat *seats, *seats_before; /* highest id first, as the interpreter's list */
static size_t seat_count, seat_room, seat_room_before;
static uint64_t last_ns; /* 0: no tick yet */
static int is_ticking;   /* also while a task's own Python code runs */
static size_t cursor;    /* how far the looks at sets of tasks have come */

static int
is_open(void)
{
    for (int i = 0; i < SB_WALL_WINDOWS_MAX; i++) {
        if (windows[i] != NULL) {
            return 1;
        }
    }
    return 0;
}

static void
charge(int64_t stack, sb_cell *cell, int column, uint64_t ns)
{
    int64_t values[WIDTH] = {0};
    values[column] = (int64_t)ns;
    for (int i = 0; i < SB_WALL_WINDOWS_MAX && ns > 0; i++) {
        if (windows[i] != NULL) {
            sb_ledger_add(windows[i], sb_ledger_row(windows[i], stack, cell), values);
        }
    }
}

/* ---- threads ---------------------------------------------------------------------- */

/* By the kernel's id, which is safe for a thread that is gone. 0 when it is.
 * Source: clock_getcpuclockid(3), kernel posix-timers.h. */
static int
cpu_clock(unsigned long tid, uint64_t *ns)
{
    enum { PER_THREAD = 4, SCHEDULED = 2 };
    struct timespec now;
    if (tid == 0 ||
        clock_gettime((clockid_t)((~(unsigned)tid << 3) | PER_THREAD | SCHEDULED), &now) < 0) {
        return 0;
    }
    *ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    return 1;
}

/* The nanoseconds of `passed` that a thread did not burn. */
static uint64_t
waited(seat *now, const seat *before, uint64_t passed)
{
    uint64_t burnt = now->cpu_ns - before->cpu_ns + before->burnt_ns;
    if (burnt > passed) {
        now->burnt_ns = burnt - passed;
        return 0;
    }
    return passed - burnt;
}

static void
tick_thread(PyThreadState *tstate, const seat *before, uint64_t passed)
{
    seat *now = &seats[seat_count];
    *now = (seat){tstate->id, tstate->native_thread_id, 0, 0, 0, -1};
    if (!cpu_clock(now->tid, &now->cpu_ns)) {
        return;
    }
    seat_count++;
    /* One that began since the last tick counts for all of it, as its end will count for
     * nothing: a life is so many ticks, on average. What a thread of C burnt before it
     * came to Python is none of that. On 3.11 a state carries its creator's id until its
     * own thread runs. */
    static const seat BORN = {0, 0, 0, 0, 0, -1};
    if (before == NULL || before->tid != now->tid || now->cpu_ns < before->cpu_ns) {
        if (now->cpu_ns > passed) {
            return;
        }
        before = &BORN;
    }
    uint64_t ns = waited(now, before, passed) + before->owed_ns;
    if (tstate == sb_turn_of()) {
        now->owed_ns = ns; /* where it works it did not wait */
        return;
    }
    if (now->cpu_ns == before->cpu_ns) {
        now->stack = before->stack;
    }
    if (ns == 0) {
        return;
    }
    if (now->stack < 0 && sb_is_in_python(tstate)) {
        now->stack = sb_stack_of_thread(tstate, SB_DEPTH_MAX);
    }
    if (now->stack >= 0) {
        charge(now->stack, sb_cell_of_context(tstate->context), WAITING, ns);
    }
}

/* A state is unlinked only with the GIL and put only before the head, with an id above
 * all others: the seats of the last tick are met in their order. */
static void
tick_threads(uint64_t passed)
{
    seat *swapped = seats;
    size_t room = seat_room, count_before = seat_count, at = 0;
    seats = seats_before;
    seat_room = seat_room_before;
    seats_before = swapped;
    seat_room_before = room;
    seat_count = 0;
    PyThreadState *tstate = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    for (; tstate != NULL; tstate = PyThreadState_Next(tstate)) {
        if (sb_sampler_is_excluded(tstate) ||
            sb_reserve((void **)&seats, &seat_room, seat_count, sizeof *seats) < 0) {
            continue;
        }
        while (at < count_before && seats_before[at].tstate_id > tstate->id) {
            at++;
        }
        int is_known = at < count_before && seats_before[at].tstate_id == tstate->id;
        tick_thread(tstate, is_known ? &seats_before[at] : NULL, passed);
    }
}

/* ---- tasks ------------------------------------------------------------------------ */

/* Take new references to some tasks of a set; returns how many, and for how many each
 * stands. That is SB_WALL_TASKS of them or all there are; of a table beyond SB_WALL_SLOTS,
 * about as many in a number of slots that is fixed before looking.
 *
 * Ticks go on where the last one ended, so a task that stays is seen once in each round,
 * and by steps of the golden section of a table whose size is a power of two: a round
 * meets every slot, and any part of it is spread evenly, whatever stands together. In a
 * nearly empty table the next tasks are far, and found by single steps ten times as fast. */
static size_t
take_tasks(PySetObject *set, PyObject *tasks[SB_WALL_ROOM], double *stands_for)
{
    size_t slots = (size_t)set->mask + 1, used = (size_t)set->used;
    int is_big = slots > SB_WALL_SLOTS;
    size_t wanted = is_big ? SB_WALL_ROOM : used < SB_WALL_TASKS ? used : SB_WALL_TASKS;
    size_t share = SB_WALL_TASKS * slots / used + 1; /* where as many are found */
    size_t at_most = !is_big ? slots : share < SB_WALL_LOOKS ? share : SB_WALL_LOOKS;
    size_t step = !is_big && used * 32 < slots ? 1 : (size_t)((double)slots * 0.6180339887) | 1;
    size_t looked = 0, count = 0;
    for (; looked < at_most && count < wanted; looked++) {
        setentry *entry = &set->table[cursor++ * step & (slots - 1)];
        if (entry->key != NULL && entry->hash != -1) { /* -1: a slot that was left */
            tasks[count] = sb_task_of(entry->key);
            count += tasks[count] != NULL;
        }
    }
    *stands_for = is_big ? (double)slots / (double)looked
                         : (double)used / (double)(count > 0 ? count : 1);
    return count;
}

static void
tick_tasks(PyObject *set, uint64_t passed)
{
    PyObject *tasks[SB_WALL_ROOM];
    double stands_for;
    size_t count = take_tasks((PySetObject *)set, tasks, &stands_for);
    /* From here on Python may run, and the set may change. */
    for (size_t i = 0; i < count; i++) {
        sb_task found;
        sb_task_read(tasks[i], &found);
        if (found.state != SB_TASK_GONE && found.stack >= 0) {
            int column = found.state == SB_TASK_RUNNING ? RUNNING : SUSPENDED;
            charge(found.stack, found.cell, column, (uint64_t)((double)passed * stands_for));
        }
        Py_XDECREF(found.cell);
        Py_DECREF(tasks[i]);
    }
}

/* Charge the time since the last tick to every open window. */
static void
tick(PyObject *sets)
{
    if (is_ticking) {
        return;
    }
    is_ticking = 1;
    uint64_t now = sb_now_ns();
    uint64_t passed = last_ns != 0 ? now - last_ns : 0;
    last_ns = now;
    tick_threads(passed);
    for (Py_ssize_t i = 0; passed > 0 && i < PyList_GET_SIZE(sets); i++) {
        PyObject *set = PyList_GET_ITEM(sets, i);
        if (PySet_Check(set) && PySet_GET_SIZE(set) > 0) {
            tick_tasks(set, passed);
        }
    }
    is_ticking = 0;
}

/* wall_tick(sets): tick now. */
static PyObject *
wall_tick(PyObject *Py_UNUSED(module), PyObject *sets)
{
    if (!PyList_Check(sets)) {
        PyErr_SetString(PyExc_TypeError, "a list of sets");
        return NULL;
    }
    tick(sets);
    Py_RETURN_NONE;
}

/* Tick with the list of sets, or with that which a call of `sets` returns now. 0, or -1
 * with an exception. */
static int
tick_with(PyObject *sets)
{
    PyObject *found = PyList_Check(sets) ? Py_NewRef(sets) : PyObject_CallNoArgs(sets);
    int is_list = found != NULL && PyList_Check(found);
    if (is_list) {
        tick(found);
    }
    else if (found != NULL) {
        PyErr_SetString(PyExc_TypeError, "a list of sets");
    }
    Py_XDECREF(found);
    return is_list ? 0 : -1;
}

/* wall_ticks(pauses, sets): tick after each of these pauses, in seconds, for as long as a
 * window is open. In C, for the Python between two ticks is as dear as a tick: it is
 * never warm, and the application stands still meanwhile. `sets` is a list that stays, or
 * is called at each tick, for sets that tell of one moment only. */
static PyObject *
wall_ticks(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *pauses, *sets;
    if (!PyArg_ParseTuple(args, "O!O", &PyTuple_Type, &pauses, &sets)) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(pauses) && is_open(); i++) {
        double seconds = PyFloat_AsDouble(PyTuple_GET_ITEM(pauses, i));
        if (PyErr_Occurred()) {
            break;
        }
        sb_turn_sleep(seconds);
        if (is_open() && tick_with(sets) < 0) {
            break;
        }
    }
    sb_turn_over();
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* ---- windows ---------------------------------------------------------------------- */

/* Seats hold numbers of stacks, which are only good while a ledger is there. */
static void
forget(void)
{
    seat_count = 0;
    last_ns = 0;
}

static PyObject *
wall_open(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    if (!is_open()) {
        forget();
    }
    for (int i = 0; i < SB_WALL_WINDOWS_MAX; i++) {
        if (windows[i] == NULL) {
            windows[i] = sb_ledger_new(WIDTH);
            return windows[i] ? PyLong_FromLong(i) : PyErr_NoMemory();
        }
    }
    PyErr_SetString(PyExc_RuntimeError, "all windows are in use");
    return NULL;
}

static sb_ledger **
window_of(PyObject *argument)
{
    long handle = PyLong_AsLong(argument);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (handle < 0 || handle >= SB_WALL_WINDOWS_MAX || windows[handle] == NULL) {
        PyErr_SetString(PyExc_ValueError, "no such window");
        return NULL;
    }
    return &windows[handle];
}

static PyObject *
wall_copy(PyObject *Py_UNUSED(module), PyObject *argument)
{
    sb_ledger **window = window_of(argument);
    return window ? sb_ledger_copy(*window) : NULL;
}

static PyObject *
wall_close(PyObject *Py_UNUSED(module), PyObject *argument)
{
    sb_ledger **window = window_of(argument);
    if (window == NULL) {
        return NULL;
    }
    sb_ledger *ledger = *window;
    *window = NULL;
    if (!is_open()) {
        forget();
    }
    sb_ledger_free(ledger);
    Py_RETURN_NONE;
}

/* The windows are those of the parent's threads. */
void
sb_wall_after_fork(void)
{
    for (int i = 0; i < SB_WALL_WINDOWS_MAX; i++) {
        sb_ledger *ledger = windows[i];
        windows[i] = NULL;
        sb_ledger_free(ledger);
    }
    is_ticking = 0;
    forget();
}

static PyMethodDef methods[] = {
    {"wall_open", wall_open, METH_NOARGS, "Open a window; its handle."},
    {"wall_tick", wall_tick, METH_O, "Charge the time since the last tick."},
    {"wall_ticks", wall_ticks, METH_VARARGS, "Tick after each of some pauses."},
    {"wall_copy", wall_copy, METH_O, "A window's rows: waiting, suspended, running."},
    {"wall_close", wall_close, METH_O, "Forget a window."},
    {NULL, NULL, 0, NULL},
};

int
sb_wall_init(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
