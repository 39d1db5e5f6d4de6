/* The sampled blocks that live now, by address.
 *
 * Every free asks whether its block is here, so two filters of counters answer first: a
 * coarse one of a byte for each page, which stays in the nearest cache, and a fine one
 * of a byte for each 64 bytes; both wrapped around. The map behind them is 1024 small
 * tables that grow one by one: no growth moves more than some thousand entries.
 *
 * The filters may be read by anybody; everything else under one lock of the caller's.
 * Memory comes from the system alone.
 */
#ifndef SB_LIVEMAP_H
#define SB_LIVEMAP_H

#include <stddef.h>
#include <stdint.h>

#define SB_LIVE_MAX ((size_t)1 << 20)
#define SB_LIVE_PAGES_BYTES ((size_t)1 << 14)
#define SB_LIVE_FILTER_BYTES ((size_t)1 << 17)

typedef struct {
    void *pointer; /* never NULL */
    uint64_t size : 63;
    uint64_t is_pooled : 1; /* only a hook on every free sees it go */
    float weight; /* how many blocks of this size it stands for */
    uint32_t row; /* of the ledger */
} sb_live;

extern uint8_t sb_live_pages[SB_LIVE_PAGES_BYTES], sb_live_filter[SB_LIVE_FILTER_BYTES];

static inline uint8_t *
sb_live_page(const void *pointer)
{
    return &sb_live_pages[((uintptr_t)pointer >> 12) & (SB_LIVE_PAGES_BYTES - 1)];
}

static inline uint8_t *
sb_live_counter(const void *pointer)
{
    return &sb_live_filter[((uintptr_t)pointer >> 6) & (SB_LIVE_FILTER_BYTES - 1)];
}

/* 0 when the block is certainly not in the map. */
static inline int
sb_live_maybe(const void *pointer)
{
    return *sb_live_page(pointer) && *sb_live_counter(pointer);
}

/* Enter a block that is not in the map: 0, or -1 when the map is full or memory short. */
int sb_live_put(const sb_live *block);
/* Take a block out: 1 and what was entered, or 0 when it is not in the map. */
int sb_live_take(const void *pointer, sb_live *block);
size_t sb_live_count(void);
/* Take blocks out that are pooled: at most `room` of them; how many. */
size_t sb_live_take_pooled(sb_live *blocks, size_t room);
void sb_live_clear(void);

#endif
