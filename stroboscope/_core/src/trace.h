/* The recorder: what is recorded, where it goes, and the tasks, names and threads that
 * events refer to. Tasks are in task.c, regions and logs in region.c
 * and log.c.
 *
 * Everything here holds the GIL.
 */
#ifndef SB_TRACE_H
#define SB_TRACE_H

#include <Python.h>
#include <stdint.h>
#include <time.h>

#include "box.h"
#include "cell.h"

/* Who wants events: the flight recorder, a capture. Nothing is recorded for nobody. */
enum { SB_TRACE_FLIGHT = 1, SB_TRACE_CAPTURE = 2 };

/* `sb_cell.mark` of a task that is not recorded; else the generation it is recorded in. */
#define SB_MARK_DECLINED UINT32_MAX

typedef struct {
    uint32_t wanted; /* by whom; 0 is the one check at rest */
    uint32_t generation; /* of the box: what is older belongs to another one */
    sb_box *box;
    uint64_t threshold; /* of the fraction, in 2^64ths; UINT64_MAX is all */
    uint32_t readers;   /* that copy without the GIL */
} sb_trace_state;

extern sb_trace_state sb_trace;

int sb_trace_init(PyObject *module);
void sb_trace_after_fork(void);

static inline uint64_t
sb_trace_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The id of a name, made if need be; SB_NAME_OVERFLOW when the table is full. Sets no
 * exception. `is_ours` names may use the whole table. */
uint32_t sb_trace_name(PyObject *name, int is_ours);
uint32_t sb_trace_name_of(const char *name);
/* The id of `http:` and a route's template. */
uint32_t sb_trace_route_name(PyObject *template);
/* Names of this box, and none of them any more: names.c. */
uint32_t sb_names_count(void);
void sb_names_forget(void);
int sb_names_init(void); /* 0, or -1 with an exception */
/* The calling thread's index in the box. */
uint32_t sb_trace_thread(void);
/* The execution's lane: of the context that runs now. */
static inline uint32_t
sb_trace_lane(PyThreadState *tstate)
{
    return (uint32_t)((uintptr_t)tstate->context >> 4);
}
/* The running code's task, or NULL for none, or one that is not recorded: then
 * `*is_declined`. May call the middleware for the task's name, once. */
sb_cell *sb_trace_task(PyThreadState *tstate, int *is_declined);
/* The task's row in the box while it is alive, or NULL. */
sb_task_row *sb_trace_row(uint64_t serial, int32_t slot);

/* Record one event of now; its sequence number. */
static inline uint64_t
sb_trace_put(uint64_t time_ns, uint32_t kind, uint64_t task, uint32_t name,
             uint32_t argument, uint32_t lane)
{
    sb_event event = {time_ns, sb_event_head(task, sb_trace_thread(), kind), name,
                      argument, lane, 0};
    return sb_box_put(sb_trace.box, &event);
}

/* A number that ties an end to its begin: unique among the events a ring can hold. */
static inline uint32_t
sb_trace_pair(void)
{
    return (uint32_t)sb_trace.box->events_head;
}

/* What cell.c calls: methods of LabelCell, and the end of a cell. */
PyObject *sb_task_begin(PyObject *cell, PyObject *const *args, Py_ssize_t count);
PyObject *sb_task_end(PyObject *cell, PyObject *const *args, Py_ssize_t count);
PyObject *sb_task_end_request(PyObject *cell, PyObject *const *args, Py_ssize_t count);
PyObject *sb_task_set_name(PyObject *cell, PyObject *name);
PyObject *sb_task_link(PyObject *cell, PyObject *link);
PyObject *sb_task_label(PyObject *cell, PyObject *label);
void sb_task_gone(sb_cell *cell);
/* All rows of tasks are free: another box. */
void sb_tasks_forget(void);
/* Whether `link` tells a trace id: ASGI's scope, WSGI's environ, ASGI headers, a
 * traceparent, or 24 bytes of both ids; then the cell has them: link.c. */
int sb_link_read(sb_cell *cell, PyObject *link);
/* The template of a scope's route, new reference; NULL where the middleware has to be
 * asked, or there is none. Sets no exception; may run Python code. */
PyObject *sb_route_template(PyObject *scope);
/* The id of a recorded task's name as it is known now, SB_NAME_NONE for none. Runs Python
 * code, which may close the box: then it means nothing. Sets no exception. */
uint32_t sb_task_name_now(sb_cell *task);
static inline int
sb_task_is_recorded(const sb_cell *cell)
{
    return sb_trace.wanted && cell->task == cell && cell->mark == sb_trace.generation &&
           !cell->over;
}
/* What region.c, log.c, link.c and route.c add to the module. */
int sb_region_init(PyObject *module);
int sb_log_init(PyObject *module);
int sb_link_init(PyObject *module);
int sb_route_init(PyObject *module);
PyObject *sb_task_trace_id(PyObject *cell, void *closure);
PyObject *sb_task_span_id(PyObject *cell, void *closure);
PyObject *sb_task_serial(PyObject *cell, void *closure);
PyObject *sb_task_recorded(PyObject *cell, void *closure);
PyObject *sb_task_wanted(PyObject *cell, void *closure);

#endif
