/* Tasks: LabelCells that have a beginning, an end and a name. See trace.h. */
#include "trace.h"

#include <string.h>

static int16_t free_rows[SB_TASKS_MAX];
static int free_count;
/* Of a task without a trace id: the same share of serials, other ones each process. */
static uint64_t seed;

void
sb_tasks_forget(void)
{
    for (free_count = 0; free_count < SB_TASKS_MAX; free_count++) {
        free_rows[free_count] = (int16_t)(SB_TASKS_MAX - 1 - free_count);
    }
    seed = sb_trace_now_ns();
}

static sb_task_row *
row_at(int32_t slot)
{
    return (sb_task_row *)((char *)sb_trace.box + sb_trace.box->tasks_at) + slot;
}

sb_task_row *
sb_trace_row(uint64_t serial, int32_t slot)
{
    if (slot < 0 || sb_trace.box == NULL) {
        return NULL;
    }
    sb_task_row *row = row_at(slot);
    return row->serial == serial ? row : NULL;
}

/* ---- the decision ----------------------------------------------------------------- */

static uint64_t
mixed(uint64_t value)
{
    value += 0x9E3779B97F4A7C15u;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
    return value ^ (value >> 31);
}

/* By the trace id as OpenTelemetry's TraceIdRatioBased does it, so that all services
 * with one fraction record the same requests. */
static int
is_chosen(const sb_cell *cell, int has_trace)
{
    if (sb_trace.threshold == UINT64_MAX) {
        return 1;
    }
    uint64_t number = 0;
    for (int i = 8; has_trace && i < 16; i++) {
        number = number << 8 | cell->trace_id[i];
    }
    return (has_trace ? number : mixed(cell->serial ^ seed)) < sb_trace.threshold;
}

/* ---- ids of a trace --------------------------------------------------------------- */

static void
put_ids(sb_cell *cell, uint64_t now_ns)
{
    uint64_t words[3];
    memcpy(words, cell->trace_id, 16);
    memcpy(words + 2, cell->span_id, 8);
    sb_trace_put(words[0], SB_TASK_TRACE, cell->serial, (uint32_t)words[1],
                 (uint32_t)(words[1] >> 32), 0);
    sb_trace_put(now_ns, SB_TASK_SPAN, cell->serial, (uint32_t)words[2],
                 (uint32_t)(words[2] >> 32), 0);
    sb_task_row *row = sb_trace_row(cell->serial, cell->slot);
    if (row != NULL) {
        memcpy(row->trace_id, cell->trace_id, sizeof row->trace_id);
        memcpy(row->span_id, cell->span_id, sizeof row->span_id);
    }
}

/* ---- life ------------------------------------------------------------------------- */

static void
take_row(sb_cell *cell, uint32_t kind, uint64_t now_ns)
{
    if (free_count == 0) {
        atomic_fetch_add(&sb_trace.box->tasks_refused, 1);
        return;
    }
    cell->slot = free_rows[--free_count];
    sb_task_row *row = row_at(cell->slot);
    memset(row, 0, sizeof *row);
    row->begin_ns = now_ns;
    row->name = cell->name;
    row->kind = kind;
    atomic_thread_fence(memory_order_release);
    row->serial = cell->serial;
}

static void
leave_row(sb_cell *cell)
{
    sb_task_row *row = sb_trace_row(cell->serial, cell->slot);
    if (row != NULL) {
        row->serial = 0;
        free_rows[free_count++] = (int16_t)cell->slot;
    }
    cell->slot = -1;
}

/* Whether a task is recorded: as the one around it, as the caller knows, or by chance. */
static int
decide(const sb_cell *cell, const sb_cell *outer, int has_trace, PyObject *chosen)
{
    if (outer != NULL) {
        return outer->mark == sb_trace.generation;
    }
    return chosen == Py_None ? is_chosen(cell, has_trace) : chosen == Py_True;
}

/* begin_task(kind, name or None, link, chosen=None, parent=0): whether it is recorded.
 * `chosen` decides for a task that has none around it; `parent` is the serial of one
 * that it continues, elsewhere in this process. */
PyObject *
sb_task_begin(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    sb_cell *cell = (sb_cell *)object;
    if (count < 3 || count > 5 || !PyUnicode_Check(args[0]) || cell->task == cell ||
        (count == 5 && !PyLong_Check(args[4]))) {
        PyErr_SetString(PyExc_TypeError, "begin_task(kind, name, link, ...), once");
        return NULL;
    }
    sb_cell *outer = cell->task;
    uint64_t parent = count == 5 ? PyLong_AsUnsignedLongLongMask(args[4]) : 0;
    parent = outer ? outer->serial : parent;
    cell->task = cell;
    cell->mark = SB_MARK_DECLINED;
    int has_trace = sb_link_read(cell, args[2]);
    if (!has_trace && outer != NULL) {
        memcpy(cell->trace_id, outer->trace_id, sizeof cell->trace_id);
        memcpy(cell->span_id, outer->span_id, sizeof cell->span_id);
    }
    if (!sb_trace.wanted ||
        !decide(cell, outer, has_trace, count > 3 ? args[3] : Py_None)) {
        Py_RETURN_FALSE;
    }
    uint64_t now_ns = sb_trace_now_ns();
    uint32_t kind = sb_trace_name(args[0], 1);
    cell->mark = sb_trace.generation;
    cell->name = PyUnicode_Check(args[1]) ? sb_trace_name(args[1], 0) : SB_NAME_NONE;
    take_row(cell, kind, now_ns);
    sb_trace_put(now_ns, SB_TASK_BEGIN, cell->serial, cell->name, kind,
                 sb_trace_lane(PyThreadState_Get()));
    if (has_trace) {
        put_ids(cell, now_ns);
    }
    if (parent) {
        sb_trace_put(now_ns, SB_TASK_PARENT, cell->serial, (uint32_t)parent,
                     (uint32_t)(parent >> 32), 0);
    }
    Py_RETURN_TRUE;
}

static void
end(sb_cell *cell, uint32_t status)
{
    if (sb_task_is_recorded(cell)) {
        sb_trace_put(sb_trace_now_ns(), SB_TASK_END, cell->serial, cell->name, status,
                     sb_trace_lane(PyThreadState_Get()));
    }
    if (cell->mark == sb_trace.generation) {
        leave_row(cell);
    }
    cell->over = 1;
}

/* end_request(name if there is no other, status) */
PyObject *
sb_task_end_request(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    sb_cell *cell = (sb_cell *)object;
    if (count != 2 || !PyUnicode_Check(args[0]) || !PyLong_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "end_request(name, status)");
        return NULL;
    }
    uint32_t name = sb_task_is_recorded(cell) ? sb_task_name_now(cell) : SB_NAME_NONE;
    if (sb_task_is_recorded(cell)) { /* Python code may have closed the box meanwhile */
        cell->name = name != SB_NAME_NONE ? name : sb_trace_name(args[0], 1);
    }
    if (cell->task == cell && !cell->over) {
        end(cell, (uint32_t)PyLong_AsUnsignedLongMask(args[1]));
    }
    Py_CLEAR(cell->scope);
    Py_RETURN_NONE;
}

/* end_task(name or None, status) */
PyObject *
sb_task_end(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    sb_cell *cell = (sb_cell *)object;
    if (count != 2 || !PyLong_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "end_task(name, status)");
        return NULL;
    }
    unsigned long status = PyLong_AsUnsignedLongMask(args[1]);
    if (sb_task_is_recorded(cell) && PyUnicode_Check(args[0])) {
        cell->name = sb_trace_name(args[0], 1);
    }
    if (cell->task == cell && !cell->over) {
        end(cell, (uint32_t)status);
    }
    Py_RETURN_NONE;
}

/* A cell is freed: a task that nobody ended ends here. Runs no Python code. */
void
sb_task_gone(sb_cell *cell)
{
    if (cell->task == cell && !cell->over && cell->mark == sb_trace.generation) {
        end(cell, 0);
    }
}

static void
put_name(sb_cell *cell, uint32_t name)
{
    cell->name = name;
    sb_trace_put(sb_trace_now_ns(), SB_TASK_NAME, cell->serial, name, 0, 0);
    sb_task_row *row = sb_trace_row(cell->serial, cell->slot);
    if (row != NULL) {
        row->name = name;
    }
}

PyObject *
sb_task_set_name(PyObject *object, PyObject *name)
{
    sb_cell *cell = (sb_cell *)object;
    if (!PyUnicode_Check(name)) {
        PyErr_SetString(PyExc_TypeError, "a name is a str");
        return NULL;
    }
    if (sb_task_is_recorded(cell)) {
        put_name(cell, sb_trace_name(name, 1));
    }
    Py_RETURN_NONE;
}

/* link_task(24 bytes of both ids) */
PyObject *
sb_task_link(PyObject *object, PyObject *link)
{
    sb_cell *cell = (sb_cell *)object;
    if (!sb_link_read(cell, link)) {
        PyErr_SetString(PyExc_ValueError, "a link is 24 bytes, a traceparent or headers");
        return NULL;
    }
    if (sb_task_is_recorded(cell)) {
        put_ids(cell, sb_trace_now_ns());
    }
    Py_RETURN_NONE;
}

PyObject *
sb_task_label(PyObject *object, PyObject *label)
{
    sb_cell *cell = (sb_cell *)object;
    if (!PyUnicode_Check(label)) {
        PyErr_SetString(PyExc_TypeError, "a label is a str");
        return NULL;
    }
    if (sb_task_is_recorded(cell)) {
        sb_trace_put(sb_trace_now_ns(), SB_TASK_LABEL, cell->serial,
                     sb_trace_name(label, 1), 0, 0);
    }
    Py_RETURN_NONE;
}

/* ---- the task of the running code ------------------------------------------------- */

/* Name the task: a request's route is known by the time its handler opens a region.
 * Once; the middleware may not know, and it may fail. */
static void
ask_name(sb_cell *task)
{
    task->asked = 1;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    Py_INCREF(task);
    uint32_t name = sb_task_name_now(task);
    if (name != SB_NAME_NONE && sb_task_is_recorded(task)) {
        put_name(task, name);
    }
    Py_DECREF(task);
    PyErr_Restore(type, value, traceback);
}

sb_cell *
sb_trace_task(PyThreadState *tstate, int *is_declined)
{
    sb_cell *cell = sb_cell_of_context(tstate->context);
    sb_cell *task = cell ? cell->task : NULL;
    *is_declined = 0;
    if (task == NULL) {
        return NULL;
    }
    if (task->mark != sb_trace.generation) {
        *is_declined = 1;
        return NULL;
    }
    if (task->name == SB_NAME_NONE && !task->asked) {
        ask_name(task);
        *is_declined = !sb_trace.wanted;
    }
    return task;
}

/* ---- attributes ------------------------------------------------------------------- */

static PyObject *
hex_or_none(const uint8_t *id, int bytes)
{
    char text[33];
    int any = 0;
    for (int i = 0; i < bytes; i++) {
        PyOS_snprintf(text + 2 * i, 3, "%02x", id[i]);
        any |= id[i];
    }
    return any ? PyUnicode_FromString(text) : Py_NewRef(Py_None);
}

PyObject *
sb_task_trace_id(PyObject *cell, void *Py_UNUSED(closure))
{
    sb_cell *task = ((sb_cell *)cell)->task;
    return hex_or_none(task ? task->trace_id : ((sb_cell *)cell)->trace_id, 16);
}

PyObject *
sb_task_span_id(PyObject *cell, void *Py_UNUSED(closure))
{
    sb_cell *task = ((sb_cell *)cell)->task;
    return hex_or_none(task ? task->span_id : ((sb_cell *)cell)->span_id, 8);
}

PyObject *
sb_task_serial(PyObject *cell, void *Py_UNUSED(closure))
{
    sb_cell *task = ((sb_cell *)cell)->task;
    return PyLong_FromUnsignedLongLong(task ? task->serial : 0);
}

PyObject *
sb_task_wanted(PyObject *cell, void *Py_UNUSED(closure))
{
    sb_cell *task = ((sb_cell *)cell)->task;
    return PyLong_FromUnsignedLong(task && sb_task_is_recorded(task) ? sb_trace.wanted : 0);
}

PyObject *
sb_task_recorded(PyObject *cell, void *Py_UNUSED(closure))
{
    sb_cell *task = ((sb_cell *)cell)->task;
    return PyBool_FromLong(task != NULL && sb_task_is_recorded(task));
}
