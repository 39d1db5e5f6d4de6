#include "ledger.h"

#include <stdlib.h>
#include <string.h>

#include "owner.h"
#include "stacks.h"

#define NONE UINT32_MAX
#define UNUSED_TICKET (UINT32_MAX - 1)
#define FOLDED ((uint32_t)1 << 31)

/* What callers know a row by. `to` is the row, or FOLDED and the ticket that follows;
 * unused ones are chained by `holders`. Followers count as holders. */
typedef struct {
    uint32_t to, holders;
} ticket;

struct sb_ledger {
    struct sb_ledger *next;
    int width;
    sb_ledger_line *rows; /* row 0: overflow */
    uint32_t row_room, row_length, row_count, unused_row;
    uint32_t *slots; /* row + 1 by (stack, owner), 0 for none; a power of two */
    uint32_t slot_count;
    ticket *tickets;
    uint32_t ticket_room, ticket_length, unused_ticket;
    uint32_t *first_row; /* by owner, NONE for none */
    uint32_t owner_room;
};

static sb_ledger *ledgers;

/* Room for item `index` in an array; 0, or -1. `limit` is a number of items. */
static int
reserve(void **array, uint32_t *room, uint32_t index, uint32_t limit, size_t size)
{
    if (index < *room) {
        return 0;
    }
    if (index >= limit) {
        return -1;
    }
    uint64_t wanted = ((uint64_t)index + 32) * 2;
    wanted = wanted < limit ? wanted : limit;
    void *grown = realloc(*array, wanted * size);
    if (grown == NULL) {
        return -1;
    }
    *array = grown;
    *room = (uint32_t)wanted;
    return 0;
}

/* ---- tickets ---------------------------------------------------------------------- */

static uint32_t
new_ticket(sb_ledger *self, uint32_t row)
{
    uint32_t made = self->unused_ticket;
    if (made != NONE) {
        self->unused_ticket = self->tickets[made].holders;
    }
    else if (reserve((void **)&self->tickets, &self->ticket_room, self->ticket_length,
                     SB_LEDGER_TICKETS_MAX, sizeof *self->tickets) == 0) {
        made = self->ticket_length++;
    }
    else {
        return NONE;
    }
    self->tickets[made] = (ticket){row, 0};
    return made;
}

static void
free_ticket(sb_ledger *self, uint32_t one)
{
    self->tickets[one] = (ticket){UNUSED_TICKET, self->unused_ticket};
    self->unused_ticket = one;
}

static uint32_t
row_of_ticket(const sb_ledger *self, uint32_t one)
{
    uint32_t to = self->tickets[one].to;
    while (to & FOLDED) {
        to = self->tickets[to & ~FOLDED].to;
    }
    return to;
}

/* A folded ticket that nobody holds goes, and lets go of the one it follows. */
static void
drop_ticket(sb_ledger *self, uint32_t one)
{
    while (--self->tickets[one].holders == 0 && self->tickets[one].to & FOLDED) {
        uint32_t following = self->tickets[one].to & ~FOLDED;
        free_ticket(self, one);
        one = following;
    }
}

/* ---- rows by stack and owner ------------------------------------------------------ */

static uint32_t
home_slot(const sb_ledger *self, uint32_t stack, uint32_t owner)
{
    uint64_t hash = ((uint64_t)owner << 32 | stack) * 0x9E3779B97F4A7C15u;
    return (uint32_t)(hash >> 32) & (self->slot_count - 1);
}

/* The slot of the row, or the free one where it belongs. */
static uint32_t
find_slot(const sb_ledger *self, uint32_t stack, uint32_t owner)
{
    uint32_t slot = home_slot(self, stack, owner);
    for (; self->slots[slot] != 0; slot = (slot + 1) & (self->slot_count - 1)) {
        const sb_ledger_line *row = &self->rows[self->slots[slot] - 1];
        if (row->stack == stack && row->owner == owner) {
            break;
        }
    }
    return slot;
}

/* Empty a slot and close the gap behind it. */
static void
empty_slot(sb_ledger *self, uint32_t slot)
{
    uint32_t mask = self->slot_count - 1;
    uint32_t gap = slot;
    for (slot = (slot + 1) & mask; self->slots[slot] != 0; slot = (slot + 1) & mask) {
        const sb_ledger_line *row = &self->rows[self->slots[slot] - 1];
        uint32_t home = home_slot(self, row->stack, row->owner);
        if (((slot - home) & mask) >= ((slot - gap) & mask)) {
            self->slots[gap] = self->slots[slot];
            gap = slot;
        }
    }
    self->slots[gap] = 0;
}

static int
grow_slots(sb_ledger *self)
{
    if (self->slot_count > self->row_count * 2) {
        return 0;
    }
    uint32_t count = self->slot_count ? self->slot_count * 2 : 128;
    uint32_t *slots = calloc(count, sizeof *slots);
    if (slots == NULL) {
        return -1;
    }
    uint32_t *old = self->slots, old_count = self->slot_count;
    self->slots = slots;
    self->slot_count = count;
    for (uint32_t i = 0; i < old_count; i++) {
        if (old[i] != 0) {
            const sb_ledger_line *row = &self->rows[old[i] - 1];
            self->slots[find_slot(self, row->stack, row->owner)] = old[i];
        }
    }
    free(old);
    return 0;
}

static int
grow_owners(sb_ledger *self, uint32_t owner)
{
    uint32_t before = self->owner_room;
    if (reserve((void **)&self->first_row, &self->owner_room, owner, SB_OWNERS_MAX,
                sizeof *self->first_row) < 0) {
        return -1;
    }
    for (uint32_t i = before; i < self->owner_room; i++) {
        self->first_row[i] = NONE;
    }
    return 0;
}

/* Enter a row that has room in the slots and in its owner's list. */
static void
key_row(sb_ledger *self, uint32_t row)
{
    sb_ledger_line *line = &self->rows[row];
    line->next = self->first_row[line->owner];
    line->previous = NONE;
    if (line->next != NONE) {
        self->rows[line->next].previous = row;
    }
    self->first_row[line->owner] = row;
    self->slots[find_slot(self, line->stack, line->owner)] = row + 1;
}

static void
unkey_row(sb_ledger *self, uint32_t row)
{
    const sb_ledger_line *line = &self->rows[row];
    empty_slot(self, find_slot(self, line->stack, line->owner));
    if (line->next != NONE) {
        self->rows[line->next].previous = line->previous;
    }
    if (line->previous != NONE) {
        self->rows[line->previous].next = line->next;
    }
    else {
        self->first_row[line->owner] = line->next;
    }
}

/* A new row, or NONE without room. */
static uint32_t
new_row(sb_ledger *self, uint32_t stack, uint32_t owner)
{
    uint32_t row = self->unused_row;
    if (grow_slots(self) < 0 || grow_owners(self, owner) < 0 ||
        (row == NONE && reserve((void **)&self->rows, &self->row_room, self->row_length,
                                SB_LEDGER_ROWS_MAX, sizeof *self->rows) < 0)) {
        return NONE;
    }
    uint32_t made = new_ticket(self, row == NONE ? self->row_length : row);
    if (made == NONE) {
        return NONE;
    }
    if (row == NONE) {
        row = self->row_length++;
    }
    else {
        self->unused_row = self->rows[row].next;
    }
    self->rows[row] = (sb_ledger_line){.stack = stack, .owner = owner, .ticket = made};
    key_row(self, row);
    self->row_count++;
    return row;
}

static uint32_t
row_for(sb_ledger *self, uint32_t stack, uint32_t owner)
{
    uint32_t found = self->slots[find_slot(self, stack, owner)];
    uint32_t row = found ? found - 1 : new_row(self, stack, owner);
    return row == NONE ? 0 : row;
}

/* ---- for collectors --------------------------------------------------------------- */

static void
release_arrays(sb_ledger *self)
{
    free(self->rows);
    free(self->slots);
    free(self->tickets);
    free(self->first_row);
    *self = (sb_ledger){.next = self->next, .width = self->width, .unused_row = NONE,
                        .unused_ticket = NONE};
}

sb_ledger *
sb_ledger_new(int width)
{
    if (width < 1 || width > SB_LEDGER_WIDTH_MAX) {
        return NULL;
    }
    sb_ledger *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return NULL;
    }
    self->width = width;
    self->unused_row = self->unused_ticket = NONE;
    if (new_row(self, SB_LEDGER_NO_STACK, SB_NOBODY) == NONE) {
        release_arrays(self);
        free(self);
        return NULL;
    }
    self->next = ledgers;
    ledgers = self;
    sb_stacks_use(SB_OF_LEDGERS);
    return self;
}

void
sb_ledger_free(sb_ledger *self)
{
    if (self == NULL) {
        return;
    }
    sb_ledger **link = &ledgers;
    while (*link != self) {
        link = &(*link)->next;
    }
    *link = self->next;
    release_arrays(self);
    free(self);
    if (ledgers == NULL) {
        sb_owners_forget(); /* the sets of labels stay apart while anybody counts */
    }
    sb_stacks_leave(SB_OF_LEDGERS);
}

int64_t
sb_ledger_row(sb_ledger *self, int64_t stack, sb_cell *cell)
{
    uint32_t known = stack < 0 || stack >= SB_LEDGER_NO_STACK ? SB_LEDGER_NO_STACK
                                                             : (uint32_t)stack;
    uint32_t owner = known == SB_LEDGER_NO_STACK ? SB_NOBODY : sb_owner_of_cell(cell);
    uint32_t row = row_for(self, known, owner); /* may move the rows */
    return self->rows[row].ticket;
}

void
sb_ledger_add(sb_ledger *self, int64_t row, const int64_t *values)
{
    int64_t *totals = self->rows[row_of_ticket(self, (uint32_t)row)].values;
    for (int i = 0; i < self->width; i++) {
        totals[i] += values[i];
    }
}

void
sb_ledger_hold(sb_ledger *self, int64_t row)
{
    self->tickets[row].holders++;
}

void
sb_ledger_drop(sb_ledger *self, int64_t row)
{
    drop_ticket(self, (uint32_t)row);
}

void
sb_ledger_let_go(sb_ledger *self, int first)
{
    for (uint32_t row = 0; row < self->row_length; row++) {
        for (int i = first; i < self->width; i++) {
            self->rows[row].values[i] = 0;
        }
    }
    for (uint32_t one = 0; one < self->ticket_length; one++) {
        ticket *held = &self->tickets[one];
        if (held->to != UNUSED_TICKET && held->to & FOLDED) {
            free_ticket(self, one);
        }
        else if (held->to != UNUSED_TICKET) {
            held->holders = 0;
        }
    }
}

/* ---- folding ---------------------------------------------------------------------- */

/* Hand the row's ticket to those who hold it: it follows another from now on. */
static void
forward_ticket(sb_ledger *self, uint32_t mine, uint32_t following)
{
    if (self->tickets[mine].holders == 0) {
        free_ticket(self, mine);
    }
    else {
        self->tickets[mine].to = FOLDED | following;
        self->tickets[following].holders++;
    }
}

/* Add the row's values to another row; then it is gone. */
static void
merge_row(sb_ledger *self, uint32_t row, uint32_t into)
{
    sb_ledger_line *line = &self->rows[row], *target = &self->rows[into];
    for (int i = 0; i < self->width; i++) {
        target->values[i] += line->values[i];
    }
    forward_ticket(self, line->ticket, target->ticket);
    unkey_row(self, row);
    *line = (sb_ledger_line){.ticket = NONE, .next = self->unused_row};
    self->unused_row = row;
    self->row_count--;
}

static void
fold_row(sb_ledger *self, uint32_t row, uint32_t owner)
{
    uint32_t known = self->slots[find_slot(self, self->rows[row].stack, owner)];
    if (known != 0) {
        merge_row(self, row, known - 1);
    }
    else if (grow_owners(self, owner) < 0) {
        merge_row(self, row, 0);
    }
    else {
        unkey_row(self, row);
        self->rows[row].owner = owner;
        key_row(self, row);
    }
}

void
sb_ledgers_fold(uint32_t from, uint32_t to)
{
    for (sb_ledger *self = ledgers; self != NULL; self = self->next) {
        while (from < self->owner_room && self->first_row[from] != NONE) {
            fold_row(self, self->first_row[from], to);
        }
    }
}

void
sb_ledger_clear(sb_ledger *self)
{
    for (uint32_t row = 1; row < self->row_length; row++) {
        if (self->rows[row].ticket != NONE) {
            merge_row(self, row, 0);
        }
    }
    memset(self->rows[0].values, 0, sizeof self->rows[0].values);
}

void
sb_ledgers_after_fork(void)
{
    for (sb_ledger *self = ledgers; self != NULL; self = self->next) {
        sb_ledger_clear(self);
    }
    sb_owners_forget();
}

/* ---- reading ---------------------------------------------------------------------- */

int
sb_ledger_width(const sb_ledger *self)
{
    return self->width;
}

uint32_t
sb_ledger_count(const sb_ledger *self)
{
    return self->row_count;
}

void
sb_ledger_lines(const sb_ledger *self, sb_ledger_line *lines)
{
    for (uint32_t row = 0; row < self->row_length; row++) {
        if (self->rows[row].ticket != NONE) {
            *lines++ = self->rows[row];
        }
    }
}
