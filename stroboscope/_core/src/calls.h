/* Calls of methods in each of CPython's calling conventions: taken apart, handed on.
 *
 * One function of ours for each method and convention; what all of them do is written
 * once, over sb_call, and compiled into each with the convention known.
 */
#ifndef SB_CALLS_H
#define SB_CALLS_H

#include <Python.h>

/* A call as it came in: one of the two ways to hand over arguments is used. */
typedef struct {
    int slot;
    int convention; /* METH_ flags */
    PyObject *self;
    PyObject *args, *kwargs;     /* tuple or the one argument; dict or NULL */
    PyObject *const *positional; /* with METH_FASTCALL */
    Py_ssize_t count;
    PyObject *names;
    PyTypeObject *defining; /* with METH_METHOD */
} sb_call;

typedef PyObject *(*sb_fast)(PyObject *, PyObject *const *, Py_ssize_t);
typedef PyObject *(*sb_fast_keywords)(PyObject *, PyObject *const *, Py_ssize_t,
                                            PyObject *);

#define SB_INLINE static inline __attribute__((always_inline))
#define SB_CAST(type, function) ((type)(void (*)(void))(function))

SB_INLINE PyObject *
sb_call_original(const sb_call *c, PyCFunction original)
{
    switch (c->convention) {
    case METH_VARARGS | METH_KEYWORDS:
        return SB_CAST(PyCFunctionWithKeywords, original)(c->self, c->args, c->kwargs);
    case METH_FASTCALL:
        return SB_CAST(sb_fast, original)(c->self, c->positional, c->count);
    case METH_FASTCALL | METH_KEYWORDS:
        return SB_CAST(sb_fast_keywords, original)(c->self, c->positional, c->count,
                                                      c->names);
    case METH_METHOD | METH_FASTCALL | METH_KEYWORDS:
        return SB_CAST(PyCMethod, original)(c->self, c->defining, c->positional, c->count,
                                         c->names);
    default: /* METH_NOARGS, METH_VARARGS, METH_O */
        return original(c->self, c->args);
    }
}

/* Whether this call of `acquire` or `get` is sure to be accepted, and to wait where it
 * has to. What is odd in any way is left to the original: it knows what to say. */
int sb_call_may_wait(const sb_call *c, int is_queue);

int sb_calls_init(void);

/* ---- one function for each method and calling convention -------------------------- */

#define SB_PLAIN(name, number, flags, act)                                                \
    static PyObject *name(PyObject *self, PyObject *args)                              \
    {                                                                                  \
        const sb_call c = {                                                               \
            .slot = number, .convention = flags, .self = self, .args = args};          \
        return act;                                                                    \
    }
#define SB_KEYWORDS(name, number, act)                                                    \
    static PyObject *name(PyObject *self, PyObject *args, PyObject *kwargs)            \
    {                                                                                  \
        const sb_call c = {.slot = number,                                                \
                        .convention = METH_VARARGS | METH_KEYWORDS,                    \
                        .self = self,                                                  \
                        .args = args,                                                  \
                        .kwargs = kwargs};                                             \
        return act;                                                                    \
    }
#define SB_FAST(name, number, act)                                                        \
    static PyObject *name(PyObject *self, PyObject *const *args, Py_ssize_t count)     \
    {                                                                                  \
        const sb_call c = {.slot = number,                                                \
                        .convention = METH_FASTCALL,                                   \
                        .self = self,                                                  \
                        .positional = args,                                            \
                        .count = count};                                               \
        return act;                                                                    \
    }
#define SB_FAST_KEYWORDS(name, number, act)                                               \
    static PyObject *name(PyObject *self, PyObject *const *args, Py_ssize_t count,     \
                          PyObject *names)                                             \
    {                                                                                  \
        const sb_call c = {.slot = number,                                                \
                        .convention = METH_FASTCALL | METH_KEYWORDS,                   \
                        .self = self,                                                  \
                        .positional = args,                                            \
                        .count = count,                                                \
                        .names = names};                                               \
        return act;                                                                    \
    }
#define SB_METHOD(name, number, act)                                                      \
    static PyObject *name(PyObject *self, PyTypeObject *defining,                      \
                          PyObject *const *args, Py_ssize_t count, PyObject *names)    \
    {                                                                                  \
        const sb_call c = {.slot = number,                                                \
                        .convention = METH_METHOD | METH_FASTCALL | METH_KEYWORDS,     \
                        .self = self,                                                  \
                        .positional = args,                                            \
                        .count = count,                                                \
                        .names = names,                                                \
                        .defining = defining};                                         \
        return act;                                                                    \
    }

typedef struct {
    int flags;
    PyCFunction function;
} sb_variant;

#define SB_VARIANT(flags, function) {flags, SB_CAST(PyCFunction, function)}

#endif
