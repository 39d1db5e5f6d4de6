#define _GNU_SOURCE
#include "heart.h"

#include <structmember.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "sampler.h"
#include "watch.h"

sb_pulse sb_pulses[SB_HEARTS_MAX];
pthread_mutex_t sb_pulse_lock = PTHREAD_MUTEX_INITIALIZER;
_Atomic uint64_t sb_threshold_ns;

/* ---- the collector's pauses, which no request is guilty of ------------------------ */

static _Atomic uint64_t gc_began_ns, gc_total_ns; /* written with the GIL */

uint64_t
sb_gc_spent_ns(void)
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
            atomic_store(&gc_total_ns, sb_gc_spent_ns());
        }
        atomic_store(&gc_began_ns, is_start ? sb_now_ns() : 0);
    }
    Py_RETURN_NONE;
}

static PyObject *
gc_spent(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLongLong(sb_gc_spent_ns());
}

/* ---- hearts ----------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    sb_pulse *pulse; /* NULL once stopped */
    unsigned long long beats, late_beats;
    unsigned long long late_ns, late_gc_ns; /* of the latest late beat */
    unsigned long ident;
    PyObject *weak_references;
} heart;

static sb_pulse *
own_pulse(const heart *self)
{
    return self->pulse != NULL && self->pulse->owner == self ? self->pulse : NULL;
}

/* A thread's state goes: nobody may look at it any more. */
static void
forget_state(PyObject *capsule)
{
    sb_pulse *self = PyCapsule_GetPointer(capsule, NULL);
    pthread_mutex_lock(&sb_pulse_lock);
    if (self->tstate == PyCapsule_GetContext(capsule)) {
        self->tstate = NULL;
    }
    pthread_mutex_unlock(&sb_pulse_lock);
}

/* Hear of the end of the calling thread: what its state's dictionary holds is dropped
 * before the state is freed. Without memory the state stays unknown. */
static PyThreadState *
remembered_state(sb_pulse *self)
{
    PyThreadState *tstate = PyThreadState_Get();
    PyObject *dict = PyThreadState_GetDict(); /* borrowed */
    PyObject *key = PyUnicode_FromFormat("stroboscope.pulse.%d", (int)(self - sb_pulses));
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
    sb_pulse *at = own_pulse(self);
    if (at == NULL) {
        Py_RETURN_NONE;
    }
    PyThreadState *tstate = PyThreadState_Get();
    if (self->ident != PyThread_get_thread_ident()) {
        self->ident = PyThread_get_thread_ident();
        tstate = remembered_state(at);
    }
    uint64_t count, now = sb_now_ns(), gc_now = sb_gc_spent_ns();
    pthread_mutex_lock(&sb_pulse_lock);
    ssize_t got = read(at->fd, &count, sizeof count);
    (void)got; /* nothing there: somebody else called */
    uint64_t asked = at->asked_ns, gc = gc_now - at->gc_at_ns;
    if (at->is_resting) {
        sb_watch_hurry(); /* the ticker may sleep longer than it now should */
    }
    at->asked_ns = 0;
    at->is_noticed = at->is_resting = 0;
    at->tstate = tstate;
    at->idle_frame = tstate != NULL ? sb_current_frame(tstate) : NULL;
    pthread_mutex_unlock(&sb_pulse_lock);
    self->beats++;
    if (asked != 0 && now > asked + atomic_load(&sb_threshold_ns)) {
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
    pthread_mutex_lock(&sb_pulse_lock);
    for (int i = 0; fd >= 0 && i < SB_HEARTS_MAX && self->pulse == NULL; i++) {
        if (sb_pulses[i].owner == NULL) {
            memset(&sb_pulses[i], 0, sizeof sb_pulses[i]);
            sb_pulses[i].owner = self;
            sb_pulses[i].fd = fd;
            sb_pulses[i].is_resting = 1;
            self->pulse = &sb_pulses[i];
        }
    }
    pthread_mutex_unlock(&sb_pulse_lock);
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
    pthread_mutex_lock(&sb_pulse_lock);
    sb_pulse *at = own_pulse(self);
    if (at != NULL) {
        close(at->fd);
        at->owner = NULL;
    }
    self->pulse = NULL;
    pthread_mutex_unlock(&sb_pulse_lock);
    Py_RETURN_NONE;
}

/* Ask for nothing before the next beat: the loop does not run. */
static PyObject *
heart_rest(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    pthread_mutex_lock(&sb_pulse_lock);
    sb_pulse *at = own_pulse((heart *)object);
    if (at != NULL) {
        at->asked_ns = 0;
        at->is_resting = 1;
    }
    pthread_mutex_unlock(&sb_pulse_lock);
    Py_RETURN_NONE;
}

static PyObject *
heart_fileno(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    sb_pulse *at = own_pulse((heart *)object);
    return PyLong_FromLong(at != NULL ? at->fd : -1);
}

/* By how much its beat is late now, in ns; 0 when it is not beyond the threshold. */
static PyObject *
heart_get_overdue(PyObject *object, void *Py_UNUSED(closure))
{
    pthread_mutex_lock(&sb_pulse_lock);
    sb_pulse *at = own_pulse((heart *)object);
    uint64_t asked = at != NULL ? at->asked_ns : 0;
    pthread_mutex_unlock(&sb_pulse_lock);
    uint64_t now = sb_now_ns();
    int is_late = asked != 0 && now > asked + atomic_load(&sb_threshold_ns);
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

/* ---- the module ------------------------------------------------------------------- */

static PyMethodDef functions[] = {
    {"gc_phase", (PyCFunction)(void (*)(void))gc_phase, METH_FASTCALL,
     "Goes into gc.callbacks."},
    {"gc_spent", gc_spent, METH_NOARGS, "Nanoseconds of collections, since it did."},
    {NULL, NULL, 0, NULL},
};

int
sb_hearts_init(PyObject *module)
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
sb_hearts_after_fork(void)
{
    pthread_mutex_init(&sb_pulse_lock, NULL);
    for (int i = 0; i < SB_HEARTS_MAX; i++) {
        if (sb_pulses[i].owner != NULL) {
            close(sb_pulses[i].fd); /* written to, it would wake the parent's loop */
            sb_pulses[i].owner = NULL;
        }
    }
    atomic_store(&gc_began_ns, 0);
}
