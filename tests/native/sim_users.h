/*
 * What the users of a simulated world do, and what goes wrong in it: all of it by chance. Users may
 * ask for whatever makes sense, and now and then for what does not.
 */
#ifndef DLOCK_SIM_USERS_H
#define DLOCK_SIM_USERS_H

#include "sim_recover.h"
#include "sim_way.h"

/* ---- What the world is like ---- */

static inline uint32_t sim_one_of(struct sim_world *world, const uint32_t *values, size_t count)
{
    return values[sim_below(world, (uint32_t)count)];
}

#define SIM_ONE_OF(world, ...) \
    sim_one_of(world, (const uint32_t[]){__VA_ARGS__}, \
           sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

static inline struct sim_weather sim_weather_of(struct sim_world *world)
{
    struct sim_weather weather = {
        .healthy = sim_chance(world, 250),
        .delay_us = SIM_ONE_OF(world, 0, 100, 5000, 40000, 400000),
        .pause_us = SIM_ONE_OF(world, 200, 2000, 20000),
        .fault_pm = SIM_ONE_OF(world, 0, 3, 10, 30),
        .spike_pm = SIM_ONE_OF(world, 0, 0, 5, 20),
        .ttl_ms = SIM_ONE_OF(world, 400, 1000, 4000, 10000),
        .reply_timeout_ms = SIM_ONE_OF(world, 100, 500, 2000),
        .lease_ms = SIM_ONE_OF(world, 300, 2000, 20000),
        .batch = SIM_ONE_OF(world, 1, 3, 20, 200),
        .break_pm = SIM_ONE_OF(world, 0, 10, 50),
        .forgetful = sim_chance(world, 100),
        .crash_pm = SIM_ONE_OF(world, 0, 200, 1000),
        .clients = 2 + sim_below(world, SIM_LIVE - 1),
        .first_lock = sim_below(world, SIM_LOCKS),
        .locks = SIM_ONE_OF(world, 1, 1, 2, SIM_LOCKS),
        .owners = SIM_ONE_OF(world, 1, 2, SIM_OWNERS),
    };
    if (weather.delay_us > weather.ttl_ms * 1000 / 16) {
        weather.delay_us = weather.ttl_ms * 1000 / 16; /* or no session would ever last */
    }
    if (weather.healthy) {
        weather.delay_us = SIM_ONE_OF(world, 0, 100, 2000);
        weather.pause_us = 2000;
        weather.batch = 200;
        weather.reply_timeout_ms = 2000;
        weather.ttl_ms = SIM_ONE_OF(world, 1000, 4000);
    }
    return weather;
}

static inline void sim_client_new(struct sim_world *world)
{
    struct sim_client *client = NULL;
    for (uint32_t i = 0; i < SIM_POOL && client == NULL; i++) {
        client = world->clients[i].life == SIM_UNUSED ? &world->clients[i] : NULL;
    }
    if (client == NULL) {
        sim_fail(world, "the world is short of clients");
    }
    *client = (struct sim_client){
        .life = SIM_LIVING,
        .index = (uint32_t)(client - world->clients),
        .link = -1,
        .client_id = ++world->next_client_id,
        .ppm = (int64_t)sim_below(world, 2001) - 1000,
        .offset_ns = sim_random(world) % (1000 * SIM_S),
    };
    if (sim_chance(world, 500)) {
        client->ppm = client->ppm < 0 ? -1000 : 1000;
    }
    dlk_book_init(&client->book, world->weather.reply_timeout_ms);
    client->book.number = sim_chance(world, 800) ? client->client_id : 0;
    client->book.keep_waits = sim_chance(world, 700);
    for (uint32_t hold = 0; hold < SIM_HOLDS; hold++) {
        uint32_t lock = hold / SIM_OWNERS;
        dlk_book_add_lock(&client->book, sim_lock_id(lock), lock, sim_kind[lock],
                          sim_owner(hold % SIM_OWNERS));
    }
    sim_say(world, "c%u is client %u, %lld ppm", client->index, client->client_id,
            (long long)client->ppm);
}

static inline void sim_client_forget(struct sim_client *client)
{
    dlk_book_free(&client->book);
    client->life = SIM_UNUSED;
}

/* ---- What its users do ---- */

/* More likely something that makes sense. */
static inline uint32_t sim_choose_verb(struct sim_world *world, const struct dlk_hold *hold)
{
    bool has = hold != NULL && hold->now.state != DLK_ENTRY_FREE;
    uint32_t chosen = sim_below(world, 100);
    if (chosen < 4) {
        return DLK_VERB_LOOK;
    }
    if (chosen < (has ? 60u : 8u)) {
        return DLK_VERB_UNLOCK;
    }
    if (chosen < (has ? 75u : 10u)) {
        return DLK_VERB_EXTEND;
    }
    return chosen % 2 == 0 ? DLK_VERB_TRYLOCK : DLK_VERB_LOCK;
}

/* From very short to the longest; in good weather none that a renewal could not keep. */
static inline uint32_t sim_choose_lease_ms(struct sim_world *world)
{
    uint32_t shortest_ms = world->weather.healthy ? 150 : 1;
    uint32_t longest_ms = world->weather.lease_ms >> sim_below(world, 8);
    uint32_t room_ms = longest_ms > shortest_ms ? longest_ms - shortest_ms : 0;
    return shortest_ms + sim_below(world, room_ms);
}

/* One of the few that this world is about. */
static inline uint32_t sim_choose_hold(struct sim_world *world)
{
    uint32_t lock = world->weather.first_lock + sim_below(world, world->weather.locks);
    return lock % SIM_LOCKS * SIM_OWNERS + sim_below(world, world->weather.owners);
}

static inline void sim_begin_call(struct sim_world *world, struct sim_client *client,
                                  struct sim_call *known)
{
    uint32_t number = sim_choose_hold(world);
    uint32_t lock = number / SIM_OWNERS;
    const struct dlk_hold *hold = sim_hold(client, number);
    bool held = sim_held_token(hold) != 0;
    bool modes = sim_kind[lock] == DLK_KIND_RW || sim_kind[lock] == DLK_KIND_FAIR;
    *known = (struct sim_call){.active = true,
                               .posted = sim_chance(world, 500),
                               .begun_ns = sim_now_of(world, client),
                               .serial = ++world->serial};
    struct dlk_call *call = &known->call;
    call->verb = sim_choose_verb(world, hold);
    call->lock_id = sim_lock_id(lock);
    call->owner = sim_owner(number % SIM_OWNERS);
    call->mode = modes && sim_chance(world, 500) ? DLK_MODE_SHARED : DLK_MODE_EXCLUSIVE;
    if (held && sim_chance(world, 900)) {
        call->mode = hold->now.mode;
    }
    if (sim_chance(world, 600)) {
        call->lease_ms = sim_choose_lease_ms(world);
    }
    if (call->verb == DLK_VERB_LOCK) {
        call->wait_ms = sim_chance(world, 100) ? DLK_WAIT_FOREVER : sim_below(world, 3000);
    }
    call->flags = (sim_chance(world, 700) ? DLK_FLAG_TICKET : 0u)
                  | (sim_chance(world, 100) ? DLK_FLAG_FINAL_EXPIRY : 0u)
                  | (sim_chance(world, 500) ? DLK_FLAG_DEADLOCK : 0u);
    call->renew = sim_chance(world, 500);
    sim_say(world, "c%u %s call %u: verb %u lock %u owner %llx mode %u lease %u wait %u%s",
            client->index, known->posted ? "posts" : "begins", known->serial, call->verb,
            call->lock_id, (unsigned long long)call->owner, call->mode, call->lease_ms,
            call->wait_ms, call->renew != 0 ? " renew" : "");
    if (known->posted) {
        sim_post(world, client, call);
        if (call->place == DLK_PLACE_NONE) {
            call->phase = DLK_PHASE_SEEN; /* it has ended already: its caller has the status */
            known->active = false;
        }
    } else {
        dlk_book_prepare(call);
        sim_submit(world, client, call);
    }
}

/* Forgets a hold, and gets the lock again. */
static inline void sim_drop(struct sim_world *world, struct sim_client *client)
{
    uint32_t number = sim_choose_hold(world);
    uint32_t lock = number / SIM_OWNERS;
    uint64_t owner = sim_owner(number % SIM_OWNERS);
    const struct dlk_hold *hold = sim_hold(client, number);
    bool has = hold != NULL && hold->now.state != DLK_ENTRY_FREE;
    bool force = sim_chance(world, 300) && (world->weather.forgetful || !has);
    struct dlk_call dropped = {.lock_id = sim_lock_id(lock), .owner = owner};
    int status = dlk_book_drop_lock(&client->book, sim_lock_id(lock), owner, force);
    world->dropped = world->dropped || (force && has);
    sim_observe(world, client, &dropped);
    if (status == DLK_STATUS_SUCCESS) {
        sim_say(world, "c%u drops lock %u owner %llx%s", client->index, sim_lock_id(lock),
                (unsigned long long)owner, force ? " by force" : "");
        if (sim_chance(world, 500)) {
            sim_go_on(world, client);
        }
        if (client->told_epoch == client->home_epoch) { /* else it cannot be got now */
            dlk_book_add_lock(&client->book, sim_lock_id(lock), lock, sim_kind[lock], owner);
        }
    }
    sim_go_on(world, client);
}

static inline void sim_leave(struct sim_world *world, struct sim_client *client)
{
    sim_say(world, "c%u leaves", client->index);
    sim_wire_end(world, client, true);
    sim_order(world,
              (struct dlk_command){.op = DLK_COMMAND_SESSION_CLOSE,
                                   .slot = client->session,
                                   .id = client->client_id},
              -1, 0);
    sim_client_forget(client);
}

/* An operator takes something away. */
static inline void sim_operate(struct sim_world *world)
{
    uint32_t lock = sim_choose_hold(world) / SIM_OWNERS;
    bool one = world->n_held != 0 && sim_chance(world, 500);
    uint32_t which = sim_below(world, (uint32_t)world->n_held);
    sim_order(world,
              (struct dlk_command){.op = DLK_COMMAND_BREAK,
                                   .slot = lock,
                                   .id = sim_lock_id(lock),
                                   .attach = DLK_NONE,
                                   .size = sim_chance(world, 300),
                                   .value = one ? world->held[which].token : 0},
              -1, 0);
}

static inline void sim_use(struct sim_world *world, struct sim_client *client)
{
    struct sim_call *known = &client->calls[sim_below(world, SIM_CALLS)];
    uint32_t chosen = sim_below(world, 100);
    if (sim_fault(world, world->weather.break_pm)) {
        sim_operate(world);
    }
    if (chosen < 15 && known->serial != 0) {
        sim_cancel(world, client, known); /* whatever its phase, also when it was told already */
        known->serial = 0;
    } else if (chosen < 19) {
        sim_drop(world, client);
    } else if (!known->active) {
        sim_begin_call(world, client, known);
    }
}

/* ---- What goes wrong ---- */

static inline void sim_lose_link(struct sim_world *world)
{
    struct sim_link *link = &world->links[sim_below(world, SIM_LINKS)];
    if (link->used) {
        sim_say(world, "the connection of session %u is cut", link->session);
        sim_pipe_cut(world, &link->up);
        sim_pipe_cut(world, &link->down);
    }
}

static inline uint64_t sim_up_to(struct sim_world *world, uint32_t most_ms)
{
    return world->now + (uint64_t)sim_below(world, most_ms) * SIM_MS;
}

static inline void sim_go_wrong(struct sim_world *world)
{
    struct sim_client *client = &world->clients[sim_below(world, world->weather.clients)];
    bool living = client->life == SIM_LIVING;
    uint32_t ttl_ms = world->weather.ttl_ms;
    switch (sim_below(world, 10)) {
    case 0:
    case 1:
        sim_lose_link(world);
        break;
    case 2:
        client->stalled_until_ns = sim_up_to(world, 3 * ttl_ms);
        break;
    case 3:
        client->crowded_until_ns = sim_up_to(world, ttl_ms);
        break;
    case 4:
        world->plane_stalled_until_ns = sim_up_to(world, ttl_ms);
        break;
    case 5:
        sim_operate(world);
        break;
    case 6:
        if (living && client->way == SIM_OFFLINE && client->opened) {
            sim_ask(world, client); /* a re-initialisation that nothing made necessary */
        }
        break;
    case 7:
        if (!world->recovering) {
            sim_ready(world, !world->ready);
            sim_outbox(world);
        }
        break;
    case 8:
        if (living && client->opened && sim_chance(world, 300)) {
            sim_leave(world, client);
        }
        break;
    default:
        if (sim_chance(world, world->weather.crash_pm)) {
            sim_succeed(world);
        }
        break;
    }
}

#endif
