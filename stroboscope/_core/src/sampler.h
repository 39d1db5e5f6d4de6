/* Per-thread CPU timers, the signal handler and its rings.
 *
 * One POSIX timer a thread on that thread's CPU clock: it fires only while the thread
 * burns CPU, and the handler runs on the thread it samples, so the frames stand still.
 * The handler only reads Python's memory, writes into the thread's own ring and sets a
 * flag in the label cell. Everything else here holds the GIL.
 */
#ifndef SB_SAMPLER_H
#define SB_SAMPLER_H

#include <Python.h>
#include <stdint.h>
#include <sys/types.h>

/* Leaf-most frames kept of one stack; deeper ones are marked as truncated. */
#define SB_DEPTH_MAX 512
/* Threads that can be armed at once. */
#define SB_THREADS_MAX 4096

typedef struct {
    uint64_t time_ns; /* CLOCK_MONOTONIC */
    uint64_t serial;  /* of the label cell, 0 without one */
    uint64_t period_ns;
    uint32_t weight; /* 1 + timer overruns */
    uint32_t tid;    /* the system's id of the thread */
    uint32_t depth;
    uint32_t copy; /* the slot of its C stack, 0 without one */
    int truncated;
    struct {
        PyCodeObject *code;
        int32_t offset; /* of the instruction, in bytes; -1 unknown */
    } frames[SB_DEPTH_MAX];
} sb_sample;

typedef struct {
    uint64_t samples, overruns; /* taken; periods merged into a later sample */
    uint64_t lost_full, lost_fault, lost_torn, lost_unguarded; /* by reason */
    uint64_t stray, foreign; /* signals for a gone thread; from somebody else */
    uint64_t handler_ns;     /* spent in the handler, all samples */
    uint64_t threads, threads_refused;
} sb_counters;

/* 1 when frames and labels read as CPython itself reads them, 0 when not, -1 error. */
int sb_sampler_check(void);
/* Own SIGPROF and the guard, arm all threads; from now on `before_code_dies` runs, with
 * the GIL, before a code object goes away. 0, or -1 with an exception: RuntimeError
 * when SIGPROF has another owner. */
int sb_sampler_start(uint64_t period_ns, void (*before_code_dies)(void));
/* Sample at another period from now on; each sample carries its own. */
void sb_sampler_set_period(uint64_t period_ns);
/* Delete all timers. Our handler stays: the default action of a late signal is to kill
 * the process. */
void sb_sampler_stop(void);
int sb_sampler_active(void);
/* Arm threads that came, disarm those that went, look after both signals. 0, or -1
 * when SIGPROF was taken from us: the timers are then already gone. */
int sb_sampler_tend(void);
/* Never sample the calling thread, until `sb_sampler_include_current` before it ends:
 * there is room for so many at a time. */
void sb_sampler_exclude_current(void);
void sb_sampler_include_current(void);
/* Whether that was asked for this thread. */
int sb_sampler_is_excluded(const PyThreadState *tstate);
/* Arm, and disarm, the calling thread; arming returns 1 when it was not armed yet. */
int sb_sampler_arm_current(void);
void sb_sampler_disarm_current(void);
/* The child of a fork has no timers and no drainer. */
void sb_sampler_after_fork(void);
/* Hand at most `limit` pending samples to `consume`; returns how many. */
size_t sb_sampler_drain(size_t limit, void (*consume)(const sb_sample *));
int sb_sampler_pending(void);
/* Make a thread leave a sample with names, from a thread of ours without the GIL, whether
 * anything samples or not. 0, or -1 where SIGPROF is somebody else's. Interrupts what the
 * thread waits in, where the kernel does not restart it (nanosleep, poll). */
int sb_sampler_call(pid_t tid);
/* Whether samples also go into the mapping from now on: while nobody gets the GIL. */
void sb_sampler_show(int on);
sb_counters sb_sampler_counters(void);
/* 1 ours, 0 free, -1 somebody else's. */
int sb_sigprof_owner(void);
uint64_t sb_now_ns(void);
/* Arm a thread on the clock of the calling one, as it may happen; for a test. 1 when it
 * was armed before. */
int sb_sampler_misarm(unsigned long ident);
/* Send `count` sampler signals to random armed threads, `hz` a second, from a helper
 * thread: for the crash hunt. Blocks without the GIL. */
void sb_sampler_storm(uint64_t count, unsigned hz);

#endif
