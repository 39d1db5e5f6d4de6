#define PY_SSIZE_T_CLEAN
#include "compat.h"

#include "stacks.h"

#include <stdlib.h>
#include <string.h>

#include "table.h"

typedef struct {
    sb_table codes;   /* key: pointer low, pointer high */
    sb_table offsets; /* key: code id, instruction offset */
    sb_table frames;  /* key: code id, line */
    sb_table stacks;  /* key: frame ids, leaf first; TRUNCATED marks a cut root */
    PyCodeObject **code_objects; /* strong, by code id */
    size_t code_room;
    uint32_t *offset_frames; /* by id of the offset */
    size_t offset_room;
    int users;
} store;

static store stores[2]; /* by sb_stacks_kind */

/* Places of the ledgers' store by the instruction a frame stands at: what is sampled is
 * mostly under what was sampled before. An instruction is in a code object that the
 * store holds, so its address stays one name, and the code itself need not be read. */
enum { PLACES_BITS = 11, PLACES = 1 << PLACES_BITS };

static struct {
    const void *instruction;
    uint32_t place;
} places[PLACES];

static uint32_t
place_slot(const void *instruction)
{
    uint64_t hash = (uint64_t)(uintptr_t)instruction * 0x9E3779B97F4A7C15u;
    return (uint32_t)(hash >> (64 - PLACES_BITS));
}

#define TRUNCATED SB_TRUNCATED

int
sb_reserve(void **array, size_t *room, size_t id, size_t size)
{
    if (id < *room) {
        return 0;
    }
    size_t wanted = (id + 32) * 2;
    void *grown = realloc(*array, wanted * size);
    if (grown == NULL) {
        return -1;
    }
    *array = grown;
    *room = wanted;
    return 0;
}

/* The caller knows the code to be alive. */
static int64_t
code_id(store *self, PyCodeObject *code)
{
    uint64_t pointer = (uint64_t)(uintptr_t)code;
    uint32_t key[2] = {(uint32_t)pointer, (uint32_t)(pointer >> 32)};
    int64_t known = sb_table_find(&self->codes, key, 2);
    if (known >= 0) {
        return known;
    }
    /* Room first: an id without its reference could become somebody else's name. */
    int fresh;
    if (sb_reserve((void **)&self->code_objects, &self->code_room, self->codes.count,
                   sizeof *self->code_objects) < 0) {
        return -1;
    }
    int64_t id = sb_table_intern(&self->codes, key, 2, &fresh);
    if (id >= 0) {
        self->code_objects[id] = (PyCodeObject *)Py_NewRef((PyObject *)code);
    }
    return id;
}

/* The place of a line in a code object. */
static int64_t
place_id(store *self, uint32_t owner, int line)
{
    uint32_t key[2] = {owner, (uint32_t)line};
    int fresh;
    return sb_table_intern(&self->frames, key, 2, &fresh);
}

/* Instructions of one line are one place: which of them a frame stands at depends on
 * what the interpreter has specialized. */
static int64_t
frame_id(store *self, PyCodeObject *code, int32_t offset)
{
    int64_t owner = code_id(self, code);
    if (owner < 0) {
        return -1;
    }
    uint32_t key[2] = {(uint32_t)owner, (uint32_t)offset};
    int64_t known = sb_table_find(&self->offsets, key, 2);
    if (known >= 0) {
        return self->offset_frames[known];
    }
    int line = offset < 0 ? 0 : PyCode_Addr2Line(code, offset);
    int64_t place = place_id(self, (uint32_t)owner, line > 0 ? line : code->co_firstlineno);
    int fresh;
    if (place < 0 || sb_reserve((void **)&self->offset_frames, &self->offset_room, self->offsets.count,
                                sizeof *self->offset_frames) < 0) {
        return -1;
    }
    int64_t id = sb_table_intern(&self->offsets, key, 2, &fresh);
    if (id >= 0) {
        self->offset_frames[id] = (uint32_t)place;
    }
    return id < 0 ? -1 : place;
}

int64_t
sb_stack_of_sample(const sb_sample *sample)
{
    store *self = &stores[SB_OF_WINDOWS];
    uint32_t key[SB_DEPTH_MAX + 1];
    uint32_t length = 0;
    for (uint32_t i = 0; i < sample->depth; i++) {
        int64_t id = frame_id(self, sample->frames[i].code, sample->frames[i].offset);
        if (id < 0) {
            return -1;
        }
        key[length++] = (uint32_t)id;
    }
    if (sample->truncated) {
        key[length++] = TRUNCATED;
    }
    int fresh;
    return sb_table_intern(&self->stacks, key, length, &fresh);
}

int64_t
sb_frame_id(PyCodeObject *code, int32_t offset)
{
    return frame_id(&stores[SB_OF_LEDGERS], code, offset);
}

int64_t
sb_stack_of_ids(const uint32_t *ids, uint32_t length)
{
    int fresh;
    return sb_table_intern(&stores[SB_OF_LEDGERS].stacks, ids, length, &fresh);
}

int64_t
sb_place_of_frame(sb_frame *frame)
{
    const void *instruction = sb_frame_instruction(frame);
    uint32_t slot = place_slot(instruction);
    if (places[slot].instruction == instruction && instruction != NULL) {
        return places[slot].place;
    }
    PyCodeObject *code = sb_frame_code(frame);
    if (code == NULL) {
        return -2;
    }
    int32_t offset = sb_code_offset(code, sb_frame_instruction(frame));
    int64_t id = frame_id(&stores[SB_OF_LEDGERS], code, offset);
    if (id >= 0 && offset >= 0) {
        places[slot].instruction = instruction;
        places[slot].place = (uint32_t)id;
    }
    return id;
}

/* The frames of a thread hang together and their code is alive: no signal stands
 * between, and the GIL is held. */
static int64_t
stack_under(PyThreadState *tstate, PyCodeObject *leaf, uint32_t depth)
{
    store *self = &stores[SB_OF_LEDGERS];
    uint32_t key[SB_DEPTH_MAX + 1];
    uint32_t length = 0;
    uint32_t room = depth < SB_DEPTH_MAX ? depth : SB_DEPTH_MAX;
    if (leaf != NULL) {
        int64_t id = frame_id(self, leaf, -1);
        if (id < 0) {
            return -1;
        }
        key[length++] = (uint32_t)id;
    }
    sb_frame *frame = sb_current_frame(tstate);
    for (; frame != NULL; frame = sb_frame_previous(frame)) {
        int64_t id = sb_place_of_frame(frame);
        if (id == -2) {
            continue;
        }
        if (id < 0) {
            return -1;
        }
        if (length == room) {
            key[length++] = TRUNCATED;
            break;
        }
        key[length++] = (uint32_t)id;
    }
    int fresh;
    return sb_table_intern(&self->stacks, key, length, &fresh);
}

int64_t
sb_stack_of_thread(PyThreadState *tstate, uint32_t depth)
{
    return stack_under(tstate, NULL, depth);
}

int64_t
sb_stack_of_current_under(PyCodeObject *leaf, uint32_t depth)
{
    return stack_under(PyThreadState_Get(), leaf, depth);
}

int64_t
sb_stack_of_current(uint32_t depth)
{
    return sb_stack_of_current_under(NULL, depth);
}

/* ---- users ------------------------------------------------------------------------ */

static void
forget(store *self)
{
    /* Emptied before the references go: their going may run code that comes back. */
    store old = *self;
    memset(self, 0, sizeof *self);
    if (self == &stores[SB_OF_LEDGERS]) {
        memset(places, 0, sizeof places);
    }
    for (size_t i = 0; i < old.codes.count; i++) {
        Py_DECREF(old.code_objects[i]);
    }
    sb_table_clear(&old.codes);
    sb_table_clear(&old.offsets);
    sb_table_clear(&old.frames);
    sb_table_clear(&old.stacks);
    free(old.offset_frames);
    free(old.code_objects);
}

void
sb_stacks_use(sb_stacks_kind kind)
{
    stores[kind].users++;
}

void
sb_stacks_leave(sb_stacks_kind kind)
{
    if (--stores[kind].users == 0) {
        forget(&stores[kind]);
    }
}

/* ---- reading out ------------------------------------------------------------------ */

size_t
sb_slice_length(size_t total, size_t first, size_t count)
{
    size_t left = first < total ? total - first : 0;
    return count < left ? count : left;
}

static PyObject *
frame_tuple(const store *self, size_t id)
{
    uint32_t words;
    const uint32_t *key = sb_table_key(&self->frames, id, &words);
    PyCodeObject *code = self->code_objects[key[0]];
    return Py_BuildValue("(OOii)", code->co_filename, code->co_qualname,
                         code->co_firstlineno, (int)key[1]);
}

/* The id at a place of a list, or -1 with an exception. Allocates nothing. */
static int64_t
id_at(PyObject *ids, Py_ssize_t at, size_t count)
{
    size_t id = PyLong_AsSize_t(PyList_GetItem(ids, at));
    if (PyErr_Occurred()) {
        return -1;
    }
    if (id >= count) {
        PyErr_SetString(PyExc_ValueError, "no such stack or frame");
        return -1;
    }
    return (int64_t)id;
}

/* Write the stacks of a list and where each ends; `numbers` may be NULL, to count only.
 * How many numbers there are, or -1 with an exception. Allocates nothing. */
static Py_ssize_t
write_stacks(const store *self, PyObject *ids, uint32_t *numbers, uint32_t *ends)
{
    Py_ssize_t written = 0;
    for (Py_ssize_t i = 0; i < PyList_Size(ids); i++) {
        int64_t id = id_at(ids, i, self->stacks.count);
        if (id < 0) {
            return -1;
        }
        uint32_t length;
        const uint32_t *key = sb_table_key(&self->stacks, (size_t)id, &length);
        if (numbers != NULL) {
            memcpy(numbers + written, key, length * sizeof *key);
        }
        written += length;
        ends[i] = (uint32_t)written;
    }
    return written;
}

PyObject *
sb_stacks_of(sb_stacks_kind kind, PyObject *ids)
{
    const store *self = &stores[kind];
    size_t count = (size_t)PyList_Size(ids);
    uint32_t *ends = malloc(count * sizeof *ends + 1);
    if (ends == NULL) {
        return PyErr_NoMemory();
    }
    PyObject *both = NULL;
    uint32_t *numbers = NULL;
    Py_ssize_t length = write_stacks(self, ids, NULL, ends);
    if (length < 0) {
        goto done;
    }
    numbers = malloc((size_t)length * sizeof *numbers + 1);
    if (numbers == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    write_stacks(self, ids, numbers, ends);
    both = Py_BuildValue("(y#y#)", (char *)numbers,
                         length * (Py_ssize_t)sizeof *numbers, (char *)ends,
                         (Py_ssize_t)(count * sizeof *ends));
done:
    free(numbers);
    free(ends);
    return both;
}

PyObject *
sb_frames_of(sb_stacks_kind kind, PyObject *ids)
{
    const store *self = &stores[kind];
    PyObject *list = PyList_New(PyList_Size(ids));
    for (Py_ssize_t i = 0; list != NULL && i < PyList_GET_SIZE(list); i++) {
        int64_t id = id_at(ids, i, self->frames.count);
        PyObject *item = id < 0 ? NULL : frame_tuple(self, (size_t)id);
        if (item == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, item);
    }
    return list;
}
