/* Row numbers by 64-bit keys, for the readers of recordings. Needs no GIL. */
#ifndef SB_MAP_H
#define SB_MAP_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* From 64-bit keys to row numbers; open addressing, grown at half. */
typedef struct {
    uint64_t *keys; /* key + 1; 0 is free */
    uint32_t *rows;
    size_t mask, count;
} map;

static inline size_t
map_slot(const map *m, uint64_t key)
{
    uint64_t hash = (key + 1) * 0x9E3779B97F4A7C15u;
    size_t slot = (size_t)(hash >> 20) & m->mask;
    while (m->keys[slot] && m->keys[slot] != key + 1) {
        slot = (slot + 1) & m->mask;
    }
    return slot;
}

static inline int
map_grow(map *m)
{
    map grown = {NULL, NULL, m->keys ? m->mask * 2 + 1 : 1023, m->count};
    grown.keys = calloc(grown.mask + 1, sizeof *grown.keys);
    grown.rows = malloc((grown.mask + 1) * sizeof *grown.rows);
    if (grown.keys == NULL || grown.rows == NULL) {
        free(grown.keys);
        free(grown.rows);
        return -1;
    }
    for (size_t i = 0; m->keys && i <= m->mask; i++) {
        if (m->keys[i]) {
            size_t slot = map_slot(&grown, m->keys[i] - 1);
            grown.keys[slot] = m->keys[i];
            grown.rows[slot] = m->rows[i];
        }
    }
    free(m->keys);
    free(m->rows);
    *m = grown;
    return 0;
}

static inline int64_t
map_get(const map *m, uint64_t key)
{
    if (m->keys == NULL) {
        return -1;
    }
    size_t slot = map_slot(m, key);
    return m->keys[slot] ? (int64_t)m->rows[slot] : -1;
}

static inline int
map_set(map *m, uint64_t key, size_t row)
{
    if ((m->keys == NULL || m->count * 2 > m->mask) && map_grow(m) < 0) {
        return -1;
    }
    size_t slot = map_slot(m, key);
    m->count += m->keys[slot] == 0;
    m->keys[slot] = key + 1;
    m->rows[slot] = (uint32_t)row;
    return 0;
}

static inline void
map_free(map *m)
{
    free(m->keys);
    free(m->rows);
}

#endif
