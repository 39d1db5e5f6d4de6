/* The thread that drains ten times a second.
 *
 * A thread of C's own: under gevent Python's threads are greenlets, and it must run no
 * Python code. It holds the GIL only while it drains.
 */
#ifndef SB_DRAINER_H
#define SB_DRAINER_H

#include <Python.h>
#include <pthread.h>
#include <stdint.h>

#define SB_DRAIN_PERIOD_NS 100000000

/* 0, or -1 with an exception. */
int sb_drainer_start(void);
/* Joins it; gives up the GIL meanwhile. */
void sb_drainer_stop(void);
void sb_drainer_after_fork(void);
/* Run a callable on a detached thread of the system's, never sampled; greenlets play no
 * part in it. 0, or -1 with an exception. An exception of the callable is reported as
 * unraisable. */
int sb_thread_start(PyObject *callable);
/* pthread_create with the application's signals left to the application's threads. 0, or
 * -1 with an exception. */
int sb_thread_create(pthread_t *made, void *(*body)(void *), void *argument);
/* CPU time of the calling thread. */
uint64_t sb_thread_cpu_ns(void);
/* CPU time the drainer's threads have used, all of them. */
uint64_t sb_drainer_cpu_ns(void);
/* Whether SIGPROF was taken from us since the last start. */
int sb_drainer_was_robbed(void);

#endif
