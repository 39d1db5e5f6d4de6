/* Between heap.c, which switches it, heap_accounts.c, which counts, heap_hooks.c, which
 * sits in Python's allocators by the hooks of heap_layers.c, and heap_raw.c. */
#ifndef SB_HEAP_PARTS_H
#define SB_HEAP_PARTS_H

#include <Python.h>
#include <stddef.h>
#include <stdint.h>

#include "heap.h"

/* Set with the GIL by heap.c. */
typedef struct {
    int is_on, is_raw_on;
    double rate;              /* bytes to a sample */
    PyInterpreterState *home; /* of the threads that are sampled */
} sb_heap_state;

extern sb_heap_state sb_heap;

/* ---- heap_accounts.c: what hooks call, from any thread unless said otherwise -------- */

/* Bytes to the next sample, by chance; never ends while the profile is off. */
int64_t sb_heap_next_distance(void);
/* From +1 to -1 nothing that this thread does is sampled. */
void sb_heap_inside(int step);
/* A block of OBJ or MEM that is a sample; NULL is allowed. `is_pooled` where RAW is not
 * asked to free it. */
void sb_heap_record(void *pointer, size_t size, int is_pooled);
/* A block of RAW that is one, whoever asked for it, with the GIL or not. */
void sb_heap_record_raw(void *pointer, size_t size);
/* A block that may be followed is about to be freed. */
void sb_heap_freed(void *pointer);
/* Resize one that may be followed. */
void *sb_heap_reallocated(const PyMemAllocatorEx *under, void *pointer, size_t size);

/* ---- heap_accounts.c: with the GIL -------------------------------------------------- */

typedef struct {
    uint64_t samples;
    size_t live;
    uint64_t live_lost, unsettled_lost;
} sb_heap_counts;

/* 0, or -1 with an exception. Before anything is counted. */
int sb_heap_accounts_open(void);
int sb_heap_accounts_are_open(void);
/* What lives is no longer known. */
void sb_heap_accounts_forget_live(void);
/* Whether what a hook on RAW would not see go is less than 1/SB_HEAP_POOLED_PART of what
 * is in use, by bytes. */
int sb_heap_accounts_few_are_pooled(void);
/* It is no longer in use, as far as is known. */
void sb_heap_accounts_forget_pooled(void);
/* As sb_ledger_copy, when open. */
PyObject *sb_heap_accounts_copy(void);
void sb_heap_accounts_after_fork(void);
sb_heap_counts sb_heap_accounts_counts(void);

/* ---- heap_hooks.c: with the GIL ----------------------------------------------------- */

/* Hooks that are there stay where they do. 1 when any is new, 0 when all were still
 * there, -1 with an exception. */
int sb_heap_hook_all(int with_raw, int may_be_lean);
/* Whether all are gone; the others only pass on. */
int sb_heap_unhook_all(void);
/* Begin all distances anew; all are hooked. */
void sb_heap_count_down_all(int with_raw);
int sb_heap_are_hooked(int with_raw);
/* Whether any hook is a lean one. */
int sb_heap_are_lean(void);
int sb_heap_layer_count(void);
int sb_heap_are_equal(const PyMemAllocatorEx *a, const PyMemAllocatorEx *b);

#endif
