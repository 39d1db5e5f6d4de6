/* The thread that drains ten times a second.
 *
 * A thread of C's own: under gevent Python's threads are greenlets, and it must run no
 * Python code. It holds the GIL only while it drains.
 */
#ifndef SB_DRAINER_H
#define SB_DRAINER_H

#define SB_DRAIN_PERIOD_NS 100000000

/* 0, or -1 with an exception. */
int sb_drainer_start(void);
/* Joins it; gives up the GIL meanwhile. */
void sb_drainer_stop(void);
void sb_drainer_after_fork(void);
/* Whether SIGPROF was taken from us since the last start. */
int sb_drainer_was_robbed(void);

#endif
