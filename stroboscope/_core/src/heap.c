#define _GNU_SOURCE
#include "heap.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "heap_parts.h"
#include "ledger.h"
#include "livemap.h"
#include "sampler.h"
#include "stacks.h"

enum { ALLOC_OBJECTS, ALLOC_SPACE, INUSE_OBJECTS, INUSE_SPACE, WIDTH };

/* Under the GIL of the interpreter that started. */
static PyInterpreterState *home;
static sb_ledger *ledger;
static int is_on, is_raw_on;
static double rate;
static uint64_t samples, live_lost, times_cut;

/* Whoever has no GIL may free too: the map has its own lock, held for moments. What is
 * freed without the GIL waits in `unsettled` for somebody who has it. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static sb_live *unsettled;
static size_t unsettled_count, unsettled_room;
static uint64_t unsettled_lost;

/* What was asked for in RAW without the GIL, as rows have it, until it is settled. Its
 * blocks are in the map under a row of their own that is none of the ledger's. */
#define OUTSIDE UINT32_MAX
static int64_t outside[WIDTH];
static uint64_t outside_samples;

/* Set while a hook works, so that nothing it calls is sampled in turn. */
static __thread int is_inside __attribute__((tls_model("initial-exec")));

/* ---- chance ----------------------------------------------------------------------- */

static uint64_t random_state;

/* xorshift64*. Threads without the GIL may draw the same number twice, no more. */
static uint64_t
random_word(void)
{
    uint64_t x = random_state ? random_state : (sb_now_ns() ^ (uint64_t)getpid() << 32) | 1;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    random_state = x;
    return x * 0x2545F4914F6CDD1Du;
}

int64_t
sb_heap_next_distance(void)
{
    if (!is_on) {
        return INT64_MAX;
    }
    double uniform = ((double)(random_word() >> 11) + 0.5) * 0x1p-53; /* in (0, 1) */
    double distance = -log(uniform) * rate;
    return distance < 0x1p60 ? (int64_t)distance : (int64_t)1 << 60;
}

/* How many blocks of this size one sample of it stands for. */
static float
weight_of(size_t size)
{
    return (float)(1.0 / -expm1(-(double)size / rate));
}

/* ---- accounts --------------------------------------------------------------------- */

/* The state of this thread, when it holds the GIL of the interpreter we belong to. Its
 * own state is asked for first: another's may be gone. */
static PyThreadState *
state_with_gil(void)
{
    PyThreadState *mine = PyGILState_GetThisThreadState();
    if (mine == NULL || mine != _PyThreadState_UncheckedGet()) {
        return NULL;
    }
    /* A thread that another interpreter has started holds that one's GIL. */
    return PyThreadState_GetInterpreter(mine) == home ? mine : NULL;
}

static int64_t
objects_of(const sb_live *block)
{
    return llround((double)block->weight * SB_HEAP_OBJECT);
}

static int64_t
space_of(const sb_live *block)
{
    return llround((double)block->weight * (double)block->size);
}

static void
settle(const sb_live *block)
{
    int64_t values[WIDTH] = {[INUSE_OBJECTS] = -objects_of(block),
                             [INUSE_SPACE] = -space_of(block)};
    sb_ledger_add(ledger, block->row, values);
    sb_ledger_drop(ledger, block->row);
}

/* With the GIL. */
static void
settle_all(void)
{
    pthread_mutex_lock(&lock);
    sb_live *waiting = unsettled;
    size_t count = unsettled_count;
    unsettled = NULL;
    unsettled_count = unsettled_room = 0;
    int64_t values[WIDTH];
    memcpy(values, outside, sizeof values);
    memset(outside, 0, sizeof outside);
    samples += outside_samples;
    outside_samples = 0;
    pthread_mutex_unlock(&lock);
    if (values[ALLOC_SPACE] != 0 || values[INUSE_SPACE] != 0) {
        int64_t row = sb_ledger_row(ledger, sb_stack_of_ids(NULL, 0), NULL);
        sb_ledger_add(ledger, row, values);
    }
    for (size_t i = 0; i < count; i++) {
        settle(&waiting[i]);
    }
    free(waiting);
}

static void
settle_later(const sb_live *block)
{
    pthread_mutex_lock(&lock);
    if (unsettled_count == unsettled_room) {
        size_t room = (unsettled_room + 32) * 2;
        sb_live *grown = realloc(unsettled, room * sizeof *grown);
        if (grown == NULL) {
            unsettled_lost++;
            pthread_mutex_unlock(&lock);
            return;
        }
        unsettled = grown;
        unsettled_room = room;
    }
    unsettled[unsettled_count++] = *block;
    pthread_mutex_unlock(&lock);
}

/* A block that may be in the map goes. Called before its memory does: afterwards
 * another thread may have the same address. Returns whether it was there. */
static int
forget(void *pointer, sb_live *block)
{
    pthread_mutex_lock(&lock);
    int was_there = sb_live_take(pointer, block);
    pthread_mutex_unlock(&lock);
    return was_there;
}

/* With the lock: a block asked for without the GIL comes or goes. */
static void
count_outside(const sb_live *block, int step)
{
    outside[INUSE_OBJECTS] += step * objects_of(block);
    outside[INUSE_SPACE] += step * space_of(block);
}

static void
account_for(const sb_live *block)
{
    if (block->row == OUTSIDE) {
        pthread_mutex_lock(&lock);
        count_outside(block, -1);
        pthread_mutex_unlock(&lock);
    }
    else if (state_with_gil() != NULL) {
        settle(block);
    }
    else {
        settle_later(block);
    }
}

static void
record(void *pointer, size_t size)
{
    PyThreadState *tstate = state_with_gil();
    if (tstate == NULL || sb_sampler_is_excluded(tstate)) {
        return;
    }
    sb_live block = {pointer, size, weight_of(size), 0};
    int64_t row =
        sb_ledger_row(ledger, sb_stack_of_current(SB_HEAP_DEPTH), sb_current_cell());
    block.row = (uint32_t)row;
    int64_t values[WIDTH] = {objects_of(&block), space_of(&block), 0, 0};
    pthread_mutex_lock(&lock);
    int is_kept = sb_live_put(&block) == 0;
    live_lost += !is_kept;
    pthread_mutex_unlock(&lock);
    if (is_kept) {
        values[INUSE_OBJECTS] = values[ALLOC_OBJECTS];
        values[INUSE_SPACE] = values[ALLOC_SPACE];
        sb_ledger_hold(ledger, row);
    }
    sb_ledger_add(ledger, row, values);
    samples++;
}

static void
record_outside(void *pointer, size_t size)
{
    sb_live block = {pointer, size, weight_of(size), OUTSIDE};
    pthread_mutex_lock(&lock);
    outside[ALLOC_OBJECTS] += objects_of(&block);
    outside[ALLOC_SPACE] += space_of(&block);
    outside_samples++;
    if (sb_live_put(&block) == 0) {
        count_outside(&block, 1);
    }
    else {
        live_lost++;
    }
    pthread_mutex_unlock(&lock);
}

/* ---- for the hooks ---------------------------------------------------------------- */

void
sb_heap_inside(int step)
{
    is_inside += step;
}

void
sb_heap_freed(void *pointer)
{
    sb_live block;
    if (forget(pointer, &block)) {
        account_for(&block);
    }
}

void
sb_heap_record(void *pointer, size_t size)
{
    if (!is_on || pointer == NULL || is_inside) {
        return;
    }
    is_inside = 1;
    if (is_raw_on) {
        sb_heap_freed(pointer); /* as below */
    }
    record(pointer, size);
    is_inside = 0;
}

void
sb_heap_record_raw(void *pointer, size_t size)
{
    if (!is_on || !is_raw_on || pointer == NULL || is_inside) {
        return;
    }
    is_inside = 1;
    /* The interpreter frees some RAW blocks past every hook: one may be back here. */
    sb_heap_freed(pointer);
    PyThreadState *mine = PyGILState_GetThisThreadState();
    if (state_with_gil() != NULL) {
        record(pointer, size);
    }
    else if (mine == NULL || (PyThreadState_GetInterpreter(mine) == home &&
                              !sb_sampler_is_excluded(mine))) {
        record_outside(pointer, size);
    }
    is_inside = 0;
}

void *
sb_heap_reallocated(const PyMemAllocatorEx *under, void *pointer, size_t size)
{
    sb_live block;
    int was_there = forget(pointer, &block);
    void *moved = under->realloc(under->ctx, pointer, size);
    if (was_there && moved == NULL) { /* the old block is still there */
        pthread_mutex_lock(&lock);
        int is_kept = sb_live_put(&block) == 0;
        pthread_mutex_unlock(&lock);
        was_there = !is_kept;
    }
    if (was_there) {
        account_for(&block);
    }
    return moved;
}

/* ---- on and off ------------------------------------------------------------------- */

/* What lives is no longer known. */
static void
forget_live(void)
{
    settle_all();
    pthread_mutex_lock(&lock);
    sb_live_clear();
    outside[INUSE_OBJECTS] = outside[INUSE_SPACE] = 0;
    pthread_mutex_unlock(&lock);
    if (ledger != NULL) {
        sb_ledger_let_go(ledger, INUSE_OBJECTS);
    }
}

static void
lock_for_fork(void)
{
    pthread_mutex_lock(&lock);
}

static void
unlock_after_fork(void)
{
    pthread_mutex_unlock(&lock);
}

/* 0, or -1 with an exception. */
static int
prepare(void)
{
    static int is_prepared;
    if (ledger == NULL && (ledger = sb_ledger_new(WIDTH)) == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (!is_prepared &&
        pthread_atfork(lock_for_fork, unlock_after_fork, unlock_after_fork) != 0) {
        PyErr_NoMemory();
        return -1;
    }
    is_prepared = 1;
    return 0;
}

/* See to it that both domains are hooked. Where they were hooked and are no more,
 * somebody has put back what was there before us: what was freed meanwhile is unknown.
 * 1 when hooks are new, 0, or -1 with an exception. */
static int
mend(void)
{
    int was_cut = sb_heap_hook_all(is_raw_on);
    if (was_cut > 0 && is_on) {
        times_cut++;
        forget_live();
    }
    return was_cut < 0 ? -1 : was_cut;
}

static int
stop(void)
{
    is_on = 0;
    is_raw_on = 0;
    int are_gone = sb_heap_unhook_all();
    forget_live();
    return are_gone;
}

/* heap_start(rate, with_raw). */
static PyObject *
heap_start(PyObject *Py_UNUSED(module), PyObject *args)
{
    double wanted;
    int with_raw = 0;
    if (!PyArg_ParseTuple(args, "d|p", &wanted, &with_raw)) {
        return NULL;
    }
    if (!(wanted >= 1)) {
        PyErr_SetString(PyExc_ValueError, "a sample every so many bytes, at least 1");
        return NULL;
    }
    if (with_raw != is_raw_on && is_on) {
        stop(); /* whose a block is changes with it: what lives is counted anew */
    }
    is_raw_on = with_raw;
    if (prepare() < 0 || mend() < 0) {
        return NULL;
    }
    home = PyInterpreterState_Get();
    is_on = 1;
    rate = wanted;
    sb_heap_count_down_all(is_raw_on);
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
    if (ledger == NULL) {
        Py_RETURN_NONE;
    }
    if (is_on) {
        int was_cut = mend();
        if (was_cut < 0) {
            return NULL;
        }
        if (was_cut) {
            sb_heap_count_down_all(is_raw_on);
        }
    }
    settle_all();
    return sb_ledger_copy(ledger);
}

static PyObject *
heap_info(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("{s:i,s:i,s:d,s:K,s:n,s:K,s:K,s:K,s:i,s:i}", "on", is_on,
                         "raw", is_raw_on, "rate",
                         rate, "samples", (unsigned long long)samples, "live",
                         (Py_ssize_t)sb_live_count(), "live_lost",
                         (unsigned long long)live_lost, "unsettled_lost",
                         (unsigned long long)unsettled_lost, "cut",
                         (unsigned long long)times_cut, "in_chain",
                         sb_heap_are_hooked(is_raw_on), "layers",
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
    random_state = 0;
    stop();
    if (ledger != NULL) {
        sb_ledger_clear(ledger);
    }
}
