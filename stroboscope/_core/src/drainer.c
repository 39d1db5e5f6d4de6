#define _GNU_SOURCE
#include "drainer.h"

#include <Python.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "sampler.h"
#include "window.h"

static int wanted, alive; /* GIL */
static unsigned forks;    /* GIL: a thread of the parent's is none of the child's */
static atomic_int robbed;
static _Atomic uint64_t cpu_ns;

uint64_t
sb_thread_cpu_ns(void)
{
    struct timespec used;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

void
sb_drain(void)
{
    const struct timespec period = {0, SB_DRAIN_PERIOD_NS};
    if (alive) {
        return;
    }
    alive = 1;
    unsigned mine = forks;
    sb_sampler_exclude_current();
    uint64_t before = atomic_load(&cpu_ns);
    while (wanted) {
        Py_BEGIN_ALLOW_THREADS
        nanosleep(&period, NULL);
        Py_END_ALLOW_THREADS
        if (forks != mine) { /* only tests call it a fork and live on */
            sb_sampler_include_current();
            return;
        }
        if (!wanted) {
            break;
        }
        sb_windows_drain();
        if (sb_sampler_tend() < 0) {
            atomic_store(&robbed, 1);
        }
        atomic_store(&cpu_ns, before + sb_thread_cpu_ns());
    }
    alive = 0;
    sb_sampler_include_current();
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

int
sb_drainer_begin(void)
{
    wanted = 1;
    atomic_store(&robbed, 0);
    return !alive;
}

void
sb_drainer_end(void)
{
    wanted = 0;
}

void
sb_drainer_after_fork(void)
{
    wanted = alive = 0;
    forks++;
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
