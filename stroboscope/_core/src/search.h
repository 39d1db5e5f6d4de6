/* All living objects of a type, found in the garbage collector's lists.
 *
 * Holds the GIL from end to end: 10 to 20 ms for a million tracked objects, mostly waits
 * for memory. `gc.get_objects` and a look at each takes 70 ms and more. */
#ifndef SB_SEARCH_H
#define SB_SEARCH_H

#include <Python.h>

/* Add instances_of to the module. 0, or -1. */
int sb_search_init(PyObject *module);

#endif
