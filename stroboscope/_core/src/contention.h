/* Contention: who waited how long for what, charged to the waiter (block) and to the
 * holder at release (mutex), sampled and scaled as Go does.
 *
 * Everything here holds the GIL and belongs to the main interpreter; nothing here runs
 * Python code or leaves an exception but where said.
 * Source: runtime/mprof.go and semrelease1 in runtime/sema.go of Go 1.27.
 */
#ifndef SB_CONTENTION_H
#define SB_CONTENTION_H

#include <Python.h>
#include <stdint.h>

#include "cell.h"
#include "sampler.h"

/* Where a wait happens, by the code that waits: the first frame that is no door. The
 * interpreter's own code is told from others' by file and name; see `sites` there. */
typedef enum {
    SB_SITE_PLUMBING, /* the interpreter's or our own: not counted */
    SB_SITE_SIGNAL,   /* waits for news, not for a holder: block only */
    SB_SITE_LOCK,
} sb_site;

/* Whether any of the two is counted, or waits are traced; how many locks have somebody waiting. Plain reads. */
extern int sb_contention_is_on;
extern uint32_t sb_contended_locks;

/* The site of the running thread. PLUMBING while nothing is counted. The code it lies in
 * is borrowed from its frame, NULL for none. */
sb_site sb_site_of_current(void);
extern PyCodeObject *sb_site_code;

/* Somebody begins to wait for a lock that is held. 1, or 0 when holders are not charged
 * or memory is short: then nothing may be left. */
int sb_wait_begins(const void *lock, int64_t now_ns);
typedef enum {
    SB_WAIT_ACQUIRED,
    SB_WAIT_GIVEN_UP, /* the holder is charged for it all the same; may collect garbage */
    SB_WAIT_DROPPED,  /* the lock itself goes */
} sb_wait_end;
/* The wait ends; `object` is the lock. */
void sb_wait_ends(PyObject *object, int64_t now_ns, sb_wait_end how);
/* Whether somebody waits for the lock, or its holder is still to be charged. Harmless
 * from another interpreter: records are used again, never freed. */
int sb_lock_is_contended(const void *lock);
/* Somebody who did not wait got a lock that others wait for. */
void sb_lock_taken(const void *lock);
/* The running thread has let go of a lock: charge it with what it made others wait. */
void sb_lock_released(const void *lock);

/* Whether waits are counted, and not only traced. */
int sb_blocks_are_counted(void);
/* Charge a wait to a stack and a cell. */
void sb_charge_block(int64_t delay_ns, int64_t stack, sb_cell *cell);
/* The same to the running thread as it stands. */
void sb_charge_block_here(int64_t delay_ns);

/* Adds contention_set, contention_copy and contention_stats to the module. */
int sb_contention_init(PyObject *module);
void sb_contention_after_fork(void);

#endif
