/* Interning of short keys of 32-bit words: one structure for code objects, places,
 * stacks, rows and serials. Append-only; ids count up from 0.
 *
 * Not thread-safe: every caller holds the GIL.
 */
#ifndef SB_TABLE_H
#define SB_TABLE_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t hash;
    uint32_t length;
    size_t offset;
} sb_entry;

typedef struct {
    uint32_t *slots; /* id + 1, or 0 for a free slot */
    size_t slot_count;
    sb_entry *entries;
    size_t count, entry_room;
    uint32_t *words;
    size_t word_count, word_room;
} sb_table;

/* Limits that keep one table below about 100 MB. */
#define SB_TABLE_ENTRIES_MAX ((size_t)1 << 20)
#define SB_TABLE_WORDS_MAX ((size_t)1 << 24)

/* The key's id; `*fresh` says whether it is new. -1 when the table is full or memory
 * is short; the table is then unchanged. */
int64_t sb_table_intern(sb_table *table, const uint32_t *key, uint32_t length,
                        int *fresh);
/* The key's id, or -1 when absent. */
int64_t sb_table_find(const sb_table *table, const uint32_t *key, uint32_t length);
const uint32_t *sb_table_key(const sb_table *table, size_t id, uint32_t *length);
void sb_table_clear(sb_table *table);

#endif
