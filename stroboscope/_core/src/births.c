#include "compat.h"

#include "births.h"

#include "table.h"

enum { WORDS = 3 }; /* of a frame: its code's address, low and high, and the offset */

static sb_table births;                  /* key: frames, leaf first */
static uint64_t counts[SB_BIRTHS_MAX];   /* by id */
static uint64_t beyond;                  /* threads whose stack found no room */

/* births_note(): a thread was started by who called the caller. A new stack holds a
 * reference to each of its code objects, which keeps the address its own. */
static PyObject *
births_note(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    uint32_t key[SB_BIRTHS_DEPTH * WORDS];
    PyObject *codes[SB_BIRTHS_DEPTH];
    uint32_t depth = 0;
    int is_caller = 1;
    sb_frame *frame = sb_current_frame(PyThreadState_Get());
    for (; frame != NULL && depth < SB_BIRTHS_DEPTH; frame = sb_frame_previous(frame)) {
        PyCodeObject *code = sb_frame_code(frame);
        if (code == NULL) {
            continue;
        }
        if (is_caller) {
            is_caller = 0;
            continue;
        }
        uint64_t address = (uint64_t)(uintptr_t)code;
        key[depth * WORDS] = (uint32_t)address;
        key[depth * WORDS + 1] = (uint32_t)(address >> 32);
        key[depth * WORDS + 2] =
            (uint32_t)sb_code_offset(code, sb_frame_instruction(frame));
        codes[depth++] = (PyObject *)code;
    }
    int fresh = 0;
    int64_t id = sb_table_find(&births, key, depth * WORDS);
    if (id < 0 && births.count < SB_BIRTHS_MAX) {
        id = sb_table_intern(&births, key, depth * WORDS, &fresh);
    }
    if (id < 0) {
        beyond++;
        Py_RETURN_NONE;
    }
    for (uint32_t i = 0; fresh && i < depth; i++) {
        Py_INCREF(codes[i]);
    }
    counts[id] = fresh ? 1 : counts[id] + 1;
    Py_RETURN_NONE;
}

static PyObject *
frame_at(const uint32_t *word)
{
    PyCodeObject *code =
        (PyCodeObject *)(uintptr_t)((uint64_t)word[1] << 32 | (uint64_t)word[0]);
    int32_t offset = (int32_t)word[2];
    int line = offset < 0 ? 0 : PyCode_Addr2Line(code, offset);
    return Py_BuildValue("(OOii)", code->co_filename, code->co_qualname,
                         code->co_firstlineno, line > 0 ? line : code->co_firstlineno);
}

static PyObject *
stack_of(size_t id)
{
    uint32_t words;
    sb_table_key(&births, id, &words);
    PyObject *stack = PyTuple_New(words / WORDS);
    for (uint32_t i = 0; stack != NULL && i < words / WORDS; i++) {
        /* Looked up anew: to make objects may run Python, which may start a thread. */
        PyObject *frame = frame_at(sb_table_key(&births, id, &words) + i * WORDS);
        if (frame == NULL) {
            Py_CLEAR(stack);
            break;
        }
        PyTuple_SET_ITEM(stack, i, frame);
    }
    return stack;
}

/* births() -> [(frames leaf first, threads started)], and without frames those that
 * found no room. */
static PyObject *
births_rows(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    PyObject *rows = PyList_New(0);
    for (size_t id = 0; rows != NULL && id <= births.count; id++) {
        int is_last = id == births.count;
        uint64_t count = is_last ? beyond : counts[id];
        PyObject *stack = is_last ? PyTuple_New(0) : stack_of(id);
        PyObject *row = stack ? Py_BuildValue("(OK)", stack, (unsigned long long)count) : NULL;
        Py_XDECREF(stack);
        if (row == NULL || (count > 0 && PyList_Append(rows, row) < 0)) {
            Py_CLEAR(rows);
        }
        Py_XDECREF(row);
        if (is_last) {
            break;
        }
    }
    return rows;
}

void
sb_births_after_fork(void)
{
    for (size_t id = 0; id < births.count; id++) {
        counts[id] = 0;
    }
    beyond = 0;
}

static PyMethodDef methods[] = {
    {"births_note", births_note, METH_NOARGS, "The caller's caller started a thread."},
    {"births", births_rows, METH_NOARGS, "Threads started, by the starter's stack."},
    {NULL, NULL, 0, NULL},
};

int
sb_births_init(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
