#define _GNU_SOURCE
#include "compat.h"

#include "watch.h"

#include <time.h>
#include <unistd.h>

#include "drainer.h"
#include "heart.h"
#include "holder.h"
#include "look.h"
#include "sampler.h"
#include "samples.h"

/* Between two looks of the ticker, of the threshold: what blocks a loop is asked for a
 * beat after that at most, and late a threshold later. */
#define LOOKS_NS(threshold) ((threshold) / 4 * 3)
/* An idle loop is woken this often all the same: see is_idle. */
#define ASK_IDLE_NS ((uint64_t)1000000000)

static pthread_t ticker;
static pthread_cond_t to_ticker, to_watcher;
static int running;            /* GIL */
static int stopping, is_asked; /* lock */
static int waiting;            /* the lock; watchers that wait */
static uint64_t look_at_ns;    /* the lock; when the watcher wants to look anyway */
/* When the watcher was asked and has not got the GIL since; 0 when it has. */
static _Atomic uint64_t asked_ns;
static _Atomic uint64_t ticker_cpu_ns;

/* ---- the ticker ------------------------------------------------------------------- */

static void
wait_until(pthread_cond_t *cond, uint64_t ns)
{
    struct timespec until = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    pthread_cond_timedwait(cond, &sb_pulse_lock, &until);
}

/* Whether the loop's thread is where it waits for events. A loop calls what waits from
 * the frame from which it calls a heart, so the frame then running has one address:
 * asyncio's `select` stands where `Handle._run` stood; uvloop has no frame of its own.
 * Nothing is read through the address. Wrong for a C function that a loop calls itself
 * and that blocks (`call_soon(time.sleep, 1)`): hence ASK_IDLE_NS. Without the GIL the
 * frame may change while we look, which is as good as a moment earlier or later. */
static int
is_idle(const sb_pulse *self)
{
    return self->tstate != NULL && self->idle_frame != NULL &&
           sb_current_frame(self->tstate) == self->idle_frame;
}

/* Ask for a beat where one is due, see whether one is late that the watcher does not
 * know of; returns when to look again. */
static uint64_t
attend(sb_pulse *self, uint64_t now, int *is_late)
{
    uint64_t threshold = atomic_load(&sb_threshold_ns);
    if (self->asked_ns == 0) {
        if (now < self->asked_last_ns + ASK_IDLE_NS && is_idle(self)) {
            return now + LOOKS_NS(threshold);
        }
        uint64_t one = 1;
        ssize_t put = write(self->fd, &one, sizeof one);
        (void)put; /* full: it is being asked already */
        self->asked_ns = self->asked_last_ns = now;
        self->gc_at_ns = sb_gc_spent_ns();
    }
    if (now <= self->asked_ns + threshold) {
        return self->asked_ns + threshold + 1;
    }
    *is_late |= !self->is_noticed;
    self->is_noticed = 1;
    return now + threshold;
}

/* Between two calls to a thread that holds the GIL: each may interrupt what it does. */
#define CALL_EVERY_NS ((uint64_t)1000000000)

/* Set before the ticker starts. */
static PyInterpreterState *interpreter;
static uint64_t called_ns;

/* The watcher was asked and does not get the GIL: have its holder say where it is. */
static uint64_t
attend_gil(uint64_t now)
{
    uint64_t asked = atomic_load(&asked_ns), threshold = atomic_load(&sb_threshold_ns);
    if (asked == 0) {
        sb_sampler_show(0);
        return now + CALL_EVERY_NS;
    }
    if (now < asked + threshold) {
        return asked + threshold;
    }
    sb_sampler_show(1);
    if (now >= called_ns + CALL_EVERY_NS) {
        called_ns = now;
        pid_t tid = sb_samples_are_kept() ? sb_holder_tid(interpreter) : 0;
        if ((tid <= 0 || sb_sampler_call(tid) < 0) && !sb_sampler_active()) {
            sb_guard_remove();
        }
    }
    return called_ns + CALL_EVERY_NS;
}

static void *
tick(void *Py_UNUSED(argument))
{
    pthread_mutex_lock(&sb_pulse_lock);
    for (;;) {
        /* First, and not behind the lock: it may wait for a handler. */
        pthread_mutex_unlock(&sb_pulse_lock);
        uint64_t next = attend_gil(sb_now_ns());
        pthread_mutex_lock(&sb_pulse_lock);
        if (stopping) {
            break;
        }
        uint64_t now = sb_now_ns();
        int is_late = 0;
        for (int i = 0; i < SB_HEARTS_MAX; i++) {
            if (sb_pulses[i].owner != NULL && !sb_pulses[i].is_resting) {
                uint64_t again = attend(&sb_pulses[i], now, &is_late);
                next = again < next ? again : next;
            }
        }
        if (is_late || (look_at_ns != 0 && now >= look_at_ns)) {
            look_at_ns = 0;
            is_asked = 1;
            atomic_store(&asked_ns, now);
            pthread_cond_signal(&to_watcher);
            next = now + atomic_load(&sb_threshold_ns) < next ? now + atomic_load(&sb_threshold_ns)
                                                           : next;
        }
        else if (look_at_ns != 0 && look_at_ns < next) {
            next = look_at_ns;
        }
        atomic_store(&ticker_cpu_ns, sb_thread_cpu_ns());
        wait_until(&to_ticker, next);
    }
    pthread_mutex_unlock(&sb_pulse_lock);
    return NULL;
}

static int are_made; /* GIL */

static void
make_conditions(void)
{
    if (are_made) {
        return;
    }
    are_made = 1;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&to_ticker, &monotonic);
    pthread_cond_init(&to_watcher, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

static PyObject *
watch_start(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long long threshold = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred()) {
        return NULL;
    }
    atomic_store(&sb_threshold_ns, threshold);
    if (running) {
        pthread_mutex_lock(&sb_pulse_lock);
        is_asked = 1; /* the watcher may want to wait for something else by now */
        pthread_cond_signal(&to_watcher);
        pthread_cond_signal(&to_ticker);
        pthread_mutex_unlock(&sb_pulse_lock);
        Py_RETURN_NONE;
    }
    interpreter = PyInterpreterState_Get();
    called_ns = 0;
    make_conditions();
    stopping = is_asked = 0;
    look_at_ns = 0;
    if (sb_thread_create(&ticker, tick, NULL) < 0) {
        return NULL;
    }
    running = 1;
    Py_RETURN_NONE;
}

/* Ends the ticker and whoever waits. Beats end by themselves. */
static PyObject *
watch_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    atomic_store(&sb_threshold_ns, 0);
    if (running) {
        running = 0;
        Py_BEGIN_ALLOW_THREADS
        pthread_mutex_lock(&sb_pulse_lock);
        stopping = 1;
        pthread_cond_broadcast(&to_ticker);
        pthread_cond_broadcast(&to_watcher);
        while (waiting > 0) {
            pthread_cond_wait(&to_ticker, &sb_pulse_lock);
        }
        pthread_mutex_unlock(&sb_pulse_lock);
        pthread_join(ticker, NULL);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

/* Wait for a heart that is newly late, or so many seconds (below 0: for ever). False
 * when the watch is over. One thread may wait. */
static PyObject *
watch_wait(PyObject *Py_UNUSED(module), PyObject *argument)
{
    double seconds = PyFloat_AsDouble(argument);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (!running) {
        Py_RETURN_FALSE;
    }
    int go_on;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&sb_pulse_lock);
    look_at_ns = seconds < 0 ? 0 : sb_now_ns() + (uint64_t)(seconds * 1e9) + 1;
    pthread_cond_signal(&to_ticker);
    waiting++;
    while (!stopping && !is_asked) {
        pthread_cond_wait(&to_watcher, &sb_pulse_lock);
    }
    waiting--;
    is_asked = 0;
    go_on = !stopping;
    if (stopping) {
        pthread_cond_broadcast(&to_ticker);
    }
    pthread_mutex_unlock(&sb_pulse_lock);
    Py_END_ALLOW_THREADS
    atomic_store(&asked_ns, 0);
    return PyBool_FromLong(go_on);
}

static PyObject *
watch_cpu_ns(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLongLong(atomic_load(&ticker_cpu_ns));
}

/* ---- the module ------------------------------------------------------------------- */

void
sb_watch_hurry(void)
{
    if (running) {
        pthread_cond_signal(&to_ticker);
    }
}

static PyMethodDef functions[] = {
    {"watch_start", watch_start, METH_O, "Watch, or change the threshold in ns."},
    {"watch_stop", watch_stop, METH_NOARGS, "Watch no more."},
    {"watch_wait", watch_wait, METH_O, "Wait for what is late, or for seconds."},
    {"watch_cpu_ns", watch_cpu_ns, METH_NOARGS, "CPU time of the ticker."},
    {NULL, NULL, 0, NULL},
};

int
sb_watch_init(PyObject *module)
{
    int failed = sb_hearts_init(module) < 0 || sb_look_init(module) < 0;
    return failed ? -1 : PyModule_AddFunctions(module, functions);
}

void
sb_watch_after_fork(void)
{
    running = are_made = waiting = 0;
    atomic_store(&sb_threshold_ns, 0);
    atomic_store(&asked_ns, 0);
    sb_hearts_after_fork();
}
