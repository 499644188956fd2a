/*
 * A new server in the place of one that has died: it knows the roster and nothing else, takes what
 * clients claim, and is ready when all of them are back or can believe in nothing any more. What
 * dlock/control/registry_recovery.py decides, in short.
 */
#ifndef DLOCK_SIM_RECOVER_H
#define DLOCK_SIM_RECOVER_H

#include "sim_plane.h"

static inline void sim_succeed(struct sim_world *world)
{
    const struct sim_weather *weather = &world->weather;
    uint32_t longest_ms = weather->ttl_ms > weather->lease_ms ? weather->ttl_ms : weather->lease_ms;
    sim_say(world, "the server dies%s", world->recovering ? " while it recovers" : "");
    world->recoveries++;
    world->interrupted += world->recovering;
    for (int i = 0; i < SIM_LINKS; i++) {
        struct sim_link *link = &world->links[i];
        if (link->used && link->server != SIM_GONE) {
            sim_pipe_cut(world, &link->down);
            sim_retire(world, i);
        }
        link->queued = false;
    }
    dlk_engine_free(world->engine);
    world->queue_count = world->pass_left = 0;
    world->n_orders = 0;
    world->n_held = 0;
    world->epoch++;
    world->ready = false;
    world->recovering = true;
    world->evict_ns = world->now + sim_with_margin_ns(weather->ttl_ms / 4 + longest_ms);
    sim_engine_new(world);
    sim_command(world, &(struct dlk_command){.op = DLK_COMMAND_READY,
                                             .value = DLK_READY_RECOVERING});
    dlk_engine_clear(world->engine);
    for (uint32_t slot = 0; slot < SIM_SESSIONS; slot++) {
        world->slot_used[slot] = world->roster[slot] != 0;
        world->session_link[slot] = -1;
        world->attach_used[slot] = true;
        world->strike_at_ns[slot] = 0;
        world->opened[slot] = false;
        world->back[slot] = false;
    }
}

static inline bool sim_all_back(const struct sim_world *world)
{
    for (uint32_t slot = 0; slot < SIM_SESSIONS; slot++) {
        if (world->roster[slot] != 0 && !world->back[slot]) {
            return false;
        }
    }
    return true;
}

static inline void sim_evict(struct sim_world *world, uint32_t slot)
{
    sim_say(world, "client %u is not back, and waited for no longer", world->roster[slot]);
    if (world->opened[slot]) {
        sim_command(world, &(struct dlk_command){.op = DLK_COMMAND_SESSION_CLOSE,
                                                 .slot = slot,
                                                 .id = world->roster[slot]});
        if (world->session_link[slot] >= 0) {
            sim_retire(world, world->session_link[slot]);
        }
        sim_outbox(world);
    } else {
        world->slot_used[slot] = false;
    }
    world->roster[slot] = 0;
    world->opened[slot] = false;
}

/* Is it time to be ready? */
static inline void sim_recover_on(struct sim_world *world)
{
    bool over = world->now >= world->evict_ns || sim_all_back(world);
    if (!world->recovering || !over || world->now < world->ended_until_ns
        || !sim_chance(world, 200)) {
        return;
    }
    for (uint32_t slot = 0; slot < SIM_SESSIONS; slot++) {
        if (world->roster[slot] != 0 && !world->back[slot]) {
            sim_evict(world, slot);
        }
        sim_renewed(world, slot);
    }
    world->recovering = false;
    sim_ready(world, true);
    sim_outbox(world);
    sim_open_locks(world);
}

#endif
