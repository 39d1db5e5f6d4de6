/* The per-request object that the ContextVar holds, and how a handler finds it. */
#ifndef SB_CELL_H
#define SB_CELL_H

#include <Python.h>
#include <stdatomic.h>
#include <stdint.h>

typedef struct sb_cell {
    PyObject_HEAD
    uint64_t serial;
    struct sb_cell *parent; /* strong, or NULL */
    PyObject *labels;       /* strong, or NULL: this cell's overlay */
    PyObject *source;       /* strong, or NULL: finds late labels */
    PyObject *shown;        /* strong, or NULL: the endpoint, once known; set once */
    PyObject *scope;        /* strong, or NULL: of ASGI, which names the task */
    struct sb_cell *previous, *next; /* all live cells */
    atomic_uchar sampled;
    unsigned char ended; /* its labels are final */
    uint32_t published;  /* the epoch of the last publication */
    uint32_t owner;      /* of what is charged to it; see owner.h */
    /* As a task; see trace.h. A cell inside a task points to the task's own. */
    struct sb_cell *task; /* borrowed: itself, a cell above it, or NULL */
    uint32_t mark;        /* the generation it is recorded in, or SB_MARK_DECLINED */
    int32_t slot;         /* its row in the box, or -1 */
    uint32_t name;        /* of the task, as an id; 0 while it is not known */
    uint8_t asked, over;  /* for its name; ended */
    uint8_t trace_id[16], span_id[8]; /* OpenTelemetry's; zero: none */
} sb_cell;

/* Make the type and the ContextVar, learn the HAMT's node types. 0, or -1 with an
 * exception. Adds LabelCell and LABELS to the module. */
int sb_cells_init(PyObject *module);
int sb_cells_traverse(visitproc visit, void *arg);
void sb_cells_clear(void);

/* The cell of a context as the handler sees it, or NULL. Only reads; may fault. */
sb_cell *sb_cell_of_context(PyObject *context);
/* Compare the above with ContextVar.get in contexts of 1, 17 and 200 variables.
 * 1 when equal, 0 when this interpreter's layout is unknown, -1 with an exception. */
int sb_cells_check(void);

/* {thread ident: its LabelCell or None} of all threads now. New reference, or NULL.
 * Contexts stand still while the GIL is held. */
PyObject *sb_cells_of_threads(void);
/* List of live cells under which a sample was taken (new reference, or NULL). */
PyObject *sb_cells_live_sampled(void);
/* Overlays of a serial, root first: new tuple, empty when unknown; NULL on error. */
PyObject *sb_chain_of(uint64_t serial);
/* Whether published labels are kept by serial: while any window is open. Off drops them
 * all. Ledgers need none of it: see owner.h. */
void sb_publishing(int on);
/* The cell of the calling thread's context, borrowed, or NULL. */
sb_cell *sb_current_cell(void);
/* No cell has an owner any more. */
void sb_cells_disown(void);

#endif
