#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include "trace.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "trace_copy.h"

sb_trace_state sb_trace = {.threshold = UINT64_MAX};

/* ---- threads ---------------------------------------------------------------------- */

/* `generation` is `row`'s once the row has its name; until then the slow path is taken. */
static _Thread_local struct {
    uint32_t generation, row, index, looked;
} thread_here;

/* How often a thread without a name is looked for in threading's table: one is in it
 * only after it has taken two locks, and may wait, and say so, for either. */
enum { NAME_LOOKS_MAX = 16 };

/* Which rows are of living threads; of the process, so that a thread may end whatever
 * became of the box. Row 0 is all that found no room. */
static atomic_uchar thread_lives[SB_THREADS_MAX_BOX];
static uint32_t thread_cursor;
static pthread_key_t thread_key;

static void
thread_ends(void *value)
{
    uint32_t index = (uint32_t)(uintptr_t)value;
    if (thread_here.row == sb_trace.generation) {
        atomic_store(&thread_lives[index], 0);
    }
}

/* The thread's name by threading's own table, or 0. Runs no Python code. */
static uint32_t
thread_name(void)
{
    PyObject *module_name = PyUnicode_InternFromString("threading");
    PyObject *module = module_name ? PyImport_GetModule(module_name) : NULL;
    PyObject *active = module ? PyObject_GetAttrString(module, "_active") : NULL;
    PyObject *ident = PyLong_FromUnsignedLong(PyThread_get_thread_ident());
    PyObject *thread = NULL, *name = NULL;
    if (active != NULL && PyDict_CheckExact(active) && ident != NULL) {
        thread = Py_XNewRef(PyDict_GetItemWithError(active, ident));
    }
    PyObject *fields = thread ? PyObject_GenericGetDict(thread, NULL) : NULL;
    if (fields != NULL) { /* no attribute of a subclass: that would be Python code */
        name = Py_XNewRef(PyDict_GetItemString(fields, "_name"));
    }
    uint32_t id = name && PyUnicode_Check(name) ? sb_trace_name(name, 1) : SB_NAME_NONE;
    Py_XDECREF(fields);
    Py_XDECREF(name);
    Py_XDECREF(thread);
    Py_XDECREF(ident);
    Py_XDECREF(active);
    Py_XDECREF(module);
    Py_XDECREF(module_name);
    PyErr_Clear();
    return id;
}

static sb_thread_row *
thread_row(uint32_t index)
{
    return (sb_thread_row *)((char *)sb_trace.box + sb_trace.box->threads_at) + index;
}

/* A free row for this thread; 0 when there is none. */
static uint32_t
take_row(void)
{
    for (uint32_t tried = 0; tried < SB_THREADS_MAX_BOX; tried++) {
        thread_cursor = thread_cursor % (SB_THREADS_MAX_BOX - 1) + 1;
        if (!atomic_load(&thread_lives[thread_cursor])) {
            uint32_t index = thread_cursor;
            atomic_store(&thread_lives[index], 1);
            *thread_row(index) = (sb_thread_row){(uint64_t)gettid(), SB_NAME_NONE, 1};
            pthread_setspecific(thread_key, (void *)(uintptr_t)index);
            return index;
        }
    }
    atomic_fetch_add(&sb_trace.box->threads_refused, 1);
    return 0;
}

/* This thread's row, new or still without a name; looks for that. Needs the GIL. */
static uint32_t
register_thread(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback); /* may be called in an `__exit__` */
    if (thread_here.row != sb_trace.generation) {
        thread_here.index = take_row();
        thread_here.row = sb_trace.generation;
        thread_here.looked = 0;
    }
    uint32_t index = thread_here.index, name = index ? thread_name() : SB_NAME_NONE;
    /* What allocates may collect, and so run code that closes the box. */
    if (name != SB_NAME_NONE && thread_here.row == sb_trace.generation &&
        sb_trace.box != NULL) {
        thread_row(index)->name = name;
    }
    if (index == 0 || name != SB_NAME_NONE || ++thread_here.looked == NAME_LOOKS_MAX) {
        thread_here.generation = sb_trace.generation;
    }
    PyErr_Restore(type, value, traceback);
    return index;
}

uint32_t
sb_trace_thread(void)
{
    return thread_here.generation == sb_trace.generation ? thread_here.index
                                                         : register_thread();
}

/* ---- the box ---------------------------------------------------------------------- */

/* Memory for a box: the file's, or anonymous for -1. NULL with an exception. */
static sb_box *
map_box(int file, size_t bytes)
{
    /* Blocks for all of it now: a full disk must not become a SIGBUS later. */
    int failed = 0;
    Py_BEGIN_ALLOW_THREADS
    failed = file < 0 ? 0 : posix_fallocate(file, 0, (off_t)bytes);
    Py_END_ALLOW_THREADS
    if (failed) {
        errno = failed;
        PyErr_SetFromErrno(PyExc_OSError);
        return NULL;
    }
    void *block = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                       file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, file, 0);
    if (block == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        return NULL;
    }
    return block;
}

/* A parent's box, of which a forked child has a mapping: it may be a shared file. */
static sb_box *inherited;

static void
forget_box(void)
{
    sb_trace.wanted = 0;
    sb_trace.generation++;
    sb_names_forget();
    thread_cursor = 0;
    memset((void *)thread_lives, 0, sizeof thread_lives);
    sb_tasks_forget();
    sb_box *gone = sb_trace.box ? sb_trace.box : inherited;
    sb_trace.box = inherited = NULL;
    if (gone != NULL) {
        munmap(gone, gone->bytes);
    }
}

static PyObject *
trace_open(PyObject *Py_UNUSED(module), PyObject *args)
{
    int file;
    const char *service;
    Py_ssize_t events;
    if (!PyArg_ParseTuple(args, "ins", &file, &events, &service)) {
        return NULL;
    }
    if (events < SB_RING_EVENTS_MIN || (size_t)events > SB_RING_EVENTS_MAX ||
        (events & (events - 1)) || sb_trace.box != NULL) {
        PyErr_SetString(PyExc_ValueError, "no power of two in bounds, or open already");
        return NULL;
    }
    sb_box *box = map_box(file, sb_box_bytes((size_t)events));
    if (box == NULL) {
        return NULL;
    }
    if (sb_trace.box != NULL) { /* another thread was faster */
        munmap(box, sb_box_bytes((size_t)events));
        PyErr_SetString(PyExc_ValueError, "the recorder is open already");
        return NULL;
    }
    sb_box_format(box, (size_t)events, service);
    sb_box_add_name(box, "", 0, 1);
    sb_box_add_name(box, "(overflow)", 10, 1);
    sb_trace.box = box;
    Py_RETURN_NONE;
}

/* trace_prefault(): whether every page of the block is there now. Who writes to a page
 * first waits until the kernel has found one, up to 50 us in a virtual machine: for the
 * requests the thread that calls this has done so. By a call that is safe if the block is
 * gone meanwhile, and in parts, for nobody else maps memory while it runs. */
static PyObject *
trace_prefault(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    enum { POPULATE_WRITE = 23, PART = 16 * 4096 }; /* kernels before 5.14 know it not */
    sb_box *box = sb_trace.box;
    size_t bytes = box ? box->bytes : 0, done = 0;
    Py_BEGIN_ALLOW_THREADS
    while (done < bytes && __atomic_load_n(&sb_trace.box, __ATOMIC_RELAXED) == box) {
        size_t part = bytes - done < PART ? bytes - done : PART;
        if (madvise((char *)box + done, part, POPULATE_WRITE)) {
            break;
        }
        done += part;
    }
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(done > 0 && done == bytes);
}

static PyObject *
trace_close(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    if (sb_trace.readers) {
        PyErr_SetString(PyExc_RuntimeError, "the recorder is being read");
        return NULL;
    }
    forget_box();
    Py_RETURN_NONE;
}

static PyObject *
trace_want(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned int who;
    int is_wanted;
    if (!PyArg_ParseTuple(args, "Ip", &who, &is_wanted)) {
        return NULL;
    }
    if (is_wanted && sb_trace.box == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the recorder is not open");
        return NULL;
    }
    sb_trace.wanted = is_wanted ? sb_trace.wanted | who : sb_trace.wanted & ~who;
    Py_RETURN_NONE;
}

static PyObject *
trace_fraction(PyObject *Py_UNUSED(module), PyObject *argument)
{
    double fraction = PyFloat_AsDouble(argument);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (!(fraction >= 0 && fraction <= 1)) {
        PyErr_SetString(PyExc_ValueError, "a fraction is from 0 to 1");
        return NULL;
    }
    sb_trace.threshold =
        fraction >= 1 ? UINT64_MAX : (uint64_t)(fraction * 18446744073709551616.0);
    Py_RETURN_NONE;
}

static PyObject *
trace_wanted(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLong(sb_trace.wanted);
}

/* trace_stack(row, text): how a thread stands, for who reads the block after a crash. */
static PyObject *
trace_stack(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned int row;
    const char *text;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(args, "Is#", &row, &text, &length)) {
        return NULL;
    }
    if (row >= 2 * SB_STACKS_MAX) {
        PyErr_SetString(PyExc_ValueError, "no such row");
        return NULL;
    }
    if (sb_trace.box != NULL) {
        sb_box_put_stack(sb_trace.box, row, sb_trace_now_ns(), text, (size_t)length);
    }
    Py_RETURN_NONE;
}

static PyObject *
trace_info(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    sb_box *box = sb_trace.box;
    if (box == NULL) {
        return Py_BuildValue("{s:i}", "wanted", 0);
    }
    return Py_BuildValue(
        "{s:I,s:K,s:K,s:K,s:K,s:K,s:K,s:K}", "wanted", sb_trace.wanted, "events",
        (unsigned long long)box->events_head, "events_room",
        (unsigned long long)box->events_count, "bytes", (unsigned long long)box->bytes,
        "names", (unsigned long long)sb_names_count(), "names_refused",
        (unsigned long long)box->names_refused, "tasks_refused",
        (unsigned long long)box->tasks_refused, "threads_refused",
        (unsigned long long)box->threads_refused);
}

/* In every forked child, also of a fork that no hook of Python's saw: nobody writes into
 * the parent's block. */
static void
child_of_fork(void)
{
    inherited = sb_trace.box;
    sb_trace.box = NULL;
    sb_trace.wanted = 0;
    sb_trace.generation++;
}

void
sb_trace_after_fork(void)
{
    pthread_setspecific(thread_key, NULL);
    sb_trace.readers = 0;
    sb_copy_after_fork();
    forget_box();
}

static PyObject *
after_fork(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    sb_trace_after_fork();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"trace_open", trace_open, METH_VARARGS, "Make the recorder's block."},
    {"trace_prefault", trace_prefault, METH_NOARGS, "Let all of the block be there."},
    {"trace_close", trace_close, METH_NOARGS, "Give the block up."},
    {"trace_want", trace_want, METH_VARARGS, "Begin or end a wish for events."},
    {"trace_wanted", trace_wanted, METH_NOARGS, "Who wants events; 0 for nobody."},
    {"trace_fraction", trace_fraction, METH_O, "Record this share of tasks."},
    {"trace_stack", trace_stack, METH_VARARGS, "Note how a thread stands."},
    {"trace_info", trace_info, METH_NOARGS, "What the recorder holds."},
    {"trace_after_fork", after_fork, METH_NOARGS, "Begin anew in a forked child."},
    {NULL, NULL, 0, NULL},
};

int
sb_trace_init(PyObject *module)
{
    static int is_made;
    if (!is_made) {
        if (sb_names_init() < 0 || pthread_key_create(&thread_key, thread_ends) ||
            pthread_atfork(NULL, NULL, child_of_fork)) {
            return -1;
        }
        is_made = 1;
        forget_box();
    }
    return PyModule_AddFunctions(module, methods) < 0 || sb_copy_init(module) < 0 ||
                   sb_region_init(module) < 0 || sb_log_init(module) < 0 ||
                   sb_link_init(module) < 0 || sb_route_init(module) < 0
               ? -1
               : 0;
}
