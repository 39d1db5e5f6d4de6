#include "heap_layers.h"

#include <string.h>

#include "heap_parts.h"
#include "livemap.h"

#define LIKELY(condition) __builtin_expect(!!(condition), 1)

/* The countdown ended at this block. */
static void __attribute__((noinline))
sample(sb_layer *self, void *pointer, size_t size)
{
    self->countdown = sb_heap_next_distance();
    if (size < self->raw_from) {
        sb_heap_record(pointer, size, !sb_layer_is_lean(self) && size < SB_LEAN_BYTES);
    }
}

/* ---- full ------------------------------------------------------------------------- */

static void *__attribute__((noinline))
sampled_malloc(sb_layer *self, size_t size)
{
    void *pointer = self->under.malloc(self->under.ctx, size);
    sample(self, pointer, size);
    return pointer;
}

static void *
full_malloc(void *context, size_t size)
{
    sb_layer *self = context;
    self->countdown -= (int64_t)size;
    if (LIKELY(self->countdown >= 0)) {
        return self->under.malloc(self->under.ctx, size);
    }
    return sampled_malloc(self, size);
}

static void *
full_calloc(void *context, size_t count, size_t each)
{
    sb_layer *self = context;
    void *pointer = self->under.calloc(self->under.ctx, count, each);
    self->countdown -= (int64_t)(count * each);
    if (!LIKELY(self->countdown >= 0)) {
        sample(self, pointer, count * each);
    }
    return pointer;
}

static void __attribute__((noinline))
sampled_free(sb_layer *self, void *pointer)
{
    if (pointer != NULL) {
        sb_heap_freed(pointer);
    }
    self->under.free(self->under.ctx, pointer);
}

static void
full_free(void *context, void *pointer)
{
    sb_layer *self = context;
    if (LIKELY(!sb_live_maybe(pointer))) {
        self->under.free(self->under.ctx, pointer);
        return;
    }
    sampled_free(self, pointer);
}

static void *
full_realloc(void *context, void *pointer, size_t size)
{
    sb_layer *self = context;
    void *moved = LIKELY(pointer == NULL || !sb_live_maybe(pointer))
                      ? self->under.realloc(self->under.ctx, pointer, size)
                      : sb_heap_reallocated(&self->under, pointer, size);
    self->countdown -= (int64_t)size;
    if (!LIKELY(self->countdown >= 0)) {
        sample(self, moved, size);
    }
    return moved;
}

/* ---- lean ------------------------------------------------------------------------- */

sb_layer sb_lean[SB_LAYER_DOMAINS] = {
    {SB_LAYER_INERT, {NULL, NULL, NULL, NULL, NULL}, SIZE_MAX, 0},
    {SB_LAYER_INERT, {NULL, NULL, NULL, NULL, NULL}, SIZE_MAX, 1},
};

static void *__attribute__((noinline))
marked_malloc(sb_layer *self, void *context, size_t size)
{
    void *pointer =
        self->under.malloc(context, size < SB_LEAN_BYTES ? SB_LEAN_BYTES : size);
    sample(self, pointer, size);
    return pointer;
}

static void *__attribute__((noinline))
marked_calloc(sb_layer *self, void *context, size_t size)
{
    void *pointer =
        self->under.calloc(context, 1, size < SB_LEAN_BYTES ? SB_LEAN_BYTES : size);
    sample(self, pointer, size);
    return pointer;
}

/* What is resized may be in a pool still, or again. */
static void *__attribute__((noinline))
marked_realloc(sb_layer *self, void *context, void *pointer, size_t size)
{
    void *moved = self->under.realloc(context, pointer, size);
    if (moved != NULL && size < SB_LEAN_BYTES) {
        void *marked = self->under.malloc(context, SB_LEAN_BYTES);
        if (marked == NULL) {
            self->countdown = sb_heap_next_distance(); /* a sample is lost */
            return moved;
        }
        memcpy(marked, moved, size);
        self->under.free(context, moved);
        moved = marked;
    }
    sample(self, moved, size);
    return moved;
}

#define LEAN(name, self)                                                                 \
    static void *name##_malloc(void *context, size_t size)                               \
    {                                                                                    \
        (self)->countdown -= (int64_t)size;                                              \
        if (LIKELY((self)->countdown >= 0)) {                                            \
            return (self)->under.malloc(context, size);                                  \
        }                                                                                \
        return marked_malloc(self, context, size);                                       \
    }                                                                                    \
    static void *name##_calloc(void *context, size_t count, size_t each)                 \
    {                                                                                    \
        (self)->countdown -= (int64_t)(count * each);                                    \
        if (LIKELY((self)->countdown >= 0)) {                                            \
            return (self)->under.calloc(context, count, each);                           \
        }                                                                                \
        return marked_calloc(self, context, count * each);                               \
    }                                                                                    \
    static void *name##_realloc(void *context, void *pointer, size_t size)               \
    {                                                                                    \
        (self)->countdown -= (int64_t)size;                                              \
        if (LIKELY((self)->countdown >= 0)) {                                            \
            return (self)->under.realloc(context, pointer, size);                        \
        }                                                                                \
        return marked_realloc(self, context, pointer, size);                             \
    }

LEAN(object, &sb_lean[0])
LEAN(memory, &sb_lean[1])

/* ---- of both kinds ---------------------------------------------------------------- */

PyMemAllocatorEx
sb_layer_allocator(sb_layer *self)
{
    if (!sb_layer_is_lean(self)) {
        return (PyMemAllocatorEx){self, full_malloc, full_calloc, full_realloc, full_free};
    }
    void *context = self->under.ctx;
    return self->domain == 0
               ? (PyMemAllocatorEx){context, object_malloc, object_calloc, object_realloc,
                                    self->under.free}
               : (PyMemAllocatorEx){context, memory_malloc, memory_calloc, memory_realloc,
                                    self->under.free};
}
