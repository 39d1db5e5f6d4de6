/* Perfetto's packets of what happened: the part that is long. What is short (process,
 * threads, clocks, names, counters, the first slice) is formats/perfetto.py's.
 *
 * Source: protos/perfetto/trace of Perfetto v52: TracePacket, TrackEvent,
 * TrackDescriptor, DebugAnnotation.
 */
#ifndef SB_PERFETTO_H
#define SB_PERFETTO_H

#include <stddef.h>
#include <stdint.h>

#include "spans.h"

/* Numbers of tracks; a track's uuid is the process id << 32 | its number. Python's side
 * knows them as well. */
enum {
    SB_TRACK_PROCESS = 1,
    SB_TRACK_THREADS = 0x1000,  /* + index */
    SB_TRACK_RUNS = 0x20000,    /* + index of the thread */
    SB_TRACK_COUNTERS = 0x40000, /* + id of the name */
    SB_TRACK_TASKS = 0x100000,
};

/* Interned names of annotations, in this order, from 1 on. */
enum { SB_NOTE_TASK = 1, SB_NOTE_KIND, SB_NOTE_STATUS, SB_NOTE_TRACE, SB_NOTE_SPAN,
       SB_NOTE_PARENT, SB_NOTE_OPEN, SB_NOTE_FAILED, SB_NOTE_MESSAGE, SB_NOTE_EXCEPTION,
       SB_NOTE_THREAD, SB_NOTE_THREAD_END, SB_NOTE_QUEUED, SB_NOTE_FREED,
       SB_NOTE_LINK };

typedef struct {
    const sb_task_out *tasks;
    size_t task_count;
    const sb_span_out *spans;
    size_t span_count;
    const sb_note_out *notes;
    size_t note_count;
    const sb_run_out *runs;
    size_t run_count;
    const sb_count_out *counts;
    size_t count_count;
    const char *block; /* for names and texts; checked by sb_timeline_read */
    uint64_t process;
    const char *trace_url; /* with {trace_id} and {span_id}; empty for none */
} sb_perfetto_input;

typedef struct {
    unsigned char *bytes;
    size_t length, room;
    int no_memory;
} sb_buffer;

/* Write all packets to `out`, whose memory the caller frees. Needs no GIL. */
void sb_perfetto_write(const sb_perfetto_input *input, sb_buffer *out);

#endif
