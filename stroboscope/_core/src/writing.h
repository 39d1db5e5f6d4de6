/* A trace that is being written: protobuf, and the pieces of Perfetto's packets. */
#ifndef SB_WRITING_H
#define SB_WRITING_H

#include "perfetto.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "box.h"

/* ---- protobuf --------------------------------------------------------------------- */

static inline int
reserve(sb_buffer *buffer, size_t more)
{
    if (buffer->length + more <= buffer->room) {
        return 0;
    }
    size_t room = buffer->room ? buffer->room + buffer->room / 2 : 4096;
    while (room < buffer->length + more) {
        room += room / 2;
    }
    void *grown = buffer->no_memory ? NULL : realloc(buffer->bytes, room);
    if (grown == NULL) {
        buffer->no_memory = 1;
        return -1;
    }
    buffer->bytes = grown;
    buffer->room = room;
    return 0;
}

static inline void
put_raw(sb_buffer *buffer, const void *bytes, size_t length)
{
    if (length && reserve(buffer, length) == 0) {
        memcpy(buffer->bytes + buffer->length, bytes, length);
        buffer->length += length;
    }
}

static inline void
put_varint(sb_buffer *buffer, uint64_t value)
{
    if (reserve(buffer, 10) < 0) {
        return;
    }
    while (value >= 0x80) {
        buffer->bytes[buffer->length++] = (unsigned char)(value | 0x80);
        value >>= 7;
    }
    buffer->bytes[buffer->length++] = (unsigned char)value;
}

static inline void
put_number(sb_buffer *buffer, uint32_t field, uint64_t value)
{
    put_varint(buffer, field << 3);
    put_varint(buffer, value);
}

static inline void
put_block(sb_buffer *buffer, uint32_t field, const void *bytes, size_t length)
{
    put_varint(buffer, field << 3 | 2);
    put_varint(buffer, length);
    put_raw(buffer, bytes, length);
}

static inline void
put_fixed64(sb_buffer *buffer, uint32_t field, uint64_t value)
{
    put_varint(buffer, field << 3 | 1);
    put_raw(buffer, &value, sizeof value);
}

/* ---- packets ---------------------------------------------------------------------- */

enum { SLICE_BEGIN = 1, SLICE_END = 2, INSTANT = 3, COUNTER = 4 };

/* What is open on a track while it is written. */
typedef struct {
    const sb_span_out **spans;
    size_t depth, room;
} stack;

typedef struct {
    const sb_perfetto_input *in;
    sb_buffer *out;
    sb_buffer event, packet, note; /* in the making */
    const char **names;
    uint8_t *name_lengths;
    size_t name_count;
    const char *block;
    const sb_note_out **labels; /* sorted by task */
    size_t label_count;
    stack *stacks;
    size_t stack_count;
    const sb_task_out *task; /* that is written, and its slice among the spans */
    sb_span_out task_span;
} writing;

static inline uint64_t
uuid(const writing *w, uint64_t number)
{
    return w->in->process << 32 | number;
}

/* A flow's id: the task's, of this process. */
static inline uint64_t
flow_of(const writing *w, uint64_t serial)
{
    return w->in->process << 40 | serial;
}

static inline void
begin_event(writing *w, uint32_t type, uint64_t number)
{
    w->event.length = 0;
    put_number(&w->event, 9, type);
    put_number(&w->event, 11, uuid(w, number));
}

static inline void
finish_event(writing *w, uint64_t time_ns)
{
    w->packet.length = 0;
    put_number(&w->packet, 8, time_ns);
    put_number(&w->packet, 10, w->in->process); /* the sequence */
    put_number(&w->packet, 13, 2); /* needs the interned names */
    put_block(&w->packet, 11, w->event.bytes, w->event.length);
    put_block(w->out, 1, w->packet.bytes, w->packet.length);
    w->out->no_memory |= w->event.no_memory | w->packet.no_memory | w->note.no_memory;
}

static inline void
put_note_number(writing *w, uint32_t name, uint64_t value)
{
    w->note.length = 0;
    put_number(&w->note, 1, name);
    put_number(&w->note, 3, value);
    put_block(&w->event, 4, w->note.bytes, w->note.length);
}

static inline void
put_note_text(writing *w, uint32_t name, const char *text, size_t length)
{
    w->note.length = 0;
    put_number(&w->note, 1, name);
    put_block(&w->note, 6, text, length);
    put_block(&w->event, 4, w->note.bytes, w->note.length);
}

static inline void
put_note_hex(writing *w, uint32_t name, const uint8_t *id, int bytes)
{
    char text[33] = "";
    int any = 0;
    for (int i = 0; i < bytes; i++) {
        snprintf(text + 2 * i, 3, "%02x", id[i]);
        any |= id[i];
    }
    if (any) {
        put_note_text(w, name, text, 2 * (size_t)bytes);
    }
}

static inline uint32_t
known(const writing *w, uint32_t name)
{
    return name < w->name_count ? name : SB_NAME_OVERFLOW;
}

/* Of ids from a file: names that are not there are the overflow's. */
static inline void
put_name(writing *w, uint32_t name)
{
    put_number(&w->event, 10, known(w, name) + 1);
}

static inline void
put_note_name(writing *w, uint32_t note, uint32_t name)
{
    name = known(w, name);
    if (name != SB_NAME_NONE) {
        put_note_text(w, note, w->names[name], w->name_lengths[name]);
    }
}

static inline void
put_note_open(writing *w, uint32_t flags)
{
    if (flags & SB_OPEN_LEFT) {
        put_note_text(w, SB_NOTE_OPEN, "left", 4);
    }
    else if (flags & SB_OPEN_RIGHT) {
        put_note_text(w, SB_NOTE_OPEN, "right", 5);
    }
}

/* A track that is named, below another. */
static inline void
put_track(writing *w, uint64_t number, uint64_t parent, const char *name, size_t length)
{
    w->event.length = 0;
    put_number(&w->event, 1, uuid(w, number));
    put_block(&w->event, 2, name, length);
    put_number(&w->event, 5, uuid(w, parent));
    w->packet.length = 0;
    put_number(&w->packet, 10, w->in->process);
    put_block(&w->packet, 60, w->event.bytes, w->event.length);
    put_block(w->out, 1, w->packet.bytes, w->packet.length);
}

static inline const sb_task_out *
find_task(const writing *w, uint64_t serial)
{
    size_t low = 0, high = w->in->task_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (w->in->tasks[middle].serial < serial) {
            low = middle + 1;
        }
        else {
            high = middle;
        }
    }
    return low < w->in->task_count && w->in->tasks[low].serial == serial
               ? &w->in->tasks[low]
               : NULL;
}

/* Tasks, their regions, and threads' own spans: slices.c. */
void sb_slices_write(writing *w);

#endif
