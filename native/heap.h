/*
 * A binary heap of deadlines over ids 0..capacity-1: each id is in it once or not at all, and can
 * be moved or removed in O(log n). Memory is taken by init and grow, and touched only when used.
 */
#ifndef DLOCK_HEAP_H
#define DLOCK_HEAP_H

#include <stdbool.h>

#include "dlock_abi.h"

struct dlk_heap_item {
    uint64_t when_ns;
    uint32_t id;
    uint32_t padding;
};

struct dlk_heap {
    struct dlk_heap_item *items;
    uint32_t *place; /* of an id: its index in items plus one; 0: not in the heap */
    uint32_t count;
};

bool dlk_heap_init(struct dlk_heap *heap, uint32_t capacity);
/* Room for more ids; all zero is a heap for none. False: no memory, nothing has changed. */
bool dlk_heap_grow(struct dlk_heap *heap, uint32_t wider);
void dlk_heap_free(struct dlk_heap *heap);
void dlk_heap_set(struct dlk_heap *heap, uint32_t id, uint64_t when_ns);
void dlk_heap_remove(struct dlk_heap *heap, uint32_t id); /* nothing if it is not there */

static inline bool dlk_heap_has(const struct dlk_heap *heap, uint32_t id)
{
    return heap->place[id] != 0;
}

/* Of an id that is there. */
static inline uint64_t dlk_heap_when_ns(const struct dlk_heap *heap, uint32_t id)
{
    return heap->items[heap->place[id] - 1].when_ns;
}

/* UINT64_MAX: empty. */
static inline uint64_t dlk_heap_first_ns(const struct dlk_heap *heap)
{
    return heap->count != 0 ? heap->items[0].when_ns : UINT64_MAX;
}

static inline uint32_t dlk_heap_first_id(const struct dlk_heap *heap)
{
    return heap->items[0].id;
}

#endif
