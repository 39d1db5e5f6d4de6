/* Between sampler.c, which starts and reads, arming.c, which gives each thread its timer,
 * handler.c, which runs on a sample, and sampler_checks.c. */
#ifndef SB_SAMPLER_PARTS_H
#define SB_SAMPLER_PARTS_H

#include "compat.h"

#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "sampler.h"

/* 64 KiB a thread: a tenth of a second at 250 samples of 160 frames. Pages of threads
 * that are never sampled are never touched. */
#define SB_RING_WORDS ((uint64_t)8192)
#define SB_RING_MASK (SB_RING_WORDS - 1)

/* A sample in a ring: weight, copy, truncated and depth in one word; time; serial; period; then
 * code and offset of each frame, leaf first. */
enum { SB_HEADER_WORDS = 4, SB_FRAME_WORDS = 2 };

/* A record outlives its thread and is used again, never freed: a late signal may carry
 * its index. */
typedef struct {
    _Atomic(PyThreadState *) tstate; /* NULL: not armed */
    uint64_t tstate_id;
    atomic_uint generation;
    timer_t timer;
    pid_t tid;
    int seen; /* by the latest tending */
    uint64_t *ring;
    /* Single producer, the handler on its own thread; single consumer, under the GIL. */
    _Atomic uint64_t head, tail;
} sb_record;

/* Index 0 is what a stranger's signal carries: never used. */
extern sb_record *sb_records[SB_THREADS_MAX];
extern uint32_t sb_record_count;

typedef struct {
    atomic_int active;
    atomic_int in_handler;
    atomic_int shows; /* samples go into the mapping, too */
    atomic_long pending;
    _Atomic uint64_t period;
    struct {
        _Atomic uint64_t samples, overruns, lost_full, lost_fault, lost_torn, lost_unguarded,
            stray, foreign, handler_ns;
        uint64_t threads_refused;
    } counters;
} sb_sampling_state;
extern sb_sampling_state sb_sampling;

/* ---- handler.c ---------------------------------------------------------------------- */

/* Own SIGPROF from now on. 0, or -1 with an exception. */
int sb_own_sigprof(void);
/* Walk from the leaf into the record's ring at `at`; returns the number of frames, writes
 * `*truncated`, or -1 for a chain that cannot be one. May fault. */
int32_t sb_walk(PyThreadState *tstate, sb_record *self, uint64_t at, uint32_t room,
                int *truncated);

/* ---- arming.c, with the GIL --------------------------------------------------------- */

/* Give a thread a timer on the clock of `tid`. 0, or -1 where it cannot have one. */
int sb_arm_as(PyThreadState *tstate, pid_t tid);
void sb_disarm(sb_record *self);
void sb_disarm_all(void);
/* The record a thread is armed with, or NULL. */
sb_record *sb_armed_record(PyThreadState *tstate);
/* All timers anew, at the period of now. */
void sb_set_timers(void);
/* Arm threads that came, disarm those that went. */
void sb_tend_threads(void);
void sb_arming_after_fork(void);

#endif
