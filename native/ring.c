/* The single-producer single-consumer ring; ring.h has its contract. */
#include "ring.h"

#include <stdlib.h>
#include <string.h>

bool dlk_ring_init(struct dlk_ring *ring, size_t item_bytes, uint64_t capacity)
{
    atomic_init(&ring->taken, 0);
    atomic_init(&ring->put, 0);
    atomic_init(&ring->asleep, false);
    ring->put_seen = 0;
    ring->taken_seen = 0;
    ring->item_bytes = item_bytes;
    ring->capacity = capacity;
    ring->items = calloc((size_t)capacity, item_bytes);
    return ring->items != NULL;
}

void dlk_ring_free(struct dlk_ring *ring)
{
    free(ring->items);
    ring->items = NULL;
}

static unsigned char *item_at(const struct dlk_ring *ring, uint64_t number)
{
    return ring->items + (size_t)(number & (ring->capacity - 1)) * ring->item_bytes;
}

bool dlk_ring_put(struct dlk_ring *ring, const void *item)
{
    uint64_t put = atomic_load_explicit(&ring->put, memory_order_relaxed);

    if (put - ring->taken_seen == ring->capacity) {
        ring->taken_seen = atomic_load_explicit(&ring->taken, memory_order_acquire);
        if (put - ring->taken_seen == ring->capacity) {
            return false;
        }
    }
    memcpy(item_at(ring, put), item, ring->item_bytes);
    atomic_store(&ring->put, put + 1); /* in the total order of the handshake */
    return true;
}

bool dlk_ring_must_wake(struct dlk_ring *ring)
{
    return atomic_load(&ring->asleep) && atomic_exchange(&ring->asleep, false);
}

bool dlk_ring_take(struct dlk_ring *ring, void *item)
{
    uint64_t taken = atomic_load_explicit(&ring->taken, memory_order_relaxed);

    if (taken == ring->put_seen) {
        ring->put_seen = atomic_load_explicit(&ring->put, memory_order_acquire);
        if (taken == ring->put_seen) {
            return false;
        }
    }
    memcpy(item, item_at(ring, taken), ring->item_bytes);
    atomic_store_explicit(&ring->taken, taken + 1, memory_order_release);
    return true;
}

bool dlk_ring_may_sleep(struct dlk_ring *ring)
{
    atomic_store(&ring->asleep, true);
    if (atomic_load(&ring->put) == atomic_load_explicit(&ring->taken, memory_order_relaxed)) {
        return true;
    }
    atomic_store(&ring->asleep, false);
    return false;
}

void dlk_ring_awake(struct dlk_ring *ring)
{
    /* Only this side sets it: a relaxed look saves the store when the producer has cleared it. */
    if (atomic_load_explicit(&ring->asleep, memory_order_relaxed)) {
        atomic_store(&ring->asleep, false);
    }
}
