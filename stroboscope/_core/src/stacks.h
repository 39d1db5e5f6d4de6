/* Interned stacks: code objects, places in them, and stacks of places, as small ids.
 *
 * One store for all who count by stack: windows, and whatever keeps totals. A code
 * object that was seen is held while anybody uses the store, so a pointer stays one
 * name; when the last user leaves everything goes.
 *
 * Everything here holds the GIL.
 */
#ifndef SB_STACKS_H
#define SB_STACKS_H

#include <Python.h>
#include <stdint.h>

#include "sampler.h"

/* Two stores: windows come and go, and theirs is emptied when none is open; ledgers stay
 * until the process ends. One that is full does not harm the other. */
typedef enum { SB_OF_WINDOWS, SB_OF_LEDGERS } sb_stacks_kind;

/* Begin and end of a use. The last to leave drops references to code objects, which may
 * run Python code. */
void sb_stacks_use(sb_stacks_kind kind);
void sb_stacks_leave(sb_stacks_kind kind);

/* The id of a sample's stack, for windows, or -1 when the tables are full or memory is short. */
int64_t sb_stack_of_sample(const sb_sample *sample);
/* The same for the calling thread as it stands, for ledgers, at most `depth` frames from the leaf.
 * Runs no Python code and sets no exception; allocates from the system only. */
int64_t sb_stack_of_current(uint32_t depth);
/* The same with a leaf that is no frame: a name for what the thread hands over to. NULL
 * is none. */
int64_t sb_stack_of_current_under(PyCodeObject *leaf, uint32_t depth);
/* The same for any thread of this interpreter. */
int64_t sb_stack_of_thread(PyThreadState *tstate, uint32_t depth);

/* Built piece by piece: the id of a place in living code, and of a stack of such ids,
 * leaf first, SB_TRUNCATED last where the root was cut. -1 as above. */
#define SB_TRUNCATED UINT32_MAX
int64_t sb_frame_id(PyCodeObject *code, int32_t offset);
/* The same of a frame at rest; -2 when it is no Python function's. */
int64_t sb_place_of_frame(struct _PyInterpreterFrame *frame);
int64_t sb_stack_of_ids(const uint32_t *ids, uint32_t length);

/* The stacks of a list of ids: (bytes, bytes), int32 of all their frame ids, leaf first,
 * -1 for a cut root, and of where each stack ends. No object each: to free millions of
 * them would hold the GIL. New reference, NULL on error. For short lists. */
PyObject *sb_stacks_of(sb_stacks_kind kind, PyObject *ids);
/* A list of (file, qualified name, first line, line), in the same way. */
PyObject *sb_frames_of(sb_stacks_kind kind, PyObject *ids);

/* Room for `id` in an array from malloc of items of `size`; 0, or -1 without memory. */
int sb_reserve(void **array, size_t *room, size_t id, size_t size);
/* How many items a slice has. */
size_t sb_slice_length(size_t total, size_t first, size_t count);

#endif
