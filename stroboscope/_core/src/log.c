/* `log`: a line of the running task, formatted only when it is recorded. */
#include "trace.h"

/* The first characters of the formatted text as UTF-8; of the bare format where it does
 * not fit its arguments. NULL with an exception that is not an Exception (a keyboard
 * interrupt), or without one when there is no text at all. */
static PyObject *
formatted(PyObject *format, PyObject *const *args, Py_ssize_t count)
{
    PyObject *text = NULL;
    if (count > 0 && PyUnicode_Check(format)) {
        PyObject *tuple = PyTuple_New(count);
        for (Py_ssize_t i = 0; tuple != NULL && i < count; i++) {
            PyTuple_SET_ITEM(tuple, i, Py_NewRef(args[i]));
        }
        text = tuple ? PyUnicode_Format(format, tuple) : NULL;
        Py_XDECREF(tuple);
        if (text == NULL && !PyErr_ExceptionMatches(PyExc_Exception)) {
            return NULL;
        }
        PyErr_Clear();
    }
    if (text == NULL) {
        text = PyUnicode_Check(format) ? Py_NewRef(format)
                                       : PyUnicode_FromString("(no text)");
    }
    PyObject *cut = text ? PyUnicode_Substring(text, 0, SB_TEXT_BYTES_MAX) : NULL;
    PyObject *bytes = cut ? PyUnicode_AsEncodedString(cut, "utf-8", "replace") : NULL;
    Py_XDECREF(text);
    Py_XDECREF(cut);
    if (bytes == NULL) {
        PyErr_Clear();
    }
    return bytes;
}

/* log(category, format, *args): formatted only when it is recorded. */
static PyObject *
trace_log(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count < 2 || !PyUnicode_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "log(category, format, *args)");
        return NULL;
    }
    if (!sb_trace.wanted) {
        Py_RETURN_NONE;
    }
    int is_declined;
    PyThreadState *tstate = PyThreadState_Get();
    sb_cell *task = sb_trace_task(tstate, &is_declined);
    if (is_declined) {
        Py_RETURN_NONE;
    }
    uint64_t serial = task ? task->serial : 0;
    uint32_t generation = sb_trace.generation;
    PyObject *bytes = formatted(args[1], args + 2, count - 2);
    if (bytes == NULL && PyErr_Occurred()) {
        return NULL;
    }
    /* Formatting ran the user's code: the recorder may be another one by now. */
    if (bytes != NULL && sb_trace.wanted && sb_trace.generation == generation) {
        uint32_t position = sb_box_add_text(sb_trace.box, PyBytes_AS_STRING(bytes),
                                            (size_t)PyBytes_GET_SIZE(bytes));
        sb_trace_put(sb_trace_now_ns(), SB_LOG, serial, sb_trace_name(args[0], 0),
                     position, sb_trace_lane(tstate));
    }
    Py_XDECREF(bytes);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"log", (PyCFunction)(void (*)(void))trace_log, METH_FASTCALL,
     "log(category, format, *args): a line of the running task."},
    {NULL, NULL, 0, NULL},
};

int
sb_log_init(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
