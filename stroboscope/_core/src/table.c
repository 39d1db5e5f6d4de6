#include "table.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_ROOM 64

static uint32_t
hash_words(const uint32_t *key, uint32_t length)
{
    uint64_t hash = 0x9E3779B97F4A7C15u ^ length;
    for (uint32_t i = 0; i < length; i++) {
        hash = (hash ^ key[i]) * 0xFF51AFD7ED558CCDu;
        hash ^= hash >> 32;
    }
    return (uint32_t)hash;
}

/* The slot that holds the key, or the free one where it belongs. */
static size_t
probe(const sb_table *table, const uint32_t *key, uint32_t length, uint32_t hash)
{
    size_t mask = table->slot_count - 1;
    size_t slot = hash & mask;
    for (; table->slots[slot]; slot = (slot + 1) & mask) {
        const sb_entry *entry = &table->entries[table->slots[slot] - 1];
        if (entry->hash == hash && entry->length == length &&
            (length == 0 || /* then neither need be there */
             memcmp(table->words + entry->offset, key, length * sizeof *key) == 0)) {
            break;
        }
    }
    return slot;
}

static int
grow_slots(sb_table *table)
{
    size_t room = table->slot_count ? table->slot_count * 2 : FIRST_ROOM * 2;
    uint32_t *slots = calloc(room, sizeof *slots);
    if (slots == NULL) {
        return -1;
    }
    for (size_t id = 0; id < table->count; id++) {
        size_t slot = table->entries[id].hash & (room - 1);
        while (slots[slot]) {
            slot = (slot + 1) & (room - 1);
        }
        slots[slot] = (uint32_t)id + 1;
    }
    free(table->slots);
    table->slots = slots;
    table->slot_count = room;
    return 0;
}

static int
make_room(sb_table *table, uint32_t length)
{
    if (table->count >= SB_TABLE_ENTRIES_MAX ||
        table->word_count + length > SB_TABLE_WORDS_MAX) {
        return -1;
    }
    if ((table->count + 1) * 2 > table->slot_count && grow_slots(table) < 0) {
        return -1;
    }
    if (table->count == table->entry_room) {
        size_t room = table->entry_room ? table->entry_room * 2 : FIRST_ROOM;
        sb_entry *entries = realloc(table->entries, room * sizeof *entries);
        if (entries == NULL) {
            return -1;
        }
        table->entries = entries;
        table->entry_room = room;
    }
    if (table->word_count + length > table->word_room) {
        size_t room = (table->word_count + length + FIRST_ROOM) * 2;
        uint32_t *words = realloc(table->words, room * sizeof *words);
        if (words == NULL) {
            return -1;
        }
        table->words = words;
        table->word_room = room;
    }
    return 0;
}

int64_t
sb_table_intern(sb_table *table, const uint32_t *key, uint32_t length, int *fresh)
{
    uint32_t hash = hash_words(key, length);
    *fresh = 0;
    if (table->slot_count) {
        size_t slot = probe(table, key, length, hash);
        if (table->slots[slot]) {
            return table->slots[slot] - 1;
        }
    }
    if (make_room(table, length) < 0) {
        return -1;
    }
    size_t id = table->count++;
    table->entries[id] = (sb_entry){hash, length, table->word_count};
    if (length) {
        memcpy(table->words + table->word_count, key, length * sizeof *key);
    }
    table->word_count += length;
    table->slots[probe(table, key, length, hash)] = (uint32_t)id + 1;
    *fresh = 1;
    return (int64_t)id;
}

int64_t
sb_table_find(const sb_table *table, const uint32_t *key, uint32_t length)
{
    if (table->slot_count == 0) {
        return -1;
    }
    return (int64_t)table->slots[probe(table, key, length, hash_words(key, length))] -
           1;
}

const uint32_t *
sb_table_key(const sb_table *table, size_t id, uint32_t *length)
{
    *length = table->entries[id].length;
    return table->words + table->entries[id].offset;
}

void
sb_table_clear(sb_table *table)
{
    free(table->slots);
    free(table->entries);
    free(table->words);
    memset(table, 0, sizeof *table);
}
