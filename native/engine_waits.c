/* The index of those who wait, by actor: its memory, and how an entry comes into it and goes. */
#include <stdlib.h>

#include "engine_deadlock.h"

struct deadlocks *dlk_deadlocks_new(uint32_t max_entries)
{
    struct deadlocks *deadlocks = calloc(1, sizeof(*deadlocks));
    if (deadlocks == NULL) {
        return NULL;
    }
    size_t buckets = 1;
    while (buckets < max_entries) {
        buckets *= 2;
    }
    deadlocks->mask = (uint32_t)(buckets - 1);
    deadlocks->buckets = calloc(buckets, sizeof(*deadlocks->buckets));
    deadlocks->links = calloc((size_t)max_entries + 1, sizeof(*deadlocks->links));
    deadlocks->nodes = calloc(DLK_DEADLOCK_STEPS_MAX, sizeof(*deadlocks->nodes));
    deadlocks->waits = calloc(DLK_DEADLOCK_STEPS_MAX, sizeof(*deadlocks->waits));
    deadlocks->edges = calloc(DLK_DEADLOCK_STEPS_MAX, sizeof(*deadlocks->edges));
    deadlocks->turns = calloc(DLK_DEADLOCK_STEPS_MAX, sizeof(*deadlocks->turns));
    if (deadlocks->buckets == NULL || deadlocks->links == NULL || deadlocks->nodes == NULL
        || deadlocks->waits == NULL || deadlocks->edges == NULL || deadlocks->turns == NULL) {
        dlk_deadlocks_free(deadlocks);
        return NULL;
    }
    return deadlocks;
}

void dlk_deadlocks_free(struct deadlocks *deadlocks)
{
    if (deadlocks == NULL) {
        return;
    }
    free(deadlocks->buckets);
    free(deadlocks->links);
    free(deadlocks->nodes);
    free(deadlocks->waits);
    free(deadlocks->edges);
    free(deadlocks->turns);
    free(deadlocks);
}

void dlk_wait_mark_plural(struct dlk_engine *engine, uint32_t index)
{
    struct wait_link *link = &engine->deadlocks->links[index];
    if (link->state != WAIT_PLURAL) {
        link->state = WAIT_PLURAL;
        engine->locks[engine->entries[index].lock].n_plural++;
    }
}

void dlk_wait_link(struct dlk_engine *engine, const struct entry *entry)
{
    struct deadlocks *deadlocks = engine->deadlocks;
    uint32_t index = entry_index(engine, entry);
    struct wait_link *link = &deadlocks->links[index];
    if (actor_of(entry) == 0 || link->state != WAIT_NONE) {
        return;
    }
    uint32_t *bucket = &deadlocks->buckets[wait_bucket(deadlocks, entry)];
    uint32_t other = *bucket;
    while (other != 0 && !same_actor(&engine->entries[other - 1], entry)) {
        other = deadlocks->links[other - 1].next_place;
    }
    *link = (struct wait_link){.next_place = *bucket, .state = WAIT_SINGLE};
    if (*bucket != 0) {
        deadlocks->links[*bucket - 1].prev_place = index + 1;
    }
    *bucket = index + 1;
    if (other != 0) {
        dlk_wait_mark_plural(engine, index);
        dlk_wait_mark_plural(engine, other - 1);
    }
}

void dlk_wait_unlink(struct dlk_engine *engine, const struct entry *entry)
{
    struct deadlocks *deadlocks = engine->deadlocks;
    struct wait_link *link = &deadlocks->links[entry_index(engine, entry)];
    if (actor_of(entry) == 0 || link->state == WAIT_NONE) {
        return;
    }
    if (link->prev_place != 0) {
        deadlocks->links[link->prev_place - 1].next_place = link->next_place;
    } else {
        deadlocks->buckets[wait_bucket(deadlocks, entry)] = link->next_place;
    }
    if (link->next_place != 0) {
        deadlocks->links[link->next_place - 1].prev_place = link->prev_place;
    }
    if (link->state == WAIT_PLURAL) {
        engine->locks[entry->lock].n_plural--;
    }
    link->state = WAIT_NONE;
}

/* Is every entry of the queue that waits for a known actor in the index, and no other? */
bool dlk_waits_check(const struct dlk_engine *engine, const struct lock *lock)
{
    uint32_t n_plural = 0;
    for (uint32_t i = lock->queue_head; i != DLK_NONE; i = engine->entries[i].lock_next) {
        const struct entry *entry = &engine->entries[i];
        const struct deadlocks *deadlocks = engine->deadlocks;
        bool due = entry->state == DLK_ENTRY_QUEUED && actor_of(entry) != 0;
        uint32_t place = due ? deadlocks->buckets[wait_bucket(deadlocks, entry)] : 0;
        while (place != 0 && place - 1 != i) {
            place = deadlocks->links[place - 1].next_place;
        }
        if (due != (deadlocks->links[i].state != WAIT_NONE) || due != (place != 0)) {
            return false;
        }
        n_plural += deadlocks->links[i].state == WAIT_PLURAL;
    }
    return n_plural == lock->n_plural;
}
