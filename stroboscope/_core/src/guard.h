/* Reads that may fault: a bad pointer costs the sample, never the process.
 *
 * While armed on a thread, SIGSEGV and SIGBUS of that thread jump back to the caller's
 * sigsetjmp. At all other times they go to whoever handled them before us.
 */
#ifndef SB_GUARD_H
#define SB_GUARD_H

#include <setjmp.h>

/* Take both signals, remembering their handlers. 0, or -1 with errno. */
int sb_guard_install(void);
/* Give them back, unless somebody took them after us. */
void sb_guard_remove(void);
/* The same in the child of a fork. */
void sb_guard_after_fork(void);
/* Whether a fault would reach us now. Async-signal-safe. */
int sb_guard_holds(void);
/* Arm with a jump buffer, disarm with NULL. Async-signal-safe. */
void sb_guard_arm(sigjmp_buf *jump);

/* A function that may read what is no longer there. The guard catches the fault, and
 * what was read is checked before it is believed; the sanitizers, which cannot know that,
 * have to look away.
 */
#define SB_READS_STALE __attribute__((no_sanitize("address", "alignment", "null")))

#endif
