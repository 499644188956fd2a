/*
 * The lock table as a function: (state, input, now) -> replies and events. docs/lock-kinds.md is
 * its law. No I/O, no clock, no globals, no allocation after dlk_engine_new but for the tables of a
 * recovery (engine_claim.h); one thread at a time.
 *
 * The calls that tests and tools use are declared in dlock_abi.h:
 *   dlk_engine_new      tables at their limits (committed by the kernel when touched); NULL: no
 *                       memory. The engine starts not ready: send DLK_COMMAND_READY.
 *   dlk_engine_command  one command of the control plane; emits a DONE event with its cookie
 *   dlk_engine_step     a batch of requests, in order. `session` and `slot` are slots and may be
 *                       any number; op, mode and flags have been validated by the codec
 *   dlk_engine_tick     ends what is due: sessions, then leases and claims, then waits.
 *                       sessions_now_ns (<= now_ns) is a time before which every request that had
 *                       arrived has been stepped; 0: end no session in this tick
 *   dlk_engine_attached a session, by its slot, has a new connection: it is told again of each hold
 *                       that an operator asks for, and of claimed waiters that were granted
 *   dlk_engine_stop     wakes every waiter with STOPPING
 *   dlk_engine_next_deadline  UINT64_MAX: none. May be early, never late
 *   dlk_engine_replies, _events  the outbox, in order; the caller may complete ACTION replies in
 *                       place; dlk_engine_clear empties it. A caller clears after every command,
 *                       step or tick; at most DLK_STEP_MAX requests a step
 */
#ifndef DLOCK_ENGINE_H
#define DLOCK_ENGINE_H

#include <stdbool.h>

#include "dlock_abi.h"

enum { DLK_STEP_MAX = 1024 };

/* May this frame open a data connection for its session? Constant time in the secret. */
bool dlk_engine_attach_allowed(const struct dlk_engine *engine, const struct dlk_attach *attach);
uint32_t dlk_engine_epoch(const struct dlk_engine *engine);

#endif
