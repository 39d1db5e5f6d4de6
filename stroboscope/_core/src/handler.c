/* What runs on a sample, and the signal it runs on.
 *
 * In the handler: no Python call but PyGILState_GetThisThreadState (one thread-local
 * read), no allocation, no lock, no reference count. All other signals but faults are
 * blocked, so nothing foreign runs while the guard is armed.
 */
#define _GNU_SOURCE
#include "sampler_parts.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cell.h"
#include "copies.h"
#include "guard.h"
#include "samples.h"

enum { FRAMES_WORTH_KEEPING = 8 };

#define COUNT(field) \
    atomic_fetch_add_explicit(&sb_sampling.counters.field, 1, memory_order_relaxed)

/* Frames looked at in one walk: each of Python's may have one of the interpreter's. A
 * chain read in the middle of a change may lead in a circle. */
enum { HOPS_MAX = 2 * SB_DEPTH_MAX + 64 };

SB_READS_STALE int32_t
sb_walk(PyThreadState *tstate, sb_record *self, uint64_t at, uint32_t room, int *truncated)
{
    if (!sb_frames_hang_together(tstate, HOPS_MAX)) {
        return -1;
    }
    uint32_t depth = 0;
    int hops = 0;
    sb_frame *frame = sb_current_frame(tstate);
    for (; frame != NULL; frame = sb_frame_previous(frame)) {
        if (++hops > HOPS_MAX) {
            return -1;
        }
        PyCodeObject *code = sb_frame_code(frame);
        if (code == NULL) {
            continue;
        }
        if (depth == room) {
            *truncated = 1;
            break;
        }
        uint64_t slot = at + SB_HEADER_WORDS + (uint64_t)depth * SB_FRAME_WORDS;
        self->ring[slot & SB_RING_MASK] = (uint64_t)(uintptr_t)code;
        self->ring[(slot + 1) & SB_RING_MASK] =
            (uint64_t)(int64_t)sb_code_offset(code, sb_frame_instruction(frame));
        depth++;
    }
    return (int32_t)depth;
}

static void
take(sb_record *self, PyThreadState *tstate, uint64_t time_ns, uint32_t weight,
     const ucontext_t *context)
{
    uint64_t head = atomic_load_explicit(&self->head, memory_order_relaxed);
    uint64_t tail = atomic_load_explicit(&self->tail, memory_order_acquire);
    uint64_t space = SB_RING_WORDS - (head - tail);
    if (space < SB_HEADER_WORDS + FRAMES_WORTH_KEEPING * SB_FRAME_WORDS) {
        COUNT(lost_full);
        return;
    }
    uint64_t room = (space - SB_HEADER_WORDS) / SB_FRAME_WORDS;
    room = room < SB_DEPTH_MAX ? room : SB_DEPTH_MAX;

    sigjmp_buf jump;
    if (sigsetjmp(jump, 0) != 0) {
        COUNT(lost_fault);
        return;
    }
    sb_guard_arm(&jump);
    sb_cell *cell = sb_cell_of_context(tstate->context);
    uint64_t serial = cell ? cell->serial : 0;
    int truncated = 0;
    int32_t found = sb_walk(tstate, self, head, (uint32_t)room, &truncated);
    if (cell != NULL && found > 0) {
        atomic_store_explicit(&cell->sampled, 1, memory_order_relaxed);
    }
    sb_guard_arm(NULL);

    if (found <= 0) {
        if (found < 0) {
            COUNT(lost_torn);
        }
        return; /* no Python on this thread now, which is not a loss */
    }
    uint32_t depth = (uint32_t)found;
    uint64_t copy = 0;
    if (atomic_load_explicit(&sb_copies_wanted, memory_order_relaxed)) {
        copy = sb_copy_take(context, tstate);
    }
    self->ring[head & SB_RING_MASK] =
        (uint64_t)weight << 32 | copy << 17 | (uint64_t)(truncated != 0) << 16 | depth;
    self->ring[(head + 1) & SB_RING_MASK] = time_ns;
    self->ring[(head + 2) & SB_RING_MASK] = serial;
    self->ring[(head + 3) & SB_RING_MASK] = atomic_load(&sb_sampling.period);
    atomic_store_explicit(&self->head, head + SB_HEADER_WORDS + depth * SB_FRAME_WORDS,
                          memory_order_release);
    atomic_fetch_add(&sb_sampling.pending, 1);
    COUNT(samples);
}

static void
on_timer(siginfo_t *info, const ucontext_t *context)
{
    uint64_t began = sb_now_ns();
    /* Anybody may send SIGPROF: only what the kernel's timers send is followed, and
     * its value is checked before it is used. */
    if (info->si_code != SI_TIMER) {
        COUNT(foreign);
        return;
    }
    uint32_t value = (uint32_t)info->si_value.sival_int;
    uint32_t index = value & 0xffff;
    sb_record *self = index > 0 && index < SB_THREADS_MAX ? sb_records[index] : NULL;
    PyThreadState *tstate = PyGILState_GetThisThreadState();
    if (self == NULL || tstate == NULL || tstate != atomic_load(&self->tstate) ||
        (atomic_load(&self->generation) & 0xffff) != value >> 16) {
        COUNT(stray);
        return;
    }
    uint32_t overrun = info->si_overrun > 0 ? (uint32_t)info->si_overrun : 0;
    if (!sb_guard_holds()) {
        COUNT(lost_unguarded);
        return;
    }
    atomic_fetch_add_explicit(&sb_sampling.counters.overruns, overrun, memory_order_relaxed);
    take(self, tstate, began, 1 + overrun, context);
    if (atomic_load(&sb_sampling.shows)) {
        sb_samples_take(tstate, 0);
    }
    atomic_fetch_add_explicit(&sb_sampling.counters.handler_ns, sb_now_ns() - began,
                              memory_order_relaxed);
}

/* What our own calls carry: the address of this. */
static const char call_mark;
static _Atomic uint64_t calls_answered;

static void
on_call(void)
{
    PyThreadState *tstate = PyGILState_GetThisThreadState();
    if (tstate != NULL && sb_guard_holds()) {
        sb_samples_take(tstate, SB_SAMPLE_HOLDER);
    }
    else if (tstate != NULL) {
        COUNT(lost_unguarded);
    }
    atomic_fetch_add(&calls_answered, 1);
}

static int
is_call(const siginfo_t *info)
{
    return info->si_code == SI_QUEUE && info->si_value.sival_ptr == (const void *)&call_mark &&
           info->si_pid == getpid();
}

static void
on_sigprof(int Py_UNUSED(number), siginfo_t *info, void *context)
{
    int saved = errno;
    atomic_fetch_add(&sb_sampling.in_handler, 1);
    if (is_call(info)) {
        on_call();
    }
    else if (atomic_load(&sb_sampling.active)) {
        on_timer(info, context);
    }
    atomic_fetch_sub(&sb_sampling.in_handler, 1);
    errno = saved;
}

/* ---- signals ---------------------------------------------------------------------- */

int
sb_sigprof_owner(void)
{
    struct sigaction now;
    if (sigaction(SIGPROF, NULL, &now) < 0) {
        return -1;
    }
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_sigprof) {
        return 1;
    }
    int is_free = !(now.sa_flags & SA_SIGINFO) &&
                  (now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN);
    return is_free ? 0 : -1;
}

/* 0 when it is ours from now on, 1 where it is somebody else's, -1 with errno. Without
 * the GIL as well. */
static int
take_sigprof(void)
{
    int owner = sb_sigprof_owner();
    if (owner != 0) {
        return owner < 0;
    }
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_sigprof;
    action.sa_flags = SA_RESTART | SA_SIGINFO | SA_ONSTACK;
    sigfillset(&action.sa_mask);
    static const int FAULTS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT};
    for (size_t i = 0; i < sizeof FAULTS / sizeof *FAULTS; i++) {
        sigdelset(&action.sa_mask, FAULTS[i]);
    }
    return sigaction(SIGPROF, &action, NULL);
}

int
sb_own_sigprof(void)
{
    int taken = take_sigprof();
    if (taken > 0) {
        PyErr_SetString(PyExc_RuntimeError,
                        "SIGPROF belongs to another handler in this process");
    }
    else if (taken < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return taken == 0 ? 0 : -1;
}

int
sb_sampler_call(pid_t tid)
{
    if (!sb_samples_are_kept() || take_sigprof() != 0 || sb_guard_install() < 0) {
        return -1;
    }
    siginfo_t info;
    memset(&info, 0, sizeof info);
    info.si_signo = SIGPROF;
    info.si_code = SI_QUEUE;
    info.si_pid = getpid();
    info.si_uid = getuid();
    info.si_value.sival_ptr = (void *)(uintptr_t)&call_mark;
    uint64_t before = atomic_load(&calls_answered);
    syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, SIGPROF, &info);
    /* It takes microseconds; one that comes later finds no guard and leaves nothing. */
    for (int spin = 0; spin < 200 && atomic_load(&calls_answered) == before; spin++) {
        struct timespec moment = {0, 100000};
        nanosleep(&moment, NULL);
    }
    if (!atomic_load(&sb_sampling.active) && atomic_load(&sb_sampling.in_handler) == 0) {
        sb_guard_remove();
    }
    return 0;
}
