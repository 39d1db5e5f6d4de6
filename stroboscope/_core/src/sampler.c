#define _GNU_SOURCE
#include "compat.h"

#include "sampler.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cell.h"
#include "guard.h"
#include "samples.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

/* 64 KiB a thread: a tenth of a second at 250 samples of 160 frames. Pages of threads
 * that are never sampled are never touched. */
#define RING_WORDS ((uint64_t)8192)
#define RING_MASK (RING_WORDS - 1)

enum { HEADER_WORDS = 4, FRAME_WORDS = 2, FRAMES_WORTH_KEEPING = 8 };

/* A record outlives its thread and is used again, never freed: a late signal may carry
 * its index. */
typedef struct {
    _Atomic(PyThreadState *) tstate; /* NULL: not armed */
    uint64_t tstate_id;
    atomic_uint generation;
    timer_t timer;
    pid_t tid;
    int seen; /* by the latest tending */
    uint64_t *ring;
    /* Single producer, the handler on its own thread; single consumer, under the GIL. */
    _Atomic uint64_t head, tail;
} record;

static record *records[SB_THREADS_MAX];
static uint32_t record_count = 1; /* index 0 is what a stranger's signal carries */

static atomic_int active;
static atomic_int in_handler;
static atomic_int shows; /* samples go into the mapping, too */
static atomic_long pending;
static _Atomic uint64_t period;

static struct {
    _Atomic uint64_t samples, overruns, lost_full, lost_fault, lost_torn, lost_unguarded, stray,
        foreign, handler_ns;
    uint64_t threads_refused;
} counters;

#define COUNT(field) \
    atomic_fetch_add_explicit(&counters.field, 1, memory_order_relaxed)

/* Threads of ours, never sampled. Bounded by the diagnostics pool. */
enum { EXCLUDED_MAX = 256 };
static uint64_t excluded[EXCLUDED_MAX];
static unsigned excluded_count;

uint64_t
sb_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- in the handler ---------------------------------------------------------------
 * No Python call but PyGILState_GetThisThreadState (one thread-local read), no
 * allocation, no lock, no reference count. All other signals but faults are blocked, so
 * nothing foreign runs while the guard is armed.
 */

/* Frames looked at in one walk: each of Python's may have one of the interpreter's. A
 * chain read in the middle of a change may lead in a circle. */
enum { HOPS_MAX = 2 * SB_DEPTH_MAX + 64 };

/* Walk from the leaf; returns the number of frames, writes `*truncated`, or -1 for a
 * chain that cannot be one. May fault. */
SB_READS_STALE static int32_t
walk(PyThreadState *tstate, record *self, uint64_t at, uint32_t room, int *truncated)
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
        uint64_t slot = at + HEADER_WORDS + (uint64_t)depth * FRAME_WORDS;
        self->ring[slot & RING_MASK] = (uint64_t)(uintptr_t)code;
        self->ring[(slot + 1) & RING_MASK] =
            (uint64_t)(int64_t)sb_code_offset(code, sb_frame_instruction(frame));
        depth++;
    }
    return (int32_t)depth;
}

static void
take(record *self, PyThreadState *tstate, uint64_t time_ns, uint32_t weight)
{
    uint64_t head = atomic_load_explicit(&self->head, memory_order_relaxed);
    uint64_t tail = atomic_load_explicit(&self->tail, memory_order_acquire);
    uint64_t space = RING_WORDS - (head - tail);
    if (space < HEADER_WORDS + FRAMES_WORTH_KEEPING * FRAME_WORDS) {
        COUNT(lost_full);
        return;
    }
    uint64_t room = (space - HEADER_WORDS) / FRAME_WORDS;
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
    int32_t found = walk(tstate, self, head, (uint32_t)room, &truncated);
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
    self->ring[head & RING_MASK] =
        (uint64_t)weight << 32 | (uint64_t)(truncated != 0) << 16 | depth;
    self->ring[(head + 1) & RING_MASK] = time_ns;
    self->ring[(head + 2) & RING_MASK] = serial;
    self->ring[(head + 3) & RING_MASK] = atomic_load(&period);
    atomic_store_explicit(&self->head, head + HEADER_WORDS + depth * FRAME_WORDS,
                          memory_order_release);
    atomic_fetch_add(&pending, 1);
    COUNT(samples);
}

static void
on_timer(siginfo_t *info)
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
    record *self = index > 0 && index < SB_THREADS_MAX ? records[index] : NULL;
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
    atomic_fetch_add_explicit(&counters.overruns, overrun, memory_order_relaxed);
    take(self, tstate, began, 1 + overrun);
    if (atomic_load(&shows)) {
        sb_samples_take(tstate, 0);
    }
    atomic_fetch_add_explicit(&counters.handler_ns, sb_now_ns() - began,
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
on_sigprof(int Py_UNUSED(number), siginfo_t *info, void *Py_UNUSED(context))
{
    int saved = errno;
    atomic_fetch_add(&in_handler, 1);
    if (is_call(info)) {
        on_call();
    }
    else if (atomic_load(&active)) {
        on_timer(info);
    }
    atomic_fetch_sub(&in_handler, 1);
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

static int
own_sigprof(void)
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
    if (!atomic_load(&active) && atomic_load(&in_handler) == 0) {
        sb_guard_remove();
    }
    return 0;
}

void
sb_sampler_show(int on)
{
    atomic_store(&shows, on);
}

/* ---- threads ---------------------------------------------------------------------- */

static record *
free_record(uint32_t *index)
{
    /* From where the last search ended: arming many threads is then one pass. */
    static uint32_t last;
    for (uint32_t step = 1; step < record_count; step++) {
        uint32_t i = 1 + (last + step) % (record_count - 1);
        record *self = records[i];
        if (atomic_load(&self->tstate) == NULL &&
            atomic_load(&self->head) == atomic_load(&self->tail)) {
            *index = i;
            last = i - 1;
            return self;
        }
    }
    if (record_count == SB_THREADS_MAX) {
        return NULL;
    }
    record *self = PyMem_RawCalloc(1, sizeof *self);
    void *ring = mmap(NULL, RING_WORDS * sizeof(uint64_t), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (self == NULL || ring == MAP_FAILED) {
        PyMem_RawFree(self);
        return NULL;
    }
    self->ring = ring;
    *index = record_count;
    records[record_count] = self;
    record_count++;
    return self;
}

/* The kernel's CPU clock of a thread, by its id: unlike pthread_getcpuclockid this is
 * safe when the thread is gone. Source: clock_getcpuclockid(3), kernel posix-timers.h. */
static clockid_t
thread_clock(pid_t tid)
{
    enum { PER_THREAD = 4, SCHEDULED = 2 };
    return (clockid_t)((~(unsigned)tid << 3) | PER_THREAD | SCHEDULED);
}

/* xorshift64, under the GIL. */
static uint64_t
random_word(void)
{
    static uint64_t state;
    if (state == 0) {
        state = sb_now_ns() | 1;
    }
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void
set_timer(const record *self)
{
    uint64_t ns = atomic_load(&period);
    struct itimerspec every;
    every.it_interval.tv_sec = (time_t)(ns / 1000000000u);
    every.it_interval.tv_nsec = (long)(ns % 1000000000u);
    /* A random first expiry: a thread that lives shorter than a period is then sampled
     * in proportion to the CPU it burns, instead of never. Go does the same. */
    uint64_t first = 1 + random_word() % ns;
    every.it_value.tv_sec = (time_t)(first / 1000000000u);
    every.it_value.tv_nsec = (long)(first % 1000000000u);
    timer_settime(self->timer, 0, &every, NULL);
}

static int
arm_as(PyThreadState *tstate, pid_t tid)
{
    uint32_t index;
    record *self = tid > 0 ? free_record(&index) : NULL;
    if (self == NULL) {
        counters.threads_refused += tid > 0;
        return -1;
    }
    unsigned generation = atomic_fetch_add(&self->generation, 1) + 1;
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGPROF;
    event.sigev_notify_thread_id = tid;
    event.sigev_value.sival_int = (int)((generation & 0xffff) << 16 | index);
    if (timer_create(thread_clock(tid), &event, &self->timer) < 0) {
        counters.threads_refused += errno != EINVAL; /* EINVAL: the thread is gone */
        return -1;
    }
    self->tid = tid;
    self->tstate_id = tstate->id;
    self->seen = 1;
    atomic_store(&self->tstate, tstate);
    set_timer(self);
    return 0;
}

static int
arm(PyThreadState *tstate)
{
    return arm_as(tstate, (pid_t)tstate->native_thread_id);
}

static void
disarm(record *self)
{
    timer_delete(self->timer);
    atomic_store(&self->tstate, NULL);
}

static record *
armed_record(PyThreadState *tstate)
{
    for (uint32_t i = 1; i < record_count; i++) {
        if (atomic_load(&records[i]->tstate) == tstate &&
            records[i]->tstate_id == tstate->id) {
            return records[i];
        }
    }
    return NULL;
}

static int
is_excluded(uint64_t tstate_id)
{
    for (unsigned i = 0; i < excluded_count; i++) {
        if (excluded[i] == tstate_id) {
            return 1;
        }
    }
    return 0;
}

int
sb_sampler_is_excluded(const PyThreadState *tstate)
{
    return is_excluded(tstate->id);
}

void
sb_sampler_exclude_current(void)
{
    PyThreadState *tstate = PyThreadState_Get();
    record *self = armed_record(tstate);
    if (self != NULL) {
        disarm(self);
    }
    if (!is_excluded(tstate->id) && excluded_count < EXCLUDED_MAX) {
        excluded[excluded_count++] = tstate->id;
    }
}

void
sb_sampler_include_current(void)
{
    uint64_t id = PyThreadState_Get()->id;
    for (unsigned i = 0; i < excluded_count; i++) {
        if (excluded[i] == id) {
            excluded[i] = excluded[--excluded_count];
            return;
        }
    }
}

/* On 3.11 a state carries its creator's thread id until its own thread runs: tended
 * meanwhile, it was armed on the wrong clock. */
static int
is_for(const record *self, const PyThreadState *tstate)
{
    return self->tid == (pid_t)tstate->native_thread_id;
}

int
sb_sampler_arm_current(void)
{
    PyThreadState *tstate = PyThreadState_Get();
    if (!atomic_load(&active) || is_excluded(tstate->id)) {
        return 0;
    }
    record *self = armed_record(tstate);
    if (self != NULL && is_for(self, tstate)) {
        return 0;
    }
    if (self != NULL) {
        disarm(self);
    }
    return arm(tstate) == 0;
}

void
sb_sampler_disarm_current(void)
{
    record *self = armed_record(PyThreadState_Get());
    if (self != NULL) {
        disarm(self);
    }
}

/* Armed records by thread state, made anew at each tending: with a search for each
 * thread, thousands of threads would hold the GIL for milliseconds. */
enum { INDEX_SLOTS = 2 * SB_THREADS_MAX };
static uint16_t armed_index[INDEX_SLOTS];

static uint16_t *
index_slot(uint64_t tstate_id)
{
    uint32_t at = (uint32_t)(tstate_id * 0x9E3779B97F4A7C15u >> 32);
    for (;; at++) {
        uint16_t *slot = &armed_index[at & (INDEX_SLOTS - 1)];
        if (*slot == 0 || records[*slot]->tstate_id == tstate_id) {
            return slot;
        }
    }
}

static void
index_armed(void)
{
    memset(armed_index, 0, sizeof armed_index);
    for (uint32_t i = 1; i < record_count; i++) {
        records[i]->seen = 0;
        if (atomic_load(&records[i]->tstate) != NULL) {
            *index_slot(records[i]->tstate_id) = (uint16_t)i;
        }
    }
}

/* New states are only ever put before the head we read, and a state is only unlinked
 * with the GIL, which we hold: the list stands still behind us. */
static void
tend_threads(void)
{
    index_armed();
    PyThreadState *tstate = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    for (; tstate != NULL; tstate = PyThreadState_Next(tstate)) {
        uint16_t found = *index_slot(tstate->id);
        if (found != 0 && atomic_load(&records[found]->tstate) == tstate &&
            is_for(records[found], tstate)) {
            records[found]->seen = 1;
        }
        else if (!is_excluded(tstate->id)) {
            arm(tstate); /* what it was armed with before is not seen, and goes */
        }
    }
    for (uint32_t i = 1; i < record_count; i++) {
        if (atomic_load(&records[i]->tstate) != NULL && !records[i]->seen) {
            disarm(records[i]);
        }
    }
}

/* ---- life cycle ------------------------------------------------------------------- */

int
sb_sampler_start(uint64_t period_ns, void (*before_code_dies)(void))
{
    if (sb_watch_code_deaths(before_code_dies) < 0 || own_sigprof() < 0) {
        return -1;
    }
    if (sb_guard_install() < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    atomic_store(&period, period_ns);
    atomic_store(&active, 1);
    tend_threads();
    return 0;
}

void
sb_sampler_stop(void)
{
    for (uint32_t i = 1; i < record_count; i++) {
        if (atomic_load(&records[i]->tstate) != NULL) {
            disarm(records[i]);
        }
    }
    atomic_store(&active, 0);
    /* A handler that is still reading needs the guard. It takes microseconds; where its
     * thread does not get to run, the guard stays and passes faults on. */
    for (int spin = 0; spin < 1000 && atomic_load(&in_handler) > 0; spin++) {
        struct timespec moment = {0, 10000};
        nanosleep(&moment, NULL);
    }
    if (atomic_load(&in_handler) == 0) {
        sb_guard_remove();
    }
}

void
sb_sampler_set_period(uint64_t period_ns)
{
    atomic_store(&period, period_ns);
    for (uint32_t i = 1; i < record_count; i++) {
        if (atomic_load(&records[i]->tstate) != NULL) {
            set_timer(records[i]);
        }
    }
}

int
sb_sampler_active(void)
{
    return atomic_load(&active);
}

int
sb_sampler_tend(void)
{
    if (!atomic_load(&active)) {
        return 0;
    }
    if (sb_sigprof_owner() != 1) {
        sb_sampler_stop();
        return -1;
    }
    if (!sb_guard_holds()) {
        sb_guard_install();
    }
    tend_threads();
    return 0;
}

void
sb_sampler_after_fork(void)
{
    for (uint32_t i = 1; i < record_count; i++) {
        atomic_store(&records[i]->tstate, NULL);
        atomic_store(&records[i]->tail, atomic_load(&records[i]->head));
    }
    atomic_store(&active, 0);
    atomic_store(&in_handler, 0);
    atomic_store(&pending, 0);
    atomic_store(&shows, 0);
    excluded_count = 0;
    sb_guard_after_fork();
}

/* ---- reading ---------------------------------------------------------------------- */

static void
read_sample(const record *self, uint64_t tail, sb_sample *sample)
{
    uint64_t head_word = self->ring[tail & RING_MASK];
    sample->depth = (uint32_t)(head_word & 0xffff);
    sample->truncated = (int)(head_word >> 16 & 1);
    sample->weight = (uint32_t)(head_word >> 32);
    sample->tid = (uint32_t)self->tid; /* the record is not used again before */
    sample->time_ns = self->ring[(tail + 1) & RING_MASK];
    sample->serial = self->ring[(tail + 2) & RING_MASK];
    sample->period_ns = self->ring[(tail + 3) & RING_MASK];
    for (uint32_t i = 0; i < sample->depth; i++) {
        uint64_t slot = tail + HEADER_WORDS + (uint64_t)i * FRAME_WORDS;
        sample->frames[i].code =
            (PyCodeObject *)(uintptr_t)self->ring[slot & RING_MASK];
        sample->frames[i].offset = (int32_t)self->ring[(slot + 1) & RING_MASK];
    }
}

size_t
sb_sampler_drain(size_t limit, void (*consume)(const sb_sample *))
{
    static sb_sample sample; /* 8 KiB, too much for a deep thread's stack */
    size_t count = 0;
    for (uint32_t i = 1; i < record_count; i++) {
        record *self = records[i];
        uint64_t head = atomic_load_explicit(&self->head, memory_order_acquire);
        uint64_t tail = atomic_load_explicit(&self->tail, memory_order_relaxed);
        while (tail != head && count < limit) {
            read_sample(self, tail, &sample);
            consume(&sample);
            tail += HEADER_WORDS + (uint64_t)sample.depth * FRAME_WORDS;
            atomic_store_explicit(&self->tail, tail, memory_order_release);
            atomic_fetch_sub(&pending, 1);
            count++;
        }
    }
    return count;
}

int
sb_sampler_pending(void)
{
    return atomic_load(&pending) > 0;
}

sb_counters
sb_sampler_counters(void)
{
    sb_counters out = {
        .samples = counters.samples,
        .overruns = counters.overruns,
        .lost_full = counters.lost_full,
        .lost_fault = counters.lost_fault,
        .lost_torn = counters.lost_torn,
        .lost_unguarded = counters.lost_unguarded,
        .stray = counters.stray,
        .foreign = counters.foreign,
        .handler_ns = counters.handler_ns,
        .threads_refused = counters.threads_refused,
    };
    for (uint32_t i = 1; i < record_count; i++) {
        out.threads += atomic_load(&records[i]->tstate) != NULL;
    }
    return out;
}

/* ---- checks and the crash hunt ---------------------------------------------------- */

/* A walk along a chain that leads back to itself ends, and says so. */
static int
ends_in_a_circle(void)
{
    static uint64_t ring[RING_WORDS];
    record self = {.ring = ring};
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
        ends = walk(fake, &self, 0, SB_DEPTH_MAX, &truncated) < 0;
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
        record *self = tstate->thread_id == ident ? armed_record(tstate) : NULL;
        if (self != NULL) {
            disarm(self);
            return arm_as(tstate, (pid_t)syscall(SYS_gettid)) == 0;
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
        uint32_t index = record_count > 1 ? 1 + (seed >> 8) % (record_count - 1) : 0;
        record *self = index ? records[index] : NULL;
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
