#include "timeline.h"

#include <stdlib.h>
#include <string.h>

#include "box.h"
#include "perfetto.h"
#include "spans.h"

static PyObject *
rows_as_bytes(const sb_rows *rows)
{
    return PyBytes_FromStringAndSize(rows->items, (Py_ssize_t)(rows->count * rows->size));
}

/* The names as a list of str, by id. New reference, or NULL. */
static PyObject *
names_of(const sb_box *box, const char *block)
{
    const unsigned char *area = (const unsigned char *)block + box->names_at;
    uint64_t used = box->names_used;
    PyObject *list = PyList_New(0);
    for (uint64_t at = 0; list != NULL && at < used;) {
        uint8_t length = area[at++];
        if (at + length > used) {
            break;
        }
        PyObject *name =
            PyUnicode_DecodeUTF8((const char *)area + at, length, "replace");
        if (name == NULL || PyList_Append(list, name) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(name);
        at += length;
    }
    return list;
}

/* {index: (tid, name id)} of the threads that were seen. New reference, or NULL. */
static PyObject *
threads_of(const sb_box *box, const char *block)
{
    const sb_thread_row *rows =
        (const sb_thread_row *)(const void *)(block + box->threads_at);
    PyObject *found = PyDict_New();
    for (uint64_t i = 0; found != NULL && i < box->threads_count && i < 65536; i++) {
        if (rows[i].tid == 0) {
            continue;
        }
        PyObject *key = PyLong_FromUnsignedLongLong(i);
        PyObject *row = Py_BuildValue("(KI)", (unsigned long long)rows[i].tid,
                                      (unsigned int)rows[i].name);
        if (key == NULL || row == NULL || PyDict_SetItem(found, key, row) < 0) {
            Py_CLEAR(found);
        }
        Py_XDECREF(key);
        Py_XDECREF(row);
    }
    return found;
}

/* [(time, text)] of how threads stood when they were last looked at. */
static PyObject *
stacks_of(const sb_box *box, const char *block)
{
    const sb_stack_row *rows =
        (const sb_stack_row *)(const void *)(block + box->stacks_at);
    PyObject *found = PyList_New(0);
    for (uint64_t i = 0; found != NULL && i < box->stacks_count; i++) {
        if (!sb_stack_is_whole(&rows[i])) {
            continue;
        }
        PyObject *text = PyUnicode_DecodeUTF8(rows[i].text, rows[i].length, "replace");
        PyObject *row =
            text ? Py_BuildValue("(KO)", (unsigned long long)rows[i].time_ns, text) : NULL;
        if (row == NULL || PyList_Append(found, row) < 0) {
            Py_CLEAR(found);
        }
        Py_XDECREF(row);
        Py_XDECREF(text);
    }
    return found;
}

#define K(value) (unsigned long long)(value)

static PyObject *
described(const sb_timeline *line, const char *block)
{
    const sb_box *box = (const sb_box *)(const void *)block;
    char service[sizeof box->service + 1] = "", python[sizeof box->python + 1] = "";
    memcpy(service, box->service, sizeof box->service);
    memcpy(python, box->python, sizeof box->python);
    PyObject *service_text =
        PyUnicode_DecodeUTF8(service, (Py_ssize_t)strlen(service), "replace");
    PyObject *python_text =
        PyUnicode_DecodeUTF8(python, (Py_ssize_t)strlen(python), "replace");
    /* N steals, and fails for NULL. */
    return Py_BuildValue(
        "{s:N,s:N,s:N,s:N,s:N,s:N,s:N,s:N,s:N,s:N,s:I,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,"
        "s:K,s:K}",
        "tasks", rows_as_bytes(&line->tasks), "spans", rows_as_bytes(&line->spans),
        "notes", rows_as_bytes(&line->notes), "runs", rows_as_bytes(&line->runs),
        "counts", rows_as_bytes(&line->counts), "names", names_of(box, block), "threads",
        threads_of(box, block), "stacks", stacks_of(box, block), "service", service_text, "python", python_text, "pid",
        (unsigned int)box->pid, "from_ns", K(line->from_ns), "to_ns", K(line->to_ns),
        "events", K(line->events), "torn", K(line->torn), "lost", K(line->lost),
        "begin_ns", K(box->begin_ns), "begin_unix_ns", K(box->begin_unix_ns),
        "begin_boot_ns", K(box->begin_boot_ns), "names_refused", K(box->names_refused),
        "tasks_refused", K(box->tasks_refused), "threads_refused",
        K(box->threads_refused));
}

/* timeline_read(bytes) -> dict, or a str that says why it cannot be read. */
static PyObject *
timeline_read(PyObject *Py_UNUSED(module), PyObject *block)
{
    if (!PyBytes_Check(block)) { /* aligned, and nobody changes it */
        PyErr_SetString(PyExc_TypeError, "a block is bytes");
        return NULL;
    }
    sb_timeline line;
    const char *bytes = PyBytes_AS_STRING(block);
    Py_BEGIN_ALLOW_THREADS
    sb_timeline_read(&line, bytes, (size_t)PyBytes_GET_SIZE(block));
    Py_END_ALLOW_THREADS
    PyObject *result = line.problem     ? PyUnicode_FromString(line.problem)
                       : line.no_memory ? PyErr_NoMemory()
                                        : described(&line, bytes);
    sb_timeline_free(&line);
    return result;
}

/* timeline_text(bytes, position) -> str or None: the text of a log. */
static PyObject *
timeline_text(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *block;
    unsigned int position;
    if (!PyArg_ParseTuple(args, "SI", &block, &position)) {
        return NULL;
    }
    const char *bytes = PyBytes_AS_STRING(block);
    const sb_box *box = (const sb_box *)(const void *)bytes;
    uint64_t size = (uint64_t)PyBytes_GET_SIZE(block);
    uint32_t length = 0;
    const char *text = NULL;
    if (size >= sizeof(sb_box) && box->texts_at <= size &&
        box->texts_bytes <= size - box->texts_at) {
        text = sb_text_at(bytes + box->texts_at, box->texts_bytes, position, &length);
    }
    return text ? PyUnicode_DecodeUTF8(text, length, "replace") : Py_NewRef(Py_None);
}

/* Rows of `size` bytes each; the count, or -1 with an exception. */
static Py_ssize_t
count_of(const Py_buffer *rows, size_t size)
{
    if ((size_t)rows->len % size || (uintptr_t)rows->buf % 8) {
        PyErr_SetString(PyExc_ValueError, "no rows");
        return -1;
    }
    return rows->len / (Py_ssize_t)size;
}

/* Whether what the rows say of each other holds. */
static int
is_sound(const sb_perfetto_input *in)
{
    uint64_t tracks = 0;
    for (size_t i = 0; i < in->task_count; i++) {
        const sb_task_out *task = &in->tasks[i];
        tracks += task->tracks;
        if (task->tracks == 0 || task->spans > in->span_count ||
            task->first_span > in->span_count - task->spans ||
            (i && task->serial <= task[-1].serial)) {
            return 0;
        }
        for (uint32_t j = 0; j < task->spans; j++) {
            if (in->spans[task->first_span + j].track >= task->tracks) {
                return 0;
            }
        }
    }
    return tracks < UINT32_MAX / 2;
}

/* perfetto_write(block, tasks, spans, notes, runs, counts, pid, trace_url) -> bytes */
static PyObject *
perfetto_write(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *block, *result = NULL;
    Py_buffer rows[5];
    unsigned int pid;
    const char *trace_url;
    if (!PyArg_ParseTuple(args, "Sy*y*y*y*y*Is", &block, &rows[0], &rows[1], &rows[2],
                          &rows[3], &rows[4], &pid, &trace_url)) {
        return NULL;
    }
    const size_t sizes[5] = {sizeof(sb_task_out), sizeof(sb_span_out), sizeof(sb_note_out),
                             sizeof(sb_run_out), sizeof(sb_count_out)};
    Py_ssize_t counts[5];
    sb_buffer out = {NULL, 0, 0, 0};
    for (int i = 0; i < 5; i++) {
        counts[i] = count_of(&rows[i], sizes[i]);
        if (counts[i] < 0) {
            goto done;
        }
    }
    sb_perfetto_input in = {
        rows[0].buf, (size_t)counts[0], rows[1].buf, (size_t)counts[1],
        rows[2].buf, (size_t)counts[2], rows[3].buf, (size_t)counts[3],
        rows[4].buf, (size_t)counts[4], PyBytes_AS_STRING(block), pid,
        trace_url};
    const char *problem;
    Py_BEGIN_ALLOW_THREADS
    /* Only its header is looked at. */
    problem = sb_block_problem(in.block, (size_t)PyBytes_GET_SIZE(block));
    if (problem == NULL && !is_sound(&in)) {
        problem = "the rows contradict each other";
    }
    if (problem == NULL) {
        sb_perfetto_write(&in, &out);
    }
    Py_END_ALLOW_THREADS
    if (problem != NULL) {
        PyErr_SetString(PyExc_ValueError, problem);
    }
    else if (out.no_memory) {
        PyErr_NoMemory();
    }
    else {
        result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)out.length);
    }
    if (result != NULL) {
        char *place = PyBytes_AS_STRING(result);
        Py_BEGIN_ALLOW_THREADS
        if (out.length) {
            memcpy(place, out.bytes, out.length);
        }
        Py_END_ALLOW_THREADS
    }
done:
    free(out.bytes);
    for (int i = 0; i < 5; i++) {
        PyBuffer_Release(&rows[i]);
    }
    return result;
}

static PyMethodDef methods[] = {
    {"timeline_read", timeline_read, METH_O, "Tasks, spans and more of a block."},
    {"timeline_text", timeline_text, METH_VARARGS, "The text of a log."},
    {"perfetto_write", perfetto_write, METH_VARARGS, "Perfetto's packets of rows."},
    {NULL, NULL, 0, NULL},
};

int
sb_timeline_init(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
