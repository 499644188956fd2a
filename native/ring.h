/*
 * A ring for one producer and one consumer thread: items of one fixed size, copied in and out.
 * Nobody waits on it: full and empty are answers.
 *
 * Who sleeps on something else (epoll, select) is woken by a handshake. The consumer announces its
 * sleep and then looks once more; the producer puts its item and then looks whether a sleep is
 * announced. All four are in one total order, so at least one of them sees the other.
 */
#ifndef DLOCK_RING_H
#define DLOCK_RING_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct dlk_ring {
    /* The consumer's line. Counters only grow; an item lies at its number modulo the capacity. */
    alignas(64) _Atomic uint64_t taken;
    uint64_t put_seen;
    /* The producer's line. */
    alignas(64) _Atomic uint64_t put;
    uint64_t taken_seen;
    /* Written by both, seldom. */
    alignas(64) atomic_bool asleep;
    /* Never written after the start. */
    alignas(64) unsigned char *items;
    size_t item_bytes;
    uint64_t capacity;
};

/* capacity: a power of two. False: no memory. */
bool dlk_ring_init(struct dlk_ring *ring, size_t item_bytes, uint64_t capacity);
void dlk_ring_free(struct dlk_ring *ring);

/* The producer. */
bool dlk_ring_put(struct dlk_ring *ring, const void *item); /* false: full */
/* After a put: must the consumer be woken? True once for each announced sleep. */
bool dlk_ring_must_wake(struct dlk_ring *ring);

/* The consumer. */
bool dlk_ring_take(struct dlk_ring *ring, void *item); /* false: empty */
/* Announces a sleep; false: something is there after all, and nothing was announced. */
bool dlk_ring_may_sleep(struct dlk_ring *ring);
void dlk_ring_awake(struct dlk_ring *ring);

/* Either thread, a cheap look: may be out of date for the other's side. */
static inline bool dlk_ring_empty(struct dlk_ring *ring)
{
    return atomic_load_explicit(&ring->put, memory_order_acquire)
           == atomic_load_explicit(&ring->taken, memory_order_relaxed);
}

#endif
