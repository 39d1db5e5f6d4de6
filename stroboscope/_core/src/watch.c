#define _GNU_SOURCE
#include "compat.h"

#include "watch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <structmember.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "drainer.h"
#include "holder.h"
#include "sampler.h"
#include "samples.h"

/* One watched event loop, as the ticker knows it; behind `lock`. */
typedef struct {
    void *owner; /* the heart; NULL: free */
    int fd;      /* an eventfd the loop reads: written to, it beats */
    PyThreadState *tstate; /* of the loop's thread, while that lives; NULL unknown */
    sb_frame *idle_frame;
    uint64_t asked_ns; /* when a beat was asked for that has not come; 0 none */
    uint64_t asked_last_ns, gc_at_ns;
    int is_noticed; /* the watcher knows that it is late */
    int is_resting; /* the loop does not run: ask for nothing until it beats */
} pulse;

static pulse pulses[SB_HEARTS_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint64_t threshold_ns; /* 0: no watch */

/* Between two looks of the ticker, of the threshold: what blocks a loop is asked for a
 * beat after that at most, and late a threshold later. */
#define LOOKS_NS(threshold) ((threshold) / 4 * 3)
/* An idle loop is woken this often all the same: see is_idle. */
#define ASK_IDLE_NS ((uint64_t)1000000000)

static pthread_t ticker;
static pthread_cond_t to_ticker, to_watcher;
static int running;            /* GIL */
static int stopping, is_asked; /* lock */
static int waiting;            /* lock; watchers that wait */
static uint64_t look_at_ns;    /* lock; when the watcher wants to look anyway */
/* When the watcher was asked and has not got the GIL since; 0 when it has. */
static _Atomic uint64_t asked_ns;
static _Atomic uint64_t ticker_cpu_ns;

/* ---- the collector's pauses, which no request is guilty of ------------------------ */

static _Atomic uint64_t gc_began_ns, gc_total_ns; /* written with the GIL */

static uint64_t
gc_spent_ns(void)
{
    uint64_t began = atomic_load(&gc_began_ns);
    return atomic_load(&gc_total_ns) + (began ? sb_now_ns() - began : 0);
}

/* In gc.callbacks while the watch is on; a C function, for it runs often. */
static PyObject *
gc_phase(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count > 0 && PyUnicode_Check(args[0]) && PyUnicode_GET_LENGTH(args[0]) > 2) {
        int is_start = PyUnicode_READ_CHAR(args[0], 2) == 'a'; /* or "stop" */
        if (!is_start) {
            atomic_store(&gc_total_ns, gc_spent_ns());
        }
        atomic_store(&gc_began_ns, is_start ? sb_now_ns() : 0);
    }
    Py_RETURN_NONE;
}

static PyObject *
gc_spent(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLongLong(gc_spent_ns());
}

/* ---- hearts ----------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    pulse *pulse; /* NULL once stopped */
    unsigned long long beats, late_beats;
    unsigned long long late_ns, late_gc_ns; /* of the latest late beat */
    unsigned long ident;
    PyObject *weak_references;
} heart;

static pulse *
own_pulse(const heart *self)
{
    return self->pulse != NULL && self->pulse->owner == self ? self->pulse : NULL;
}

/* A thread's state goes: nobody may look at it any more. */
static void
forget_state(PyObject *capsule)
{
    pulse *self = PyCapsule_GetPointer(capsule, NULL);
    pthread_mutex_lock(&lock);
    if (self->tstate == PyCapsule_GetContext(capsule)) {
        self->tstate = NULL;
    }
    pthread_mutex_unlock(&lock);
}

/* Hear of the end of the calling thread: what its state's dictionary holds is dropped
 * before the state is freed. Without memory the state stays unknown. */
static PyThreadState *
remembered_state(pulse *self)
{
    PyThreadState *tstate = PyThreadState_Get();
    PyObject *dict = PyThreadState_GetDict(); /* borrowed */
    PyObject *key = PyUnicode_FromFormat("stroboscope.pulse.%d", (int)(self - pulses));
    PyObject *capsule = PyCapsule_New(self, NULL, forget_state);
    int held = dict != NULL && key != NULL && capsule != NULL &&
               PyCapsule_SetContext(capsule, tstate) == 0 &&
               PyDict_SetItem(dict, key, capsule) == 0;
    PyErr_Clear();
    Py_XDECREF(key);
    Py_XDECREF(capsule);
    return held ? tstate : NULL;
}

/* Called by the loop when somebody has asked for a beat. */
static PyObject *
heart_call(PyObject *object, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    heart *self = (heart *)object;
    pulse *at = own_pulse(self);
    if (at == NULL) {
        Py_RETURN_NONE;
    }
    PyThreadState *tstate = PyThreadState_Get();
    if (self->ident != PyThread_get_thread_ident()) {
        self->ident = PyThread_get_thread_ident();
        tstate = remembered_state(at);
    }
    uint64_t count, now = sb_now_ns(), gc_now = gc_spent_ns();
    pthread_mutex_lock(&lock);
    ssize_t got = read(at->fd, &count, sizeof count);
    (void)got; /* nothing there: somebody else called */
    uint64_t asked = at->asked_ns, gc = gc_now - at->gc_at_ns;
    if (at->is_resting && running) {
        pthread_cond_signal(&to_ticker); /* it may sleep longer than it now should */
    }
    at->asked_ns = 0;
    at->is_noticed = at->is_resting = 0;
    at->tstate = tstate;
    at->idle_frame = tstate != NULL ? sb_current_frame(tstate) : NULL;
    pthread_mutex_unlock(&lock);
    self->beats++;
    if (asked != 0 && now > asked + atomic_load(&threshold_ns)) {
        self->late_ns = now - asked;
        self->late_gc_ns = gc < self->late_ns ? gc : self->late_ns;
        self->late_beats++;
    }
    Py_RETURN_NONE;
}

static PyObject *
heart_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Heart", names)) {
        return NULL;
    }
    heart *self = (heart *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    /* Not zero: its first beat comes by itself and shows the thread and its frame. */
    int fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_lock(&lock);
    for (int i = 0; fd >= 0 && i < SB_HEARTS_MAX && self->pulse == NULL; i++) {
        if (pulses[i].owner == NULL) {
            memset(&pulses[i], 0, sizeof pulses[i]);
            pulses[i].owner = self;
            pulses[i].fd = fd;
            pulses[i].is_resting = 1;
            self->pulse = &pulses[i];
        }
    }
    pthread_mutex_unlock(&lock);
    if (self->pulse == NULL) {
        if (fd >= 0) {
            close(fd);
        }
        Py_DECREF(self);
        PyErr_SetString(PyExc_RuntimeError, "no more event loops can be watched");
        return NULL;
    }
    return (PyObject *)self;
}

static PyObject *
heart_stop(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    heart *self = (heart *)object;
    pthread_mutex_lock(&lock);
    pulse *at = own_pulse(self);
    if (at != NULL) {
        close(at->fd);
        at->owner = NULL;
    }
    self->pulse = NULL;
    pthread_mutex_unlock(&lock);
    Py_RETURN_NONE;
}

/* Ask for nothing before the next beat: the loop does not run. */
static PyObject *
heart_rest(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    pthread_mutex_lock(&lock);
    pulse *at = own_pulse((heart *)object);
    if (at != NULL) {
        at->asked_ns = 0;
        at->is_resting = 1;
    }
    pthread_mutex_unlock(&lock);
    Py_RETURN_NONE;
}

static PyObject *
heart_fileno(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    pulse *at = own_pulse((heart *)object);
    return PyLong_FromLong(at != NULL ? at->fd : -1);
}

/* By how much its beat is late now, in ns; 0 when it is not beyond the threshold. */
static PyObject *
heart_get_overdue(PyObject *object, void *Py_UNUSED(closure))
{
    pthread_mutex_lock(&lock);
    pulse *at = own_pulse((heart *)object);
    uint64_t asked = at != NULL ? at->asked_ns : 0;
    pthread_mutex_unlock(&lock);
    uint64_t now = sb_now_ns();
    int is_late = asked != 0 && now > asked + atomic_load(&threshold_ns);
    return PyLong_FromUnsignedLongLong(is_late ? now - asked : 0);
}

static void
heart_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    if (((heart *)object)->weak_references != NULL) {
        PyObject_ClearWeakRefs(object);
    }
    Py_XDECREF(heart_stop(object, NULL));
    type->tp_free(object);
    Py_DECREF(type);
}

static PyMemberDef heart_members[] = {
    {"beats", T_ULONGLONG, offsetof(heart, beats), READONLY, NULL},
    {"late_beats", T_ULONGLONG, offsetof(heart, late_beats), READONLY, NULL},
    {"late_ns", T_ULONGLONG, offsetof(heart, late_ns), READONLY, NULL},
    {"late_gc_ns", T_ULONGLONG, offsetof(heart, late_gc_ns), READONLY, NULL},
    {"ident", T_ULONG, offsetof(heart, ident), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(heart, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef heart_getset[] = {
    {"overdue_ns", heart_get_overdue, NULL, "How late the next beat is.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef heart_methods[] = {
    {"stop", heart_stop, METH_NOARGS, "Beat no more."},
    {"rest", heart_rest, METH_NOARGS, "Expect no beat until the next."},
    {"fileno", heart_fileno, METH_NOARGS, "What the loop has to read from."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot heart_slots[] = {
    {Py_tp_new, heart_new},
    {Py_tp_call, heart_call},
    {Py_tp_dealloc, heart_dealloc},
    {Py_tp_members, heart_members},
    {Py_tp_getset, heart_getset},
    {Py_tp_methods, heart_methods},
    {Py_tp_doc, "Beats on an event loop, and knows when it was late."},
    {0, NULL},
};

static PyType_Spec heart_spec = {
    .name = "stroboscope._core._native.Heart",
    .basicsize = sizeof(heart),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = heart_slots,
};

/* ---- the ticker ------------------------------------------------------------------- */

static void
wait_until(pthread_cond_t *cond, uint64_t ns)
{
    struct timespec until = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    pthread_cond_timedwait(cond, &lock, &until);
}

/* Whether the loop's thread is where it waits for events. A loop calls what waits from
 * the frame from which it calls a heart, so the frame then running has one address:
 * asyncio's `select` stands where `Handle._run` stood; uvloop has no frame of its own.
 * Nothing is read through the address. Wrong for a C function that a loop calls itself
 * and that blocks (`call_soon(time.sleep, 1)`): hence ASK_IDLE_NS. Without the GIL the
 * frame may change while we look, which is as good as a moment earlier or later. */
static int
is_idle(const pulse *self)
{
    return self->tstate != NULL && self->idle_frame != NULL &&
           sb_current_frame(self->tstate) == self->idle_frame;
}

/* Ask for a beat where one is due, see whether one is late that the watcher does not
 * know of; returns when to look again. */
static uint64_t
attend(pulse *self, uint64_t now, int *is_late)
{
    uint64_t threshold = atomic_load(&threshold_ns);
    if (self->asked_ns == 0) {
        if (now < self->asked_last_ns + ASK_IDLE_NS && is_idle(self)) {
            return now + LOOKS_NS(threshold);
        }
        uint64_t one = 1;
        ssize_t put = write(self->fd, &one, sizeof one);
        (void)put; /* full: it is being asked already */
        self->asked_ns = self->asked_last_ns = now;
        self->gc_at_ns = gc_spent_ns();
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
    uint64_t asked = atomic_load(&asked_ns), threshold = atomic_load(&threshold_ns);
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
    pthread_mutex_lock(&lock);
    for (;;) {
        /* First, and not behind the lock: it may wait for a handler. */
        pthread_mutex_unlock(&lock);
        uint64_t next = attend_gil(sb_now_ns());
        pthread_mutex_lock(&lock);
        if (stopping) {
            break;
        }
        uint64_t now = sb_now_ns();
        int is_late = 0;
        for (int i = 0; i < SB_HEARTS_MAX; i++) {
            if (pulses[i].owner != NULL && !pulses[i].is_resting) {
                uint64_t again = attend(&pulses[i], now, &is_late);
                next = again < next ? again : next;
            }
        }
        if (is_late || (look_at_ns != 0 && now >= look_at_ns)) {
            look_at_ns = 0;
            is_asked = 1;
            atomic_store(&asked_ns, now);
            pthread_cond_signal(&to_watcher);
            next = now + atomic_load(&threshold_ns) < next ? now + atomic_load(&threshold_ns)
                                                           : next;
        }
        else if (look_at_ns != 0 && look_at_ns < next) {
            next = look_at_ns;
        }
        atomic_store(&ticker_cpu_ns, sb_thread_cpu_ns());
        wait_until(&to_ticker, next);
    }
    pthread_mutex_unlock(&lock);
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
    atomic_store(&threshold_ns, threshold);
    if (running) {
        pthread_mutex_lock(&lock);
        is_asked = 1; /* the watcher may want to wait for something else by now */
        pthread_cond_signal(&to_watcher);
        pthread_cond_signal(&to_ticker);
        pthread_mutex_unlock(&lock);
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
    atomic_store(&threshold_ns, 0);
    if (running) {
        running = 0;
        Py_BEGIN_ALLOW_THREADS
        pthread_mutex_lock(&lock);
        stopping = 1;
        pthread_cond_broadcast(&to_ticker);
        pthread_cond_broadcast(&to_watcher);
        while (waiting > 0) {
            pthread_cond_wait(&to_ticker, &lock);
        }
        pthread_mutex_unlock(&lock);
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
    pthread_mutex_lock(&lock);
    look_at_ns = seconds < 0 ? 0 : sb_now_ns() + (uint64_t)(seconds * 1e9) + 1;
    pthread_cond_signal(&to_ticker);
    waiting++;
    while (!stopping && !is_asked) {
        pthread_cond_wait(&to_watcher, &lock);
    }
    waiting--;
    is_asked = 0;
    go_on = !stopping;
    if (stopping) {
        pthread_cond_broadcast(&to_ticker);
    }
    pthread_mutex_unlock(&lock);
    Py_END_ALLOW_THREADS
    atomic_store(&asked_ns, 0);
    return PyBool_FromLong(go_on);
}

static PyObject *
watch_cpu_ns(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLongLong(atomic_load(&ticker_cpu_ns));
}

/* ---- looking at a thread ---------------------------------------------------------- */

enum { LOOK_DEPTH = 256, LOOK_TRIES = 3 };

typedef struct {
    PyCodeObject *code; /* strong */
    int32_t offset;
} place;

static PyThreadState *
state_of(unsigned long ident)
{
    PyThreadState *tstate = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    while (tstate != NULL && tstate->thread_id != ident) {
        tstate = PyThreadState_Next(tstate);
    }
    return tstate;
}

/* The GIL is held: the thread stands still. */
static int
places_of(PyThreadState *tstate, place *places)
{
    int depth = 0;
    sb_frame *frame = sb_current_frame(tstate);
    for (; frame != NULL && depth < LOOK_DEPTH; frame = sb_frame_previous(frame)) {
        PyObject *code = sb_frame_executable(frame);
        if (code == NULL || !PyCode_Check(code) || !sb_code_is_live(code)) {
            continue;
        }
        places[depth].code = (PyCodeObject *)Py_NewRef(code);
        places[depth].offset =
            sb_code_offset((PyCodeObject *)code, sb_frame_instruction(frame));
        depth++;
    }
    return depth;
}

static PyObject *
place_tuple(const place *at)
{
    PyCodeObject *code = at->code;
    int line = at->offset < 0 ? 0 : PyCode_Addr2Line(code, at->offset);
    return Py_BuildValue("(OOii)", code->co_filename, code->co_qualname,
                         code->co_firstlineno, line > 0 ? line : code->co_firstlineno);
}

/* (a copy of its context or None, [(file, qualified name, first line, line), ...] leaf
 * first), of one moment; None for a thread that is gone or does not stand still. */
static PyObject *
look(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long ident = PyLong_AsUnsignedLong(argument);
    if (PyErr_Occurred()) {
        return NULL;
    }
    place places[LOOK_DEPTH];
    PyObject *context = NULL, *frames = NULL, *result = NULL;
    int depth = 0, is_one_moment = 0;
    for (int try = 0; try < LOOK_TRIES && !is_one_moment; try++) {
        PyThreadState *tstate = state_of(ident);
        if (tstate == NULL) {
            break;
        }
        sb_frame *leaf = sb_current_frame(tstate);
        PyObject *own = Py_XNewRef(tstate->context);
        depth = places_of(tstate, places);
        /* Making an object may collect garbage, run finalizers and let others go on. */
        context = own ? PyContext_Copy(own) : Py_NewRef(Py_None);
        tstate = state_of(ident);
        is_one_moment = context != NULL && tstate != NULL &&
                        sb_current_frame(tstate) == leaf && tstate->context == own;
        Py_XDECREF(own);
        if (!is_one_moment) {
            PyErr_Clear();
            Py_CLEAR(context);
            while (depth > 0) {
                Py_DECREF(places[--depth].code);
            }
        }
    }
    if (!is_one_moment) {
        Py_RETURN_NONE;
    }
    frames = PyList_New(depth);
    for (int i = 0; frames != NULL && i < depth; i++) {
        PyObject *one = place_tuple(&places[i]);
        if (one == NULL) {
            Py_CLEAR(frames);
            break;
        }
        PyList_SET_ITEM(frames, i, one);
    }
    if (frames != NULL) {
        result = PyTuple_Pack(2, context, frames);
    }
    while (depth > 0) {
        Py_DECREF(places[--depth].code);
    }
    Py_DECREF(context);
    Py_XDECREF(frames);
    return result;
}

/* ---- the module ------------------------------------------------------------------- */

static PyMethodDef functions[] = {
    {"gc_phase", (PyCFunction)(void (*)(void))gc_phase, METH_FASTCALL,
     "Goes into gc.callbacks."},
    {"gc_spent", gc_spent, METH_NOARGS, "Nanoseconds of collections, since it did."},
    {"watch_start", watch_start, METH_O, "Watch, or change the threshold in ns."},
    {"watch_stop", watch_stop, METH_NOARGS, "Watch no more."},
    {"watch_wait", watch_wait, METH_O, "Wait for what is late, or for seconds."},
    {"watch_cpu_ns", watch_cpu_ns, METH_NOARGS, "CPU time of the ticker."},
    {"look", look, METH_O, "A thread's context and stack now, by ident."},
    {NULL, NULL, 0, NULL},
};

int
sb_watch_init(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &heart_spec, NULL);
    if (type == NULL || PyModule_AddType(module, (PyTypeObject *)type) < 0) {
        Py_XDECREF(type);
        return -1;
    }
    Py_DECREF(type);
    return PyModule_AddFunctions(module, functions);
}

void
sb_watch_after_fork(void)
{
    running = are_made = waiting = 0;
    atomic_store(&threshold_ns, 0);
    atomic_store(&asked_ns, 0);
    pthread_mutex_init(&lock, NULL);
    for (int i = 0; i < SB_HEARTS_MAX; i++) {
        if (pulses[i].owner != NULL) {
            close(pulses[i].fd); /* written to, it would wake the parent's loop */
            pulses[i].owner = NULL;
        }
    }
    atomic_store(&gc_began_ns, 0);
}
