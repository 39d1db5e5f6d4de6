/* Cumulative totals by stack and labels, for collectors that count since they were
 * switched on: contentions, allocations.
 *
 * A row is a stack (stacks.h) and an owner (owner.h) with up to four values. Rows of an
 * owner that ends are folded into those of the owner that follows, so rows are bounded
 * by stacks times label sets, plus what open cells have. Beyond the cap, values go to
 * one row without stack and labels, so totals stay true.
 *
 * Everything here holds the GIL, runs no Python code but where said, and sets no
 * exception but where it returns objects. Memory comes from the system alone, so that
 * allocation hooks may call it. A ledger uses the stacks from its making to its end.
 */
#ifndef SB_LEDGER_H
#define SB_LEDGER_H

#include <Python.h>
#include <stdint.h>

#include "cell.h"

enum { SB_LEDGER_WIDTH_MAX = 4 };
#define SB_LEDGER_ROWS_MAX ((uint32_t)1 << 16)
/* Rows and held rows that were folded, together. */
#define SB_LEDGER_TICKETS_MAX ((uint32_t)1 << 21)

typedef struct sb_ledger sb_ledger;

/* NULL without memory or for a wrong width. */
sb_ledger *sb_ledger_new(int width);
/* May run Python code: code objects may go. NULL is allowed. */
void sb_ledger_free(sb_ledger *ledger);
/* Forget all values; rows that somebody holds stay valid, as rows of overflow. */
void sb_ledger_clear(sb_ledger *ledger);

/* The row of a stack (-1: unknown) under a cell (NULL: none); never fails, for there is
 * the overflow row. Marks the cell as sampled. Valid while the GIL is held, or while
 * held with `sb_ledger_hold`: then it follows its values when they are folded. */
int64_t sb_ledger_row(sb_ledger *ledger, int64_t stack, sb_cell *cell);
void sb_ledger_add(sb_ledger *ledger, int64_t row, const int64_t *values);
void sb_ledger_hold(sb_ledger *ledger, int64_t row);
void sb_ledger_drop(sb_ledger *ledger, int64_t row);
/* Nobody holds any row any more; values from column `first` on are zero. */
void sb_ledger_let_go(sb_ledger *ledger, int first);

/* For every ledger: rows of owner `from` become rows of owner `to`. */
void sb_ledgers_fold(uint32_t from, uint32_t to);
/* The child of a fork starts from zero, with the ledgers it had. */
void sb_ledgers_after_fork(void);

/* A LedgerCopy: all rows as they stand at one moment, for Python to read by slices. A
 * copy of numbers, about 2 ms at the cap. New reference, or NULL with an exception. */
PyObject *sb_ledger_copy(const sb_ledger *ledger);
/* Adds the types Ledger and LedgerCopy, and owners_configure, to the module. */
int sb_ledgers_init(PyObject *module);

/* ---- between ledger.c and ledger_type.c ------------------------------------------- */

#define SB_LEDGER_NO_STACK UINT32_MAX

typedef struct {
    uint32_t stack, owner;
    uint32_t ticket;
    uint32_t next, previous; /* rows of the same owner; next: also unused rows */
    int64_t values[SB_LEDGER_WIDTH_MAX];
} sb_ledger_line;

int sb_ledger_width(const sb_ledger *ledger);
/* Copy all rows in use to `lines`, which has room for `sb_ledger_count`. */
uint32_t sb_ledger_count(const sb_ledger *ledger);
void sb_ledger_lines(const sb_ledger *ledger, sb_ledger_line *lines);

#endif
