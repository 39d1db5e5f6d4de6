#include "livemap.h"

#include <stdlib.h>
#include <string.h>

#define SEGMENTS 1024
#define FIRST_ROOM 8

typedef struct {
    sb_live *slots; /* pointer NULL: free; a power of two, at most 3/4 in use */
    uint32_t room, count;
} segment;

uint8_t sb_live_pages[SB_LIVE_PAGES_BYTES], sb_live_filter[SB_LIVE_FILTER_BYTES];
static segment segments[SEGMENTS];
static size_t total;

static uint64_t
hash_of(const void *pointer)
{
    return ((uint64_t)(uintptr_t)pointer >> 4) * 0x9E3779B97F4A7C15u;
}

static segment *
segment_of(uint64_t hash)
{
    return &segments[hash >> 54];
}

static uint32_t
home_of(const segment *self, uint64_t hash)
{
    return (uint32_t)(hash >> 22) & (self->room - 1);
}

static uint32_t
find(const segment *self, const void *pointer, uint64_t hash)
{
    uint32_t slot = home_of(self, hash);
    while (self->slots[slot].pointer != NULL && self->slots[slot].pointer != pointer) {
        slot = (slot + 1) & (self->room - 1);
    }
    return slot;
}

static int
grow(segment *self)
{
    uint32_t room = self->room ? self->room * 2 : FIRST_ROOM;
    sb_live *slots = calloc(room, sizeof *slots);
    if (slots == NULL) {
        return -1;
    }
    sb_live *old = self->slots;
    uint32_t old_room = self->room;
    self->slots = slots;
    self->room = room;
    for (uint32_t i = 0; i < old_room; i++) {
        if (old[i].pointer != NULL) {
            slots[find(self, old[i].pointer, hash_of(old[i].pointer))] = old[i];
        }
    }
    free(old);
    return 0;
}

/* Counters that are full stay full: they have forgotten their count. */
static void
count(uint8_t *counter, int step)
{
    if (*counter != UINT8_MAX) {
        *counter = (uint8_t)(*counter + step);
    }
}

static void
count_in_filters(const void *pointer, int step)
{
    count(sb_live_page(pointer), step);
    count(sb_live_counter(pointer), step);
}

int
sb_live_put(const sb_live *block)
{
    uint64_t hash = hash_of(block->pointer);
    segment *self = segment_of(hash);
    if (total >= SB_LIVE_MAX || ((self->count + 1) * 4 > self->room * 3 && grow(self) < 0)) {
        return -1;
    }
    self->slots[find(self, block->pointer, hash)] = *block;
    self->count++;
    total++;
    count_in_filters(block->pointer, 1);
    return 0;
}

int
sb_live_take(const void *pointer, sb_live *block)
{
    uint64_t hash = hash_of(pointer);
    segment *self = segment_of(hash);
    if (self->count == 0) {
        return 0;
    }
    uint32_t mask = self->room - 1, gap = find(self, pointer, hash);
    if (self->slots[gap].pointer == NULL) {
        return 0;
    }
    *block = self->slots[gap];
    for (uint32_t slot = (gap + 1) & mask; self->slots[slot].pointer != NULL;
         slot = (slot + 1) & mask) {
        uint32_t home = home_of(self, hash_of(self->slots[slot].pointer));
        if (((slot - home) & mask) >= ((slot - gap) & mask)) {
            self->slots[gap] = self->slots[slot];
            gap = slot;
        }
    }
    self->slots[gap].pointer = NULL;
    self->count--;
    total--;
    count_in_filters(pointer, -1);
    return 1;
}

size_t
sb_live_take_pooled(sb_live *blocks, size_t room)
{
    size_t found = 0;
    for (int i = 0; i < SEGMENTS; i++) {
        for (uint32_t at = 0; at < segments[i].room && found < room; at++) {
            const sb_live *slot = &segments[i].slots[at];
            if (slot->pointer != NULL && slot->is_pooled) {
                blocks[found++] = *slot;
            }
        }
    }
    for (size_t i = 0; i < found; i++) { /* not before: it moves the others */
        sb_live_take(blocks[i].pointer, &blocks[i]);
    }
    return found;
}

size_t
sb_live_count(void)
{
    return total;
}

void
sb_live_clear(void)
{
    for (int i = 0; i < SEGMENTS; i++) {
        free(segments[i].slots);
    }
    memset(segments, 0, sizeof segments);
    memset(sb_live_pages, 0, sizeof sb_live_pages);
    memset(sb_live_filter, 0, sizeof sb_live_filter);
    total = 0;
}
