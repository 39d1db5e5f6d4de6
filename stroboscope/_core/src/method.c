#include "method.h"

typedef struct {
    PyObject_HEAD
    PyObject *original;
    PyObject *function; /* the C function */
} method_object;

static PyTypeObject *method_type;

static PyObject *
method_call(PyObject *object, PyObject *args, PyObject *kwargs)
{
    return PyObject_Call(((method_object *)object)->function, args, kwargs);
}

static PyObject *
method_get(PyObject *object, PyObject *instance, PyObject *Py_UNUSED(owner))
{
    if (instance == NULL || instance == Py_None) {
        return Py_NewRef(object);
    }
    return PyMethod_New(object, instance);
}

static PyObject *
method_getattro(PyObject *object, PyObject *name)
{
    return PyObject_GetAttr(((method_object *)object)->original, name);
}

static int
method_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((method_object *)object)->original);
    Py_VISIT(((method_object *)object)->function);
    return 0;
}

static int
method_clear(PyObject *object)
{
    Py_CLEAR(((method_object *)object)->original);
    Py_CLEAR(((method_object *)object)->function);
    return 0;
}

static void
method_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    method_clear(object);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyType_Slot method_slots[] = {
    {Py_tp_call, method_call},
    {Py_tp_descr_get, method_get},
    {Py_tp_getattro, method_getattro},
    {Py_tp_traverse, method_traverse},
    {Py_tp_clear, method_clear},
    {Py_tp_dealloc, method_dealloc},
    {0, NULL},
};

static PyType_Spec method_spec = {
    .name = "stroboscope._core._native.WatchedMethod",
    .basicsize = sizeof(method_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = method_slots,
};

PyObject *
sb_method_over(PyMethodDef *definition, PyObject *self, PyObject *original)
{
    PyObject *function = PyCFunction_New(definition, self);
    PyObject *method = function ? method_type->tp_alloc(method_type, 0) : NULL;
    if (method == NULL) {
        Py_XDECREF(function);
        return NULL;
    }
    ((method_object *)method)->original = Py_NewRef(original);
    ((method_object *)method)->function = function;
    return method;
}

int
sb_method_init(PyObject *module)
{
    method_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &method_spec, NULL);
    return method_type ? 0 : -1;
}
