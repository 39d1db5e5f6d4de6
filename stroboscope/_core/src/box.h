/* The recorder's memory: one block that explains itself, a file mapping where a later
 * process shall be able to read what a dead one was doing.
 *
 * A ring of events of 32 bytes, a table of names that only grows, the threads, the tasks
 * that are alive, and a ring of texts. Every offset is from the start of the block.
 *
 * Writers hold the GIL, so there is one at a time. A reader may copy the block at any
 * moment, or find it after its writer was killed between two instructions: an event
 * counts only if its check word fits its place and its content, a text only if its
 * stamp and check fit, a name only below `names_used`, which is stored last.
 */
#ifndef SB_BOX_H
#define SB_BOX_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define SB_BOX_MAGIC 0x31786f6265626f72u /* "robebox1" as bytes */
#define SB_BOX_VERSION 1
/* Names: at most so many, of so many bytes each; what does not fit is NAME_OVERFLOW.
 * Names that users choose leave the last quarter to ours. */
#define SB_NAMES_MAX 8192
#define SB_NAME_BYTES_MAX 255
#define SB_NAMES_BYTES ((size_t)512 << 10)
#define SB_THREADS_MAX_BOX 2048
#define SB_TASKS_MAX 1024
#define SB_TEXTS_BYTES ((size_t)1 << 20)
#define SB_TEXT_BYTES_MAX 512
/* Threads whose stacks are kept, in two banks that are written in turn. */
#define SB_STACKS_MAX 32
#define SB_STACK_BYTES_MAX 1000
#define SB_RING_EVENTS_MIN 1024
#define SB_RING_EVENTS_MAX ((size_t)1 << 24)

enum { SB_NAME_NONE = 0, SB_NAME_OVERFLOW = 1, SB_NAME_FIRST = 2 };

/* What an event says. `task`, `thread` and `lane` are of the moment, but for ends, which
 * carry task and lane of their begin. A begin and its end have the same argument. */
enum sb_event_kind {
    SB_EVENT_NONE = 0,
    SB_TASK_BEGIN = 1,   /* name, or none yet; argument: name of its kind (a method) */
    SB_TASK_END = 2,     /* name; argument: status, or 0 */
    SB_TASK_NAME = 3,    /* name, as soon as it is known */
    SB_TASK_TRACE = 4,   /* OpenTelemetry's trace id in time and name/argument */
    SB_TASK_SPAN = 5,    /* span id in name/argument */
    SB_TASK_PARENT = 6,  /* the task around it in name/argument */
    SB_TASK_LABEL = 7,   /* name: `key=value` */
    SB_REGION_BEGIN = 8, /* name; argument: ties it to its end */
    SB_REGION_END = 9,
    SB_REGION_FAILED = 10, /* ended by an exception */
    SB_LOG = 11,           /* name: category; argument: position of the text */
    SB_EXCEPTION = 12,     /* name: its type */
    SB_THREAD_BEGIN = 16,  /* a slice on the thread's own track: as of a region */
    SB_THREAD_END = 17,
    SB_COUNTER = 18, /* name; value in argument (low) and lane (high) */
    SB_INSTANT = 19, /* a moment on the thread's own track; name; argument */
    SB_CALL_BEGIN = 21, /* as THREAD_BEGIN, of a call that waited in a queue and runs for
                           the task; lane: for so many us, UINT32_MAX unknown */
    SB_CALL_END = 22,
    SB_GC_END = 23,  /* as THREAD_END; lane: objects it freed */
    SB_WAIT_BEGIN = 24, /* as REGION_BEGIN: a coroutine waits for one of asyncio's
                           primitives */
    SB_WAIT_END = 25,
    SB_RUN = 20,     /* the task ran on the thread from `time_ns` on, for so many ns in
                        argument (low) and lane (high) */
};

typedef struct {
    uint64_t time_ns; /* CLOCK_MONOTONIC */
    uint64_t head;    /* task << 24 | thread << 8 | kind */
    uint32_t name;
    uint32_t argument;
    uint32_t lane; /* of the context: a coroutine or a call in a thread has its own */
    uint32_t check;
} sb_event;

typedef struct {
    uint64_t tid;
    uint32_t name;
    uint32_t is_live;
} sb_thread_row;

/* A task that is alive. `serial` is stored last and cleared first. */
typedef struct {
    uint64_t serial;
    uint64_t begin_ns;
    uint32_t name, kind;
    uint8_t trace_id[16], span_id[8]; /* zero: none */
    uint32_t region, lane;            /* the region begun last that has not ended */
    uint64_t region_begin_ns;
} sb_task_row;

/* How a thread stood, as text. Torn where the check does not fit. */
typedef struct {
    uint64_t time_ns; /* 0: none */
    uint32_t check, length;
    char text[SB_STACK_BYTES_MAX];
} sb_stack_row;

typedef struct {
    uint64_t magic;
    uint32_t version, pid;
    uint64_t bytes; /* of the whole block */
    uint64_t names_at, names_bytes;
    uint64_t threads_at, threads_count;
    uint64_t tasks_at, tasks_count;
    uint64_t texts_at, texts_bytes;
    uint64_t stacks_at, stacks_count;
    uint64_t events_at, events_count; /* a power of two in a ring */
    uint64_t begin_ns, begin_unix_ns, begin_boot_ns; /* one moment on three clocks */
    uint64_t from_ns, end_ns;         /* what a copy covers, else 0 */
    char service[64], python[32];
    uint64_t reserved[16];
    /* What moves. */
    _Atomic uint64_t events_head; /* events ever begun */
    _Atomic uint64_t texts_head;  /* bytes ever given out */
    _Atomic uint64_t names_used;  /* bytes */
    _Atomic uint64_t names_refused, tasks_refused, threads_refused;
    _Atomic uint64_t events_lost; /* of a capture: overwritten before they were copied */
} sb_box;

/* The block's length for a ring of so many events. */
size_t sb_box_bytes(size_t events);
/* Lay out a block of zeros. */
void sb_box_format(sb_box *box, size_t events, const char *service);

static inline uint32_t
sb_event_check(uint64_t sequence, const sb_event *event)
{
    const uint64_t odd = 0xFF51AFD7ED558CCDu;
    uint64_t hash = (sequence + 0x9E3779B97F4A7C15u) * odd;
    hash = (hash ^ event->time_ns) * odd;
    hash = (hash ^ event->head) * odd;
    hash = (hash ^ (hash >> 31) ^ ((uint64_t)event->name << 32 | event->argument)) * odd;
    hash = (hash ^ event->lane) * odd;
    return (uint32_t)(hash >> 32);
}

static inline uint64_t
sb_event_head(uint64_t task, uint32_t thread, uint32_t kind)
{
    return task << 24 | (uint64_t)(thread & 0xffff) << 8 | kind;
}

/* Write an event; its sequence number. GIL. */
static inline uint64_t
sb_box_put(sb_box *box, const sb_event *event)
{
    uint64_t sequence =
        atomic_load_explicit(&box->events_head, memory_order_relaxed);
    atomic_store_explicit(&box->events_head, sequence + 1, memory_order_release);
    sb_event *place = (sb_event *)((char *)box + box->events_at) +
                      (sequence & (box->events_count - 1));
    uint32_t check = sb_event_check(sequence, event);
    *place = *event;
    place->check = check;
    return sequence;
}

/* Append a name of at most SB_NAME_BYTES_MAX bytes; -1 when the table is full. */
int sb_box_add_name(sb_box *box, const char *name, size_t length, int is_ours);
/* Store a text, cut to SB_TEXT_BYTES_MAX; its position for an event's argument. */
uint32_t sb_box_add_text(sb_box *box, const char *text, size_t length);
/* The same into any memory of `room` bytes, of which `*used` were given out. */
uint32_t sb_text_put(char *texts, size_t room, size_t *used, const char *text,
                     size_t length);
/* The text at a position, not terminated; NULL when it is overwritten or torn. Safe on
 * any bytes: reads only inside `texts`. */
const char *sb_text_at(const char *texts, uint64_t bytes, uint32_t position,
                       uint32_t *length);
/* Note a stack of now in one of the rows. */
void sb_box_put_stack(sb_box *box, uint32_t row, uint64_t time_ns, const char *text,
                      size_t length);
int sb_stack_is_whole(const sb_stack_row *row);
/* Bytes of `text`, at most `limit`, that end no character in its middle. */
size_t sb_utf8_cut(const char *text, size_t length, size_t limit);
/* Why this is no block, or NULL: its parts lie inside it. */
const char *sb_block_problem(const char *block, size_t bytes);

#endif
