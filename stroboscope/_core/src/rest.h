/* Stacks of what is at rest: threads other than the caller's, and suspended tasks.
 *
 * Everything here holds the GIL, so nothing moves while it is read. Nothing runs the
 * application's code, except where a task's class is not asyncio's own C one: its
 * attributes are then asked for as Python asks.
 */
#ifndef SB_REST_H
#define SB_REST_H

#include <Python.h>
#include <stdint.h>

#include "cell.h"

enum { SB_TASK_GONE, SB_TASK_SUSPENDED, SB_TASK_RUNNING, SB_TASK_CREATED };

typedef struct {
    int state;      /* SB_TASK_...; GONE when there is no stack */
    int64_t stack;  /* interned, or -1 when the tables are full */
    sb_cell *cell;  /* new reference, or NULL */
} sb_task;

/* Whether a thread has any Python frame. */
int sb_is_in_python(PyThreadState *tstate);
/* Read one task. Never fails and leaves no exception. */
void sb_task_read(PyObject *task, sb_task *found);
/* The task an item stands for: itself, or what a weak reference leads to. New
 * reference, or NULL for one that is gone. */
PyObject *sb_task_of(PyObject *item);
/* Add walk_tasks and its like, and walk_threads, to the module. 0, or -1. */
int sb_rest_init(PyObject *module);
int sb_rest_threads_init(PyObject *module);
void sb_rest_after_fork(void);

#endif
