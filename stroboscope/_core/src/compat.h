/* Every difference between CPython versions, and the only file that sees its internals.
 *
 * The readers below run inside a signal handler, on the thread they read, under the
 * guard of guard.c: a stale pointer may fault, and then the sample is lost.
 * Source: Include/internal of CPython 3.11 to 3.15.
 */
#ifndef SB_COMPAT_H
#define SB_COMPAT_H

#define Py_BUILD_CORE 1
#include <Python.h>
/* CPython's own headers are not written for our warnings, and from 3.14 one of them calls
 * a type `object`. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#define object sb_asdl_object
#include "internal/pycore_frame.h"
#if PY_VERSION_HEX >= 0x030e0000
#include "internal/pycore_interpframe_structs.h"
#include "internal/pycore_interpframe.h"
#endif
#include "internal/pycore_code.h"
#include "internal/pycore_interp.h"
#include "internal/pycore_runtime.h"
#if PY_VERSION_HEX < 0x030c0000
#include "internal/pycore_gc.h"
#endif
#undef object
#pragma GCC diagnostic pop

#include "guard.h"

typedef struct _PyInterpreterFrame sb_frame;

/* An attribute, new reference; NULL where there is none or its lookup fails. Sets no
 * exception, makes none for what is missing. May run Python code. */
static inline PyObject *
sb_attribute_or_null(PyObject *owner, PyObject *name)
{
    PyObject *found;
#if PY_VERSION_HEX >= 0x030d0000
    int status = PyObject_GetOptionalAttr(owner, name, &found);
#else
    int status = _PyObject_LookupAttr(owner, name, &found);
#endif
    if (status < 0) {
        PyErr_Clear();
    }
    return found;
}

/* The state that holds the GIL, or NULL: this thread's own from 3.12, anybody's on 3.11. */
static inline PyThreadState *
sb_state_that_runs(void)
{
#if PY_VERSION_HEX >= 0x030d0000
    return PyThreadState_GetUnchecked();
#else
    return _PyThreadState_UncheckedGet();
#endif
}

/* NULL where no Python runs. From 3.15 the interpreter's own frame, the state's part, is
 * below all others. */
SB_READS_STALE static inline sb_frame *
sb_current_frame(PyThreadState *tstate)
{
#if PY_VERSION_HEX >= 0x030f0000
    sb_frame *frame = tstate->current_frame;
    return frame != tstate->base_frame ? frame : NULL;
#elif PY_VERSION_HEX >= 0x030d0000
    return tstate->current_frame;
#else
    return tstate->cframe ? tstate->cframe->current_frame : NULL;
#endif
}

/* The frame's executable, or NULL for the interpreter's own entry frames. */
SB_READS_STALE static inline PyObject *
sb_frame_executable(sb_frame *frame)
{
#if PY_VERSION_HEX >= 0x030e0000
    return (PyObject *)(frame->f_executable.bits & ~(uintptr_t)3);
#elif PY_VERSION_HEX >= 0x030d0000
    return frame->f_executable;
#elif PY_VERSION_HEX >= 0x030c0000
    return frame->owner == FRAME_OWNED_BY_CSTACK ? NULL : (PyObject *)frame->f_code;
#else
    return (PyObject *)frame->f_code;
#endif
}

SB_READS_STALE static inline void *
sb_frame_instruction(sb_frame *frame)
{
#if PY_VERSION_HEX >= 0x030d0000
    return frame->instr_ptr;
#else
    return frame->prev_instr;
#endif
}

SB_READS_STALE static inline sb_frame *
sb_frame_previous(sb_frame *frame)
{
    return frame->previous;
}

/* An address in the C frame of the innermost evaluation loop, 0 where none runs: of what
 * it keeps there itself. From the Python frame that it began with from 3.13 on, which
 * follows those that were called without a C call. */
SB_READS_STALE static inline uintptr_t
sb_evaluation_address(PyThreadState *tstate)
{
#if PY_VERSION_HEX >= 0x030d0000
    enum { INTERPRETERS_OWN = 3, HOPS = 4096 }; /* its name changed in 3.14 */
    const sb_frame *frame = sb_current_frame(tstate);
    for (int hop = 0; frame != NULL && hop < HOPS; frame = frame->previous, hop++) {
        if (frame->owner >= INTERPRETERS_OWN) {
            return (uintptr_t)frame;
        }
    }
    return 0;
#else
    return (uintptr_t)tstate->cframe;
#endif
}

/* Whether the frames of the innermost evaluation hang together; call it before walking.
 *
 * 3.11 and 3.12 publish an evaluation's record (tstate->cframe, on the C stack) some
 * instructions before its first field is set: a signal between them finds whatever the
 * stack held there, even a pointer to itself. From 3.13 the state
 * itself points to the frame. `hops` bounds the search.
 */
SB_READS_STALE static inline int
sb_frames_hang_together(PyThreadState *tstate, int hops)
{
#if PY_VERSION_HEX >= 0x030d0000
    (void)tstate;
    (void)hops;
    return 1;
#else
    const _PyCFrame *record = tstate->cframe;
    if (record == NULL || record->previous == NULL || record->current_frame == NULL) {
        return 1; /* no Python runs; walking finds nothing */
    }
    for (sb_frame *frame = record->current_frame; frame != NULL && hops-- > 0;
         frame = frame->previous) {
#if PY_VERSION_HEX >= 0x030c0000
        if (frame->owner == FRAME_OWNED_BY_CSTACK) {
#else
        if (frame->is_entry) {
#endif
            return frame->previous == record->previous->current_frame;
        }
    }
    return 0;
#endif
}

/* False for a code object whose last reference is gone. On 3.11 a frame stays current
 * while its code is freed; a freed block then holds an allocator link or zero where the
 * count was, and no link fits into 32 bits. From 3.12 a frame is unlinked first.
 */
SB_READS_STALE static inline int
sb_code_is_live(PyObject *object)
{
#if PY_VERSION_HEX >= 0x030e0000
    return *(uint32_t *)&object->ob_refcnt != 0;
#else
    return object->ob_refcnt > 0 && object->ob_refcnt <= (Py_ssize_t)UINT32_MAX;
#endif
}

/* The code that a frame runs; NULL where it is gone, or none of the program's: the
 * interpreter's own entry frames and, from 3.13, the clean-up after an __init__ that was
 * called without a C frame. Its first traceable instruction lies behind its end, so
 * tracebacks leave it out, too. Source: _Py_InitCleanup in Python/specialize.c.
 */
SB_READS_STALE static inline PyCodeObject *
sb_frame_code(sb_frame *frame)
{
    PyObject *object = sb_frame_executable(frame);
    if (object == NULL || Py_TYPE(object) != &PyCode_Type || !sb_code_is_live(object)) {
        return NULL;
    }
    PyCodeObject *code = (PyCodeObject *)object;
#if PY_VERSION_HEX >= 0x030d0000
    if (code->_co_firsttraceable >= Py_SIZE(code)) {
        return NULL;
    }
#endif
    return code;
}

/* Byte offset of the instruction in its code, or -1 where it cannot be one. */
SB_READS_STALE static inline int32_t
sb_code_offset(PyCodeObject *code, void *instruction)
{
    ptrdiff_t offset = (char *)instruction - (char *)_PyCode_CODE(code);
    ptrdiff_t size = Py_SIZE(code) * (ptrdiff_t)sizeof(_Py_CODEUNIT);
    return offset >= 0 && offset < size ? (int32_t)offset : -1;
}

/* Whether the object of a weak reference is gone. */
static inline int
sb_weakref_is_dead(PyObject *weak)
{
#if PY_VERSION_HEX >= 0x030d0000
    PyObject *object;
    int status = PyWeakref_GetRef(weak, &object);
    Py_XDECREF(object);
    return status == 0;
#else
    return PyWeakref_GET_OBJECT(weak) == Py_None;
#endif
}

/* What an RLock knows of its holder. Source: rlockobject in Modules/_threadmodule.c, 3.11
 * to 3.13; whoever reads it proves it first. From 3.14 the type says it by methods. */
#if PY_VERSION_HEX < 0x030e0000
#define SB_RLOCK_IS_MIRRORED 1
typedef struct {
    PyObject_HEAD
    void *lock;
    unsigned long owner;
    unsigned long count;
} sb_rlock;
#endif

/* The line of a byte offset in its code, read from the table itself: CPython's own
 * function may allocate. The first line where it cannot be told.
 * Source: Objects/locations.md, the same from 3.11 to 3.15. */
SB_READS_STALE static inline int
sb_code_line(PyCodeObject *code, int32_t offset)
{
    PyObject *table = code->co_linetable;
    int line = code->co_firstlineno;
    if (offset < 0 || table == NULL || Py_TYPE(table) != &PyBytes_Type) {
        return line;
    }
    const unsigned char *at = (const unsigned char *)((PyBytesObject *)table)->ob_sval;
    const unsigned char *end = at + Py_SIZE(table);
    int32_t begin = 0;
    while (at < end) {
        unsigned first = *at++, kind = first >> 3 & 15;
        begin += (int32_t)((first & 7) + 1) * (int32_t)sizeof(_Py_CODEUNIT);
        if (kind == 13 || kind == 14) { /* a signed varint: the low bit is the sign */
            unsigned delta = 0, shift = 0, more;
            do {
                more = at < end ? *at++ : 0;
                delta |= shift < 32 ? (more & 63) << shift : 0;
                shift += 6;
            } while (more & 64);
            line += delta & 1 ? -(int)(delta >> 1) : (int)(delta >> 1);
        }
        else if (kind >= 10 && kind <= 12) {
            line += (int)kind - 10;
        }
        if (offset < begin) {
            return kind == 15 ? code->co_firstlineno : line;
        }
        while (at < end && !(*at & 128)) {
            at++;
        }
    }
    return line;
}

/* Call `hook` with the GIL before a code object of this interpreter goes away; where
 * the hook takes a reference, the object stays. Watchers promise that too.
 * Returns 0, or -1 with an exception. 3.11 has no watchers: there the type's
 * destructor is replaced, which is what a watcher amounts to.
 */
typedef void (*sb_code_death_hook)(void);
static sb_code_death_hook sb_death_hook;

#if PY_VERSION_HEX >= 0x030c0000
static inline int
sb_code_event(PyCodeEvent event, PyCodeObject *Py_UNUSED(code))
{
    if (event == PY_CODE_EVENT_DESTROY) {
        sb_death_hook();
    }
    return 0;
}

static inline int
sb_watch_code_deaths(sb_code_death_hook hook)
{
    static int watcher = -1;
    sb_death_hook = hook;
    if (watcher < 0) {
        watcher = PyCode_AddWatcher(sb_code_event);
    }
    return watcher < 0 ? -1 : 0;
}
#else
static destructor sb_code_dealloc_original;

static inline void
sb_code_dealloc(PyObject *code)
{
    sb_death_hook();
    if (Py_REFCNT(code) == 0) {
        sb_code_dealloc_original(code);
    }
}

static inline int
sb_watch_code_deaths(sb_code_death_hook hook)
{
    sb_death_hook = hook;
    if (PyCode_Type.tp_dealloc != sb_code_dealloc) {
        sb_code_dealloc_original = PyCode_Type.tp_dealloc;
        PyCode_Type.tp_dealloc = sb_code_dealloc;
    }
    return 0;
}
#endif

/* ---- generators at rest, with the GIL --------------------------------------------- */

/* The frame inside a generator, coroutine or async generator; NULL once it is finished.
 * `*state`: 1 running, 0 suspended, -1 not begun. */
static inline sb_frame *
sb_frame_of_generator(PyObject *object, int *state)
{
    PyGenObject *generator = (PyGenObject *)object;
    int now = generator->gi_frame_state;
#if PY_VERSION_HEX >= 0x030d0000
    if (FRAME_STATE_FINISHED(now)) {
#else
    if (now >= FRAME_COMPLETED) {
#endif
        return NULL;
    }
    *state = now == FRAME_EXECUTING ? 1 : now == FRAME_CREATED ? -1 : 0;
#if PY_VERSION_HEX >= 0x030e0000
    return &generator->gi_iframe;
#else
    return (sb_frame *)generator->gi_iframe;
#endif
}

/* The memory that the GIL's waiters wait on: a thread in a futex call with an address
 * in here waits for the GIL. */
static inline const char *
sb_gil_memory(size_t *size)
{
    *size = sizeof(struct _gil_runtime_state);
#if PY_VERSION_HEX >= 0x030c0000
    return (const char *)PyInterpreterState_Get()->ceval.gil;
#else
    return (const char *)&_PyRuntime.ceval.gil;
#endif
}

/* Who holds the GIL, or NULL. Without the GIL: a state that may be gone by now. */
SB_READS_STALE static inline PyThreadState *
sb_gil_holder(PyInterpreterState *interpreter)
{
#if PY_VERSION_HEX >= 0x030c0000
    struct _gil_runtime_state *gil = interpreter->ceval.gil;
#else
    (void)interpreter;
    struct _gil_runtime_state *gil = &_PyRuntime.ceval.gil;
#endif
#if PY_VERSION_HEX >= 0x030d0000
    return gil != NULL && gil->locked == 1 ? gil->last_holder : NULL;
#else
    return gil != NULL && _Py_atomic_load_relaxed(&gil->locked) == 1
               ? (PyThreadState *)_Py_atomic_load_relaxed(&gil->last_holder)
               : NULL;
#endif
}

/* Whether a state that may be gone is that of the main thread, as pending calls know it.
 * From 3.13 they are told to a state by its address, which after a fork by another thread
 * is that of a state that is gone: to give one is safe only while this is true. */
SB_READS_STALE static inline int
sb_is_main_state(PyThreadState *tstate)
{
#if PY_VERSION_HEX >= 0x030d0000
    return tstate == _PyRuntime.main_tstate;
#else
    return tstate->thread_id == _PyRuntime.main_thread;
#endif
}

/* Have the thread that runs Python look between two instructions whether it is asked for
 * anything. Without the GIL. Before 3.13 an interpreter that is given a pending call by
 * another thread than the main one does not look before it takes the GIL again. */
static inline void
sb_have_look_up(void)
{
#if PY_VERSION_HEX < 0x030d0000
    _Py_atomic_store_relaxed(&PyInterpreterState_Main()->ceval.eval_breaker, 1);
#endif
}

/* Call `visit` with each object the garbage collector tracks, until it answers 0. It may
 * run no Python code, and neither make nor end an object. Holds the GIL. */
static inline void
sb_visit_tracked(int (*visit)(PyObject *, void *), void *argument)
{
#if PY_VERSION_HEX >= 0x030c0000
    PyUnstable_GC_VisitObjects(visit, argument);
#else
    struct _gc_runtime_state *state = &PyInterpreterState_Get()->gc;
    for (int i = 0; i < NUM_GENERATIONS; i++) {
        PyGC_Head *head = &state->generations[i].head;
        for (PyGC_Head *one = _PyGCHead_NEXT(head); one != head; one = _PyGCHead_NEXT(one)) {
            if (!visit((PyObject *)(one + 1), argument)) {
                return;
            }
        }
    }
#endif
}

#endif
