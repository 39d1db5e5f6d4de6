/* What the self-test, the tests and the crash hunt ask of the sampler. */
#define _GNU_SOURCE
#include "sampler_parts.h"

#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cell.h"

/* A walk along a chain that leads back to itself ends, and says so. */
static int
ends_in_a_circle(void)
{
    static uint64_t ring[SB_RING_WORDS];
    sb_record self = {.ring = ring};
    PyThreadState *fake = PyMem_RawCalloc(1, sizeof *fake);
    sb_frame *frame = PyMem_RawCalloc(1, sizeof *frame);
    int truncated = 0, ends = 0;
    if (fake != NULL && frame != NULL) {
        frame->previous = frame;
#if PY_VERSION_HEX >= 0x030d0000
        fake->current_frame = frame;
#else
        _PyCFrame outer = {0}, inner = {0};
        inner.previous = &outer;
        inner.current_frame = frame;
        fake->cframe = &inner;
#endif
        ends = sb_walk(fake, &self, 0, SB_DEPTH_MAX, &truncated) < 0;
    }
    PyMem_RawFree(frame);
    PyMem_RawFree(fake);
    return ends;
}

int
sb_sampler_check(void)
{
    int equal = sb_cells_check();
    if (equal <= 0 || !ends_in_a_circle()) {
        return equal < 0 ? -1 : 0;
    }
    sb_frame *frame = sb_current_frame(PyThreadState_Get());
    PyFrameObject *expected = (PyFrameObject *)Py_XNewRef(PyEval_GetFrame());
    for (; frame != NULL && equal; frame = sb_frame_previous(frame)) {
        PyCodeObject *code = sb_frame_code(frame);
        if (code == NULL) {
            continue;
        }
        PyCodeObject *want = expected ? PyFrame_GetCode(expected) : NULL;
        equal = want == code;
        Py_XDECREF(want);
        PyFrameObject *back = expected ? PyFrame_GetBack(expected) : NULL;
        Py_XSETREF(expected, back);
    }
    equal = equal && expected == NULL;
    Py_XDECREF(expected);
    return equal;
}

int
sb_sampler_misarm(unsigned long ident)
{
    PyThreadState *tstate = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    for (; tstate != NULL; tstate = PyThreadState_Next(tstate)) {
        sb_record *self = tstate->thread_id == ident ? sb_armed_record(tstate) : NULL;
        if (self != NULL) {
            sb_disarm(self);
            return sb_arm_as(tstate, (pid_t)syscall(SYS_gettid)) == 0;
        }
    }
    return 0;
}

void
sb_sampler_storm(uint64_t count, unsigned hz)
{
    struct timespec gap = {0, (long)(1000000000u / (hz ? hz : 1))};
    uint32_t seed = (uint32_t)sb_now_ns();
    for (uint64_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        uint32_t index = sb_record_count > 1 ? 1 + (seed >> 8) % (sb_record_count - 1) : 0;
        sb_record *self = index ? sb_records[index] : NULL;
        PyThreadState *tstate = self ? atomic_load(&self->tstate) : NULL;
        if (tstate != NULL) {
            siginfo_t info;
            memset(&info, 0, sizeof info);
            info.si_signo = SIGPROF;
            info.si_code = SI_TIMER;
            info.si_value.sival_int =
                (int)((atomic_load(&self->generation) & 0xffff) << 16 | index);
            syscall(SYS_rt_tgsigqueueinfo, getpid(), self->tid, SIGPROF, &info);
        }
        nanosleep(&gap, NULL);
    }
}
