/* A turn: the GIL for a thread of ours, from an application that hardly lets go of it.
 *
 * Who waits for the GIL is woken each time its holder lets go, and finds it taken again
 * before it is awake. A loop that polls once a millisecond wakes it in vain, at some
 * 40 us of the loop's own CPU, five times and more: to be let in is only asked for after
 * 5 ms in which nobody let go. So a thread of ours waits elsewhere, and asks by a pending
 * call: between two instructions the main thread lets go, and stays away until the turn
 * is over. A hand-over takes microseconds, so both sides look for a while before they
 * sleep: waking a thread costs more than the turn itself.
 *
 * Only the main thread is asked, and only while it holds the GIL.
 */
#ifndef SB_TURN_H
#define SB_TURN_H

#include <Python.h>

/* The main thread is asked for so long, and stays away for so long. */
#define SB_TURN_PATIENCE_NS 1000000
#define SB_TURN_NS 1000000
/* Who forks waits so long for it to come back: it does in a turn's time, but for other
 * processes that keep it off the CPU. */
#define SB_TURN_FORK_NS 1000000000
/* Either looks so long before it sleeps. */
#define SB_TURN_LOOK_NS 50000

/* Sleep so long without the GIL and come back with it, by a turn where one is to be had.
 * Holds the GIL before and after; a turn the caller still has is over. */
void sb_turn_sleep(double seconds);
/* The caller's turn is over, if it has one. */
void sb_turn_over(void);
/* The main thread, while it stays away for the caller; else NULL. It was at work. */
PyThreadState *sb_turn_of(void);
/* How often the main thread was asked, and came. */
void sb_turn_counts(unsigned *asked, unsigned *offered);
/* Nobody is asked from here to the fork, and a turn ends, at most SB_TURN_FORK_NS: in the
 * child of another thread the interpreter would hold for ever that the main thread is in
 * a pending call, and run no other. Lets go of the GIL and comes back with it. */
void sb_turn_before_fork(void);
void sb_turn_after_fork(int is_child);

#endif
