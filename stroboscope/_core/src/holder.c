#include "compat.h"

#include "holder.h"

SB_READS_STALE int
sb_main_is_holder(void)
{
    sigjmp_buf jump;
    volatile int is_main = 0;
    if (sb_guard_install() == 0 && sigsetjmp(jump, 0) == 0) {
        sb_guard_arm(&jump);
        PyThreadState *holder = sb_gil_holder(PyInterpreterState_Main());
        is_main = holder != NULL && sb_is_main_state(holder);
        sb_guard_arm(NULL);
    }
    return is_main;
}

SB_READS_STALE pid_t
sb_holder_tid(PyInterpreterState *interpreter)
{
    sigjmp_buf jump;
    volatile pid_t tid = 0;
    if (sb_guard_install() == 0 && sigsetjmp(jump, 0) == 0) {
        sb_guard_arm(&jump);
        PyThreadState *holder = sb_gil_holder(interpreter);
        tid = holder != NULL ? (pid_t)holder->native_thread_id : 0;
        sb_guard_arm(NULL);
    }
    return tid;
}
