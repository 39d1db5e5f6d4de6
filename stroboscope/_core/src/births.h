/* Where threads were started: a count for each stack that called Thread.start.
 *
 * The store of stacks (stacks.h) would keep every code object it ever saw for as long
 * as this counts, which is for ever: so these few stacks are kept here. Everything holds
 * the GIL.
 */
#ifndef SB_BIRTHS_H
#define SB_BIRTHS_H

#include <Python.h>

/* Stacks kept apart; starts beyond them are counted together. */
#define SB_BIRTHS_MAX 1024
/* Leaf-most frames kept. */
#define SB_BIRTHS_DEPTH 32

/* Add births_note and births to the module. 0, or -1 with an exception. */
int sb_births_init(PyObject *module);
/* The child has started no thread yet. */
void sb_births_after_fork(void);

#endif
