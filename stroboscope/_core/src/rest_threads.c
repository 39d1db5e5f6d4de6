#define _GNU_SOURCE
#include "compat.h"

#include "rest.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "sampler.h"
#include "stacks.h"

int
sb_is_in_python(PyThreadState *tstate)
{
    return sb_current_frame(tstate) != NULL;
}

static const char *
name_of_call(long number)
{
#define CALL(name) {SYS_##name, #name}
    static const struct {
        long number;
        const char *name;
    } CALLS[] = {
        CALL(futex), CALL(epoll_pwait), CALL(clock_nanosleep), CALL(nanosleep),
        CALL(read), CALL(write), CALL(recvfrom), CALL(sendto), CALL(recvmsg),
        CALL(sendmsg), CALL(ppoll), CALL(pselect6), CALL(accept), CALL(accept4),
        CALL(connect), CALL(wait4), CALL(waitid), CALL(fsync), CALL(flock),
        CALL(rt_sigtimedwait), CALL(openat), CALL(io_getevents),
#ifdef SYS_epoll_wait
        CALL(epoll_wait), CALL(poll), CALL(select), CALL(pause),
#endif
    };
#undef CALL
    for (size_t i = 0; i < sizeof CALLS / sizeof *CALLS; i++) {
        if (CALLS[i].number == number) {
            return CALLS[i].name;
        }
    }
    return "a system call";
}

/* Read a file of /proc/self/task into `line`; its length, or 0. */
static ssize_t
read_about(pid_t tid, const char *what, char *line, size_t size)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/%s", (int)tid, what);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return 0;
    }
    ssize_t length = read(file, line, size - 1);
    close(file);
    line[length > 0 ? length : 0] = 0;
    return length > 0 ? length : 0;
}

/* What the kernel says of a thread that has not the GIL: "running", "waiting for the
 * GIL" or "blocked in NAME"; "" where it says nothing. Source: proc(5), syscall. */
static void
describe(pid_t tid, char *text, size_t size)
{
    char line[128];
    text[0] = 0;
    if (read_about(tid, "syscall", line, sizeof line) == 0) {
        return;
    }
    if (strncmp(line, "running", 7) == 0) {
        snprintf(text, size, "running");
        return;
    }
    char *end = line;
    long number = strtol(line, &end, 10);
    if (end == line || number < 0) {
        return;
    }
    size_t gil_size;
    const char *gil = sb_gil_memory(&gil_size);
    const char *address = (const char *)(uintptr_t)strtoull(end, NULL, 16);
    if (number == SYS_futex && address >= gil && address < gil + gil_size) {
        snprintf(text, size, "waiting for the GIL");
    }
    else {
        snprintf(text, size, "blocked in %s", name_of_call(number));
    }
}

/* How long ago a thread began, in nanoseconds; -1 where the kernel does not tell.
 * Source: proc(5), stat: field 22, in clock ticks since boot. */
static long long
age_ns_of(pid_t tid, const struct timespec *now)
{
    char line[512];
    char *at = read_about(tid, "stat", line, sizeof line) ? strrchr(line, ')') : NULL;
    for (int field = 2; at != NULL && field < 22; field++) {
        at = strchr(at + 1, ' ');
    }
    if (at == NULL) {
        return -1;
    }
    long long tick_ns = 1000000000 / sysconf(_SC_CLK_TCK);
    long long age = (long long)now->tv_sec * 1000000000 + now->tv_nsec -
                    strtoll(at, NULL, 10) * tick_ns;
    return age > 0 ? age : 0;
}

/* walk_threads(below, count, described) -> rows (id, ident, stack, cell, state, age in
 * ns) of at most `count` threads whose id is below `below`, highest first: ids only
 * grow, and a new thread comes first in the interpreter's list. */
static PyObject *
walk_threads(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long below;
    Py_ssize_t count;
    int described;
    if (!PyArg_ParseTuple(args, "Knp", &below, &count, &described)) {
        return NULL;
    }
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    PyObject *rows = PyList_New(0);
    PyThreadState *own = PyThreadState_Get();
    PyThreadState *tstate = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    for (; rows != NULL && tstate != NULL && count > 0;
         tstate = PyThreadState_Next(tstate)) {
        if (tstate->id >= below) {
            continue;
        }
        count--;
        int is_ours = tstate == own || sb_sampler_is_excluded(tstate) ||
                      !sb_is_in_python(tstate);
        int64_t stack = is_ours ? -1 : sb_stack_of_thread(tstate, SB_DEPTH_MAX);
        sb_cell *cell = is_ours ? NULL : sb_cell_of_context(tstate->context);
        char text[64] = "";
        long long age_ns = -1;
        if (described && !is_ours) {
            describe((pid_t)tstate->native_thread_id, text, sizeof text);
            age_ns = age_ns_of((pid_t)tstate->native_thread_id, &now);
        }
        PyObject *row = Py_BuildValue(
            "(KkLOsL)", (unsigned long long)tstate->id, tstate->thread_id,
            (long long)stack, cell ? (PyObject *)cell : Py_None, text, age_ns);
        if (row == NULL || PyList_Append(rows, row) < 0) {
            Py_CLEAR(rows);
        }
        Py_XDECREF(row);
    }
    return rows;
}

static PyMethodDef methods[] = {
    {"walk_threads", walk_threads, METH_VARARGS, "Rows of threads, a slice."},
    {NULL, NULL, 0, NULL},
};

int
sb_rest_threads_init(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
