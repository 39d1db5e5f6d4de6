/* Beside a sample: the registers of its thread and a piece of its C stack.
 *
 * So that somebody outside of this process can follow the C calls from the interrupted
 * instruction to the evaluation loop that runs the sample's innermost Python frame. Only
 * what lies between the two is copied, and only while a capture asks for it. The copies
 * stay in memory that is no part of a core file and is empty in the child of a fork.
 *
 * The handler fills a slot; the drainer, with the GIL, gives it a number where a window
 * wants it, or frees it; whoever takes the copies frees the rest.
 */
#ifndef SB_COPIES_H
#define SB_COPIES_H

#include <Python.h>
#include <stdatomic.h>
#include <stdint.h>
#include <ucontext.h>

/* Of one stack, its end at the leaf. Half of a mix of zlib and sorting need 1 KiB, none
 * more than 6. */
#define SB_COPY_BYTES 16384
/* Until somebody takes them: ten busy threads at the kernel's full rate for 0.1 s. */
#define SB_COPIES_MAX 256

/* Whether anybody wants copies now: the one thing the handler looks at otherwise. */
extern atomic_int sb_copies_wanted;

/* Add copies_take and copies_counts to the module. 0, or -1 with an exception. */
int sb_copies_init(PyObject *module);
void sb_copies_after_fork(void);

/* In the handler, on the thread of `tstate`, the guard being ours and not armed: a filled
 * slot, from 1, or 0 where none is free. Allocates nothing. */
uint32_t sb_copy_take(const ucontext_t *context, PyThreadState *tstate);

/* ---- with the GIL ------------------------------------------------------------------- */

/* From now on they are wanted. 0, or -1 with a RuntimeError: by somebody else already, or
 * not to be had on this machine. */
int sb_copies_begin(void);
/* From now on they are not; what nobody took is gone. */
void sb_copies_end(void);
/* The number, from 1, that the copy in a slot has from now on. */
uint32_t sb_copy_number(uint32_t slot);
/* Nobody wants this one. */
void sb_copy_free(uint32_t slot);

#endif
