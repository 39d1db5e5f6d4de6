#include "heap.h"

#include <stdint.h>

#include "heap_parts.h"
#include "heap_raw.h"
#include "livemap.h"

#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#define INERT INT64_MAX

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

/* From what size on a domain asks RAW for a block: then it is RAW's to count. */
static size_t raw_from[DOMAIN_COUNT] = {SIZE_MAX, SIZE_MAX};
static int knows_raws;

/* ---- hooks ------------------------------------------------------------------------ */

/* The countdown ended at this block. */
static void __attribute__((noinline))
sample(layer *self, void *pointer, size_t size)
{
    self->countdown = sb_heap_next_distance();
    if (size < raw_from[self->domain]) {
        sb_heap_record(pointer, size);
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
    sb_heap_inside(1);
    self->countdown = INERT;
    ask_for(domain, 1);
    passes = self->countdown != INERT;
    self->countdown = before;
    sb_heap_inside(-1);
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

static int
asks_raw(int domain, size_t size)
{
    sb_heap_inside(1);
    sb_heap_raw_is_passed(1);
    ask_for(domain, size);
    int passes = sb_heap_raw_is_passed(0);
    sb_heap_inside(-1);
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

/* ---- all of them ------------------------------------------------------------------ */

int
sb_heap_hook_all(int with_raw)
{
    int cut = 0;
    for (int i = 0; i < DOMAIN_COUNT + !!with_raw; i++) {
        int is_new = i < DOMAIN_COUNT ? hook(i) : sb_heap_raw_hook();
        if (is_new < 0) {
            PyErr_SetString(PyExc_RuntimeError,
                            "Python's allocators have been replaced too often");
            return -1;
        }
        cut |= is_new;
    }
    if (with_raw && (cut || !knows_raws)) {
        learn_what_is_raws();
        knows_raws = 1;
    }
    return cut;
}

int
sb_heap_unhook_all(void)
{
    int are_gone = 1;
    for (int i = 0; i < DOMAIN_COUNT; i++) {
        are_gone &= unhook(i);
        raw_from[i] = SIZE_MAX;
    }
    knows_raws = 0;
    return are_gone & sb_heap_raw_unhook();
}

void
sb_heap_count_down_all(int with_raw)
{
    for (int i = 0; i < DOMAIN_COUNT; i++) {
        hooked[i]->countdown = sb_heap_next_distance();
    }
    if (with_raw) {
        sb_heap_raw_count_down(sb_heap_next_distance());
    }
}

int
sb_heap_are_hooked(int with_raw)
{
    return is_in_chain(0) && is_in_chain(1) && (!with_raw || sb_heap_raw_is_in_chain());
}

int
sb_heap_layer_count(void)
{
    return layer_count;
}
