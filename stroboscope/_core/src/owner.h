/* Whose values a ledger counts: an open cell's, or a set of labels'.
 *
 * A request learns its labels late, so what it causes is charged to its cell at first.
 * When the cell ends, its charge moves to the owner of the labels it ended with. A block
 * that ends inside a request that has not waits under the request's owner, one owner
 * for all blocks of the same overlay. So owners are bounded by label sets, open cells
 * and the different blocks inside them, never by requests.
 *
 * Owner 0 is nobody. An owner is valid until its cell ends; then its number may be used
 * again. Everything here holds the GIL.
 */
#ifndef SB_OWNER_H
#define SB_OWNER_H

#include <Python.h>
#include <stdint.h>

#include "cell.h"

/* Owners at once: what does not fit is charged to nobody. */
#define SB_OWNERS_MAX ((uint32_t)1 << 16)

enum { SB_NOBODY = 0, SB_OVERFLOWN = 1 };

/* Who is charged for what runs under a cell now (NULL: nobody); marks it as sampled.
 * Runs no Python code, sets no exception, allocates from the system only. */
uint32_t sb_owner_of_cell(sb_cell *cell);
/* The cell has its final labels: move its charge. May run Python code (the merging of
 * overlays); leaves no exception. Called by the cell itself. */
void sb_owner_cell_ended(sb_cell *cell);

/* Whether the cell has a charge that its end has to move. */
int sb_owner_is_open(const sb_cell *cell);
/* The cell's memory goes and its charge was not moved: it is nobody's then. No Python. */
void sb_owner_cell_gone(sb_cell *cell);

/* How label sets are made: `extend(items, overlay)` gives the items that a block of that
 * overlay has inside one of `items`, hashable; at most `cap` different ones are kept,
 * then `overflow` stands for the rest. Without it, items are tuples of overlays. */
void sb_owners_configure(PyObject *extend, PyObject *overflow, uint32_t cap);
/* Owners in use, and the room their numbers need. */
uint32_t sb_owners_count(void);
uint32_t sb_owners_room(void);
/* An owner for a reader: ("final", items, 0), ("live", cell, 0), or
 * ("pending", overlay, parent owner). New reference, or NULL. */
PyObject *sb_owner_described(uint32_t owner);
/* Begin with nobody again. Rows of any other owner must be gone. */
void sb_owners_forget(void);

#endif
