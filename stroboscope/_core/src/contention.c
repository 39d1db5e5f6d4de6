#include "compat.h"

#include "contention.h"

#include <stdlib.h>
#include <unistd.h>

#include "ledger.h"
#include "stacks.h"

int sb_contention_is_on;
PyCodeObject *sb_site_code;
uint32_t sb_contended_locks;

enum { BLOCK, MUTEX, KINDS };

static struct {
    int64_t mutex_fraction, block_rate_ns;
    uint64_t random;
    PyObject *sites; /* {file name: {qualified name: sb_site or DOOR}}, the rest of a file is plumbing */
    sb_ledger *ledgers[KINDS];
} state;

/* Source: xorshift64*, Vigna 2016. */
static uint64_t
random_below(uint64_t bound)
{
    uint64_t x = state.random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    state.random = x;
    return (uint64_t)(((unsigned __int128)(x * 0x2545F4914F6CDD1Du) * bound) >> 64);
}

static void
seed(void)
{
    state.random = sb_now_ns() * 0x9E3779B97F4A7C15u | 1;
}

/* ---- charging --------------------------------------------------------------------- */

static void
charge(int kind, int64_t count, int64_t delay_ns, int64_t stack, sb_cell *cell)
{
    sb_ledger *ledger = state.ledgers[kind];
    if (ledger != NULL) {
        const int64_t values[2] = {count, delay_ns};
        sb_ledger_add(ledger, sb_ledger_row(ledger, stack, cell), values);
    }
}

/* How many events of this length one that is counted stands for; 0: it is not counted.
 * One as long as the rate counts for itself; a shorter one is counted with probability
 * delay/rate, and then for the rate. */
static int64_t
blocks_counted(int64_t *delay_ns)
{
    int64_t rate_ns = state.block_rate_ns;
    int64_t delay = *delay_ns > 0 ? *delay_ns : 1;
    if (rate_ns <= 0) {
        return 0;
    }
    if (delay >= rate_ns) {
        return 1;
    }
    if ((int64_t)random_below((uint64_t)rate_ns) >= delay) {
        return 0;
    }
    *delay_ns = rate_ns;
    /* rate/delay, rounded so that the mean is exact. */
    return rate_ns / delay + ((int64_t)random_below((uint64_t)delay) < rate_ns % delay);
}

int
sb_blocks_are_counted(void)
{
    return state.block_rate_ns > 0;
}

void
sb_charge_block(int64_t delay_ns, int64_t stack, sb_cell *cell)
{
    int64_t count = blocks_counted(&delay_ns);
    if (count > 0) {
        charge(BLOCK, count, delay_ns, stack, cell);
    }
}

void
sb_charge_block_here(int64_t delay_ns)
{
    int64_t count = blocks_counted(&delay_ns);
    if (count > 0) {
        charge(BLOCK, count, delay_ns, sb_stack_of_current(SB_DEPTH_MAX),
               sb_current_cell());
    }
}

static void
charge_mutex_here(int64_t delay_ns)
{
    int64_t fraction = state.mutex_fraction;
    if (fraction > 0 && random_below((uint64_t)fraction) == 0) {
        charge(MUTEX, fraction, delay_ns * fraction, sb_stack_of_current(SB_DEPTH_MAX),
               sb_current_cell());
    }
}

/* ---- sites ------------------------------------------------------------------------ */

/* In `sites`: code through which others wait, such as Queue.get; and such as waits for
 * news and not for a holder, such as Condition.wait. */
enum { DOOR = -1, DOOR_OF_SIGNALS = -2 };

/* What is known of a code object: a door, plumbing, or SB_SITE_LOCK for anything else.
 * Only exact strings are looked up: nobody's __eq__ runs. */
static long
site_of_code(PyCodeObject *code)
{
    if (!PyUnicode_CheckExact(code->co_filename) ||
        !PyUnicode_CheckExact(code->co_qualname)) {
        return SB_SITE_LOCK;
    }
    PyObject *file = PyDict_GetItemWithError(state.sites, code->co_filename);
    if (file == NULL) {
        return SB_SITE_LOCK;
    }
    PyObject *known = PyDict_GetItemWithError(file, code->co_qualname);
    return known ? PyLong_AsLong(known) : SB_SITE_PLUMBING;
}

sb_site
sb_site_of_current(void)
{
    if (!sb_contention_is_on) {
        return SB_SITE_PLUMBING;
    }
    int is_leaf = 1, is_signal = 0;
    sb_site_code = NULL;
    sb_frame *frame = sb_current_frame(PyThreadState_Get());
    for (; frame != NULL; frame = sb_frame_previous(frame)) {
        PyCodeObject *code = sb_frame_code(frame);
        if (code == NULL) {
            continue;
        }
        long site = site_of_code(code);
        if (site == SB_SITE_PLUMBING) {
            return SB_SITE_PLUMBING;
        }
        if (site == SB_SITE_LOCK) {
            sb_site_code = code;
            break;
        }
        is_signal |= is_leaf && site == DOOR_OF_SIGNALS;
        is_leaf = 0;
    }
    return is_signal ? SB_SITE_SIGNAL : SB_SITE_LOCK;
}

/* ---- who waits for what ----------------------------------------------------------- */

/* All who wait for one lock. `delay_ns` is the sum of their waits since the last
 * release, exact as of `since_ns`. Go estimates that sum from the longest and the
 * shortest wait; here every wait passes by, so it is kept. */
typedef struct waiters {
    const void *lock;
    struct waiters *next;
    uint32_t count;
    uint32_t handed; /* 1 from a release until somebody has the lock: one waiter wakes */
    int64_t since_ns, delay_ns;
    PyObject *weak; /* when nobody waits any more and the holder is still to be charged */
} waiters;

enum { BUCKETS = 1024 };
static waiters *buckets[BUCKETS];
static waiters *unused;

static waiters **
bucket_of(const void *lock)
{
    uint64_t hash = (uint64_t)(uintptr_t)lock * 0x9E3779B97F4A7C15u;
    return &buckets[hash >> 54];
}
_Static_assert(BUCKETS == 1 << (64 - 54), "the hash's upper bits choose the bucket");

static void
forget(waiters **link)
{
    waiters *gone = *link;
    *link = gone->next;
    gone->next = unused;
    unused = gone;
    sb_contended_locks--;
    Py_CLEAR(gone->weak);
}

/* Where the lock's record hangs, or NULL. A record that outlived its lock, found on the
 * way, goes: another lock may be at that address. */
static waiters **
find(const void *lock)
{
    waiters **link = bucket_of(lock);
    while (*link != NULL) {
        waiters *one = *link;
        if (one->weak != NULL && sb_weakref_is_dead(one->weak)) {
            forget(link);
            continue;
        }
        if (one->lock == lock) {
            return link;
        }
        link = &one->next;
    }
    return NULL;
}

int
sb_lock_is_contended(const void *lock)
{
    const waiters *one = *bucket_of(lock);
    while (one != NULL && one->lock != lock) {
        one = one->next;
    }
    return one != NULL;
}

static void
settle(waiters *all, int64_t now_ns)
{
    int64_t waiting = (int64_t)all->count - all->handed;
    if (waiting > 0 && now_ns > all->since_ns) {
        all->delay_ns += waiting * (now_ns - all->since_ns);
    }
    all->since_ns = now_ns;
}

static waiters *
add(const void *lock)
{
    waiters *fresh = unused;
    if (fresh != NULL) {
        unused = fresh->next;
    }
    else if ((fresh = malloc(sizeof *fresh)) == NULL) {
        return NULL;
    }
    waiters **bucket = bucket_of(lock);
    *fresh = (waiters){.lock = lock, .next = *bucket};
    *bucket = fresh;
    sb_contended_locks++;
    return fresh;
}

int
sb_wait_begins(const void *lock, int64_t now_ns)
{
    if (state.mutex_fraction <= 0) {
        return 0;
    }
    waiters **link = find(lock);
    waiters *all = link ? *link : add(lock);
    if (all == NULL) {
        return 0;
    }
    settle(all, now_ns);
    all->count++;
    Py_CLEAR(all->weak); /* who waits holds the lock */
    return 1;
}

/* A weak reference, or NULL without an exception. May collect garbage. */
static PyObject *
weak_reference(PyObject *object)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *weak = PyWeakref_NewRef(object, NULL);
    if (weak == NULL) {
        PyErr_Clear();
    }
    PyErr_Restore(type, value, traceback);
    return weak;
}

void
sb_wait_ends(PyObject *object, int64_t now_ns, sb_wait_end how)
{
    /* First: collecting garbage may change the records. */
    PyObject *weak = how == SB_WAIT_GIVEN_UP ? weak_reference(object) : NULL;
    waiters **link = find(object);
    waiters *all = link ? *link : NULL;
    if (all == NULL || all->count == 0) {
        Py_XDECREF(weak);
        return; /* a fork was meanwhile */
    }
    settle(all, now_ns);
    all->count--;
    if (how == SB_WAIT_ACQUIRED) {
        if (!all->handed) {
            all->delay_ns = 0; /* let go by code that does not pass by us */
        }
        all->handed = 0;
    }
    if (all->count == 0) {
        all->handed = 0;
        if (weak != NULL && all->delay_ns > 0) {
            all->weak = weak; /* kept for the holder's release */
            return;
        }
        forget(link);
    }
    Py_XDECREF(weak);
}

void
sb_lock_taken(const void *lock)
{
    waiters **link = sb_contended_locks ? find(lock) : NULL;
    if (link != NULL && (*link)->handed) {
        settle(*link, sb_now_ns());
        (*link)->handed = 0;
    }
}

void
sb_lock_released(const void *lock)
{
    waiters **link = find(lock);
    if (link == NULL) {
        return;
    }
    waiters *all = *link;
    settle(all, sb_now_ns());
    int64_t delay_ns = all->delay_ns;
    all->delay_ns = 0;
    all->handed = all->count > 0;
    if (all->count == 0) {
        forget(link);
    }
    if (delay_ns > 0) {
        charge_mutex_here(delay_ns);
    }
}

static void
forget_all(int only_kept)
{
    for (int i = 0; i < BUCKETS; i++) {
        waiters **link = &buckets[i];
        while (*link != NULL) {
            if (!only_kept || (*link)->count == 0) {
                forget(link);
            }
            else {
                link = &(*link)->next;
            }
        }
    }
}

/* ---- switching and reading -------------------------------------------------------- */

/* contention_set(mutex_fraction, block_rate_ns, sites): both 0 counts nothing; with sites
 * waits are known all the same, to be traced. */
static PyObject *
contention_set(PyObject *Py_UNUSED(module), PyObject *args)
{
    long long fraction, rate_ns;
    PyObject *sites;
    if (!PyArg_ParseTuple(args, "LLO!", &fraction, &rate_ns, &PyDict_Type, &sites)) {
        return NULL;
    }
    for (int kind = 0; kind < KINDS && (fraction > 0 || rate_ns > 0); kind++) {
        if (state.ledgers[kind] == NULL &&
            (state.ledgers[kind] = sb_ledger_new(2)) == NULL) {
            return PyErr_NoMemory();
        }
    }
    if (state.random == 0) {
        seed();
    }
    state.mutex_fraction = fraction > 0 ? fraction : 0;
    state.block_rate_ns = rate_ns > 0 ? rate_ns : 0;
    sb_contention_is_on = state.mutex_fraction > 0 || state.block_rate_ns > 0 ||
                          PyDict_GET_SIZE(sites) > 0;
    if (state.mutex_fraction == 0) {
        forget_all(1);
    }
    Py_INCREF(sites);
    Py_XSETREF(state.sites, sites);
    Py_RETURN_NONE;
}

/* contention_copy("mutex" or "block"): the totals, or None before the first switch. */
static PyObject *
contention_copy(PyObject *Py_UNUSED(module), PyObject *name)
{
    int kind = PyUnicode_Check(name) &&
                       PyUnicode_CompareWithASCIIString(name, "mutex") == 0
                   ? MUTEX
                   : BLOCK;
    if (state.ledgers[kind] == NULL) {
        Py_RETURN_NONE;
    }
    return sb_ledger_copy(state.ledgers[kind]);
}

/* Drop all totals, so that one test finds nothing of another. Waits under way keep
 * numbers of stacks that are gone with them: not for a process that serves. */
static PyObject *
contention_forget(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    for (int kind = 0; kind < KINDS; kind++) {
        sb_ledger *gone = state.ledgers[kind];
        state.ledgers[kind] = NULL;
        sb_ledger_free(gone);
    }
    Py_RETURN_NONE;
}

static PyObject *
contention_waiting(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLong(sb_contended_locks);
}

void
sb_contention_after_fork(void)
{
    forget_all(0);
    if (state.random != 0) {
        seed(); /* not the numbers of the parent and of its other children */
        state.random ^= (uint64_t)getpid() << 32;
    }
}

static PyMethodDef methods[] = {
    {"contention_set", contention_set, METH_VARARGS, "Count contention from now on."},
    {"contention_copy", contention_copy, METH_O, "Totals since the process began."},
    {"contention_forget", contention_forget, METH_NOARGS, "Drop all totals, for tests."},
    {"contention_waiting", contention_waiting, METH_NOARGS, "Locks waited for now."},
    {NULL, NULL, 0, NULL},
};

int
sb_contention_init(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
