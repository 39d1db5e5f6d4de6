#include "heap.h"

#include <stdint.h>

#include "heap_layers.h"
#include "heap_parts.h"
#include "heap_raw.h"

static const PyMemAllocatorDomain DOMAINS[SB_LAYER_DOMAINS] = {PYMEM_DOMAIN_OBJ,
                                                               PYMEM_DOMAIN_MEM};

static sb_layer layers[SB_HEAP_LAYERS_MAX];
static int layer_count;
static sb_layer *hooked[SB_LAYER_DOMAINS]; /* the latest of a domain, in the chain or not */
static int knows_raws;

/* ---- chains of allocators --------------------------------------------------------- */

int
sb_heap_are_equal(const PyMemAllocatorEx *a, const PyMemAllocatorEx *b)
{
    return a->ctx == b->ctx && a->malloc == b->malloc && a->calloc == b->calloc &&
           a->realloc == b->realloc && a->free == b->free;
}

static int
is_of(const PyMemAllocatorEx *allocator, sb_layer *self)
{
    PyMemAllocatorEx ours = sb_layer_allocator(self);
    return sb_heap_are_equal(allocator, &ours);
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
    sb_layer *self = hooked[domain];
    if (self == NULL) {
        return 0;
    }
    int64_t before = self->countdown, passes;
    sb_heap_inside(1);
    self->countdown = SB_LAYER_INERT;
    ask_for(domain, 1);
    passes = self->countdown != SB_LAYER_INERT;
    self->countdown = before;
    sb_heap_inside(-1);
    return (int)passes;
}

/* A full layer over what is there now: one that was there before, or a new one; NULL
 * when there are too many. */
static sb_layer *
full_over(const PyMemAllocatorEx *under, int domain)
{
    for (int i = 0; i < layer_count; i++) {
        if (layers[i].domain == domain && sb_heap_are_equal(&layers[i].under, under)) {
            return &layers[i];
        }
    }
    if (layer_count == SB_HEAP_LAYERS_MAX) {
        return NULL;
    }
    sb_layer *made = &layers[layer_count++];
    *made = (sb_layer){SB_LAYER_INERT, *under, SIZE_MAX, domain};
    return made;
}

/* The lean layer over what is there now, or NULL where only a full one does: it knows
 * one allocator, which is pymalloc where nobody is between, and that has no context.
 * Hooks RAW. */
static sb_layer *
lean_over(const PyMemAllocatorEx *under, int domain)
{
    sb_layer *self = &sb_lean[domain];
    int is_known = self->under.malloc != NULL;
    if (under->ctx != NULL || (is_known && !sb_heap_are_equal(&self->under, under)) ||
        sb_heap_raw_hook() < 0 || !sb_heap_raw_is_asked_by(under, SB_LEAN_BYTES)) {
        return NULL;
    }
    self->under = *under;
    return self;
}

/* Hook a domain. 1 when it was hooked anew, 0 when our hook was still there, -1 when
 * there were too many. */
static int
hook(int domain, int may_be_lean)
{
    if (is_in_chain(domain) && (may_be_lean || !sb_layer_is_lean(hooked[domain]))) {
        return 0;
    }
    if (hooked[domain] != NULL) {
        hooked[domain]->countdown = SB_LAYER_INERT;
    }
    PyMemAllocatorEx under;
    PyMem_GetAllocator(DOMAINS[domain], &under);
    if (is_of(&under, &sb_lean[domain])) {
        under = sb_lean[domain].under; /* left over, by who was on top of it */
    }
    sb_layer *self = may_be_lean ? lean_over(&under, domain) : NULL;
    if (self == NULL && (self = full_over(&under, domain)) == NULL) {
        return -1;
    }
    hooked[domain] = self;
    PyMemAllocatorEx ours = sb_layer_allocator(self);
    PyMem_SetAllocator(DOMAINS[domain], &ours);
    return 1;
}

/* Take our hook away where it is the outermost; else it stays and only passes on. */
static int
unhook(int domain)
{
    sb_layer *self = hooked[domain];
    if (self == NULL) {
        return 1;
    }
    self->countdown = SB_LAYER_INERT;
    self->raw_from = SIZE_MAX;
    PyMemAllocatorEx now;
    PyMem_GetAllocator(DOMAINS[domain], &now);
    if (is_of(&now, self)) {
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
    for (int i = 0; i < SB_LAYER_DOMAINS; i++) {
        size_t below = 0, from = POOLS_MAX;
        if (!asks_raw(i, from)) {
            hooked[i]->raw_from = SIZE_MAX;
            continue;
        }
        while (from - below > 1) {
            size_t middle = (below + from) / 2;
            *(asks_raw(i, middle) ? &from : &below) = middle;
        }
        hooked[i]->raw_from = from;
    }
}

/* ---- all of them ------------------------------------------------------------------ */

int
sb_heap_are_lean(void)
{
    return sb_layer_is_lean(hooked[0]) || sb_layer_is_lean(hooked[1]);
}

int
sb_heap_hook_all(int with_raw, int may_be_lean)
{
    int cut = 0;
    for (int i = 0; i < SB_LAYER_DOMAINS && cut >= 0; i++) {
        int is_new = hook(i, may_be_lean);
        cut = is_new < 0 ? -1 : cut | is_new;
    }
    if (cut >= 0 && (with_raw || sb_heap_are_lean())) {
        int is_new = sb_heap_raw_hook();
        cut = is_new < 0 ? -1 : cut | is_new;
    }
    else {
        sb_heap_raw_unhook();
    }
    if (cut < 0) {
        PyErr_SetString(PyExc_RuntimeError,
                        "Python's allocators have been replaced too often");
        return -1;
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
    for (int i = 0; i < SB_LAYER_DOMAINS; i++) {
        are_gone &= unhook(i);
    }
    knows_raws = 0;
    return are_gone & sb_heap_raw_unhook();
}

void
sb_heap_count_down_all(int with_raw)
{
    for (int i = 0; i < SB_LAYER_DOMAINS; i++) {
        hooked[i]->countdown = sb_heap_next_distance();
    }
    if (with_raw) {
        sb_heap_raw_count_down(sb_heap_next_distance());
    }
}

int
sb_heap_are_hooked(int with_raw)
{
    int needs_raw = with_raw || sb_heap_are_lean();
    return is_in_chain(0) && is_in_chain(1) && (!needs_raw || sb_heap_raw_is_in_chain());
}

int
sb_heap_layer_count(void)
{
    return layer_count;
}
