#include "compat.h"

#include "look.h"

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
        PyCodeObject *code = sb_frame_code(frame);
        if (code == NULL) {
            continue;
        }
        places[depth].code = (PyCodeObject *)Py_NewRef(code);
        places[depth].offset = sb_code_offset(code, sb_frame_instruction(frame));
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

static PyMethodDef functions[] = {
    {"look", look, METH_O, "A thread's context and stack now, by ident."},
    {NULL, NULL, 0, NULL},
};

int
sb_look_init(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
