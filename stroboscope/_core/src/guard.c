#define _GNU_SOURCE
#include "guard.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A dynamic TLS block may be allocated at first use, which a signal handler must not
 * do; the initial-exec model uses the block that every thread is born with. */
static __thread sigjmp_buf *volatile armed
    __attribute__((tls_model("initial-exec")));

static const int FAULTS[2] = {SIGSEGV, SIGBUS};
static struct sigaction previous[2];
static int installed;
/* A handler that ends the process by restoring what it replaced and raising again
 * (faulthandler, enabled after us) would come back here for ever. */
static atomic_int forwarding;

static void on_fault(int number, siginfo_t *info, void *context);

/* Do what would have happened without us. */
static void
forward(int number, siginfo_t *info, void *context)
{
    struct sigaction *old = &previous[number == SIGBUS];
    int is_function = (old->sa_flags & SA_SIGINFO) != 0 ||
                      (old->sa_handler != SIG_DFL && old->sa_handler != SIG_IGN);
    if (is_function && atomic_fetch_add(&forwarding, 1) == 0) {
        if (old->sa_flags & SA_SIGINFO) {
            old->sa_sigaction(number, info, context);
        }
        else {
            old->sa_handler(number);
        }
        atomic_store(&forwarding, 0);
        return;
    }
    if (!is_function && old->sa_handler == SIG_IGN && info->si_code <= 0) {
        return;
    }
    /* A real fault happens again on return and then kills, with its own address in
     * the core; one sent by kill() has to be sent again. */
    struct sigaction fatal;
    memset(&fatal, 0, sizeof fatal);
    fatal.sa_handler = SIG_DFL;
    sigaction(number, &fatal, NULL);
    if (info->si_code <= 0) {
        syscall(SYS_tgkill, getpid(), (pid_t)syscall(SYS_gettid), number);
    }
}

static void
on_fault(int number, siginfo_t *info, void *context)
{
    sigjmp_buf *jump = armed;
    if (jump != NULL && info->si_code > 0) {
        armed = NULL;
        siglongjmp(*jump, 1);
    }
    forward(number, info, context);
}

/* Both below run with and without the GIL; handlers take no part. */
static pthread_mutex_t changing = PTHREAD_MUTEX_INITIALIZER;

static int
install(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_fault;
    /* NODEFER: the jump leaves the handler without restoring the signal mask. */
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < 2; i++) {
        struct sigaction now;
        if (sigaction(FAULTS[i], NULL, &now) < 0) {
            return -1;
        }
        if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_fault) {
            continue;
        }
        previous[i] = now;
        if (sigaction(FAULTS[i], &action, NULL) < 0) {
            return -1;
        }
    }
    installed = 1;
    return 0;
}

static void
restore(void)
{
    if (!installed) {
        return;
    }
    for (int i = 0; i < 2; i++) {
        struct sigaction now;
        if (sigaction(FAULTS[i], NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) &&
            now.sa_sigaction == on_fault) {
            sigaction(FAULTS[i], &previous[i], NULL);
        }
    }
    installed = 0;
}

int
sb_guard_install(void)
{
    pthread_mutex_lock(&changing);
    int status = install();
    pthread_mutex_unlock(&changing);
    return status;
}

void
sb_guard_remove(void)
{
    pthread_mutex_lock(&changing);
    restore();
    pthread_mutex_unlock(&changing);
}

void
sb_guard_after_fork(void)
{
    pthread_mutex_init(&changing, NULL);
    restore();
}

int
sb_guard_holds(void)
{
    for (int i = 0; i < 2; i++) {
        struct sigaction now;
        if (sigaction(FAULTS[i], NULL, &now) < 0 || !(now.sa_flags & SA_SIGINFO) ||
            now.sa_sigaction != on_fault) {
            return 0;
        }
    }
    return 1;
}

void
sb_guard_arm(sigjmp_buf *jump)
{
    atomic_signal_fence(memory_order_seq_cst);
    armed = jump;
    atomic_signal_fence(memory_order_seq_cst);
}
