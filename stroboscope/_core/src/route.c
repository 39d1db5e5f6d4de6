/* What a request's task is called: by the route that its framework left in ASGI's scope,
 * else as the middleware says. */
#include "compat.h"

#include "trace.h"

static PyObject *app_root_path, *fastapi, *context_key, *path_format, *route_key, *routes;

/* An entry of a dict by an interned key, borrowed, or NULL. Sets no exception. */
static PyObject *
entry(PyObject *dict, PyObject *key)
{
    PyObject *found = PyDict_GetItemWithError(dict, key);
    if (found == NULL) {
        PyErr_Clear();
    }
    return found;
}

/* An object's `path_format`, if it is a plain str of some length: new reference, or NULL.
 * Sets no exception; may run Python code, which may change any dict. */
static PyObject *
path_of(PyObject *object)
{
    PyObject *path = sb_attribute_or_null(object, path_format);
    if (path != NULL && (!PyUnicode_CheckExact(path) || PyUnicode_GET_LENGTH(path) == 0)) {
        Py_CLEAR(path);
    }
    return path;
}

/* What `middleware.routes.starlette_template` says of a route that is not in a mount; a
 * recorded request asks twice, and there it is seven calls. */
PyObject *
sb_route_template(PyObject *scope)
{
    if (!PyDict_CheckExact(scope) || entry(scope, app_root_path) != NULL) {
        return NULL;
    }
    PyObject *path = NULL, *extra = entry(scope, fastapi);
    if (extra != NULL) {
        if (!PyDict_CheckExact(extra)) {
            return NULL;
        }
        PyObject *context = entry(extra, context_key);
        if (context != NULL) {
            Py_INCREF(context);
            path = path_of(context);
            Py_DECREF(context);
        }
    }
    PyObject *route = path != NULL ? NULL : entry(scope, route_key);
    if (route == NULL) {
        return path;
    }
    Py_INCREF(route);
    PyObject *inner = sb_attribute_or_null(route, routes);
    if (inner == NULL) { /* what has routes of its own may be a mount */
        path = path_of(route);
    }
    Py_XDECREF(inner);
    Py_DECREF(route);
    return path;
}

/* ---- the name ---------------------------------------------------------------------- */

/* The name that the middleware knows, new reference, or NULL. Sets no exception. */
static PyObject *
ask_source(sb_cell *task)
{
    static PyObject *method; /* interned: a method's lookup is kept by its name */
    PyObject *source = task->source;
    if (source == NULL || !PyMethod_Check(source)) {
        return NULL;
    }
    method = method ? method : PyUnicode_InternFromString("task_name");
    PyObject *name =
        method ? PyObject_CallMethodNoArgs(PyMethod_GET_SELF(source), method) : NULL;
    if (name == NULL) {
        PyErr_Clear();
    }
    else if (!PyUnicode_Check(name)) {
        Py_CLEAR(name);
    }
    return name;
}

uint32_t
sb_task_name_now(sb_cell *task)
{
    uint32_t id = SB_NAME_NONE;
    PyObject *scope = Py_XNewRef(task->scope);
    PyObject *template = scope ? sb_route_template(scope) : NULL;
    PyObject *name = template ? NULL : ask_source(task);
    if (sb_task_is_recorded(task)) {
        id = template ? sb_trace_route_name(template) : id;
        id = name ? sb_trace_name(name, 1) : id;
    }
    Py_XDECREF(name);
    Py_XDECREF(template);
    Py_XDECREF(scope);
    return id;
}

static PyObject *
route_template(PyObject *Py_UNUSED(module), PyObject *scope)
{
    PyObject *path = sb_route_template(scope);
    return path != NULL ? path : Py_NewRef(Py_None);
}

static PyMethodDef functions[] = {
    {"route_template", route_template, METH_O, "The template of a plain route, or None."},
    {NULL, NULL, 0, NULL},
};

int
sb_route_init(PyObject *module)
{
    const struct {
        PyObject **place;
        const char *text;
    } names[] = {
        {&app_root_path, "app_root_path"}, {&context_key, "effective_route_context"},
        {&fastapi, "fastapi"},             {&path_format, "path_format"},
        {&route_key, "route"},             {&routes, "routes"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Py_XSETREF(*names[i].place, PyUnicode_InternFromString(names[i].text));
        if (*names[i].place == NULL) {
            return -1;
        }
    }
    return PyModule_AddFunctions(module, functions);
}
