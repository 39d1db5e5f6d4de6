/* The cell of a context, found without a call of Python's: sb_cell_of_context and
 * sb_cells_check of cell.h, and what they have to know. */
#ifndef SB_LOOKUP_H
#define SB_LOOKUP_H

#include "cell.h"

/* Make the ContextVar, learn the HAMT's node types. 0, or -1 with an exception. Adds
 * LABELS to the module. */
int sb_lookup_init(PyObject *module, PyTypeObject *cell_type);
int sb_lookup_traverse(visitproc visit, void *arg);

#endif
