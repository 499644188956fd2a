/*
 * The server's loop around the engine, in the order of native/plane.c: look, commands, receive,
 * read the clock, answer attaches, step, tick. Time goes on within a turn. Control requests come
 * late or never, as over a connection of their own.
 */
#ifndef DLOCK_SIM_PLANE_H
#define DLOCK_SIM_PLANE_H

#include "sim_server_check.h"

enum { SIM_STALL_MS = 1000 };

/* ---- Begin ---- */

static inline struct dlk_event sim_command(struct sim_world *world,
                                           const struct dlk_command *command)
{
    struct dlk_event *events;
    dlk_engine_command(world->engine, command, world->now);
    size_t count = dlk_engine_events(world->engine, &events);
    return events[count - 1];
}

static inline void sim_engine_new(struct sim_world *world)
{
    const struct dlk_limits limits = {.max_locks = SIM_LOCKS,
                                      .max_sessions = SIM_SESSIONS,
                                      .max_cells = 1,
                                      .max_entries = SIM_ENTRIES,
                                      .max_lease_ms = world->weather.lease_ms,
                                      .ticket_claim_ms = 300};
    world->engine = dlk_engine_new(&limits, world->epoch);
    if (world->engine == NULL) {
        abort();
    }
}

static inline void sim_open_locks(struct sim_world *world)
{
    for (uint32_t lock = 0; lock < SIM_LOCKS; lock++) {
        sim_command(world, &(struct dlk_command){.op = DLK_COMMAND_LOCK_OPEN,
                                                 .slot = lock,
                                                 .id = sim_lock_id(lock),
                                                 .kind = sim_kind[lock],
                                                 .size = SIM_PERMITS});
        dlk_engine_clear(world->engine);
    }
}

static inline void sim_ready(struct sim_world *world, bool ready)
{
    sim_say(world, "the server is %s", ready ? "ready" : "not ready");
    world->ready = ready;
    for (uint32_t i = 0; i < SIM_POOL; i++) {
        world->clients[i].ready_epoch = 0; /* each is to hear of it */
    }
    sim_command(world, &(struct dlk_command){.op = DLK_COMMAND_READY, .value = ready,
                                             .ttl_ms = world->weather.ttl_ms});
}

/* ---- Connections ---- */

static inline void sim_retire(struct sim_world *world, int number)
{
    struct sim_link *link = &world->links[number];
    if (link->server == SIM_ATTACHED) {
        world->session_link[link->session] = -1;
    }
    link->server = SIM_GONE;
    link->up.count = link->up.first = 0;
    sim_pipe_close(world, &link->down);
}

static inline void sim_renewed(struct sim_world *world, uint32_t session)
{
    world->deadline_ns[session] = world->now + (uint64_t)world->weather.ttl_ms * SIM_MS;
}

/* No session ends while a request of it that came in time lies unread. */
static inline void sim_session_ended(struct sim_world *world, uint32_t slot)
{
    int number = world->session_link[slot];
    world->strike_at_ns[slot] = world->now + sim_delay_ns(world);
    if (number < 0) {
        return;
    }
    const struct sim_pipe *up = &world->links[number].up;
    if (up->first != up->count && up->packets[up->first].at_ns < world->deadline_ns[slot]) {
        sim_fail(world, "session %u ends, though a request of it came in time", slot);
    }
    sim_retire(world, number);
}

/* Everything that the engine has left: replies into their connections, events into the control
 * plane. A connection that takes no more is closed, and the reply with it is lost. */
static inline void sim_outbox(struct sim_world *world)
{
    struct dlk_reply *replies;
    struct dlk_event *events;
    size_t n_replies = dlk_engine_replies(world->engine, &replies);
    size_t n_events = dlk_engine_events(world->engine, &events);
    sim_check_told_behind(world, replies, n_replies);
    for (size_t i = 0; i < n_replies; i++) {
        world->counts[replies[i].result]++;
        sim_note_answer(world, &replies[i]);
        int number = world->session_link[replies[i].session];
        if (number < 0) {
            continue;
        }
        if (sim_fault(world, world->weather.fault_pm / 4)) {
            sim_say(world, "the connection of session %u is full", replies[i].session);
            sim_retire(world, number);
            continue;
        }
        dlk_codec_reply(&replies[i], world->links[number].client_id);
        sim_pipe_put(world, &world->links[number].down, &replies[i]);
    }
    for (size_t i = 0; i < n_events; i++) {
        uint32_t slot = events[i].slot;
        if (events[i].op == DLK_EVENT_SESSION_ENDED) {
            sim_say(world, "session %u of client %u ends", slot, events[i].id);
            sim_session_ended(world, slot);
        } else if (events[i].op == DLK_EVENT_SESSION_FREED) {
            world->slot_used[slot] = false;
        }
    }
    dlk_engine_clear(world->engine);
    sim_check_tokens(world);
}

/* ---- Commands ---- */

/* So long that whatever was to last so long is over by every clock. */
static inline uint64_t sim_with_margin_ns(uint32_t duration_ms)
{
    return ((uint64_t)duration_ms + duration_ms / 500 + 100) * SIM_MS;
}

static inline uint32_t sim_free_slot(struct sim_world *world)
{
    for (uint32_t slot = 0; slot < SIM_SESSIONS; slot++) {
        if (!world->slot_used[slot]) {
            return slot;
        }
    }
    sim_fail(world, "the world is short of sessions");
}

/* Whoever believes in what is taken away at once is excused. */
static inline void sim_excuse(struct sim_world *world, const struct dlk_command *command)
{
    struct dlk_entry_view views[SIM_ENTRIES];
    size_t count = dlk_engine_view(world->engine, command->slot, views, SIM_ENTRIES);
    for (size_t i = 0; i < count; i++) {
        if (views[i].state == DLK_ENTRY_HELD
            && (command->value == 0 || command->value == views[i].token)) {
            world->broken[world->n_broken++ % SIM_BROKEN] = views[i].token;
        }
    }
}

/* What the registry makes of the engine's word. */
static inline int32_t sim_status_of_claim(uint32_t result)
{
    switch (result) {
    case DLK_RESULT_GRANTED:
    case DLK_RESULT_QUEUED:
    case DLK_RESULT_TICKETED:
    case DLK_RESULT_DONE:
        return DLK_STATUS_SUCCESS;
    case DLK_RESULT_NOT_HELD:
        return DLK_STATUS_FAIL;
    case DLK_RESULT_NO_LOCK:
        return DLK_STATUS_LOCK_NOT_GET;
    default:
        return DLK_STATUS_SERVER_NO_RESOURCE;
    }
}

/* The client's own word is that of a session which the roster names: lapsed holds are believed. */
static inline void sim_take_claims(struct sim_world *world, struct sim_order *order)
{
    struct dlk_command command = order->command;
    command.kind = 1;
    command.size = order->n_claims;
    command.value = (uint64_t)(uintptr_t)order->claims;
    struct dlk_event done = sim_command(world, &command);
    sim_outbox(world);
    struct sim_client *client = &world->clients[order->client];
    bool heard = client->life == SIM_LIVING && client->ask == order->ask
                 && done.result == DLK_RESULT_DONE && !sim_fault(world, 50);
    uint64_t at_ns = world->now + sim_delay_ns(world);
    for (uint32_t i = 0; i < order->n_claims; i++) {
        const struct dlk_claim *claim = &order->claims[i];
        sim_say(world, "claim of session %u: lock %u owner %llx state %u number %llu%s: %u of %u",
                command.slot, claim->lock_id, (unsigned long long)claim->owner, claim->state,
                (unsigned long long)(claim->token + claim->stamp),
                claim->lapsed != 0 ? " lapsed" : "", claim->result, done.result);
        if (done.result == DLK_RESULT_DONE) {
            world->claimed[claim->result]++;
        }
        if (heard) {
            client->claims_said[order->which[i]] = sim_status_of_claim(claim->result);
            client->claims_at_ns[order->which[i]] = at_ns;
        }
    }
}

/* Who is in the roster may come back to a server that recovers; all others are asked to wait. */
static inline bool sim_come_back(struct sim_world *world, struct dlk_command *command, bool early)
{
    if (command->op == DLK_COMMAND_SESSION_OPEN) {
        return !world->recovering;
    }
    if (command->op == DLK_COMMAND_SESSION_SUPERSEDE && world->recovering
        && !world->opened[command->slot] && world->roster[command->slot] == command->id) {
        command->op = DLK_COMMAND_SESSION_OPEN;
        command->kind = early ? DLK_SESSION_EARLY : DLK_SESSION_PLAIN;
    }
    return true;
}

static inline struct dlk_event sim_order_command(struct sim_world *world,
                                                 const struct sim_order *order,
                                                 const struct dlk_command *command)
{
    struct dlk_event done = {.result = DLK_RESULT_DONE};
    if (!order->finishes) {
        return sim_command(world, command);
    }
    if (world->roster[command->slot] == command->id && world->opened[command->slot]) {
        world->back[command->slot] = true;
    } else {
        done.result = DLK_RESULT_REMOVED;
    }
    return done;
}

static inline void sim_carry_out(struct sim_world *world, struct sim_order *order)
{
    if (order->n_claims != 0) {
        sim_take_claims(world, order);
        return;
    }
    struct dlk_command command = order->command;
    bool opens = command.op == DLK_COMMAND_SESSION_OPEN;
    bool supersedes = command.op == DLK_COMMAND_SESSION_SUPERSEDE;
    bool closes = command.op == DLK_COMMAND_SESSION_CLOSE;
    bool allowed = sim_come_back(world, &command, order->early);
    if (opens && allowed) {
        command.slot = sim_free_slot(world);
    }
    if ((supersedes || closes) && world->session_link[command.slot] >= 0
        && world->links[world->session_link[command.slot]].client_id == command.id) {
        sim_retire(world, world->session_link[command.slot]);
    }
    if (command.op == DLK_COMMAND_BREAK && command.size != 0) {
        sim_excuse(world, &command);
    }
    struct dlk_event done = {.result = DLK_RESULT_NOT_READY};
    if (allowed) {
        done = sim_order_command(world, order, &command);
    }
    sim_say(world, "command %u slot %u id %u: result %u", command.op, command.slot, command.id,
            done.result);
    if (done.result == DLK_RESULT_DONE && (opens || supersedes)) {
        world->slot_used[command.slot] = true;
        world->attach_used[command.slot] = false;
        world->roster[command.slot] = command.id;
        world->opened[command.slot] = true;
        sim_renewed(world, command.slot);
    } else if (done.result == DLK_RESULT_DONE && closes) {
        world->roster[command.slot] = 0;
        world->opened[command.slot] = false;
    }
    sim_outbox(world);
    struct sim_client *client = order->client >= 0 ? &world->clients[order->client] : NULL;
    if (client != NULL && client->life == SIM_LIVING && client->ask == order->ask
        && !sim_fault(world, 100)) {
        client->session = opens ? command.slot : client->session;
        client->answered = true;
        client->answer_result = done.result;
        client->answer_epoch = world->epoch;
        client->answer_at_ns = world->now + sim_delay_ns(world);
    }
}

/* What an ended session had is freed when the roster does not name it any more. */
static inline void sim_strike(struct sim_world *world, uint32_t slot)
{
    world->strike_at_ns[slot] = 0;
    struct dlk_event done = sim_command(
        world, &(struct dlk_command){.op = DLK_COMMAND_SESSION_END, .slot = slot,
                                     .id = world->roster[slot]});
    if (done.result == DLK_RESULT_DONE) { /* else it has been closed meanwhile */
        world->roster[slot] = 0;
        world->opened[slot] = false;
        uint64_t until_ns = world->now + sim_with_margin_ns(world->weather.lease_ms);
        world->ended_until_ns = done.value != 0 ? until_ns : world->ended_until_ns;
    }
    sim_outbox(world);
}

static inline void sim_commands(struct sim_world *world)
{
    for (uint32_t slot = 0; slot < SIM_SESSIONS; slot++) {
        if (world->strike_at_ns[slot] != 0 && world->strike_at_ns[slot] <= world->now) {
            sim_strike(world, slot);
        }
    }
    for (size_t i = 0; i < world->n_orders;) {
        struct sim_order order = world->orders[i];
        if (order.at_ns > world->now) {
            i++;
            continue;
        }
        memmove(&world->orders[i], &world->orders[i + 1],
                (--world->n_orders - i) * sizeof(order));
        sim_carry_out(world, &order);
    }
}

/* ---- The turn ---- */

/* Time within a turn; rarely so much that it is a stall. */
static inline void sim_pause(struct sim_world *world)
{
    if (sim_fault(world, world->weather.fault_pm / 4)) {
        uint64_t stall_ns = (uint64_t)sim_below(world, 2 * world->weather.ttl_ms) * SIM_MS;
        sim_say(world, "the plane stalls for %llu ms", (unsigned long long)(stall_ns / SIM_MS));
        world->now += stall_ns;
        world->stalled_ns = stall_ns > SIM_STALL_MS * SIM_MS ? stall_ns : world->stalled_ns;
    } else if (sim_chance(world, 300)) {
        world->now += sim_below(world, 200) * (uint64_t)1000;
    }
}

static inline bool sim_attach(struct sim_world *world, int number, const void *frame)
{
    struct sim_link *link = &world->links[number];
    struct dlk_attach attach;
    if (dlk_codec_attach(frame, &attach) != DLK_FAULT_NONE
        || !dlk_engine_attach_allowed(world->engine, &attach)
        || world->attach_used[attach.session_slot]) {
        sim_retire(world, number);
        return false;
    }
    if (world->session_link[attach.session_slot] >= 0) {
        sim_retire(world, world->session_link[attach.session_slot]);
    }
    link->server = SIM_ATTACHED;
    link->session = attach.session_slot;
    link->client_id = attach.client_id;
    world->session_link[attach.session_slot] = number;
    world->attach_used[attach.session_slot] = true;
    return true;
}

static inline void sim_answer_attached(struct sim_world *world, const int *attached, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct sim_link *link = &world->links[attached[i]];
        if (link->server != SIM_ATTACHED) {
            continue;
        }
        sim_command(world, &(struct dlk_command){.op = DLK_COMMAND_SESSION_RENEW,
                                                 .slot = link->session,
                                                 .id = link->client_id});
        dlk_engine_clear(world->engine);
        sim_renewed(world, link->session);
        struct dlk_reply reply = {.op = DLK_OP_ATTACH,
                                  .result = DLK_RESULT_DONE,
                                  .session = link->client_id,
                                  .epoch = dlk_engine_epoch(world->engine)};
        sim_pipe_put(world, &link->down, &reply);
        dlk_engine_attached(world->engine, link->session, world->now);
        sim_outbox(world);
    }
}

struct sim_batch {
    struct dlk_request requests[DLK_STEP_MAX];
    size_t count;
    int attached[SIM_LINKS];
    size_t n_attached;
};

/* What lies in one connection, as far as the batch goes. */
static inline void sim_receive(struct sim_world *world, int number, struct sim_batch *batch)
{
    struct sim_link *link = &world->links[number];
    const void *frame;
    link->queued = false;
    while (link->server != SIM_GONE && batch->count < world->weather.batch
           && (frame = sim_pipe_take(world, &link->up)) != NULL) {
        if (link->server == SIM_NEW) {
            if (sim_attach(world, number, frame)) {
                batch->attached[batch->n_attached++] = number;
            }
            continue;
        }
        struct dlk_request *request = &batch->requests[batch->count];
        memcpy(request, frame, sizeof(*request));
        if (dlk_codec_request(request, link->client_id, link->session) != DLK_FAULT_NONE) {
            sim_fail(world, "a client sends a frame that is refused");
        }
        batch->count++;
    }
    sim_pipe_pack(&link->up);
    if (link->server != SIM_GONE && sim_pipe_ended(world, &link->up)) {
        sim_retire(world, number);
    } else if (link->server != SIM_GONE && sim_pipe_readable(world, &link->up)) {
        link->queued = true;
        world->queue[world->queue_count++] = number;
    }
}

static inline void sim_begin_pass(struct sim_world *world)
{
    if (world->pass_left > 0) {
        return;
    }
    world->pass_ns = world->now;
    for (int i = 0; i < SIM_LINKS; i++) {
        struct sim_link *link = &world->links[i];
        if (link->used && link->server != SIM_GONE && !link->queued
            && sim_pipe_readable(world, &link->up)) {
            link->queued = true;
            world->queue[world->queue_count++] = i;
        }
    }
    world->pass_left = world->queue_count;
}

static inline void sim_turn(struct sim_world *world)
{
    static struct sim_batch batch;
    batch.count = batch.n_attached = 0;
    sim_begin_pass(world);
    sim_pause(world);
    sim_commands(world);
    sim_pause(world);
    while (world->pass_left > 0 && batch.count < world->weather.batch) {
        int number = world->queue[0];
        world->pass_left--;
        memmove(world->queue, world->queue + 1, --world->queue_count * sizeof(int));
        sim_receive(world, number, &batch);
    }
    sim_pause(world);
    if (world->stalled_ns != 0) {
        uint64_t grace_ms = world->stalled_ns / SIM_MS;
        sim_command(world, &(struct dlk_command){.op = DLK_COMMAND_GRACE,
                                                 .value = grace_ms > 5000 ? 5000 : grace_ms});
        dlk_engine_clear(world->engine);
        world->stalled_ns = 0;
    }
    sim_answer_attached(world, batch.attached, batch.n_attached);
    for (size_t i = 0; i < batch.count; i++) {
        sim_renewed(world, batch.requests[i].session);
    }
    dlk_engine_step(world->engine, batch.requests, batch.count, world->now);
    sim_check_gone(world, batch.requests, batch.count);
    sim_outbox(world);
    if (world->pass_left == 0) {
        world->emptied_ns = world->pass_ns;
    }
    dlk_engine_tick(world->engine, world->now, world->emptied_ns);
    sim_check_gone(world, NULL, 0);
    sim_outbox(world);
}

#endif
