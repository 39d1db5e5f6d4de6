#define _GNU_SOURCE
#include "compat.h"

#include "samples.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cell.h"
#include "sampler.h"

/* "SBSAMP01" as the reader finds it. */
#define MAGIC 0x3130504d41534253u

typedef struct {
    uint64_t magic;
    uint32_t slot_bytes, slots, process, unused;
} head;

typedef struct {
    _Atomic uint64_t sequence;
    uint64_t checksum;
    uint64_t time_ns, serial, ident;
    uint32_t tid, flags, depth, length;
    unsigned char text[SB_SAMPLES_SLOT - 56];
} slot;
_Static_assert(sizeof(slot) == SB_SAMPLES_SLOT, "a slot is a page");

enum {
    FILE_BYTES = SB_SAMPLES_SLOT * (1 + SB_SAMPLES_SLOTS),
    NAME_MAX_BYTES = 80, /* of a function, its end; of a file, its end */
    SHOWN_MAX_BYTES = 128,
    FRAME_MAX_BYTES = 6 + 2 * NAME_MAX_BYTES,
};

static _Atomic(unsigned char *) mapping;
static _Atomic uint32_t cursor;
/* One sample is made at a time: a signal's stack may be small, and this is a page. */
static atomic_flag is_making = ATOMIC_FLAG_INIT;
static slot made;

/* FNV-1a. */
static uint64_t
checksum_of(const slot *of)
{
    const unsigned char *at = (const unsigned char *)&of->time_ns;
    const unsigned char *end = of->text + of->length;
    uint64_t sum = 0xcbf29ce484222325u;
    for (; at < end; at++) {
        sum = (sum ^ *at) * 0x100000001b3u;
    }
    return sum;
}

/* The last `room` characters of a string, each that is no ASCII as '?'; returns how many.
 * May fault. */
SB_READS_STALE static uint32_t
put_text(unsigned char *out, PyObject *text, uint32_t room)
{
    if (text == NULL || Py_TYPE(text) != &PyUnicode_Type) {
        return 0;
    }
    Py_ssize_t length = ((PyASCIIObject *)text)->length;
    if (length <= 0 || length > (Py_ssize_t)1 << 24 ||
        !((PyASCIIObject *)text)->state.compact) {
        return 0;
    }
    int kind = ((PyASCIIObject *)text)->state.kind;
    const unsigned char *data =
        ((PyASCIIObject *)text)->state.ascii
            ? (const unsigned char *)((PyASCIIObject *)text + 1)
            : (const unsigned char *)((PyCompactUnicodeObject *)text + 1);
    Py_ssize_t from = length > (Py_ssize_t)room ? length - (Py_ssize_t)room : 0;
    uint32_t count = 0;
    for (Py_ssize_t i = from; i < length; i++) {
        uint32_t c = kind == 1   ? data[i]
                     : kind == 2 ? ((const uint16_t *)(const void *)data)[i]
                                 : ((const uint32_t *)(const void *)data)[i];
        out[count++] = c >= 32 && c < 127 ? (unsigned char)c : '?';
    }
    return count;
}

SB_READS_STALE static uint32_t
put_frame(unsigned char *out, PyCodeObject *code, sb_frame *frame)
{
    int32_t offset = sb_code_offset(code, sb_frame_instruction(frame));
    uint32_t line = (uint32_t)sb_code_line(code, offset);
    uint32_t name = put_text(out + 6, code->co_qualname, NAME_MAX_BYTES);
    uint32_t file = put_text(out + 6 + name, code->co_filename, NAME_MAX_BYTES);
    memcpy(out, &line, sizeof line);
    out[4] = (unsigned char)name;
    out[5] = (unsigned char)file;
    return 6 + name + file;
}

/* Write the thread's stack into `made`; 0 when there is none or it hangs together badly.
 * May fault. */
SB_READS_STALE static int
make(PyThreadState *tstate, uint32_t flags)
{
    enum { HOPS_MAX = 2 * SB_DEPTH_MAX };
    if (!sb_frames_hang_together(tstate, HOPS_MAX)) {
        return 0;
    }
    sb_cell *cell = sb_cell_of_context(tstate->context);
    made.serial = cell != NULL ? cell->serial : 0;
    if (cell != NULL) {
        atomic_store_explicit(&cell->sampled, 1, memory_order_relaxed);
        while (cell->parent != NULL && cell->shown == NULL) {
            cell = cell->parent;
        }
    }
    made.text[0] = (unsigned char)put_text(made.text + 1, cell ? cell->shown : NULL,
                                           SHOWN_MAX_BYTES);
    made.length = 1u + made.text[0];
    made.depth = 0;
    int hops = 0;
    sb_frame *frame = sb_current_frame(tstate);
    for (; frame != NULL && hops < HOPS_MAX; frame = sb_frame_previous(frame), hops++) {
        PyCodeObject *code = sb_frame_code(frame);
        if (code == NULL) {
            continue;
        }
        if (made.length + FRAME_MAX_BYTES > sizeof made.text) {
            flags |= SB_SAMPLE_CUT;
            break;
        }
        made.length += put_frame(made.text + made.length, code, frame);
        made.depth++;
    }
    made.flags = flags;
    return made.depth > 0;
}

/* Copy `made` into the next slot of the file. May fault: somebody may have cut it. */
static void
publish(unsigned char *base)
{
    uint32_t index = atomic_fetch_add(&cursor, 1) % SB_SAMPLES_SLOTS;
    slot *to = (slot *)(void *)(base + SB_SAMPLES_SLOT * (1 + index));
    uint64_t sequence = atomic_load(&to->sequence) & ~(uint64_t)1;
    atomic_store(&to->sequence, sequence + 1);
    atomic_thread_fence(memory_order_release);
    memcpy(&to->checksum, &made.checksum,
           offsetof(slot, text) - offsetof(slot, checksum) + made.length);
    atomic_store_explicit(&to->sequence, sequence + 2, memory_order_release);
}

int
sb_samples_take(PyThreadState *tstate, uint32_t flags)
{
    unsigned char *base = atomic_load(&mapping);
    if (base == NULL || atomic_flag_test_and_set(&is_making)) {
        return 0;
    }
    volatile int is_made = 0;
    volatile uint32_t with = flags;
    sigjmp_buf jump;
    if (sigsetjmp(jump, 0) == 0) {
        sb_guard_arm(&jump);
        made.time_ns = sb_now_ns();
        made.tid = (uint32_t)syscall(SYS_gettid);
        made.ident = tstate->thread_id;
        if (made.tid == (uint32_t)getpid()) {
            with |= SB_SAMPLE_MAIN;
        }
        is_made = make(tstate, with);
        if (is_made) {
            is_made = 2; /* from here on a fault is the file's */
            made.checksum = checksum_of(&made);
            publish(base);
        }
        sb_guard_arm(NULL);
    }
    else if (is_made == 2) {
        atomic_store(&mapping, NULL); /* the file was cut short: never again */
        is_made = 0;
    }
    atomic_flag_clear(&is_making);
    return is_made != 0;
}

int
sb_samples_are_kept(void)
{
    return atomic_load(&mapping) != NULL;
}

/* ---- the module ------------------------------------------------------------------- */

/* Keep samples in this file from now on; the descriptor stays the caller's. */
static PyObject *
samples_open(PyObject *Py_UNUSED(module), PyObject *argument)
{
    int fd = PyObject_AsFileDescriptor(argument);
    if (fd < 0) {
        return NULL;
    }
    /* Reserved now: a full disk would be a fault in the handler. */
    int failed = posix_fallocate(fd, 0, FILE_BYTES);
    void *base = failed ? MAP_FAILED
                        : mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        errno = failed ? failed : errno;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    head first = {MAGIC, SB_SAMPLES_SLOT, SB_SAMPLES_SLOTS, (uint32_t)getpid(), 0};
    if (pwrite(fd, &first, sizeof first, 0) != sizeof first) {
        munmap(base, FILE_BYTES);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    /* The one before, if any, stays mapped: a handler may be writing to it. It is of a
     * folder that was deleted, which is rare. */
    atomic_store(&mapping, base);
    Py_RETURN_NONE;
}

static PyObject *
samples_close(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    unsigned char *base = atomic_exchange(&mapping, NULL);
    for (int spin = 0; spin < 1000 && base != NULL; spin++) {
        if (!atomic_flag_test_and_set(&is_making)) {
            munmap(base, FILE_BYTES);
            atomic_flag_clear(&is_making);
            break;
        }
        struct timespec moment = {0, 10000};
        nanosleep(&moment, NULL);
    }
    Py_RETURN_NONE;
}

static PyObject *
samples_are_kept(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(sb_samples_are_kept());
}

/* Whether the sampler's samples go there, too: for the crash hunt. */
static PyObject *
samples_show(PyObject *Py_UNUSED(module), PyObject *argument)
{
    sb_sampler_show(PyObject_IsTrue(argument) == 1);
    Py_RETURN_NONE;
}

/* The line of each byte offset, as the handler reads it: for a test. */
static PyObject *
code_lines(PyObject *Py_UNUSED(module), PyObject *argument)
{
    if (!PyCode_Check(argument)) {
        PyErr_SetString(PyExc_TypeError, "a code object");
        return NULL;
    }
    PyCodeObject *code = (PyCodeObject *)argument;
    PyObject *list = PyList_New(0);
    Py_ssize_t bytes = Py_SIZE(code) * (Py_ssize_t)sizeof(_Py_CODEUNIT);
    for (Py_ssize_t offset = 0; list != NULL && offset < bytes; offset += 2) {
        PyObject *line = PyLong_FromLong(sb_code_line(code, (int32_t)offset));
        if (line == NULL || PyList_Append(list, line) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(line);
    }
    return list;
}

static PyMethodDef functions[] = {
    {"samples_open", samples_open, METH_O, "Leave samples with names in a file."},
    {"samples_close", samples_close, METH_NOARGS, "Leave none any more."},
    {"samples_are_kept", samples_are_kept, METH_NOARGS, "Whether there is a file."},
    {"samples_show", samples_show, METH_O, "Leave all samples, for the crash hunt."},
    {"code_lines", code_lines, METH_O, "Lines as the handler reads them, for a test."},
    {NULL, NULL, 0, NULL},
};

int
sb_samples_init(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}

void
sb_samples_after_fork(void)
{
    unsigned char *base = atomic_exchange(&mapping, NULL);
    if (base != NULL) {
        munmap(base, FILE_BYTES);
    }
    atomic_flag_clear(&is_making);
}
