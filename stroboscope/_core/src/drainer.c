#define _GNU_SOURCE
#include "drainer.h"

#include <Python.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "sampler.h"
#include "window.h"

static pthread_t thread;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake;
static int running;  /* GIL */
static int stopping; /* lock */
static atomic_int robbed;
static _Atomic uint64_t cpu_ns;

/* Wait one period; 0 when it is time to end. */
static int
rest(void)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += SB_DRAIN_PERIOD_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&lock);
    while (!stopping && pthread_cond_timedwait(&wake, &lock, &until) == 0) {
    }
    int go_on = !stopping;
    pthread_mutex_unlock(&lock);
    return go_on;
}

uint64_t
sb_thread_cpu_ns(void)
{
    struct timespec used;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

static void *
drain(void *Py_UNUSED(argument))
{
    PyGILState_STATE gil = PyGILState_Ensure();
    sb_sampler_exclude_current();
    uint64_t before = atomic_load(&cpu_ns);
    for (;;) {
        PyThreadState *saved = PyEval_SaveThread();
        int go_on = rest();
        PyEval_RestoreThread(saved);
        if (!go_on) {
            break;
        }
        sb_windows_drain();
        if (sb_sampler_tend() < 0) {
            atomic_store(&robbed, 1);
        }
        atomic_store(&cpu_ns, before + sb_thread_cpu_ns());
    }
    PyGILState_Release(gil);
    return NULL;
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

/* Owns a reference to `argument`. */
static void *
call(void *argument)
{
    PyObject *callable = argument;
    PyGILState_STATE gil = PyGILState_Ensure();
    sb_sampler_exclude_current();
    PyObject *result = PyObject_CallNoArgs(callable);
    if (result == NULL) {
        PyErr_WriteUnraisable(callable);
    }
    Py_XDECREF(result);
    Py_DECREF(callable);
    PyGILState_Release(gil);
    return NULL;
}

int
sb_thread_start(PyObject *callable)
{
    pthread_t made;
    if (sb_thread_create(&made, call, Py_NewRef(callable)) < 0) {
        Py_DECREF(callable);
        return -1;
    }
    pthread_detach(made);
    return 0;
}

int
sb_drainer_start(void)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    stopping = 0;
    atomic_store(&robbed, 0);
    if (sb_thread_create(&thread, drain, NULL) < 0) {
        return -1;
    }
    running = 1;
    return 0;
}

void
sb_drainer_stop(void)
{
    if (!running) {
        return;
    }
    running = 0;
    pthread_mutex_lock(&lock);
    stopping = 1;
    pthread_cond_signal(&wake);
    pthread_mutex_unlock(&lock);
    Py_BEGIN_ALLOW_THREADS
    pthread_join(thread, NULL);
    Py_END_ALLOW_THREADS
    pthread_cond_destroy(&wake);
}

void
sb_drainer_after_fork(void)
{
    running = 0;
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
