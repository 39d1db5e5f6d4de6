/* The hook on Python's RAW domain, an option of the heap profile.
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
/* Whether this thread has asked for a block through the hook since the last call that
 * began anew. */
int sb_heap_raw_is_passed(int anew);
/* Bytes to the next sample. */
void sb_heap_raw_count_down(int64_t distance);

#endif
