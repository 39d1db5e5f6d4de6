/* The sampled blocks that live now, by address.
 *
 * Every free asks whether its block is here, so a filter of counters answers first: one
 * byte for each 64 bytes of address space, wrapped around. The map behind it is 1024
 * small tables that grow one by one: no growth moves more than some thousand entries.
 *
 * The filter may be read by anybody; everything else under one lock of the caller's.
 * Memory comes from the system alone.
 */
#ifndef SB_LIVEMAP_H
#define SB_LIVEMAP_H

#include <stddef.h>
#include <stdint.h>

#define SB_LIVE_MAX ((size_t)1 << 20)
#define SB_LIVE_FILTER_BYTES ((size_t)1 << 17)

typedef struct {
    void *pointer; /* never NULL */
    size_t size;
    float weight; /* how many blocks of this size it stands for */
    uint32_t row; /* of the ledger */
} sb_live;

extern uint8_t sb_live_filter[SB_LIVE_FILTER_BYTES];

/* 0 when the block is certainly not in the map. */
static inline int
sb_live_maybe(const void *pointer)
{
    return sb_live_filter[((uintptr_t)pointer >> 6) & (SB_LIVE_FILTER_BYTES - 1)];
}

/* Enter a block that is not in the map: 0, or -1 when the map is full or memory short. */
int sb_live_put(const sb_live *block);
/* Take a block out: 1 and what was entered, or 0 when it is not in the map. */
int sb_live_take(const void *pointer, sb_live *block);
size_t sb_live_count(void);
void sb_live_clear(void);

#endif
