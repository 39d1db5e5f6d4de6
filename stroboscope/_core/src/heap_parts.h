/* Between heap.c, which keeps the accounts, heap_hooks.c, which sits in Python's
 * allocators, and heap_raw.c. */
#ifndef SB_HEAP_PARTS_H
#define SB_HEAP_PARTS_H

#include <Python.h>
#include <stddef.h>
#include <stdint.h>

#include "heap.h"

/* ---- heap.c: what hooks call, from any thread unless said otherwise ---------------- */

/* Bytes to the next sample, by chance; never ends while the profile is off. */
int64_t sb_heap_next_distance(void);
/* From +1 to -1 nothing that this thread does is sampled. */
void sb_heap_inside(int step);
/* A block of OBJ or MEM that is a sample; NULL is allowed. */
void sb_heap_record(void *pointer, size_t size);
/* A block of RAW that is one, whoever asked for it, with the GIL or not. */
void sb_heap_record_raw(void *pointer, size_t size);
/* A block that may be followed is about to be freed. */
void sb_heap_freed(void *pointer);
/* Resize one that may be followed. */
void *sb_heap_reallocated(const PyMemAllocatorEx *under, void *pointer, size_t size);

/* ---- heap_hooks.c: with the GIL ----------------------------------------------------- */

/* 1 when any hook is new, 0 when all were still there, -1 with an exception. */
int sb_heap_hook_all(int with_raw);
/* Whether all are gone; the others only pass on. */
int sb_heap_unhook_all(void);
/* Begin all distances anew; all are hooked. */
void sb_heap_count_down_all(int with_raw);
int sb_heap_are_hooked(int with_raw);
int sb_heap_layer_count(void);
int sb_heap_are_equal(const PyMemAllocatorEx *a, const PyMemAllocatorEx *b);

#endif
