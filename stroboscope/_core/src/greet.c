#define PY_SSIZE_T_CLEAN
#include "greet.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The process in which the thread was greeted. A fork that CPython does not hear of runs
 * no hook that could forget it. */
static _Thread_local long greeted_in;

/* Unless one waits that nobody would handle: it would end the process. */
static void
let_sigprof_in(void)
{
    sigset_t ours, waiting;
    struct sigaction now;
    sigemptyset(&ours);
    sigaddset(&ours, SIGPROF);
    if (sigpending(&waiting) < 0 || sigaction(SIGPROF, NULL, &now) < 0 ||
        (sigismember(&waiting, SIGPROF) && now.sa_handler == SIG_DFL)) {
        return;
    }
    pthread_sigmask(SIG_UNBLOCK, &ours, NULL);
}

/* greet_thread(process): have the calling thread, of that process, be sampled as others
 * are. uWSGI forks without PyOS_AfterFork_Child, so its main thread has the number of the
 * master's, and starts threads with every signal blocked. Does nothing the second time.
 * None, or NULL where the process is no number. With the GIL. */
static PyObject *
greet_thread(PyObject *Py_UNUSED(module), PyObject *number)
{
    long process = PyLong_AsLong(number);
    if (process == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (greeted_in != process) {
        greeted_in = process;
        let_sigprof_in();
        /* As CPython's own hook does after a fork. */
        PyThreadState_Get()->native_thread_id = (unsigned long)syscall(SYS_gettid);
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"greet_thread", greet_thread, METH_O,
     "Have the calling thread sampled, whatever a server did before it."},
    {NULL, NULL, 0, NULL},
};

int
sb_greet_init(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
