/* Hooks on Python's OBJ and MEM allocators, one layer each, of one of two kinds.
 *
 * A full layer sits on all four functions: it counts bytes down where blocks are asked
 * for and looks each block that is freed up in the filter of the live map.
 *
 * A lean one leaves `free` as it was, so most blocks cost nothing when they go. It asks
 * for what is to be a sample as a block of at least SB_LEAN_BYTES, which pymalloc has no
 * pools for: it passes it on to RAW, and will free it there. The hook on RAW, which is
 * asked seldom, sees it go. Such a block is an ordinary one of the allocator below, so
 * it may outlive all our hooks. It is used where the allocator below was seen to do so.
 */
#ifndef SB_HEAP_LAYERS_H
#define SB_HEAP_LAYERS_H

#include <Python.h>
#include <stdint.h>

/* One more than pymalloc has pools for. Source: SMALL_REQUEST_THRESHOLD, obmalloc.c. */
#define SB_LEAN_BYTES 513
#define SB_LAYER_INERT INT64_MAX

enum { SB_LAYER_DOMAINS = 2 }; /* OBJ and MEM */

/* A full layer is what its functions get as their context; a lean one they know by name,
 * for the context is of what is under them. Somebody may have stored it, so a layer is
 * never freed and what is under it never changes. */
typedef struct {
    _Alignas(64) int64_t countdown; /* bytes to the next sample; one line of the cache */
    PyMemAllocatorEx under;
    size_t raw_from; /* where the domain asks RAW for a block it is RAW's to count */
    int domain;
} sb_layer;

extern sb_layer sb_lean[SB_LAYER_DOMAINS];

static inline int
sb_layer_is_lean(const sb_layer *self)
{
    return self != NULL && self == &sb_lean[self->domain];
}

/* What calls the functions of the layer. */
PyMemAllocatorEx sb_layer_allocator(sb_layer *self);

#endif
