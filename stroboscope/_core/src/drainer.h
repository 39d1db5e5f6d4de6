/* The thread that drains ten times a second.
 *
 * It runs no Python code, and holds the GIL only while it drains.
 */
#ifndef SB_DRAINER_H
#define SB_DRAINER_H

#include <Python.h>
#include <pthread.h>
#include <stdint.h>

#define SB_DRAIN_PERIOD_NS 100000000

/* From now on it is wanted: whether a thread has to be started for `sb_drain`. GIL. */
int sb_drainer_begin(void);
/* Drain on this thread for as long as it is wanted; at once over where another does. It
 * gives up the GIL between two drains. GIL. */
void sb_drain(void);
/* Not wanted any more: nothing is drained from here on, and the thread ends within a
 * period unless it is wanted again by then. GIL. */
void sb_drainer_end(void);
void sb_drainer_after_fork(void);
/* A thread without a Python state, the application's signals left to the application's
 * threads. 0, or -1 with an exception. */
int sb_thread_create(pthread_t *made, void *(*body)(void *), void *argument);
/* CPU time of the calling thread. */
uint64_t sb_thread_cpu_ns(void);
/* CPU time the drainer's threads have used, all of them. */
uint64_t sb_drainer_cpu_ns(void);
/* Whether SIGPROF was taken from us since the last start. */
int sb_drainer_was_robbed(void);

#endif
