/* How a handler finds the cell: a read-only walk of a context's map. See lookup.h. */
#include "lookup.h"

#include "guard.h"

/* ---- the context's map, mirrored --------------------------------------------------
 * Source: Python/hamt.c and Include/internal/pycore_context.h, the same from 3.11 to
 * 3.15. sb_cells_check refuses the engine where it is not.
 */
typedef struct {
    PyObject_HEAD
    PyObject *previous;
    PyObject *vars;
} context_head;

typedef struct {
    PyObject_HEAD
    PyObject *root;
} hamt_head;

typedef struct {
    PyObject_VAR_HEAD
    uint32_t bitmap;
    PyObject *pairs[1];
} bitmap_node;

typedef struct {
    PyObject_HEAD
    PyObject *children[32];
} array_node;

typedef struct {
    PyObject_VAR_HEAD
    int32_t hash;
    PyObject *pairs[1];
} collision_node;

enum { HASH_BITS = 32, LEVEL_BITS = 5, LEVEL_MASK = 31 };

/* The handler needs them without a module at hand; set once, by the one interpreter
 * this module can live in. */
static struct {
    PyTypeObject *cell_type, *bitmap_type, *array_type;
    PyObject *labels_var;
    int32_t var_hash;
} known;

SB_READS_STALE static PyObject *
find_in_collision(const collision_node *node)
{
    for (Py_ssize_t i = 0; i + 1 < Py_SIZE(node); i += 2) {
        if (node->pairs[i] == known.labels_var) {
            return node->pairs[i + 1];
        }
    }
    return NULL;
}

SB_READS_STALE static PyObject *
find_value(PyObject *context)
{
    PyObject *vars = context ? ((context_head *)context)->vars : NULL;
    PyObject *node = vars ? ((hamt_head *)vars)->root : NULL;
    uint32_t hash = (uint32_t)known.var_hash;
    for (int shift = 0; node && shift < HASH_BITS + LEVEL_BITS; shift += LEVEL_BITS) {
        uint32_t index = shift < HASH_BITS ? (hash >> shift) & LEVEL_MASK : 0;
        if (Py_TYPE(node) == known.array_type) {
            node = ((array_node *)node)->children[index];
            continue;
        }
        if (Py_TYPE(node) != known.bitmap_type) {
            return find_in_collision((collision_node *)node);
        }
        bitmap_node *bitmap = (bitmap_node *)node;
        uint32_t bit = (uint32_t)1 << index;
        if (!(bitmap->bitmap & bit)) {
            return NULL;
        }
        int at = 2 * __builtin_popcount(bitmap->bitmap & (bit - 1));
        if (bitmap->pairs[at] != NULL) {
            return bitmap->pairs[at] == known.labels_var ? bitmap->pairs[at + 1] : NULL;
        }
        node = bitmap->pairs[at + 1];
    }
    return NULL;
}

SB_READS_STALE sb_cell *
sb_cell_of_context(PyObject *context)
{
    PyObject *value = find_value(context);
    if (value == NULL || Py_TYPE(value) != known.cell_type) {
        return NULL;
    }
    return (sb_cell *)value;
}

/* ---- learning and checking -------------------------------------------------------- */

/* Fill the current context with `count` variables. 0, or -1 with an exception. */
static int
set_variables(int count)
{
    for (int i = 0; i < count; i++) {
        PyObject *var = PyContextVar_New("stroboscope_probe", NULL);
        PyObject *token = var ? PyContextVar_Set(var, Py_None) : NULL;
        Py_XDECREF(var);
        if (token == NULL) {
            return -1;
        }
        Py_DECREF(token);
    }
    return 0;
}

/* The type of the map's root in a context of `count` variables, borrowed. */
static PyTypeObject *
root_type(int count)
{
    PyObject *context = PyContext_New();
    if (context == NULL || PyContext_Enter(context) < 0) {
        Py_XDECREF(context);
        return NULL;
    }
    int status = set_variables(count);
    PyTypeObject *type = Py_TYPE(((hamt_head *)((context_head *)context)->vars)->root);
    PyContext_Exit(context);
    Py_DECREF(context);
    return status < 0 ? NULL : type;
}

static int
check_one(int count)
{
    PyObject *context = PyContext_New();
    if (context == NULL || PyContext_Enter(context) < 0) {
        Py_XDECREF(context);
        return -1;
    }
    int equal = -1;
    PyObject *token = NULL;
    PyObject *cell = PyObject_CallNoArgs((PyObject *)known.cell_type);
    if (cell == NULL || set_variables(count / 2) < 0) {
        goto done;
    }
    equal = sb_cell_of_context(context) == NULL;
    token = PyContextVar_Set(known.labels_var, cell);
    if (token == NULL || set_variables(count - count / 2) < 0) {
        equal = -1;
        goto done;
    }
    equal = equal && (PyObject *)sb_cell_of_context(context) == cell;
done:
    Py_XDECREF(token);
    PyContext_Exit(context);
    Py_DECREF(context);
    Py_XDECREF(cell);
    return equal;
}

int
sb_cells_check(void)
{
    static const int COUNTS[3] = {1, 17, 200};
    for (int i = 0; i < 3; i++) {
        int equal = check_one(COUNTS[i]);
        if (equal <= 0) {
            return equal;
        }
    }
    return 1;
}

/* Its place in a map: as hamt_hash in Python/hamt.c, which folds 64 bits into 32. */
static int32_t
folded_hash(PyObject *var)
{
    Py_hash_t hash = PyObject_Hash(var);
    int32_t folded = (int32_t)((uint64_t)hash & 0xffffffffu) ^
                     (int32_t)((uint64_t)hash >> 32);
    return folded == -1 ? -2 : folded;
}

int
sb_lookup_init(PyObject *module, PyTypeObject *cell_type)
{
    known.cell_type = cell_type;
    known.labels_var = PyContextVar_New("stroboscope_labels", Py_None);
    if (known.labels_var == NULL ||
        PyModule_AddObjectRef(module, "LABELS", known.labels_var) < 0) {
        return -1;
    }
    known.var_hash = folded_hash(known.labels_var);
    known.bitmap_type = root_type(1);
    known.array_type = root_type(40);
    return known.bitmap_type == NULL || known.array_type == NULL ? -1 : 0;
}

int
sb_lookup_traverse(visitproc visit, void *arg)
{
    Py_VISIT(known.labels_var);
    return 0;
}
