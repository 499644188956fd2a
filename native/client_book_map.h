/*
 * A hash map from (id, owner) to an index: open addressing, linear probing, deletion by shifting
 * back, so that there are no tombstones and a lookup in steady state touches one cache line.
 * Knows nothing of what the indices mean. Memory grows only in dlk_map_put.
 */
#ifndef DLOCK_CLIENT_BOOK_MAP_H
#define DLOCK_CLIENT_BOOK_MAP_H

#include <stdbool.h>

#include "dlock_abi.h"

struct dlk_map_slot {
    uint64_t owner;
    uint32_t id;
    uint32_t index; /* DLK_NONE: the slot is free */
};

struct dlk_map {
    struct dlk_map_slot *slots;
    uint32_t capacity; /* 0, or a power of two */
    uint32_t used;
};

void dlk_map_free(struct dlk_map *map);
/* DLK_NONE: not there. */
uint32_t dlk_map_get(const struct dlk_map *map, uint32_t id, uint64_t owner);
/* The key must not be there yet. False: no memory, nothing changed. */
bool dlk_map_put(struct dlk_map *map, uint32_t id, uint64_t owner, uint32_t index);
/* Does nothing if the key is not there. */
void dlk_map_remove(struct dlk_map *map, uint32_t id, uint64_t owner);

#endif
