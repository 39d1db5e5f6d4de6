#define _GNU_SOURCE
#include "heap.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "heap_parts.h"
#include "heap_raw.h"
#include "ledger.h"
#include "livemap.h"
#include "sampler.h"
#include "stacks.h"

#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#define INERT INT64_MAX

enum { ALLOC_OBJECTS, ALLOC_SPACE, INUSE_OBJECTS, INUSE_SPACE, WIDTH };

/* One hook of one domain: what a hook function gets as its context. Somebody may have
 * stored it, so a layer is never freed and what is under it never changes. */
typedef struct {
    _Alignas(64) int64_t countdown; /* bytes to the next sample; one line of the cache */
    PyMemAllocatorEx under;
    int domain;
} layer;

static const PyMemAllocatorDomain DOMAINS[] = {PYMEM_DOMAIN_OBJ, PYMEM_DOMAIN_MEM};
enum { DOMAIN_COUNT = 2 };

static layer layers[SB_HEAP_LAYERS_MAX];
static int layer_count;
static layer *hooked[DOMAIN_COUNT]; /* the latest layer of a domain, in the chain or not */

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

/* From what size on a domain asks RAW for a block: then it is RAW's to count. */
static size_t raw_from[DOMAIN_COUNT];

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
        return INERT;
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
    pthread_mutex_unlock(&lock);
    if (is_kept) {
        values[INUSE_OBJECTS] = values[ALLOC_OBJECTS];
        values[INUSE_SPACE] = values[ALLOC_SPACE];
        sb_ledger_hold(ledger, row);
    }
    live_lost += !is_kept;
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

/* ---- hooks ------------------------------------------------------------------------ */

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

/* The countdown ended at this block. */
static void __attribute__((noinline))
sample(layer *self, void *pointer, size_t size)
{
    self->countdown = sb_heap_next_distance();
    if (is_on && pointer != NULL && !is_inside &&
        !(is_raw_on && size >= raw_from[self->domain])) {
        is_inside = 1;
        if (is_raw_on) {
            sb_heap_freed(pointer);
        }
        record(pointer, size);
        is_inside = 0;
    }
}

static void *__attribute__((noinline))
sampled_malloc(layer *self, size_t size)
{
    void *pointer = self->under.malloc(self->under.ctx, size);
    sample(self, pointer, size);
    return pointer;
}

static void *
hook_malloc(void *context, size_t size)
{
    layer *self = context;
    self->countdown -= (int64_t)size;
    if (LIKELY(self->countdown >= 0)) {
        return self->under.malloc(self->under.ctx, size);
    }
    return sampled_malloc(self, size);
}

static void *
hook_calloc(void *context, size_t count, size_t each)
{
    layer *self = context;
    void *pointer = self->under.calloc(self->under.ctx, count, each);
    self->countdown -= (int64_t)(count * each);
    if (!LIKELY(self->countdown >= 0)) {
        sample(self, pointer, count * each);
    }
    return pointer;
}

static void __attribute__((noinline))
sampled_free(layer *self, void *pointer)
{
    if (pointer != NULL) {
        sb_heap_freed(pointer);
    }
    self->under.free(self->under.ctx, pointer);
}

static void
hook_free(void *context, void *pointer)
{
    layer *self = context;
    if (LIKELY(!sb_live_maybe(pointer))) {
        self->under.free(self->under.ctx, pointer);
        return;
    }
    sampled_free(self, pointer);
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

static void *
hook_realloc(void *context, void *pointer, size_t size)
{
    layer *self = context;
    void *moved = LIKELY(pointer == NULL || !sb_live_maybe(pointer))
                      ? self->under.realloc(self->under.ctx, pointer, size)
                      : sb_heap_reallocated(&self->under, pointer, size);
    self->countdown -= (int64_t)size;
    if (!LIKELY(self->countdown >= 0)) {
        sample(self, moved, size);
    }
    return moved;
}

/* ---- chains of allocators --------------------------------------------------------- */

static int
is_ours(const PyMemAllocatorEx *allocator, const layer *self)
{
    return self != NULL && allocator->ctx == self && allocator->malloc == hook_malloc;
}

int
sb_heap_are_equal(const PyMemAllocatorEx *a, const PyMemAllocatorEx *b)
{
    return a->ctx == b->ctx && a->malloc == b->malloc && a->calloc == b->calloc &&
           a->realloc == b->realloc && a->free == b->free;
}

static void
ask_for(int domain, size_t size)
{
    if (DOMAINS[domain] == PYMEM_DOMAIN_OBJ) {
        PyObject_Free(PyObject_Malloc(size));
    }
    else {
        PyMem_Free(PyMem_Malloc(size));
    }
}

/* Whether an allocation of the domain passes the layer: somebody may sit on top of it,
 * and somebody below may have put back what was there before us. */
static int
is_in_chain(int domain)
{
    layer *self = hooked[domain];
    if (self == NULL) {
        return 0;
    }
    int64_t before = self->countdown, passes;
    is_inside++;
    self->countdown = INERT;
    ask_for(domain, 1);
    passes = self->countdown != INERT;
    self->countdown = before;
    is_inside--;
    return (int)passes;
}

/* A layer over what is there now: one that was there before, or a new one; NULL when
 * there are too many. */
static layer *
layer_over(const PyMemAllocatorEx *under, int domain)
{
    for (int i = 0; i < layer_count; i++) {
        if (layers[i].domain == domain && sb_heap_are_equal(&layers[i].under, under)) {
            return &layers[i];
        }
    }
    if (layer_count == SB_HEAP_LAYERS_MAX) {
        return NULL;
    }
    layer *made = &layers[layer_count++];
    *made = (layer){INERT, *under, domain};
    return made;
}

/* Hook a domain. 1 when it was hooked anew, 0 when our hook was still there, -1 when
 * there were too many. */
static int
hook(int domain)
{
    if (is_in_chain(domain)) {
        return 0;
    }
    PyMemAllocatorEx under;
    PyMem_GetAllocator(DOMAINS[domain], &under);
    if (hooked[domain] != NULL) {
        hooked[domain]->countdown = INERT;
    }
    layer *self = layer_over(&under, domain);
    if (self == NULL) {
        return -1;
    }
    hooked[domain] = self;
    PyMemAllocatorEx ours = {self, hook_malloc, hook_calloc, hook_realloc, hook_free};
    PyMem_SetAllocator(DOMAINS[domain], &ours);
    return 1;
}

/* Take our hook away where it is the outermost; else it stays and only passes on. */
static int
unhook(int domain)
{
    layer *self = hooked[domain];
    if (self == NULL) {
        return 1;
    }
    self->countdown = INERT;
    PyMemAllocatorEx now;
    PyMem_GetAllocator(DOMAINS[domain], &now);
    if (is_ours(&now, self)) {
        PyMem_SetAllocator(DOMAINS[domain], &self->under);
        return 1;
    }
    return !is_in_chain(domain);
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

static int
asks_raw(int domain, size_t size)
{
    is_inside++;
    sb_heap_raw_is_passed(1);
    ask_for(domain, size);
    int passes = sb_heap_raw_is_passed(0);
    is_inside--;
    return passes;
}

/* pymalloc asks RAW for what is larger than it has pools for; how large that is the
 * user's allocators and the debug hooks say. */
static void
learn_what_is_raws(void)
{
    enum { POOLS_MAX = 4096 };
    for (int i = 0; i < DOMAIN_COUNT; i++) {
        size_t below = 0, from = POOLS_MAX;
        if (!asks_raw(i, from)) {
            raw_from[i] = SIZE_MAX;
            continue;
        }
        while (from - below > 1) {
            size_t middle = (below + from) / 2;
            *(asks_raw(i, middle) ? &from : &below) = middle;
        }
        raw_from[i] = from;
    }
}

static int
hook_all(void)
{
    int cut = 0;
    for (int i = 0; i < DOMAIN_COUNT + is_raw_on; i++) {
        int is_new = i < DOMAIN_COUNT ? hook(i) : sb_heap_raw_hook();
        if (is_new < 0) {
            PyErr_SetString(PyExc_RuntimeError,
                            "Python's allocators have been replaced too often");
            return -1;
        }
        cut |= is_new;
    }
    if (cut && is_raw_on) {
        learn_what_is_raws();
    }
    return cut;
}

/* See to it that both domains are hooked. Where they were hooked and are no more,
 * somebody has put back what was there before us: what was freed meanwhile is unknown.
 * 1 when hooks are new, 0, or -1 with an exception. */
static int
mend(void)
{
    int was_cut = hook_all();
    if (was_cut > 0 && is_on) {
        times_cut++;
        forget_live();
    }
    return was_cut < 0 ? -1 : was_cut;
}

static void
count_down_anew(void)
{
    for (int i = 0; i < DOMAIN_COUNT; i++) {
        hooked[i]->countdown = sb_heap_next_distance();
    }
    if (is_raw_on) {
        sb_heap_raw_count_down(sb_heap_next_distance());
    }
}

static int
stop(void)
{
    is_on = 0;
    int are_gone = 1;
    for (int i = 0; i < DOMAIN_COUNT; i++) {
        are_gone &= unhook(i);
    }
    are_gone &= sb_heap_raw_unhook();
    is_raw_on = 0;
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
    count_down_anew();
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
            count_down_anew();
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
                         is_in_chain(0) && is_in_chain(1) &&
                             (!is_raw_on || sb_heap_raw_is_in_chain()),
                         "layers", layer_count);
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
