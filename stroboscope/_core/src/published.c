/* Serial -> labels, for samples whose request is over. See published.h. */
#include "published.h"

#include <string.h>

#include "table.h"

static int is_kept;
static uint32_t epoch; /* counts the times keeping began */
static sb_table serials;
/* By a serial's id in the table. */
static struct publication {
    PyObject *labels; /* strong, or NULL */
    uint64_t parent;
} *rows;
static size_t room_of_rows;

static int64_t
publication_id(uint64_t serial, int make, int *fresh)
{
    uint32_t key[2] = {(uint32_t)serial, (uint32_t)(serial >> 32)};
    return make ? sb_table_intern(&serials, key, 2, fresh)
                : sb_table_find(&serials, key, 2);
}

/* Room for a row of this id. 0, or -1 without an exception. */
static int
make_room(size_t id)
{
    if (id < room_of_rows) {
        return 0;
    }
    size_t room = (id + 32) * 2;
    struct publication *grown = PyMem_RawRealloc(rows, room * sizeof *grown);
    if (grown == NULL) {
        return -1;
    }
    memset(grown + room_of_rows, 0, (room - room_of_rows) * sizeof *grown);
    rows = grown;
    room_of_rows = room;
    return 0;
}

void
sb_publish(sb_cell *first)
{
    first->published = epoch;
    for (sb_cell *cell = first; cell != NULL && is_kept; cell = cell->parent) {
        int fresh;
        atomic_store(&cell->sampled, 1);
        int64_t id = publication_id(cell->serial, 1, &fresh);
        if (id < 0 || make_room((size_t)id) < 0) {
            return;
        }
        struct publication *row = &rows[id];
        row->parent = cell->parent ? cell->parent->serial : 0;
        Py_XINCREF(cell->labels);
        Py_XSETREF(row->labels, cell->labels);
    }
}

int
sb_is_unpublished(const sb_cell *cell)
{
    return is_kept && cell->published != epoch;
}

void
sb_publishing(int on)
{
    epoch += on && !is_kept;
    is_kept = on;
    if (on) {
        return;
    }
    /* Labels may run Python code as they go: the rows are nobody's by then. */
    struct publication *gone = rows;
    size_t count = serials.count < room_of_rows ? serials.count : room_of_rows;
    rows = NULL;
    room_of_rows = 0;
    sb_table_clear(&serials);
    for (size_t i = 0; i < count; i++) {
        Py_XDECREF(gone[i].labels);
    }
    PyMem_RawFree(gone);
}

PyObject *
sb_chain_of(uint64_t serial)
{
    PyObject *chain = PyList_New(0);
    while (chain != NULL && serial != 0) {
        int64_t id = publication_id(serial, 0, NULL);
        if (id < 0 || (size_t)id >= room_of_rows) {
            break;
        }
        struct publication *row = &rows[id];
        if (row->labels != NULL && row->labels != Py_None &&
            PyList_Append(chain, row->labels) < 0) {
            Py_CLEAR(chain);
            break;
        }
        serial = row->parent;
    }
    if (chain == NULL || PyList_Reverse(chain) < 0) {
        Py_XDECREF(chain);
        return NULL;
    }
    PyObject *tuple = PyList_AsTuple(chain);
    Py_DECREF(chain);
    return tuple;
}

