#define _GNU_SOURCE
#include "sampler_parts.h"

#include "guard.h"

sb_record *sb_records[SB_THREADS_MAX];
uint32_t sb_record_count = 1;
sb_sampling_state sb_sampling;

uint64_t
sb_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void
sb_sampler_show(int on)
{
    atomic_store(&sb_sampling.shows, on);
}

/* ---- life cycle ------------------------------------------------------------------- */

int
sb_sampler_start(uint64_t period_ns, void (*before_code_dies)(void))
{
    if (sb_watch_code_deaths(before_code_dies) < 0 || sb_own_sigprof() < 0) {
        return -1;
    }
    if (sb_guard_install() < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    atomic_store(&sb_sampling.period, period_ns);
    atomic_store(&sb_sampling.active, 1);
    sb_tend_threads();
    return 0;
}

void
sb_sampler_stop(void)
{
    sb_disarm_all();
    atomic_store(&sb_sampling.active, 0);
    /* A handler that is still reading needs the guard. It takes microseconds; where its
     * thread does not get to run, the guard stays and passes faults on. */
    for (int spin = 0; spin < 1000 && atomic_load(&sb_sampling.in_handler) > 0; spin++) {
        struct timespec moment = {0, 10000};
        nanosleep(&moment, NULL);
    }
    if (atomic_load(&sb_sampling.in_handler) == 0) {
        sb_guard_remove();
    }
}

void
sb_sampler_set_period(uint64_t period_ns)
{
    atomic_store(&sb_sampling.period, period_ns);
    sb_set_timers();
}

int
sb_sampler_active(void)
{
    return atomic_load(&sb_sampling.active);
}

int
sb_sampler_tend(void)
{
    if (!atomic_load(&sb_sampling.active)) {
        return 0;
    }
    if (sb_sigprof_owner() != 1) {
        sb_sampler_stop();
        return -1;
    }
    if (!sb_guard_holds()) {
        sb_guard_install();
    }
    sb_tend_threads();
    return 0;
}

void
sb_sampler_after_fork(void)
{
    sb_arming_after_fork();
    atomic_store(&sb_sampling.active, 0);
    atomic_store(&sb_sampling.in_handler, 0);
    atomic_store(&sb_sampling.pending, 0);
    atomic_store(&sb_sampling.shows, 0);
    sb_guard_after_fork();
}

/* ---- reading ---------------------------------------------------------------------- */

static void
read_sample(const sb_record *self, uint64_t tail, sb_sample *sample)
{
    uint64_t head_word = self->ring[tail & SB_RING_MASK];
    sample->depth = (uint32_t)(head_word & 0xffff);
    sample->truncated = (int)(head_word >> 16 & 1);
    sample->copy = (uint32_t)(head_word >> 17 & 0x7fff);
    sample->weight = (uint32_t)(head_word >> 32);
    sample->tid = (uint32_t)self->tid; /* the record is not used again before */
    sample->time_ns = self->ring[(tail + 1) & SB_RING_MASK];
    sample->serial = self->ring[(tail + 2) & SB_RING_MASK];
    sample->period_ns = self->ring[(tail + 3) & SB_RING_MASK];
    for (uint32_t i = 0; i < sample->depth; i++) {
        uint64_t slot = tail + SB_HEADER_WORDS + (uint64_t)i * SB_FRAME_WORDS;
        sample->frames[i].code =
            (PyCodeObject *)(uintptr_t)self->ring[slot & SB_RING_MASK];
        sample->frames[i].offset = (int32_t)self->ring[(slot + 1) & SB_RING_MASK];
    }
}

size_t
sb_sampler_drain(size_t limit, void (*consume)(const sb_sample *))
{
    static sb_sample sample; /* 8 KiB, too much for a deep thread's stack */
    size_t count = 0;
    for (uint32_t i = 1; i < sb_record_count; i++) {
        sb_record *self = sb_records[i];
        uint64_t head = atomic_load_explicit(&self->head, memory_order_acquire);
        uint64_t tail = atomic_load_explicit(&self->tail, memory_order_relaxed);
        while (tail != head && count < limit) {
            read_sample(self, tail, &sample);
            consume(&sample);
            tail += SB_HEADER_WORDS + (uint64_t)sample.depth * SB_FRAME_WORDS;
            atomic_store_explicit(&self->tail, tail, memory_order_release);
            atomic_fetch_sub(&sb_sampling.pending, 1);
            count++;
        }
    }
    return count;
}

int
sb_sampler_pending(void)
{
    return atomic_load(&sb_sampling.pending) > 0;
}

sb_counters
sb_sampler_counters(void)
{
    sb_counters out = {
        .samples = sb_sampling.counters.samples,
        .overruns = sb_sampling.counters.overruns,
        .lost_full = sb_sampling.counters.lost_full,
        .lost_fault = sb_sampling.counters.lost_fault,
        .lost_torn = sb_sampling.counters.lost_torn,
        .lost_unguarded = sb_sampling.counters.lost_unguarded,
        .stray = sb_sampling.counters.stray,
        .foreign = sb_sampling.counters.foreign,
        .handler_ns = sb_sampling.counters.handler_ns,
        .threads_refused = sb_sampling.counters.threads_refused,
    };
    for (uint32_t i = 1; i < sb_record_count; i++) {
        out.threads += atomic_load(&sb_records[i]->tstate) != NULL;
    }
    return out;
}
