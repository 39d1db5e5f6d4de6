#define _GNU_SOURCE
#include "drainer.h"

#include <Python.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "sampler.h"
#include "window.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake;
/* Whose turn it is: a drainer whose number has passed ends. Written with the GIL and the
 * lock, read with either. */
static unsigned long turn;
static int ready; /* GIL: `wake` is made */
static atomic_int robbed;
static _Atomic uint64_t cpu_ns;

/* Wait one period, or until the turn has passed. */
static void
rest(unsigned long mine)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += SB_DRAIN_PERIOD_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&lock);
    while (turn == mine && pthread_cond_timedwait(&wake, &lock, &until) == 0) {
    }
    pthread_mutex_unlock(&lock);
}

uint64_t
sb_thread_cpu_ns(void)
{
    struct timespec used;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

void
sb_drain(unsigned long mine)
{
    sb_sampler_exclude_current();
    uint64_t before = atomic_load(&cpu_ns);
    while (turn == mine) {
        Py_BEGIN_ALLOW_THREADS
        rest(mine);
        Py_END_ALLOW_THREADS
        if (turn != mine) {
            break;
        }
        sb_windows_drain();
        if (sb_sampler_tend() < 0) {
            atomic_store(&robbed, 1);
        }
        atomic_store(&cpu_ns, before + sb_thread_cpu_ns());
    }
}

int
sb_thread_create(pthread_t *made, void *(*body)(void *), void *argument)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(made, NULL, body, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        PyErr_SetString(PyExc_RuntimeError, "cannot start a thread");
        return -1;
    }
    return 0;
}

static void
next_turn(void)
{
    pthread_mutex_lock(&lock);
    turn++;
    pthread_cond_signal(&wake);
    pthread_mutex_unlock(&lock);
}

static void
make_ready(void)
{
    if (ready) {
        return;
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    ready = 1;
}

unsigned long
sb_drainer_begin(void)
{
    make_ready();
    atomic_store(&robbed, 0);
    next_turn();
    return turn;
}

void
sb_drainer_end(void)
{
    if (ready) {
        next_turn();
    }
}

void
sb_drainer_after_fork(void)
{
    turn++;
    ready = 0;
    pthread_mutex_init(&lock, NULL);
}

uint64_t
sb_drainer_cpu_ns(void)
{
    return atomic_load(&cpu_ns);
}

int
sb_drainer_was_robbed(void)
{
    return atomic_load(&robbed);
}
