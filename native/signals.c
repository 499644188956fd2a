/* The library's threads leave signals to those of the program. */
#include "dlock_abi.h"

#include <pthread.h>
#include <signal.h>

void dlk_block_signals(void)
{
    /* These say that the thread itself is broken: not to be held back. */
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    sigset_t all;

    sigfillset(&all);
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        sigdelset(&all, faults[i]);
    }
    pthread_sigmask(SIG_SETMASK, &all, NULL);
}
