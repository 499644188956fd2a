/*
 * How a simulated client gets a connection, comes back to a server that it knows, and tells a new
 * one everything: what dlock/_enter.py does. Clients that keep their waits claim before they
 * attach, as the Python API; the others afterwards, as the mirror.
 */
#ifndef DLOCK_SIM_WAY_H
#define DLOCK_SIM_WAY_H

#include "sim_client.h"

static inline void sim_put_order(struct sim_world *world, struct sim_order order)
{
    if (world->n_orders < SIM_ORDERS) {
        order.at_ns = world->now + sim_delay_ns(world);
        world->orders[world->n_orders++] = order;
    }
}

static inline void sim_order(struct sim_world *world, struct dlk_command command, int client,
                             uint32_t ask)
{
    sim_put_order(world,
                  (struct sim_order){.command = command, .client = client, .ask = ask});
}

/* ClientInit, or ClientReinit: the older connection is superseded. */
static inline void sim_ask(struct sim_world *world, struct sim_client *client)
{
    struct dlk_command command = {
        .op = client->opened ? DLK_COMMAND_SESSION_SUPERSEDE : DLK_COMMAND_SESSION_OPEN,
        .slot = client->session,
        .id = client->client_id,
        .attach = ++world->asks,
        .ttl_ms = world->weather.ttl_ms,
        .lease_ms = world->weather.lease_ms,
    };
    client->ask = world->asks;
    client->answered = false;
    client->way = SIM_ASKING;
    client->way_until_ns = world->now + 2 * SIM_S;
    sim_say(world, "c%u asks for connection %u", client->index, client->ask);
    sim_put_order(world, (struct sim_order){.command = command,
                                            .client = (int)client->index,
                                            .ask = client->ask,
                                            .early = client->book.keep_waits});
}

static inline void sim_connect(struct sim_world *world, struct sim_client *client)
{
    struct dlk_attach frame = {
        .op = DLK_OP_ATTACH,
        .version = DLK_PROTOCOL_VERSION_MAX,
        .client_id = client->client_id,
        .session_slot = client->session,
        .attach = client->ask,
        .magic = DLK_ATTACH_MAGIC,
    };
    sim_wire_end(world, client, false);
    client->link = sim_link_new(world);
    client->attach_sent_ns = sim_now_of(world, client);
    client->way = SIM_CONNECTING;
    client->way_until_ns = world->now + 2 * SIM_S;
    sim_pipe_put(world, &world->links[client->link].up, &frame);
}

/* ---- What a new server is told ---- */

/* Some of the claims in one message, which takes its own time. */
static inline void sim_claim_some(struct sim_world *world, struct sim_client *client,
                                  const uint32_t *which, uint32_t count)
{
    struct sim_order order = {
        .command = {.op = DLK_COMMAND_CLAIM, .slot = client->session, .id = client->client_id},
        .client = (int)client->index,
        .ask = client->ask,
        .n_claims = count,
    };
    for (uint32_t i = 0; i < count; i++) {
        order.which[i] = which[i];
        order.claims[i] = client->claims[which[i]];
    }
    sim_put_order(world, order);
}

static inline void sim_claim(struct sim_world *world, struct sim_client *client)
{
    uint32_t order[SIM_HOLDS];
    if (client->book.keep_waits) {
        sim_wire_end(world, client, false);
        dlk_book_begin_claims(&client->book, sim_now_of(world, client));
    }
    client->n_claims = (uint32_t)dlk_book_claims(&client->book, client->claims, SIM_HOLDS,
                                                 sim_now_of(world, client));
    for (uint32_t i = 0; i < client->n_claims; i++) {
        client->claims_at_ns[i] = UINT64_MAX;
        uint32_t at = sim_below(world, i + 1);
        order[i] = order[at];
        order[at] = i;
        if (client->claims[i].kind == DLK_KIND_SEMAPHORE) {
            client->claims[i].size = SIM_PERMITS;
        }
    }
    sim_say(world, "c%u makes %u claims", client->index, client->n_claims);
    for (uint32_t i = 0; i < client->n_claims;) {
        uint32_t count = 1 + sim_below(world, SIM_CLAIMS);
        count = count < client->n_claims - i ? count : client->n_claims - i;
        sim_claim_some(world, client, order + i, count);
        i += count;
    }
    client->way = SIM_CLAIMING;
    client->way_until_ns = world->now + 2 * SIM_S;
}

/* Takes in what was said. True: to every claim. */
static inline bool sim_claimed(struct sim_world *world, struct sim_client *client)
{
    bool all = true;
    for (uint32_t i = 0; i < client->n_claims; i++) {
        if (client->claims_at_ns[i] != 0 && client->claims_at_ns[i] <= world->now) {
            client->claims_at_ns[i] = 0;
            dlk_book_claimed(&client->book, &client->claims[i], client->claims_said[i]);
            sim_observe(world, client, NULL);
        }
        all = all && client->claims_at_ns[i] == 0;
    }
    return all;
}

static inline void sim_seal(struct sim_world *world, struct sim_client *client)
{
    uint64_t now = sim_now_of(world, client);
    sim_say(world, "c%u seals", client->index);
    dlk_book_seal(&client->book);
    sim_observe(world, client, NULL);
    for (uint32_t index = 0; index < client->book.pending_high; index++) {
        struct dlk_call *ended = dlk_book_seal_wait(&client->book, index, now);
        if (ended != NULL) {
            sim_complete(world, client, ended);
        }
    }
    client->told_epoch = client->answer_epoch;
    sim_go_on(world, client);
}

static inline void sim_verify(struct sim_world *world, struct sim_client *client)
{
    dlk_book_verify(&client->book);
    sim_put_debts(world, client);
}

static inline void sim_finish(struct sim_world *world, struct sim_client *client)
{
    struct sim_order order = {
        .command = {.slot = client->session, .id = client->client_id},
        .client = (int)client->index,
        .ask = client->ask,
        .finishes = true,
    };
    client->answered = false;
    client->way = SIM_FINISHING;
    client->way_until_ns = world->now + 2 * SIM_S;
    sim_put_order(world, order);
}

/* ---- Step by step ---- */

static inline void sim_install(struct sim_world *world, struct sim_client *client)
{
    struct dlk_link link = {.client_id = client->client_id,
                            .epoch = client->answer_epoch,
                            .session_ttl_ms = world->weather.ttl_ms,
                            .max_lease_ms = world->weather.lease_ms};
    uint64_t now = sim_now_of(world, client);
    sim_say(world, "c%u is attached, epoch %u", client->index, link.epoch);
    client->forgets = client->told_epoch != link.epoch;
    for (uint32_t index = 0; index < client->book.pending_high; index++) {
        struct dlk_call *ended = dlk_book_sift(&client->book, index, link.epoch, now);
        if (ended != NULL) {
            sim_complete(world, client, ended);
        }
    }
    client->forgets = false;
    client->up = true;
    client->way = SIM_OFFLINE;
    dlk_book_attach(&client->book, &link, client->attach_sent_ns, now);
    sim_observe(world, client, NULL);
    dlk_book_unverify(&client->book);
    dlk_book_retry_kept(&client->book);
    sim_put_debts(world, client);
    if (client->told_epoch != link.epoch) {
        sim_claim(world, client);
    } else if (client->home_epoch != link.epoch) {
        sim_finish(world, client);
    }
}

static inline void sim_asked(struct sim_world *world, struct sim_client *client)
{
    client->answered = false;
    if (client->answer_result == DLK_RESULT_NOT_READY) {
        client->way_until_ns = world->now;
    } else if (client->answer_result != DLK_RESULT_DONE) {
        sim_say(world, "c%u hears that its session is over", client->index);
        sim_wire_end(world, client, true);
        client->life = SIM_GHOST;
    } else {
        if (!client->opened) {
            client->told_epoch = client->home_epoch = client->answer_epoch;
        }
        client->opened = true;
        if (client->book.keep_waits && client->told_epoch != client->answer_epoch) {
            sim_claim(world, client);
        } else {
            sim_connect(world, client);
        }
    }
}

static inline void sim_connecting(struct sim_world *world, struct sim_client *client)
{
    struct sim_link *link = &world->links[client->link];
    const void *frame = sim_pipe_take(world, &link->down);
    struct dlk_reply reply = {.op = 0};
    if (frame != NULL) {
        memcpy(&reply, frame, sizeof(reply));
    }
    if (frame != NULL && reply.op == DLK_OP_ATTACH && reply.result == DLK_RESULT_DONE
        && reply.session == client->client_id && reply.epoch == client->answer_epoch) {
        sim_install(world, client);
    } else if (frame != NULL || sim_pipe_ended(world, &link->down)) {
        client->way_until_ns = world->now;
    }
}

static inline void sim_way_on(struct sim_world *world, struct sim_client *client)
{
    bool answered = client->answered && client->answer_at_ns <= world->now;
    if (client->way == SIM_ASKING && answered) {
        sim_asked(world, client);
    } else if (client->way == SIM_CONNECTING) {
        sim_connecting(world, client);
    } else if (client->way == SIM_CLAIMING && sim_claimed(world, client)) {
        sim_seal(world, client);
        if (client->book.keep_waits) {
            sim_connect(world, client);
        } else {
            sim_finish(world, client);
        }
    } else if (client->way == SIM_FINISHING && answered) {
        client->way = SIM_OFFLINE;
        client->home_epoch = client->answer_epoch;
        sim_verify(world, client);
    }
    if (client->way != SIM_OFFLINE && client->way_until_ns <= world->now) {
        if (client->way == SIM_CONNECTING) {
            sim_wire_end(world, client, false);
        }
        client->way = SIM_OFFLINE;
    }
    bool home = client->up && client->home_epoch == client->book.epoch;
    if (client->life == SIM_LIVING && client->way == SIM_OFFLINE && !home) {
        sim_ask(world, client);
    }
}

/* AwaitReady is answered: what was not confirmed before is asked for; and locks that had to be
 * forgotten are got again. */
static inline void sim_hear_ready(struct sim_world *world, struct sim_client *client)
{
    bool home = client->up && client->way == SIM_OFFLINE && client->home_epoch == world->epoch
                && client->book.epoch == world->epoch;
    if (!home || world->recovering || !world->ready || !sim_chance(world, 300)) {
        return;
    }
    if (client->ready_epoch != world->epoch) {
        client->ready_epoch = world->epoch;
        sim_verify(world, client);
    }
    for (uint32_t number = 0; number < SIM_HOLDS; number++) {
        uint32_t lock = number / SIM_OWNERS;
        if (sim_hold(client, number) == NULL || sim_chance(world, 20)) {
            dlk_book_add_lock(&client->book, sim_lock_id(lock), lock, sim_kind[lock],
                              sim_owner(number % SIM_OWNERS));
        }
    }
}

/* Everything that the client's threads do when they run. */
static inline void sim_pump(struct sim_world *world, struct sim_client *client)
{
    bool all = world->healing || world->weather.healthy || !sim_chance(world, 200);
    sim_read(world, client, all ? UINT32_MAX : sim_below(world, 3));
    if (all) {
        sim_expire(world, client);
    }
    sim_keep(world, client);
    sim_way_on(world, client);
    sim_hear_ready(world, client);
    sim_collect(world, client);
    for (uint32_t i = 0; i < SIM_CALLS; i++) {
        struct sim_call *known = &client->calls[i];
        if (known->active && !known->posted && known->ended && sim_chance(world, 700)) {
            known->call.phase = DLK_PHASE_SEEN;
            known->active = false;
        }
    }
}

#endif
