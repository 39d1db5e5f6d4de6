/* A timer for each thread: who is armed, who is not any more, who never is. */
#define _GNU_SOURCE
#include "sampler_parts.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

/* Threads of ours, never sampled. Bounded by the diagnostics pool. */
enum { EXCLUDED_MAX = 256 };
static uint64_t excluded[EXCLUDED_MAX];
static unsigned excluded_count;

static sb_record *
free_record(uint32_t *index)
{
    /* From where the last search ended: arming many threads is then one pass. */
    static uint32_t last;
    for (uint32_t step = 1; step < sb_record_count; step++) {
        uint32_t i = 1 + (last + step) % (sb_record_count - 1);
        sb_record *self = sb_records[i];
        if (atomic_load(&self->tstate) == NULL &&
            atomic_load(&self->head) == atomic_load(&self->tail)) {
            *index = i;
            last = i - 1;
            return self;
        }
    }
    if (sb_record_count == SB_THREADS_MAX) {
        return NULL;
    }
    sb_record *self = PyMem_RawCalloc(1, sizeof *self);
    void *ring = mmap(NULL, SB_RING_WORDS * sizeof(uint64_t), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (self == NULL || ring == MAP_FAILED) {
        PyMem_RawFree(self);
        return NULL;
    }
    self->ring = ring;
    *index = sb_record_count;
    sb_records[sb_record_count] = self;
    sb_record_count++;
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
set_timer(const sb_record *self)
{
    uint64_t ns = atomic_load(&sb_sampling.period);
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

void
sb_set_timers(void)
{
    for (uint32_t i = 1; i < sb_record_count; i++) {
        if (atomic_load(&sb_records[i]->tstate) != NULL) {
            set_timer(sb_records[i]);
        }
    }
}

int
sb_arm_as(PyThreadState *tstate, pid_t tid)
{
    uint32_t index;
    sb_record *self = tid > 0 ? free_record(&index) : NULL;
    if (self == NULL) {
        sb_sampling.counters.threads_refused += tid > 0;
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
        /* EINVAL: the thread is gone. */
        sb_sampling.counters.threads_refused += errno != EINVAL;
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
    return sb_arm_as(tstate, (pid_t)tstate->native_thread_id);
}

void
sb_disarm(sb_record *self)
{
    timer_delete(self->timer);
    atomic_store(&self->tstate, NULL);
}

void
sb_disarm_all(void)
{
    for (uint32_t i = 1; i < sb_record_count; i++) {
        if (atomic_load(&sb_records[i]->tstate) != NULL) {
            sb_disarm(sb_records[i]);
        }
    }
}

sb_record *
sb_armed_record(PyThreadState *tstate)
{
    for (uint32_t i = 1; i < sb_record_count; i++) {
        if (atomic_load(&sb_records[i]->tstate) == tstate &&
            sb_records[i]->tstate_id == tstate->id) {
            return sb_records[i];
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
    sb_record *self = sb_armed_record(tstate);
    if (self != NULL) {
        sb_disarm(self);
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
is_for(const sb_record *self, const PyThreadState *tstate)
{
    return self->tid == (pid_t)tstate->native_thread_id;
}

int
sb_sampler_arm_current(void)
{
    PyThreadState *tstate = PyThreadState_Get();
    if (!atomic_load(&sb_sampling.active) || is_excluded(tstate->id)) {
        return 0;
    }
    sb_record *self = sb_armed_record(tstate);
    if (self != NULL && is_for(self, tstate)) {
        return 0;
    }
    if (self != NULL) {
        sb_disarm(self);
    }
    return arm(tstate) == 0;
}

void
sb_sampler_disarm_current(void)
{
    sb_record *self = sb_armed_record(PyThreadState_Get());
    if (self != NULL) {
        sb_disarm(self);
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
        if (*slot == 0 || sb_records[*slot]->tstate_id == tstate_id) {
            return slot;
        }
    }
}

static void
index_armed(void)
{
    memset(armed_index, 0, sizeof armed_index);
    for (uint32_t i = 1; i < sb_record_count; i++) {
        sb_records[i]->seen = 0;
        if (atomic_load(&sb_records[i]->tstate) != NULL) {
            *index_slot(sb_records[i]->tstate_id) = (uint16_t)i;
        }
    }
}

/* New states are only ever put before the head we read, and a state is only unlinked
 * with the GIL, which we hold: the list stands still behind us. */
void
sb_tend_threads(void)
{
    index_armed();
    PyThreadState *tstate = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    for (; tstate != NULL; tstate = PyThreadState_Next(tstate)) {
        uint16_t found = *index_slot(tstate->id);
        if (found != 0 && atomic_load(&sb_records[found]->tstate) == tstate &&
            is_for(sb_records[found], tstate)) {
            sb_records[found]->seen = 1;
        }
        else if (!is_excluded(tstate->id)) {
            arm(tstate); /* what it was armed with before is not seen, and goes */
        }
    }
    for (uint32_t i = 1; i < sb_record_count; i++) {
        if (atomic_load(&sb_records[i]->tstate) != NULL && !sb_records[i]->seen) {
            sb_disarm(sb_records[i]);
        }
    }
}

void
sb_arming_after_fork(void)
{
    for (uint32_t i = 1; i < sb_record_count; i++) {
        atomic_store(&sb_records[i]->tstate, NULL);
        atomic_store(&sb_records[i]->tail, atomic_load(&sb_records[i]->head));
    }
    excluded_count = 0;
}
