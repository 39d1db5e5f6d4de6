#define _GNU_SOURCE
#include "compat.h"

#include "copies.h"

#include <sys/mman.h>

#include "guard.h"
#include "machine.h"
#include "window.h"

/* `entry` is an address in the C frame of the evaluation loop, 0 where it is not known;
 * `length` bytes follow from the stack pointer up. Python's side knows this, too. */
typedef struct {
    uint32_t number, length;
    uint64_t entry;
    uint64_t registers[SB_REGISTERS];
} copy_head;

typedef struct {
    copy_head head;
    uint64_t stack[SB_COPY_BYTES / 8];
} copy;

enum { FREE, TAKEN, FILLED, NUMBERED };

atomic_int sb_copies_wanted;
/* Never given back: a handler may be writing to it. */
static _Atomic(copy *) area;
static _Atomic unsigned char states[SB_COPIES_MAX];
static _Atomic uint64_t lost, unread;
static uint32_t numbers; /* GIL */

/* Two frames this far apart are not on one stack. */
#define SPAN_MAX ((uint64_t)1 << 30)

/* ---- in the handler ----------------------------------------------------------------- */

static uint32_t
claim(void)
{
    /* From the first on: few slots are in use, and their pages stay warm. */
    for (uint32_t i = 0; i < SB_COPIES_MAX; i++) {
        unsigned char expected = FREE;
        if (atomic_load_explicit(&states[i], memory_order_relaxed) == FREE &&
            atomic_compare_exchange_strong(&states[i], &expected, TAKEN)) {
            return i + 1;
        }
    }
    return 0;
}

/* Not memcpy: the sanitizers would look at what was never meant to be read. May fault. */
SB_READS_STALE static void
copy_words(uint64_t *to, uint64_t from, uint64_t bytes)
{
    const volatile uint64_t *words = (const volatile uint64_t *)(uintptr_t)from;
    for (uint64_t i = 0; i < bytes / 8; i++) {
        to[i] = words[i];
    }
}

/* From the stack pointer to the evaluation loop's frame, or as much as there is room for.
 * May fault. */
SB_READS_STALE static void
copy_stack(copy *into, PyThreadState *tstate)
{
    uint64_t from = into->head.registers[SB_STACK_POINTER];
    uint64_t entry = (uint64_t)sb_evaluation_address(tstate);
    if (from % 8 || entry % 8 || entry <= from || entry - from > SPAN_MAX) {
        return;
    }
    uint64_t bytes = entry - from < SB_COPY_BYTES ? entry - from : SB_COPY_BYTES;
    copy_words(into->stack, from, bytes);
    into->head.entry = entry;
    into->head.length = (uint32_t)bytes;
}

static void
copy_guarded(copy *into, PyThreadState *tstate)
{
    sigjmp_buf jump;
    if (sigsetjmp(jump, 0) != 0) {
        atomic_fetch_add_explicit(&unread, 1, memory_order_relaxed);
        return;
    }
    sb_guard_arm(&jump);
    copy_stack(into, tstate);
    sb_guard_arm(NULL);
}

uint32_t
sb_copy_take(const ucontext_t *context, PyThreadState *tstate)
{
    copy *all = atomic_load(&area);
    uint32_t slot = all != NULL ? claim() : 0;
    if (slot == 0) {
        atomic_fetch_add_explicit(&lost, 1, memory_order_relaxed);
        return 0;
    }
    copy *into = &all[slot - 1];
    into->head.number = into->head.length = 0;
    into->head.entry = 0;
    sb_registers(context, into->head.registers);
    if (!sb_is_on_other_stack(context, into->head.registers[SB_STACK_POINTER])) {
        copy_guarded(into, tstate);
    }
    atomic_store(&states[slot - 1], FILLED);
    return slot;
}

/* ---- with the GIL ------------------------------------------------------------------- */

int
sb_copies_begin(void)
{
    if (SB_MACHINE[0] == '\0') {
        PyErr_SetString(PyExc_RuntimeError, "native frames need x86-64 or AArch64");
        return -1;
    }
    if (atomic_load(&sb_copies_wanted)) {
        PyErr_SetString(PyExc_RuntimeError, "native frames are being taken already");
        return -1;
    }
    if (atomic_load(&area) == NULL) {
        size_t size = SB_COPIES_MAX * sizeof(copy);
        void *made = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                          -1, 0);
        if (made == MAP_FAILED) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        madvise(made, size, MADV_DONTDUMP);
        madvise(made, size, MADV_WIPEONFORK);
        atomic_store(&area, made);
    }
    atomic_store(&sb_copies_wanted, 1);
    return 0;
}

void
sb_copies_end(void)
{
    atomic_store(&sb_copies_wanted, 0);
    for (uint32_t slot = 1; slot <= SB_COPIES_MAX; slot++) {
        if (atomic_load(&states[slot - 1]) == NUMBERED) {
            sb_copy_free(slot); /* the others are a sample's, which will be drained */
        }
    }
    if (atomic_load(&area) != NULL) {
        madvise(atomic_load(&area), SB_COPIES_MAX * sizeof(copy), MADV_DONTNEED);
    }
}

uint32_t
sb_copy_number(uint32_t slot)
{
    numbers += numbers + 1 == 0 ? 2 : 1; /* 0 is none */
    atomic_load(&area)[slot - 1].head.number = numbers;
    atomic_store(&states[slot - 1], NUMBERED);
    return numbers;
}

void
sb_copy_free(uint32_t slot)
{
    atomic_store(&states[slot - 1], FREE);
}

void
sb_copies_after_fork(void)
{
    atomic_store(&sb_copies_wanted, 0);
    for (uint32_t slot = 1; slot <= SB_COPIES_MAX; slot++) {
        sb_copy_free(slot);
    }
}

/* ---- the module --------------------------------------------------------------------- */

/* All copies with a number, one behind the other, as bytes; their slots are free then. */
static PyObject *
copies_take(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    sb_windows_drain();
    const copy *all = atomic_load(&area);
    Py_ssize_t size = 0;
    for (uint32_t i = 0; i < SB_COPIES_MAX; i++) {
        if (atomic_load(&states[i]) == NUMBERED) {
            size += (Py_ssize_t)(sizeof(copy_head) + all[i].head.length);
        }
    }
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, size);
    char *to = bytes != NULL ? PyBytes_AS_STRING(bytes) : NULL;
    for (uint32_t i = 0; to != NULL && i < SB_COPIES_MAX; i++) {
        if (atomic_load(&states[i]) == NUMBERED) {
            size_t length = sizeof(copy_head) + all[i].head.length;
            memcpy(to, &all[i], length);
            to += length;
            sb_copy_free(i + 1);
        }
    }
    return bytes;
}

/* Whether copies are taken now; since the process began: samples that found no slot,
 * stacks that could not be read. */
static PyObject *
copies_counts(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("{s:i,s:K,s:K}", "wanted", atomic_load(&sb_copies_wanted), "lost",
                         (unsigned long long)atomic_load(&lost), "unread",
                         (unsigned long long)atomic_load(&unread));
}

static PyMethodDef functions[] = {
    {"copies_take", copies_take, METH_NOARGS, "The C stacks beside samples so far."},
    {"copies_counts", copies_counts, METH_NOARGS, "Samples without one, by reason."},
    {NULL, NULL, 0, NULL},
};

int
sb_copies_init(PyObject *module)
{
    if (PyModule_AddIntConstant(module, "REGISTERS", SB_REGISTERS) < 0 ||
        PyModule_AddIntConstant(module, "COPY_BYTES", SB_COPY_BYTES) < 0 ||
        PyModule_AddIntConstant(module, "COPIES_MAX", SB_COPIES_MAX) < 0 ||
        PyModule_AddStringConstant(module, "MACHINE", SB_MACHINE) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, functions);
}
