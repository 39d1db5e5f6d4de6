/* The hook on Python's RAW domain: an option of the heap profile, and what follows the
 * samples of lean layers (heap_layers.h).
 *
 * RAW is asked without the GIL, by threads that Python may know nothing of, and while
 * somebody else hooks or unhooks it: `PyMem_RawMalloc` reads the function and its
 * context one after the other, without a lock. So our functions need no context, and
 * what they put there is the context of what is under them: whichever of the two a
 * caller has read before us, the other fits. What is under them is never freed.
 *
 * A thread with the GIL counts as in the other domains. All others are counted
 * together, under no stack and no labels, until somebody with the GIL settles it.
 */
#ifndef SB_HEAP_RAW_H
#define SB_HEAP_RAW_H

#include <Python.h>
#include <stdint.h>

/* With the GIL. 1 when it was hooked anew, 0 when our hook was still there, -1 when
 * there were too many allocators under it. */
int sb_heap_raw_hook(void);
/* With the GIL. Whether the hook is gone; where it is not the outermost it stays and
 * only passes on. */
int sb_heap_raw_unhook(void);
/* Whether an allocation passes the hook. */
int sb_heap_raw_is_in_chain(void);
/* Whether this thread has freed a block through the hook since the last call that
 * began anew. */
int sb_heap_raw_is_passed(int anew);
/* With the GIL. Whether a block of this size that the allocator gives out is RAW's own,
 * and passes the hook when it is freed. */
int sb_heap_raw_is_asked_by(const PyMemAllocatorEx *one, size_t size);
/* Bytes to the next sample; INT64_MAX is none. */
void sb_heap_raw_count_down(int64_t distance);

#endif
