/* The hash map of client_book_map.h. It may not know what the indices mean. */
#include "client_book_map.h"

#include <stdlib.h>

enum { FIRST_CAPACITY = 64 };

static uint32_t home_of(const struct dlk_map *map, uint32_t id, uint64_t owner)
{
    uint64_t mixed = (owner ^ ((uint64_t)id << 32 | id)) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(mixed >> 32) & (map->capacity - 1);
}

void dlk_map_free(struct dlk_map *map)
{
    free(map->slots);
    *map = (struct dlk_map){0};
}

/* Where the key is, or where it would go. The map is never full. */
static uint32_t find(const struct dlk_map *map, uint32_t id, uint64_t owner)
{
    uint32_t at = home_of(map, id, owner);
    while (map->slots[at].index != DLK_NONE
           && (map->slots[at].id != id || map->slots[at].owner != owner)) {
        at = (at + 1) & (map->capacity - 1);
    }
    return at;
}

uint32_t dlk_map_get(const struct dlk_map *map, uint32_t id, uint64_t owner)
{
    return map->capacity == 0 ? DLK_NONE : map->slots[find(map, id, owner)].index;
}

static bool grow(struct dlk_map *map)
{
    struct dlk_map wider = {.capacity = map->capacity == 0 ? FIRST_CAPACITY : 2 * map->capacity};
    wider.slots = malloc(wider.capacity * sizeof(*wider.slots));
    if (wider.slots == NULL) {
        return false;
    }
    for (uint32_t at = 0; at < wider.capacity; at++) {
        wider.slots[at] = (struct dlk_map_slot){.index = DLK_NONE};
    }
    for (uint32_t at = 0; at < map->capacity; at++) {
        struct dlk_map_slot slot = map->slots[at];
        if (slot.index != DLK_NONE) {
            wider.slots[find(&wider, slot.id, slot.owner)] = slot;
        }
    }
    wider.used = map->used;
    free(map->slots);
    *map = wider;
    return true;
}

bool dlk_map_put(struct dlk_map *map, uint32_t id, uint64_t owner, uint32_t index)
{
    if (2 * (map->used + 1) > map->capacity && !grow(map)) {
        return false;
    }
    map->slots[find(map, id, owner)] =
        (struct dlk_map_slot){.owner = owner, .id = id, .index = index};
    map->used++;
    return true;
}

void dlk_map_remove(struct dlk_map *map, uint32_t id, uint64_t owner)
{
    if (map->capacity == 0) {
        return;
    }
    uint32_t hole = find(map, id, owner);
    if (map->slots[hole].index == DLK_NONE) {
        return;
    }
    map->used--;
    const uint32_t mask = map->capacity - 1;
    for (uint32_t at = (hole + 1) & mask; map->slots[at].index != DLK_NONE; at = (at + 1) & mask) {
        uint32_t home = home_of(map, map->slots[at].id, map->slots[at].owner);
        /* The slot may move to the hole if its home is not between the two, going round. */
        if (((at - home) & mask) >= ((at - hole) & mask)) {
            map->slots[hole] = map->slots[at];
            hole = at;
        }
    }
    map->slots[hole].index = DLK_NONE;
}
