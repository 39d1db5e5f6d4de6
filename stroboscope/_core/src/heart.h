/* Hearts: what beats on an event loop, and what the ticker knows of each. */
#ifndef SB_HEART_H
#define SB_HEART_H

#include "compat.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

/* Event loops of a process that can be watched at once. */
#define SB_HEARTS_MAX 32

/* One watched event loop, as the ticker knows it; behind `sb_pulse_lock`. */
typedef struct {
    void *owner; /* the heart; NULL: free */
    int fd;      /* an eventfd the loop reads: written to, it beats */
    PyThreadState *tstate; /* of the loop's thread, while that lives; NULL unknown */
    sb_frame *idle_frame;
    uint64_t asked_ns; /* when a beat was asked for that has not come; 0 none */
    uint64_t asked_last_ns, gc_at_ns;
    int is_noticed; /* the watcher knows that it is late */
    int is_resting; /* the loop does not run: ask for nothing until it beats */
} sb_pulse;

extern sb_pulse sb_pulses[SB_HEARTS_MAX];
extern pthread_mutex_t sb_pulse_lock;
extern _Atomic uint64_t sb_threshold_ns; /* 0: no watch */

/* Add Heart, gc_phase and gc_spent to the module. 0, or -1 with an exception. */
int sb_hearts_init(PyObject *module);
/* The child of a fork has no loop of its parent's, and wakes none. */
void sb_hearts_after_fork(void);
/* Time spent in the garbage collector since its callback is there. Any thread. */
uint64_t sb_gc_spent_ns(void);

#endif
