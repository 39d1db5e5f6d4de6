#include "owner.h"

#include <stdlib.h>
#include <string.h>

#include "ledger.h"

typedef enum { UNUSED, LIVE, PENDING, FINAL } owner_kind;

/* LIVE: object is the cell, borrowed: its end ends the owner. PENDING: the overlay,
 * strong, inside `parent`. FINAL: the label set's items, strong. */
typedef struct {
    owner_kind kind;
    uint32_t parent;
    uint32_t first_child, next; /* PENDING ones inside; next: siblings, or unused ones */
    PyObject *object;
} owner;

static struct {
    owner *all;
    uint32_t room, length, count, first_unused;
    PyObject *numbers; /* {items: owner number} */
    uint32_t finals, cap;
    PyObject *extend, *overflow;
} book;

/* ---- the array -------------------------------------------------------------------- */

static int
make_room(uint32_t wanted)
{
    if (wanted <= book.room) {
        return 0;
    }
    uint32_t room = book.room ? book.room * 2 : 64;
    owner *grown = realloc(book.all, room * sizeof *grown);
    if (grown == NULL) {
        return -1;
    }
    book.all = grown;
    book.room = room;
    return 0;
}

/* The number of a new owner, or SB_NOBODY without room. */
static uint32_t
new_owner(owner_kind kind, PyObject *object, uint32_t parent)
{
    if (book.length == 0) { /* nobody and the overflown are always there */
        if (make_room(2) < 0) {
            return SB_NOBODY;
        }
        memset(book.all, 0, 2 * sizeof *book.all);
        book.all[SB_NOBODY].kind = book.all[SB_OVERFLOWN].kind = FINAL;
        book.length = book.count = 2;
    }
    uint32_t number = book.first_unused;
    if (number != 0) {
        book.first_unused = book.all[number].next;
    }
    else if (book.length < SB_OWNERS_MAX && make_room(book.length + 1) == 0) {
        number = book.length++;
    }
    else {
        return SB_NOBODY;
    }
    book.all[number] = (owner){kind, parent, 0, 0, object};
    book.count++;
    return number;
}

static void
free_owner(uint32_t number)
{
    book.all[number] = (owner){.kind = UNUSED, .next = book.first_unused};
    book.first_unused = number;
    book.count--;
}

static int
is_final(const sb_cell *cell)
{
    for (; cell != NULL; cell = cell->parent) {
        if (!cell->ended) {
            return 0;
        }
    }
    return 1;
}

uint32_t
sb_owner_of_cell(sb_cell *cell)
{
    if (cell == NULL) {
        return SB_NOBODY;
    }
    if (cell->owner == SB_NOBODY) {
        /* All of the chain: a request works out its labels only when sampled. */
        for (sb_cell *one = cell; one != NULL; one = one->parent) {
            atomic_store_explicit(&one->sampled, 1, memory_order_relaxed);
        }
        cell->owner = new_owner(LIVE, (PyObject *)cell, SB_NOBODY);
    }
    return cell->owner;
}

/* ---- label sets ------------------------------------------------------------------- */

/* A new reference to the items of a block of `overlay` inside one of `items`. */
static PyObject *
extended(PyObject *items, PyObject *overlay)
{
    if (overlay == NULL || overlay == Py_None) {
        return Py_NewRef(items);
    }
    if (book.extend != NULL) {
        return PyObject_CallFunctionObjArgs(book.extend, items, overlay, NULL);
    }
    PyObject *one = PyTuple_Pack(1, overlay);
    PyObject *both = one ? PySequence_Concat(items, one) : NULL;
    Py_XDECREF(one);
    return both;
}

/* The items of a cell under its ancestors, a new reference, or NULL. */
static PyObject *
items_of_chain(const sb_cell *cell)
{
    if (cell == NULL) {
        return PyTuple_New(0);
    }
    PyObject *above = items_of_chain(cell->parent);
    PyObject *labels = Py_XNewRef(cell->labels);
    PyObject *items = above ? extended(above, labels) : NULL;
    Py_XDECREF(labels);
    Py_XDECREF(above);
    return items;
}

/* The owner of items; steals the reference, which may be NULL after a failure. */
static uint32_t
final_owner(PyObject *items)
{
    uint32_t number = SB_NOBODY;
    if (items == NULL || PyObject_IsTrue(items) != 1) {
        goto done;
    }
    if (book.numbers == NULL && (book.numbers = PyDict_New()) == NULL) {
        goto done;
    }
    PyObject *known = PyDict_GetItemWithError(book.numbers, items);
    if (known != NULL) {
        number = (uint32_t)PyLong_AsUnsignedLong(known);
        goto done;
    }
    if (PyErr_Occurred()) {
        goto done;
    }
    if (book.finals >= (book.cap ? book.cap : SB_OWNERS_MAX / 2)) {
        number = SB_OVERFLOWN;
        goto done;
    }
    number = new_owner(FINAL, items, SB_NOBODY);
    if (number == SB_NOBODY) {
        goto done;
    }
    book.finals++;
    PyObject *made = PyLong_FromUnsignedLong(number);
    if (made != NULL && PyDict_SetItem(book.numbers, items, made) == 0) {
        items = NULL; /* the owner has it now */
    }
    else { /* nobody has seen it yet */
        free_owner(number);
        book.finals--;
        number = SB_NOBODY;
    }
    Py_XDECREF(made);
done:
    PyErr_Clear(); /* labels may be missing, nothing may break */
    Py_XDECREF(items);
    return number;
}

/* ---- ends ------------------------------------------------------------------------- */

static uint32_t
pending_owner(uint32_t parent, PyObject *overlay)
{
    uint32_t child = book.all[parent].first_child;
    for (; child != 0; child = book.all[child].next) {
        if (book.all[child].object == overlay) {
            return child;
        }
    }
    child = new_owner(PENDING, overlay, parent);
    if (child != SB_NOBODY) {
        Py_INCREF(overlay);
        book.all[child].next = book.all[parent].first_child;
        book.all[parent].first_child = child;
    }
    return child;
}

/* Give everything of `from`, a dead end for new charges already, to `to`; then `from`
 * is gone. Python code may run between the steps, and finds the book in order. */
static void
move(uint32_t from, uint32_t to)
{
    sb_ledgers_fold(from, to);
    uint32_t child;
    while ((child = book.all[from].first_child) != 0) {
        book.all[from].first_child = book.all[child].next;
        book.all[child].next = 0;
        PyObject *overlay = book.all[child].object;
        uint32_t target;
        if (book.all[to].kind == FINAL) {
            PyObject *items = book.all[to].object;
            items = items ? Py_NewRef(items) : PyTuple_New(0);
            target = final_owner(items ? extended(items, overlay) : NULL);
            Py_XDECREF(items);
        }
        else {
            target = pending_owner(to, overlay);
        }
        move(child, target);
        Py_DECREF(overlay);
    }
    free_owner(from);
}

int
sb_owner_is_open(const sb_cell *cell)
{
    return cell->owner != SB_NOBODY && book.all[cell->owner].kind == LIVE;
}

void
sb_owner_cell_ended(sb_cell *cell)
{
    if (!sb_owner_is_open(cell)) {
        return;
    }
    uint32_t from = cell->owner;
    uint32_t to = SB_NOBODY;
    if (is_final(cell->parent)) {
        to = final_owner(items_of_chain(cell));
        if (cell->owner != from) {
            return; /* it ended meanwhile, in the Python code that ran */
        }
        cell->owner = to;
    }
    else {
        /* Its parent may end before it is charged again: then it needs a new owner,
         * which the cell's own end moves. */
        cell->owner = SB_NOBODY;
        uint32_t above = sb_owner_of_cell(cell->parent);
        to = above;
        if (above != SB_NOBODY && cell->labels != NULL && cell->labels != Py_None) {
            to = pending_owner(above, cell->labels);
        }
    }
    move(from, to);
}

static void
move_to_nobody(uint32_t from)
{
    sb_ledgers_fold(from, SB_NOBODY);
    uint32_t child;
    while ((child = book.all[from].first_child) != 0) {
        book.all[from].first_child = book.all[child].next;
        move_to_nobody(child);
    }
    if (book.all[from].kind == PENDING) {
        Py_DECREF(book.all[from].object);
    }
    free_owner(from);
}

void
sb_owner_cell_gone(sb_cell *cell)
{
    if (sb_owner_is_open(cell)) {
        uint32_t from = cell->owner;
        cell->owner = SB_NOBODY;
        move_to_nobody(from);
    }
}

/* ---- for readers ------------------------------------------------------------------ */

void
sb_owners_configure(PyObject *extend, PyObject *overflow, uint32_t cap)
{
    Py_XSETREF(book.extend, Py_XNewRef(extend));
    Py_XSETREF(book.overflow, Py_XNewRef(overflow));
    book.cap = cap < SB_OWNERS_MAX / 2 ? cap : SB_OWNERS_MAX / 2;
}

uint32_t
sb_owners_count(void)
{
    return book.count;
}

uint32_t
sb_owners_room(void)
{
    return book.length < 2 ? 2 : book.length;
}

PyObject *
sb_owner_described(uint32_t number)
{
    if (number == SB_NOBODY) {
        return Py_BuildValue("(s()I)", "final", 0);
    }
    if (number == SB_OVERFLOWN) {
        return book.overflow ? Py_BuildValue("(sOI)", "final", book.overflow, 0)
                             : Py_BuildValue("(s(s)I)", "final", "(overflow)", 0);
    }
    const owner *one = &book.all[number];
    const char *kind = one->kind == LIVE      ? "live"
                       : one->kind == PENDING ? "pending"
                                              : "final";
    return Py_BuildValue("(sOI)", kind, one->object, one->parent);
}

void
sb_owners_forget(void)
{
    sb_cells_disown();
    PyObject *numbers = book.numbers;
    owner *all = book.all;
    uint32_t length = book.length;
    book.numbers = NULL;
    book.all = NULL;
    book.room = book.length = book.count = book.first_unused = book.finals = 0;
    for (uint32_t i = 0; i < length; i++) {
        if (all[i].kind == PENDING || all[i].kind == FINAL) {
            Py_XDECREF(all[i].object);
        }
    }
    free(all);
    Py_XDECREF(numbers);
}
