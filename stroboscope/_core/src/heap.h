/* Sampled allocations by stack and label: total, and what of it still lives.
 *
 * Hooks on the allocators of Python's OBJ and MEM domains count down bytes; where the
 * count ends, after a distance drawn from an exponential distribution, the block is a
 * sample. A block of `size` bytes is one with probability 1 - exp(-size / rate), so it
 * counts for 1 / that many. Every block that is resized is a new one.
 *
 * Not counted: threads of ours, and what asks the system for memory past Python's
 * allocators (C extensions' own buffers; RAW, but as an option: heap_raw.h). What OBJ
 * and MEM pass on to RAW is counted once, there.
 *
 * A hook runs no Python code and asks only the system for memory. It is called with the
 * GIL, except by extensions that break the rule, by other interpreters and in RAW: what
 * they free is settled later, what they allocate has no stack.
 */
#ifndef SB_HEAP_H
#define SB_HEAP_H

#include <Python.h>

/* Leaf-most frames kept of a sample's stack. */
#define SB_HEAP_DEPTH 128
/* Allocators we can have hooked that others may still know. */
#define SB_HEAP_LAYERS_MAX 64
/* Bytes to a sample from which on blocks that are one may be rounded up to half a KiB:
 * some 3 % of what is allocated at most. */
#define SB_HEAP_LEAN_RATE 16384
/* After a finer rate, hooks are lean again once this part of what is in use, at most, is
 * lost from sight by it. */
#define SB_HEAP_POOLED_PART 100
/* Object counts in the ledger are in this fraction of an object. */
#define SB_HEAP_OBJECT 1024

/* Adds heap_start, heap_stop, heap_copy and heap_info to the module. */
int sb_heap_init(PyObject *module);
/* The child of a fork has no hooks and no totals. */
void sb_heap_after_fork(void);

#endif
