/* Between heap.c and heap_raw.c. */
#ifndef SB_HEAP_PARTS_H
#define SB_HEAP_PARTS_H

#include <Python.h>
#include <stddef.h>
#include <stdint.h>

#include "heap.h"

/* Bytes to the next sample, by chance; never ends while the profile is off. */
int64_t sb_heap_next_distance(void);
/* From +1 to -1 nothing that this thread does is sampled. */
void sb_heap_inside(int step);
/* A block that is a sample, NULL allowed, whoever asked for it, with the GIL or not. */
void sb_heap_record_raw(void *pointer, size_t size);
/* A block that may be followed is about to be freed. */
void sb_heap_freed(void *pointer);
/* Resize one that may be followed. */
void *sb_heap_reallocated(const PyMemAllocatorEx *under, void *pointer, size_t size);
int sb_heap_are_equal(const PyMemAllocatorEx *a, const PyMemAllocatorEx *b);

#endif
