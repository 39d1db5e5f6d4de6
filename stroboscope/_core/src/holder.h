/* Who holds the GIL, asked without it. */
#ifndef SB_HOLDER_H
#define SB_HOLDER_H

#include <Python.h>
#include <sys/types.h>

/* The thread that holds the GIL of an interpreter now; 0 for nobody. Any thread, without
 * the GIL; what is read may be gone by then, and a wrong thread is as harmless as none. */
pid_t sb_holder_tid(PyInterpreterState *interpreter);

/* Whether the main thread holds that of the main interpreter; in the same way. */
int sb_main_is_holder(void);

#endif
