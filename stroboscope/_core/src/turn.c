#define _GNU_SOURCE
#include "compat.h"

#include "turn.h"

#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "holder.h"
#include "sampler.h"

/* What both sides wait on. One thread of ours has it at a time; another waits for the GIL
 * as everybody does. */
enum { NOBODY, ASKED, OFFERED };
static _Atomic uint32_t turn;
static atomic_int is_queued; /* the pending call, which may come long after */
static atomic_int is_away;   /* the main thread is in it */
static atomic_int asking;    /* so many threads give the interpreter a pending call */
static atomic_int is_closed; /* somebody forks */
static PyThreadState *away_state; /* of the main thread, as it last went; GIL */
static _Thread_local int has_turn;
static atomic_uint asked_in_all, offered_in_all;

/* Until the word is not `seen`, or so long, or a signal came. */
static void
wait_while(uint32_t seen, uint64_t ns)
{
    const struct timespec at_most = {0, (long)ns};
    uint64_t until = sb_now_ns() + SB_TURN_LOOK_NS;
    while (atomic_load(&turn) == seen) {
        if (sb_now_ns() > until) {
            syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, seen, &at_most, NULL, 0);
            return;
        }
        sched_yield(); /* the other may need this very CPU */
    }
}

static int
move(uint32_t from, uint32_t to)
{
    int moved = atomic_compare_exchange_strong(&turn, &from, to);
    if (moved) {
        syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
    return moved;
}

/* The pending call, on the main thread with the GIL. Never fails. Who forks closes with
 * the GIL, too: either the main thread is away before, and waited for, or stays. */
static int
make_room(void *Py_UNUSED(unused))
{
    atomic_store(&is_queued, 0);
    if (atomic_load(&turn) == ASKED && !atomic_load(&is_closed)) {
        atomic_store(&is_away, 1);
        away_state = PyThreadState_Get();
        PyThreadState *mine = PyEval_SaveThread();
        if (move(ASKED, OFFERED)) {
            atomic_fetch_add(&offered_in_all, 1);
            wait_while(OFFERED, SB_TURN_NS);
            move(OFFERED, NOBODY); /* whoever asked may be gone */
        }
        PyEval_RestoreThread(mine);
        atomic_store(&is_away, 0);
    }
    return 0;
}

/* Give the main thread the pending call, if it holds the GIL and nobody asks it. Returns
 * whether it will come. Nobody forks meanwhile: the call has a lock. */
static int
call_main(void)
{
    uint32_t nobody = NOBODY;
    if (atomic_load(&is_closed) || !sb_main_is_holder() ||
        !atomic_compare_exchange_strong(&turn, &nobody, ASKED)) {
        return 0;
    }
    atomic_fetch_add(&asked_in_all, 1);
    if (!atomic_exchange(&is_queued, 1) && Py_AddPendingCall(make_room, NULL) < 0) {
        atomic_store(&is_queued, 0); /* the interpreter's queue is full */
        move(ASKED, NOBODY);
        return 0;
    }
    sb_have_look_up();
    return 1;
}

/* Without the GIL. Whether the main thread stays away from it for the caller. */
static int
ask(void)
{
    atomic_fetch_add(&asking, 1);
    int is_called = call_main();
    atomic_fetch_sub(&asking, 1);
    if (!is_called) {
        return 0;
    }
    wait_while(ASKED, SB_TURN_PATIENCE_NS);
    return !move(ASKED, NOBODY);
}

void
sb_turn_over(void)
{
    if (has_turn) {
        has_turn = 0;
        move(OFFERED, NOBODY);
    }
}

PyThreadState *
sb_turn_of(void)
{
    return has_turn && atomic_load(&is_away) ? away_state : NULL;
}

void
sb_turn_sleep(double seconds)
{
    const struct timespec time = {(time_t)seconds,
                                  (long)((seconds - (double)(time_t)seconds) * 1e9)};
    PyThreadState *mine = PyEval_SaveThread();
    sb_turn_over();
    nanosleep(&time, NULL);
    has_turn = ask();
    PyEval_RestoreThread(mine);
}

void
sb_turn_counts(unsigned *asked, unsigned *offered)
{
    *asked = atomic_load(&asked_in_all);
    *offered = atomic_load(&offered_in_all);
}

void
sb_turn_before_fork(void)
{
    const struct timespec a_while = {0, SB_TURN_LOOK_NS};
    uint64_t until = sb_now_ns() + SB_TURN_FORK_NS;
    atomic_store(&is_closed, 1);
    while ((atomic_load(&is_away) || atomic_load(&asking)) && sb_now_ns() < until) {
        Py_BEGIN_ALLOW_THREADS
        nanosleep(&a_while, NULL);
        Py_END_ALLOW_THREADS
    }
}

void
sb_turn_after_fork(int is_child)
{
    atomic_store(&is_closed, 0);
    if (!is_child) {
        return;
    }
    has_turn = 0;
    atomic_store(&is_away, 0);
    atomic_store(&asking, 0);
    atomic_store(&turn, NOBODY);
    atomic_store(&is_queued, 0);
}
