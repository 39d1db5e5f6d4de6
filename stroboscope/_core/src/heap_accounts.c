#define _GNU_SOURCE
#include "compat.h"
#include "heap_parts.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ledger.h"
#include "livemap.h"
#include "sampler.h"
#include "stacks.h"

enum { ALLOC_OBJECTS, ALLOC_SPACE, INUSE_OBJECTS, INUSE_SPACE, WIDTH };

sb_heap_state sb_heap;

/* Under the GIL of the interpreter that started. */
static sb_ledger *ledger;
static uint64_t samples, live_lost;

/* Whoever has no GIL may free too: the map has its own lock, held for moments. What is
 * freed without the GIL waits in `unsettled` for somebody who has it. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static sb_live *unsettled;
static size_t unsettled_count, unsettled_room;
static uint64_t unsettled_lost;
/* Bytes that the blocks in the map stand for, and those that are pooled of them. */
static int64_t live_bytes, pooled_bytes;

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
    if (!sb_heap.is_on) {
        return INT64_MAX;
    }
    double uniform = ((double)(random_word() >> 11) + 0.5) * 0x1p-53; /* in (0, 1) */
    double distance = -log(uniform) * sb_heap.rate;
    return distance < 0x1p60 ? (int64_t)distance : (int64_t)1 << 60;
}

/* How many blocks of this size one sample of it stands for. */
static float
weight_of(size_t size)
{
    return (float)(1.0 / -expm1(-(double)size / sb_heap.rate));
}

/* ---- accounts --------------------------------------------------------------------- */

/* The state of this thread, when it holds the GIL of the interpreter we belong to. Its
 * own state is asked for first: another's may be gone. */
static PyThreadState *
state_with_gil(void)
{
    PyThreadState *mine = PyGILState_GetThisThreadState();
    if (mine == NULL || mine != sb_state_that_runs()) {
        return NULL;
    }
    /* A thread that another interpreter has started holds that one's GIL. */
    return PyThreadState_GetInterpreter(mine) == sb_heap.home ? mine : NULL;
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

/* With the lock: what a block in the map stands for comes or goes. */
static void
count_live(const sb_live *block, int step)
{
    int64_t bytes = step * space_of(block);
    live_bytes += bytes;
    pooled_bytes += block->is_pooled ? bytes : 0;
}

/* With the lock: 1, or 0 where there is no room. */
static int
follow(const sb_live *block)
{
    if (sb_live_put(block) < 0) {
        return 0;
    }
    count_live(block, 1);
    return 1;
}

/* A block that may be in the map goes. Called before its memory does: afterwards
 * another thread may have the same address. Returns whether it was there. */
static int
forget(void *pointer, sb_live *block)
{
    pthread_mutex_lock(&lock);
    int was_there = sb_live_take(pointer, block);
    if (was_there) {
        count_live(block, -1);
    }
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
record(void *pointer, size_t size, int is_pooled)
{
    PyThreadState *tstate = state_with_gil();
    if (tstate == NULL || sb_sampler_is_excluded(tstate)) {
        return;
    }
    sb_live block = {pointer, size, (unsigned)is_pooled, weight_of(size), 0};
    int64_t row =
        sb_ledger_row(ledger, sb_stack_of_current(SB_HEAP_DEPTH), sb_current_cell());
    block.row = (uint32_t)row;
    int64_t values[WIDTH] = {objects_of(&block), space_of(&block), 0, 0};
    pthread_mutex_lock(&lock);
    int is_kept = follow(&block);
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
    sb_live block = {pointer, size, 0, weight_of(size), OUTSIDE};
    pthread_mutex_lock(&lock);
    outside[ALLOC_OBJECTS] += objects_of(&block);
    outside[ALLOC_SPACE] += space_of(&block);
    outside_samples++;
    if (follow(&block)) {
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

/* The interpreter frees some RAW blocks past every hook: one may be back here. */
static void
forget_earlier(void *pointer)
{
    if (sb_live_maybe(pointer)) {
        sb_heap_freed(pointer);
    }
}

void
sb_heap_record(void *pointer, size_t size, int is_pooled)
{
    if (!sb_heap.is_on || pointer == NULL || is_inside) {
        return;
    }
    is_inside = 1;
    forget_earlier(pointer);
    record(pointer, size, is_pooled);
    is_inside = 0;
}

void
sb_heap_record_raw(void *pointer, size_t size)
{
    if (!sb_heap.is_on || !sb_heap.is_raw_on || pointer == NULL || is_inside) {
        return;
    }
    is_inside = 1;
    forget_earlier(pointer);
    PyThreadState *mine = PyGILState_GetThisThreadState();
    if (state_with_gil() != NULL) {
        record(pointer, size, 0);
    }
    else if (mine == NULL || (PyThreadState_GetInterpreter(mine) == sb_heap.home &&
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
        int is_kept = follow(&block);
        pthread_mutex_unlock(&lock);
        was_there = !is_kept;
    }
    if (was_there) {
        account_for(&block);
    }
    return moved;
}

/* ---- for heap.c ------------------------------------------------------------------- */

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

int
sb_heap_accounts_open(void)
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

void
sb_heap_accounts_forget_live(void)
{
    settle_all();
    pthread_mutex_lock(&lock);
    sb_live_clear();
    live_bytes = pooled_bytes = 0;
    outside[INUSE_OBJECTS] = outside[INUSE_SPACE] = 0;
    pthread_mutex_unlock(&lock);
    if (ledger != NULL) {
        sb_ledger_let_go(ledger, INUSE_OBJECTS);
    }
}

int
sb_heap_accounts_few_are_pooled(void)
{
    pthread_mutex_lock(&lock);
    int are_few = pooled_bytes * SB_HEAP_POOLED_PART <= live_bytes;
    pthread_mutex_unlock(&lock);
    return are_few;
}

void
sb_heap_accounts_forget_pooled(void)
{
    sb_live some[64];
    size_t count;
    do {
        pthread_mutex_lock(&lock);
        count = sb_live_take_pooled(some, sizeof some / sizeof *some);
        for (size_t i = 0; i < count; i++) {
            count_live(&some[i], -1);
        }
        pthread_mutex_unlock(&lock);
        for (size_t i = 0; i < count; i++) {
            account_for(&some[i]);
        }
    } while (count > 0);
}

int
sb_heap_accounts_are_open(void)
{
    return ledger != NULL;
}

PyObject *
sb_heap_accounts_copy(void)
{
    settle_all();
    return sb_ledger_copy(ledger);
}

void
sb_heap_accounts_after_fork(void)
{
    random_state = 0;
    if (ledger != NULL) {
        sb_ledger_clear(ledger);
    }
}

sb_heap_counts
sb_heap_accounts_counts(void)
{
    return (sb_heap_counts){samples, sb_live_count(), live_lost, unsettled_lost};
}
