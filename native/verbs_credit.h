/*
 * How many messages may be under way on a queue pair, as a function: it knows nothing of verbs.
 *
 * Every message takes a place at the other end, which has `window` of them and says, in each of its
 * own messages, how many it has taken so far. At most `window` may be sent and not yet told as
 * taken; the last of these places is kept for messages without a frame, which do nothing but tell.
 * So the end that takes can always tell, and the two cannot wait for each other:
 *
 *   An end tells by itself when it has taken half of its window and said nothing since. If both
 *   have used all their places for frames, each finds, as it takes them, that it owes half a
 *   window, and has the last place to say so. If that place is used too, its message has told at
 *   least half a window, so that the other end is not stuck.
 *
 * Two roles, each held by one thread at a time, by different threads at once if that suits: the
 * *sender* posts messages, the *receiver* takes in what came. Counters only grow, modulo 2^32, and
 * each is written by one of the two.
 */
#ifndef DLOCK_VERBS_CREDIT_H
#define DLOCK_VERBS_CREDIT_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "abi_verbs.h"

/* A smaller window could not be told by halves, a greater one not be counted by 16 bits. */
enum { DLK_CREDIT_WINDOW_MIN = 4, DLK_CREDIT_WINDOW_MAX = 16384 };

struct dlk_credit {
    /* The sender's line. */
    alignas(64) _Atomic uint32_t sent; /* messages */
    _Atomic uint32_t said;             /* of `taken`: what the last message told */
    uint32_t peer_window;
    /* The receiver's. */
    alignas(64) _Atomic uint32_t taken; /* messages whose places are free again */
    _Atomic uint32_t told;              /* of `sent`: what the other end has taken */
    uint32_t received;
    uint32_t window;
};

static inline uint32_t dlk_credit_get(const _Atomic uint32_t *counter)
{
    return atomic_load_explicit(counter, memory_order_acquire);
}

/* `window`: of messages that this end has room for. */
static inline void dlk_credit_init(struct dlk_credit *credit, uint32_t window)
{
    *credit = (struct dlk_credit){.window = window};
}

/* ---- The sender ---- */

/* How many messages may go now, the kept place included. */
static inline uint32_t dlk_credit_places(const struct dlk_credit *credit)
{
    uint32_t sent = atomic_load_explicit(&credit->sent, memory_order_relaxed);
    return credit->peer_window - (sent - dlk_credit_get(&credit->told));
}

/* How many messages with frames may go now. */
static inline uint32_t dlk_credit_room(const struct dlk_credit *credit)
{
    uint32_t places = dlk_credit_places(credit);
    return places > 1 ? places - 1 : 0;
}

/* Must an empty message be sent, if no other is? */
static inline bool dlk_credit_owes(const struct dlk_credit *credit)
{
    return dlk_credit_get(&credit->taken) - dlk_credit_get(&credit->said) >= credit->window / 2;
}

/* Messages that are about to be posted; returns the immediate data that all of them carry. What
 * they tell is noted first, so that no answer to them can look like too much. */
static inline uint32_t dlk_credit_spend(struct dlk_credit *credit, uint32_t messages)
{
    uint32_t taken = dlk_credit_get(&credit->taken);
    uint32_t sent = atomic_load_explicit(&credit->sent, memory_order_relaxed);
    atomic_store_explicit(&credit->said, taken, memory_order_release);
    atomic_store_explicit(&credit->sent, sent + messages, memory_order_release);
    return taken & 0xffff;
}

/* ---- The receiver ---- */

/* A message came. False: the other end has sent more than there was room for, or speaks of messages
 * that were never sent. */
static inline bool dlk_credit_receive(struct dlk_credit *credit, uint32_t immediate)
{
    uint32_t told = atomic_load_explicit(&credit->told, memory_order_relaxed);
    uint32_t news = (immediate - told) & 0xffff;
    credit->received++;
    if (news > dlk_credit_get(&credit->sent) - told
        || credit->received - dlk_credit_get(&credit->said) > credit->window) {
        return false;
    }
    if (news != 0) {
        atomic_store_explicit(&credit->told, told + news, memory_order_release);
    }
    return true;
}

/* The places of so many messages are free again. */
static inline void dlk_credit_take(struct dlk_credit *credit, uint32_t messages)
{
    uint32_t taken = atomic_load_explicit(&credit->taken, memory_order_relaxed);
    atomic_store_explicit(&credit->taken, taken + messages, memory_order_release);
}

#endif
