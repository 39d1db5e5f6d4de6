#include "heap_raw.h"

#include <stdatomic.h>

#include "heap_parts.h"
#include "livemap.h"

#define LIKELY(condition) __builtin_expect(!!(condition), 1)

static PyMemAllocatorEx unders[SB_HEAP_LAYERS_MAX];
static int under_count;
static _Atomic(PyMemAllocatorEx *) under; /* NULL: never hooked */
static _Atomic int64_t countdown = INT64_MAX;

/* What this thread freed last here: by that it sees whether the hook is passed. */
static __thread const void *freed __attribute__((tls_model("initial-exec")));

/* Whether this block is a sample. Who ends the count starts it anew; what others take
 * meanwhile is not counted down. */
static int
is_sample(size_t size)
{
    int64_t bytes = (int64_t)size;
    if (atomic_load_explicit(&countdown, memory_order_relaxed) == INT64_MAX) {
        return 0; /* nothing of RAW's is sampled */
    }
    int64_t before =
        atomic_fetch_sub_explicit(&countdown, bytes, memory_order_relaxed);
    return !LIKELY(before >= bytes) && before >= 0;
}

static void
sample(void *pointer, size_t size)
{
    sb_heap_raw_count_down(sb_heap_next_distance());
    sb_heap_record_raw(pointer, size);
}

static PyMemAllocatorEx *
below(void)
{
    return atomic_load_explicit(&under, memory_order_acquire);
}

static void *
raw_malloc(void *Py_UNUSED(context), size_t size)
{
    const PyMemAllocatorEx *to = below();
    void *pointer = to->malloc(to->ctx, size);
    if (!LIKELY(!is_sample(size))) {
        sample(pointer, size);
    }
    return pointer;
}

static void *
raw_calloc(void *Py_UNUSED(context), size_t count, size_t each)
{
    const PyMemAllocatorEx *to = below();
    void *pointer = to->calloc(to->ctx, count, each);
    if (!LIKELY(!is_sample(count * each))) {
        sample(pointer, count * each);
    }
    return pointer;
}

static void
raw_free(void *Py_UNUSED(context), void *pointer)
{
    const PyMemAllocatorEx *to = below();
    if (!LIKELY(!sb_live_maybe(pointer)) && pointer != NULL) {
        sb_heap_freed(pointer);
    }
    freed = pointer;
    to->free(to->ctx, pointer);
}

static void *
raw_realloc(void *Py_UNUSED(context), void *pointer, size_t size)
{
    const PyMemAllocatorEx *to = below();
    void *moved = LIKELY(pointer == NULL || !sb_live_maybe(pointer))
                      ? to->realloc(to->ctx, pointer, size)
                      : sb_heap_reallocated(to, pointer, size);
    if (!LIKELY(!is_sample(size))) {
        sample(moved, size);
    }
    return moved;
}

/* ---- on and off ------------------------------------------------------------------- */

int
sb_heap_raw_is_passed(int anew)
{
    int was_passed = freed != NULL;
    freed = anew ? NULL : freed;
    return was_passed;
}

int
sb_heap_raw_is_asked_by(const PyMemAllocatorEx *one, size_t size)
{
    freed = NULL;
    void *block = one->malloc(one->ctx, size);
    const void *before = freed;
    one->free(one->ctx, block);
    return block != NULL && before == NULL && freed == block;
}

int
sb_heap_raw_is_in_chain(void)
{
    if (below() == NULL) {
        return 0;
    }
    sb_heap_inside(1);
    freed = NULL;
    PyMem_RawFree(PyMem_RawMalloc(1));
    sb_heap_inside(-1);
    return freed != NULL;
}

void
sb_heap_raw_count_down(int64_t distance)
{
    atomic_store_explicit(&countdown, distance, memory_order_relaxed);
}

/* A copy of an allocator that stays; NULL when there are too many. */
static PyMemAllocatorEx *
kept(const PyMemAllocatorEx *one)
{
    for (int i = 0; i < under_count; i++) {
        if (sb_heap_are_equal(&unders[i], one)) {
            return &unders[i];
        }
    }
    if (under_count == SB_HEAP_LAYERS_MAX) {
        return NULL;
    }
    unders[under_count] = *one;
    return &unders[under_count++];
}

int
sb_heap_raw_hook(void)
{
    if (sb_heap_raw_is_in_chain()) {
        return 0;
    }
    PyMemAllocatorEx now;
    PyMem_GetAllocator(PYMEM_DOMAIN_RAW, &now);
    PyMemAllocatorEx *to = kept(&now);
    if (to == NULL) {
        return -1;
    }
    atomic_store_explicit(&under, to, memory_order_release);
    PyMemAllocatorEx ours = {now.ctx, raw_malloc, raw_calloc, raw_realloc, raw_free};
    PyMem_SetAllocator(PYMEM_DOMAIN_RAW, &ours);
    return 1;
}

int
sb_heap_raw_unhook(void)
{
    PyMemAllocatorEx *to = below();
    if (to == NULL) {
        return 1;
    }
    sb_heap_raw_count_down(INT64_MAX);
    PyMemAllocatorEx now;
    PyMem_GetAllocator(PYMEM_DOMAIN_RAW, &now);
    if (now.malloc == raw_malloc) {
        PyMem_SetAllocator(PYMEM_DOMAIN_RAW, to);
        return 1;
    }
    return !sb_heap_raw_is_in_chain();
}
