"""A C extension whose calls are known, built while tests run: a calls b calls c."""

import importlib.util
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

#: `abc` and `xy` burn in the innermost of three and of two functions; `deep` does so
#: below as many frames, each of more than a KiB, as it is told.
SOURCE = r"""
#include <Python.h>
#define OWN __attribute__((noinline)) static
#define AND_RETURN(value) __asm__ volatile("" ::: "memory"); return value

OWN long c_innermost(long n) {
    volatile long sum = 0;
    for (long i = 0; i < n; i++) { sum += i; }
    return sum;
}
OWN long b_middle(long n) { long found = c_innermost(n); AND_RETURN(found); }
OWN long a_outermost(long n) { long found = b_middle(n); AND_RETURN(found); }

OWN long y_innermost(long n) {
    volatile long sum = 0;
    for (long i = 0; i < n; i++) { sum -= i; }
    return sum;
}
OWN long x_outermost(long n) { long found = y_innermost(n); AND_RETURN(found); }

OWN long descend(long depth, long n) {
    volatile char room[1100];
    room[depth % 1000] = 1;
    long found = depth ? descend(depth - 1, n) : c_innermost(n);
    AND_RETURN(found + room[depth % 1000]);
}

static PyObject *abc(PyObject *m, PyObject *n) { return PyLong_FromLong(a_outermost(PyLong_AsLong(n))); }
static PyObject *xy(PyObject *m, PyObject *n) { return PyLong_FromLong(x_outermost(PyLong_AsLong(n))); }
static PyObject *deep(PyObject *m, PyObject *args) {
    long depth, n;
    if (!PyArg_ParseTuple(args, "ll", &depth, &n)) { return NULL; }
    return PyLong_FromLong(descend(depth, n));
}
static PyMethodDef METHODS[] = {
    {"abc", abc, METH_O, ""}, {"xy", xy, METH_O, ""}, {"deep", deep, METH_VARARGS, ""}, {0}};
static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, .m_name = "known_calls", .m_size = -1, .m_methods = METHODS};
PyMODINIT_FUNC PyInit_known_calls(void) { return PyModule_Create(&MODULE); }
"""


def build(folder: Path, *, stripped: bool = False) -> Path:
    """The library, in a folder. Without symbols of its own functions if `stripped`."""
    source, library = folder / "known_calls.c", folder / "known_calls.so"
    source.write_text(SOURCE)
    include = sysconfig.get_path("include")
    command = ["cc", "-O2", "-fPIC", "-shared", f"-I{include}", str(source)]
    command += ["-s"] if stripped else []
    subprocess.run([*command, "-o", str(library)], check=True, timeout=60)
    return library


def load(library: Path) -> ModuleType:
    """The module in it."""
    spec = importlib.util.spec_from_file_location("known_calls", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
