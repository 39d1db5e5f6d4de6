#define _GNU_SOURCE
#include "box.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

#include <Python.h>

#define PAGE ((size_t)4096)

/* A text in its ring: this head, then the bytes; both in units of TEXT_UNIT. */
typedef struct {
    uint32_t stamp; /* its position: where it would be in a ring without end */
    uint16_t length;
    uint16_t check;
} text_head;

enum { TEXT_UNIT = 8 };

static size_t
pages(size_t bytes)
{
    return (bytes + PAGE - 1) & ~(PAGE - 1);
}

size_t
sb_box_bytes(size_t events)
{
    return pages(sizeof(sb_box)) + pages(SB_NAMES_BYTES) +
           pages(SB_THREADS_MAX_BOX * sizeof(sb_thread_row)) +
           pages(SB_TASKS_MAX * sizeof(sb_task_row)) +
           pages(2 * SB_STACKS_MAX * sizeof(sb_stack_row)) + pages(SB_TEXTS_BYTES) +
           pages(events * sizeof(sb_event));
}

static uint64_t
now_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void
sb_box_format(sb_box *box, size_t events, const char *service)
{
    size_t at = pages(sizeof(sb_box));
    box->version = SB_BOX_VERSION;
    box->pid = (uint32_t)getpid();
    box->bytes = sb_box_bytes(events);
    box->names_at = at;
    box->names_bytes = SB_NAMES_BYTES;
    at += pages(SB_NAMES_BYTES);
    box->threads_at = at;
    box->threads_count = SB_THREADS_MAX_BOX;
    at += pages(SB_THREADS_MAX_BOX * sizeof(sb_thread_row));
    box->tasks_at = at;
    box->tasks_count = SB_TASKS_MAX;
    at += pages(SB_TASKS_MAX * sizeof(sb_task_row));
    box->stacks_at = at;
    box->stacks_count = 2 * SB_STACKS_MAX;
    at += pages(2 * SB_STACKS_MAX * sizeof(sb_stack_row));
    box->texts_at = at;
    box->texts_bytes = SB_TEXTS_BYTES;
    at += pages(SB_TEXTS_BYTES);
    box->events_at = at;
    box->events_count = events;
    box->begin_ns = now_ns(CLOCK_MONOTONIC);
    box->begin_unix_ns = now_ns(CLOCK_REALTIME);
    box->begin_boot_ns = now_ns(CLOCK_BOOTTIME);
    strncpy(box->service, service, sizeof box->service - 1);
    strncpy(box->python, PY_VERSION, sizeof box->python - 1);
    atomic_thread_fence(memory_order_release);
    box->magic = SB_BOX_MAGIC;
}

int
sb_box_add_name(sb_box *box, const char *name, size_t length, int is_ours)
{
    uint64_t used = atomic_load_explicit(&box->names_used, memory_order_relaxed);
    size_t room = is_ours ? box->names_bytes : box->names_bytes / 4 * 3;
    if (used + 1 + length > room) {
        return -1;
    }
    unsigned char *place = (unsigned char *)box + box->names_at + used;
    place[0] = (unsigned char)length;
    memcpy(place + 1, name, length);
    atomic_store_explicit(&box->names_used, used + 1 + length, memory_order_release);
    return 0;
}

static uint16_t
text_check(const char *text, size_t length)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < length; i++) {
        hash = (hash ^ (unsigned char)text[i]) * 16777619u;
    }
    return (uint16_t)(hash >> 16 ^ hash);
}

static uint32_t
stack_check(const sb_stack_row *row)
{
    return (uint32_t)row->time_ns * 2654435761u ^ row->length ^
           text_check(row->text, row->length);
}

int
sb_stack_is_whole(const sb_stack_row *row)
{
    return row->time_ns && row->length <= SB_STACK_BYTES_MAX &&
           row->check == stack_check(row);
}

void
sb_box_put_stack(sb_box *box, uint32_t row, uint64_t time_ns, const char *text,
                 size_t length)
{
    sb_stack_row *place = (sb_stack_row *)((char *)box + box->stacks_at) + row;
    place->time_ns = 0;
    atomic_thread_fence(memory_order_release);
    place->length = (uint32_t)sb_utf8_cut(text, length, SB_STACK_BYTES_MAX);
    memcpy(place->text, text, place->length);
    place->time_ns = time_ns;
    place->check = stack_check(place);
}

uint32_t
sb_text_put(char *texts, size_t room, size_t *used, const char *text, size_t length)
{
    length = sb_utf8_cut(text, length, SB_TEXT_BYTES_MAX);
    size_t size = (sizeof(text_head) + length + TEXT_UNIT - 1) & ~(size_t)(TEXT_UNIT - 1);
    size_t head = *used, offset = head % room;
    if (offset + size > room) { /* no text goes over the end */
        head += room - offset;
        offset = 0;
    }
    uint32_t position = (uint32_t)(head / TEXT_UNIT);
    text_head made = {position, (uint16_t)length, text_check(text, length)};
    memcpy(texts + offset, &made, sizeof made);
    memcpy(texts + offset + sizeof made, text, length);
    *used = head + size;
    return position;
}

uint32_t
sb_box_add_text(sb_box *box, const char *text, size_t length)
{
    size_t used = atomic_load_explicit(&box->texts_head, memory_order_relaxed);
    uint32_t position = sb_text_put((char *)box + box->texts_at, box->texts_bytes, &used,
                                    text, length);
    atomic_store_explicit(&box->texts_head, used, memory_order_release);
    return position;
}

const char *
sb_text_at(const char *texts, uint64_t bytes, uint32_t position, uint32_t *length)
{
    if (bytes < TEXT_UNIT) {
        return NULL;
    }
    uint64_t offset = (uint64_t)position * TEXT_UNIT % bytes;
    text_head found;
    if (offset + sizeof found > bytes) {
        return NULL;
    }
    memcpy(&found, texts + offset, sizeof found);
    if (found.stamp != position || offset + sizeof found + found.length > bytes ||
        text_check(texts + offset + sizeof found, found.length) != found.check) {
        return NULL;
    }
    *length = found.length;
    return texts + offset + sizeof found;
}

size_t
sb_utf8_cut(const char *text, size_t length, size_t limit)
{
    if (length <= limit) {
        return length;
    }
    while (limit > 0 && ((unsigned char)text[limit] & 0xC0) == 0x80) {
        limit--;
    }
    return limit;
}

static int
is_inside(uint64_t at, uint64_t count, uint64_t size, uint64_t bytes)
{
    return at % 8 == 0 && at >= sizeof(sb_box) && at <= bytes &&
           count <= (bytes - at) / size;
}

const char *
sb_block_problem(const char *block, size_t bytes)
{
    const sb_box *box = (const sb_box *)(const void *)block;
    if (bytes < sizeof(sb_box)) {
        return "it is shorter than a header";
    }
    if (box->magic != SB_BOX_MAGIC) {
        return "it is no recording";
    }
    if (box->version != SB_BOX_VERSION) {
        return "it is of another version";
    }
    if (box->bytes > bytes) {
        return "it is cut off";
    }
    int fits = is_inside(box->names_at, box->names_bytes, 1, bytes) &&
               is_inside(box->threads_at, box->threads_count, sizeof(sb_thread_row),
                         bytes) &&
               is_inside(box->tasks_at, box->tasks_count, sizeof(sb_task_row), bytes) &&
               is_inside(box->stacks_at, box->stacks_count, sizeof(sb_stack_row),
                         bytes) &&
               is_inside(box->texts_at, box->texts_bytes, 1, bytes) &&
               is_inside(box->events_at, box->events_count, sizeof(sb_event), bytes) &&
               box->names_used <= box->names_bytes;
    return fits ? NULL : "its header contradicts itself";
}
