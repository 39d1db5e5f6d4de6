#include "compat.h"

#include "locks.h"

#include "calls.h"
#include "contention.h"
#include "extras.h"
#include "methods.h"

/* ---- the methods ------------------------------------------------------------------ */

typedef enum { LOCK, RLOCK, QUEUE, TYPES } type_id;

enum {
    LOCK_ACQUIRE,
    LOCK_ACQUIRE_LOCK,
    LOCK_ENTER,
    LOCK_RELEASE,
    LOCK_RELEASE_LOCK,
    LOCK_EXIT,
    RLOCK_ACQUIRE,
    RLOCK_ENTER,
    RLOCK_RELEASE,
    RLOCK_EXIT,
    RLOCK_RELEASE_SAVE,
    RLOCK_ACQUIRE_RESTORE,
    QUEUE_GET,
    SLOTS
};

/* What was there before; `definition` NULL where nothing is watched. */
static struct {
    PyMethodDef *definition;
    PyCFunction original, ours;
} slots[SLOTS];

/* Methods that are asked, not watched. */
static struct {
    PyTypeObject *type; /* strong */
    PyCFunction locked, is_owned, is_empty;
    int is_watched;
} types[TYPES];

static PyObject *try_arguments; /* (False,) */

SB_INLINE PyObject *
original(const sb_call *c)
{
    return sb_call_original(c, slots[c->slot].original);
}

/* The answer of a method that returns a bool and cannot fail. */
SB_INLINE int
says_yes(PyCFunction method, PyObject *self)
{
    PyObject *answer = method(self, NULL);
    int yes = answer == Py_True;
    Py_XDECREF(answer);
    return yes;
}

/* Whether the running thread would get it at once. Somebody who was woken and waits for
 * the GIL may have it all the same; he has a record then. */
SB_INLINE int
is_free(type_id type, PyObject *self)
{
    if (type == LOCK) {
        return !says_yes(types[LOCK].locked, self);
    }
#ifdef SB_RLOCK_IS_MIRRORED
    const sb_rlock *lock = (sb_rlock *)self;
    return lock->count == 0 || lock->owner == PyThread_get_thread_ident();
#else
    return !says_yes(types[RLOCK].locked, self) ||
           says_yes(types[RLOCK].is_owned, self);
#endif
}

SB_INLINE int
is_contended(PyObject *self)
{
    return sb_contended_locks != 0 && sb_lock_is_contended(self);
}

static int
is_mine(PyObject *rlock)
{
#ifdef SB_RLOCK_IS_MIRRORED
    const sb_rlock *lock = (sb_rlock *)rlock;
    return lock->count > 0 && lock->owner == PyThread_get_thread_ident();
#else
    return says_yes(types[RLOCK].is_owned, rlock);
#endif
}

/* These tables are the process's, and other interpreters have a GIL of their own. */
static int
in_main_interpreter(void)
{
    return PyInterpreterState_Get() == PyInterpreterState_Main();
}

/* ---- acquiring -------------------------------------------------------------------- */

/* The original's own non-blocking acquire. New reference to a bool, or NULL. */
static PyObject *
try_once(type_id type, PyObject *self)
{
    int slot = type == LOCK ? LOCK_ACQUIRE : RLOCK_ACQUIRE;
    int flags = slots[slot].definition->ml_flags;
    PyObject *no = Py_False;
    sb_call c = {.slot = slot, .convention = flags, .self = self, .args = try_arguments};
    if (flags & METH_FASTCALL) {
        c.positional = &no;
        c.count = 1;
    }
    return original(&c);
}

static PyObject *
wait_timed(const sb_call *c, sb_site site)
{
    if (site == SB_SITE_PLUMBING) {
        return original(c);
    }
    sb_slice traced = sb_extras_wait_begins(site == SB_SITE_LOCK, sb_site_code);
    int64_t begin_ns = sb_now_ns();
    int joined = site == SB_SITE_LOCK && sb_wait_begins(c->self, begin_ns);
    PyObject *result = original(c);
    int64_t end_ns = sb_now_ns();
    if (joined) {
        int got = result != NULL && result != Py_False;
        sb_wait_ends(c->self, end_ns, got ? SB_WAIT_ACQUIRED : SB_WAIT_GIVEN_UP);
    }
    sb_charge_block_here(end_ns - begin_ns);
    sb_extras_wait_ends(&traced);
    return result;
}

static __attribute__((noinline)) PyObject *
acquire_slowly(const sb_call *c, type_id type)
{
    if (!in_main_interpreter()) {
        return original(c);
    }
    int waits = sb_call_may_wait(c, 0);
    PyObject *result = waits ? try_once(type, c->self) : original(c);
    if (!waits || result != Py_False) {
        if (result == Py_True) {
            sb_lock_taken(c->self);
        }
        return result;
    }
    Py_DECREF(result);
    return wait_timed(c, sb_site_of_current());
}

SB_INLINE PyObject *
acquire(const sb_call *c, type_id type)
{
    if (!is_contended(c->self) && is_free(type, c->self)) {
        return original(c);
    }
    return acquire_slowly(c, type);
}

/* How often to acquire in place of _acquire_restore((count, owner)), or 0. */
static long
depth_of(const sb_call *c)
{
    enum { DEPTH_MAX = 8 };
    PyObject *saved = c->args;
    if (c->convention == METH_VARARGS && PyTuple_GET_SIZE(saved) == 1) {
        saved = PyTuple_GET_ITEM(saved, 0);
    }
    if (!PyTuple_CheckExact(saved) || PyTuple_GET_SIZE(saved) != 2 ||
        !PyLong_CheckExact(PyTuple_GET_ITEM(saved, 0))) {
        return 0;
    }
    int overflow;
    long depth = PyLong_AsLongAndOverflow(PyTuple_GET_ITEM(saved, 0), &overflow);
    return overflow || depth < 1 || depth > DEPTH_MAX ? 0 : depth;
}

/* What Condition.wait does to its RLock when it wakes. The owner it names is the running
 * thread, so acquiring as often comes to the same. */
static __attribute__((noinline)) PyObject *
restore_slowly(const sb_call *c)
{
    long depth = in_main_interpreter() ? depth_of(c) : 0;
    PyObject *result = depth ? try_once(RLOCK, c->self) : NULL;
    if (result == NULL) {
        PyErr_Clear();
        return original(c);
    }
    int got = result == Py_True;
    Py_DECREF(result);
    if (!got) {
        /* The news has come; now it waits for the holder. */
        sb_site site = sb_site_of_current();
        return wait_timed(c, site == SB_SITE_SIGNAL ? SB_SITE_LOCK : site);
    }
    sb_lock_taken(c->self);
    while (--depth > 0) {
        Py_XDECREF(try_once(RLOCK, c->self)); /* it is ours: cannot fail */
    }
    Py_RETURN_NONE;
}

SB_INLINE PyObject *
restore(const sb_call *c)
{
    if (!is_contended(c->self) && is_free(RLOCK, c->self)) {
        return original(c);
    }
    return restore_slowly(c);
}

SB_INLINE PyObject *
get(const sb_call *c)
{
    if (!says_yes(types[QUEUE].is_empty, c->self) || !sb_call_may_wait(c, 1) ||
        !in_main_interpreter()) {
        return original(c);
    }
    sb_site site = sb_site_of_current();
    return wait_timed(c, site == SB_SITE_LOCK ? SB_SITE_SIGNAL : site);
}

/* ---- letting go ------------------------------------------------------------------- */

static __attribute__((noinline)) void
released(PyObject *self, type_id type)
{
    if (in_main_interpreter() && (type == LOCK || !is_mine(self))) {
        sb_lock_released(self);
    }
}

SB_INLINE PyObject *
release(const sb_call *c, type_id type)
{
    PyObject *result = original(c);
    if (result != NULL && is_contended(c->self)) {
        released(c->self, type);
    }
    return result;
}

/* ---- one function for each method and calling convention -------------------------- */

/* 3.11 to 3.13 take VARARGS | KEYWORDS to acquire, 3.14 FASTCALL and NOARGS. */
#define ACQUIRER(name, number, type)                                                   \
    SB_PLAIN(name##_none, number, METH_NOARGS, acquire(&c, type))                         \
    SB_KEYWORDS(name##_keywords, number, acquire(&c, type))                               \
    SB_FAST_KEYWORDS(name##_fast_keywords, number, acquire(&c, type))
#define RELEASER(name, number, type)                                                   \
    SB_PLAIN(name##_none, number, METH_NOARGS, release(&c, type))                         \
    SB_PLAIN(name##_varargs, number, METH_VARARGS, release(&c, type))                     \
    SB_FAST(name##_fast, number, release(&c, type))

ACQUIRER(lock_acquire, LOCK_ACQUIRE, LOCK)
ACQUIRER(lock_acquire_lock, LOCK_ACQUIRE_LOCK, LOCK)
ACQUIRER(lock_enter, LOCK_ENTER, LOCK)
RELEASER(lock_release, LOCK_RELEASE, LOCK)
RELEASER(lock_release_lock, LOCK_RELEASE_LOCK, LOCK)
RELEASER(lock_exit, LOCK_EXIT, LOCK)
ACQUIRER(rlock_acquire, RLOCK_ACQUIRE, RLOCK)
ACQUIRER(rlock_enter, RLOCK_ENTER, RLOCK)
RELEASER(rlock_release, RLOCK_RELEASE, RLOCK)
RELEASER(rlock_exit, RLOCK_EXIT, RLOCK)
RELEASER(rlock_release_save, RLOCK_RELEASE_SAVE, RLOCK)
SB_PLAIN(restore_varargs, RLOCK_ACQUIRE_RESTORE, METH_VARARGS, restore(&c))
SB_PLAIN(restore_object, RLOCK_ACQUIRE_RESTORE, METH_O, restore(&c))
SB_METHOD(get_method, QUEUE_GET, get(&c))
SB_FAST_KEYWORDS(get_fast_keywords, QUEUE_GET, get(&c))

#define ACQUIRERS(name)                                                                \
    {                                                                                  \
        SB_VARIANT(METH_NOARGS, name##_none),                                          \
            SB_VARIANT(METH_VARARGS | METH_KEYWORDS, name##_keywords),                 \
            SB_VARIANT(METH_FASTCALL | METH_KEYWORDS, name##_fast_keywords)            \
    }
#define RELEASERS(name)                                                                \
    {                                                                                  \
        SB_VARIANT(METH_NOARGS, name##_none),                                          \
            SB_VARIANT(METH_VARARGS, name##_varargs),                                  \
            SB_VARIANT(METH_FASTCALL, name##_fast)                                     \
    }

static const struct {
    type_id type;
    const char *name;
    sb_variant variants[3];
} methods_watched[SLOTS] = {
    [LOCK_ACQUIRE] = {LOCK, "acquire", ACQUIRERS(lock_acquire)},
    [LOCK_ACQUIRE_LOCK] = {LOCK, "acquire_lock", ACQUIRERS(lock_acquire_lock)},
    [LOCK_ENTER] = {LOCK, "__enter__", ACQUIRERS(lock_enter)},
    [LOCK_RELEASE] = {LOCK, "release", RELEASERS(lock_release)},
    [LOCK_RELEASE_LOCK] = {LOCK, "release_lock", RELEASERS(lock_release_lock)},
    [LOCK_EXIT] = {LOCK, "__exit__", RELEASERS(lock_exit)},
    [RLOCK_ACQUIRE] = {RLOCK, "acquire", ACQUIRERS(rlock_acquire)},
    [RLOCK_ENTER] = {RLOCK, "__enter__", ACQUIRERS(rlock_enter)},
    [RLOCK_RELEASE] = {RLOCK, "release", RELEASERS(rlock_release)},
    [RLOCK_EXIT] = {RLOCK, "__exit__", RELEASERS(rlock_exit)},
    [RLOCK_RELEASE_SAVE] = {RLOCK, "_release_save", RELEASERS(rlock_release_save)},
    [RLOCK_ACQUIRE_RESTORE] = {RLOCK,
                               "_acquire_restore",
                               {SB_VARIANT(METH_VARARGS, restore_varargs),
                                SB_VARIANT(METH_O, restore_object)}},
    [QUEUE_GET] = {QUEUE,
                   "get",
                   {SB_VARIANT(METH_METHOD | METH_FASTCALL | METH_KEYWORDS, get_method),
                    SB_VARIANT(METH_FASTCALL | METH_KEYWORDS, get_fast_keywords)}},
};

/* ---- finding the tables ----------------------------------------------------------- */

/* All methods of a type or none. */
static int
find_methods(type_id id)
{
    for (int slot = 0; slot < SLOTS; slot++) {
        if (methods_watched[slot].type != id) {
            continue;
        }
        PyMethodDef *definition =
            sb_method_of(types[id].type, methods_watched[slot].name);
        PyCFunction ours = NULL;
        for (int i = 0; definition != NULL && i < 3; i++) {
            if (methods_watched[slot].variants[i].function != NULL &&
                methods_watched[slot].variants[i].flags == definition->ml_flags) {
                ours = methods_watched[slot].variants[i].function;
            }
        }
        if (ours == NULL || !sb_method_is_writable(definition)) {
            return 0;
        }
        slots[slot].definition = definition;
        slots[slot].original = definition->ml_meth;
        slots[slot].ours = ours;
    }
    return 1;
}

/* Whether an RLock's fields are where they are thought to be. Source of the numbers: an
 * RLock of this interpreter, acquired three times. */
static int
rlock_reads_right(void)
{
#ifdef SB_RLOCK_IS_MIRRORED
    PyObject *lock = PyObject_CallNoArgs((PyObject *)types[RLOCK].type);
    int right = lock != NULL && ((sb_rlock *)lock)->count == 0;
    for (int i = 0; i < 3 && right; i++) {
        PyObject *result = try_once(RLOCK, lock);
        right = result == Py_True;
        Py_XDECREF(result);
    }
    right = right && ((sb_rlock *)lock)->count == 3 &&
            ((sb_rlock *)lock)->owner == PyThread_get_thread_ident();
    for (int i = 0; i < 3 && right; i++) {
        PyObject *result = PyObject_CallMethod(lock, "release", NULL);
        right = result != NULL;
        Py_XDECREF(result);
    }
    right = right && ((sb_rlock *)lock)->count == 0;
    PyErr_Clear();
    Py_XDECREF(lock);
    return right;
#else
    return types[RLOCK].locked != NULL && types[RLOCK].is_owned != NULL;
#endif
}

static int
can_watch(type_id id)
{
    PyTypeObject *type = types[id].type;
    types[id].locked = sb_method_asked(type, "locked");
    types[id].is_owned = sb_method_asked(type, "_is_owned");
    types[id].is_empty = sb_method_asked(type, "empty");
    if (!find_methods(id)) {
        return 0;
    }
    switch (id) {
    case LOCK:
        return types[LOCK].locked != NULL;
    case RLOCK:
        return rlock_reads_right();
    default:
        return types[QUEUE].is_empty != NULL;
    }
}

static PyObject *
watched(void)
{
    return Py_BuildValue("(OOO)", types[LOCK].is_watched ? Py_True : Py_False,
                         types[RLOCK].is_watched ? Py_True : Py_False,
                         types[QUEUE].is_watched ? Py_True : Py_False);
}

/* locks_attach(lock type, rlock type, queue type): find their methods, once. Returns
 * which of the three can be watched here. */
static PyObject *
locks_attach(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *given[TYPES];
    if (!PyArg_ParseTuple(args, "O!O!O!", &PyType_Type, &given[LOCK], &PyType_Type,
                          &given[RLOCK], &PyType_Type, &given[QUEUE])) {
        return NULL;
    }
#ifndef Py_GIL_DISABLED
    for (int id = 0; id < TYPES && in_main_interpreter(); id++) {
        if (types[id].type == NULL) {
            types[id].type = (PyTypeObject *)Py_NewRef(given[id]);
            types[id].is_watched = can_watch((type_id)id);
        }
    }
#endif
    return watched();
}

/* locks_switch(on): lead the methods here, or back. */
static PyObject *
locks_switch(PyObject *Py_UNUSED(module), PyObject *argument_on)
{
    int on = PyObject_IsTrue(argument_on);
    if (on < 0) {
        return NULL;
    }
    for (int slot = 0; slot < SLOTS; slot++) {
        if (types[methods_watched[slot].type].is_watched) {
            slots[slot].definition->ml_meth =
                on ? slots[slot].ours : slots[slot].original;
        }
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"locks_attach", locks_attach, METH_VARARGS, "Find the methods of these types."},
    {"locks_switch", locks_switch, METH_O, "Watch all locks from now on, or none."},
    {NULL, NULL, 0, NULL},
};

int
sb_locks_init(PyObject *module)
{
    try_arguments = PyTuple_Pack(1, Py_False);
    if (try_arguments == NULL || sb_calls_init() < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
