/* What Python sees of spans.h and perfetto.h. */
#ifndef SB_TIMELINE_H
#define SB_TIMELINE_H

#include <Python.h>

int sb_timeline_init(PyObject *module);

#endif
