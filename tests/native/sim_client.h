/*
 * The client's shell without threads and sockets: what native/client.c, client_wire.c,
 * client_collect.c and client_keep.c do around the book, in the same order, on simulated links. A
 * plain call stands for a thread that waits for it.
 */
#ifndef DLOCK_SIM_CLIENT_H
#define DLOCK_SIM_CLIENT_H

#include "sim_check.h"

static inline uint64_t sim_now_of(const struct sim_world *world, const struct sim_client *client)
{
    return sim_local_ns(client, world->now);
}

static inline void sim_go_on(struct sim_world *world, struct sim_client *client);

/* ---- Out ---- */

static inline void sim_put(struct sim_world *world, struct sim_client *client,
                           const struct dlk_request *request)
{
    sim_pipe_put(world, &world->links[client->link].up, request);
    sim_say(world, "c%u sends op %u id %x lock %u owner %llx token %llu lease %u wait %u flags %x",
            client->index, request->op, request->request_id, request->lock_id,
            (unsigned long long)request->owner, (unsigned long long)request->token,
            request->lease_ms, request->wait_ms, request->flags);
}

static inline void sim_put_debts(struct sim_world *world, struct sim_client *client)
{
    const struct dlk_request *request;
    struct dlk_book *book = &client->book;
    uint64_t now = sim_now_of(world, client);
    while (client->up
           && ((request = dlk_book_next_unsent(book, now)) != NULL
               || (request = dlk_book_next_parked(book, now)) != NULL)) {
        sim_put(world, client, request);
    }
}

/* ---- A call's way ---- */

static inline void sim_complete(struct sim_world *world, struct sim_client *client,
                                struct dlk_call *call)
{
    struct sim_call *known = (struct sim_call *)call;
    if (!known->active || known->ended) {
        sim_fail(world, "c%u: call %u ends %s", client->index, known->serial,
                 known->ended ? "twice" : "though nobody has begun it");
    }
    known->ended = true;
    sim_say(world, "c%u call %u ends: status %x result %u token %llu left %llu ms", client->index,
            known->serial, (unsigned)call->status, call->result, (unsigned long long)call->token,
            (unsigned long long)call->left_ms);
    sim_check_ended(world, client, call);
    sim_check_wait(world, client, known);
    if (call->place != DLK_PLACE_NONE) {
        dlk_posted_end(&client->book, call);
    }
}

static inline void sim_submit(struct sim_world *world, struct sim_client *client,
                              struct dlk_call *call)
{
    const struct dlk_request *request = NULL;
    uint64_t now = sim_now_of(world, client);
    if (client->up && client->crowded_until_ns > world->now) {
        dlk_book_put_off(&client->book, call, now);
        return;
    }
    enum dlk_turn turn = dlk_book_begin(&client->book, call, now, &request);
    sim_observe(world, client, call->verb == DLK_VERB_UNLOCK ? call : NULL);
    if (turn == DLK_TURN_LATER) {
        return;
    }
    if (turn == DLK_TURN_DONE) {
        sim_complete(world, client, call);
        return;
    }
    struct dlk_request asked = *request;
    sim_put_debts(world, client);
    if (!client->up) {
        dlk_book_unsent(&client->book, call, now);
        sim_observe(world, client, NULL);
        sim_complete(world, client, call);
        return;
    }
    sim_put(world, client, &asked);
    call->sent = 1;
}

/* ---- Posted calls ---- */

static inline void sim_place(struct sim_world *world, struct sim_client *client,
                             struct dlk_call *call)
{
    if (call->phase == DLK_PHASE_BLOCKED && !client->up
        && !dlk_posted_behind_parked(&client->book, call)) {
        dlk_book_lose_blocked(&client->book, call, sim_now_of(world, client));
        sim_complete(world, client, call);
    }
    if (call->phase != DLK_PHASE_ENDED) {
        dlk_posted_place(&client->book, call);
    }
}

static inline void sim_posted_go_on(struct sim_world *world, struct sim_client *client)
{
    struct dlk_book *book = &client->book;
    while (!client->up || client->crowded_until_ns <= world->now) {
        struct dlk_call *call = dlk_posted_next(book, client->up);
        if (call == NULL) {
            return;
        }
        sim_submit(world, client, call);
        sim_place(world, client, call);
        dlk_posted_begun(book, call);
        if (call->phase == DLK_PHASE_BLOCKED && call->place != DLK_PLACE_BEHIND
            && dlk_posted_has_room(book, call)) {
            return;
        }
    }
}

static inline void sim_post(struct sim_world *world, struct sim_client *client,
                            struct dlk_call *call)
{
    dlk_book_prepare(call);
    if (!dlk_posted_must_queue(&client->book, call)) {
        sim_submit(world, client, call);
        sim_place(world, client, call);
        return;
    }
    dlk_book_put_off(&client->book, call, sim_now_of(world, client));
    sim_place(world, client, call);
    sim_posted_go_on(world, client);
}

static inline void sim_collect(struct sim_world *world, struct sim_client *client)
{
    struct dlk_call *call;
    while ((call = dlk_posted_take(&client->book)) != NULL) {
        struct sim_call *known = (struct sim_call *)call;
        if (!known->active || !known->posted || !known->ended) {
            sim_fail(world, "c%u collects call %u, which has %s", client->index, known->serial,
                     known->active ? "not ended" : "been told or cancelled");
        }
        known->active = false;
    }
}

/* ---- What was put off, and what was given up ---- */

/* Threads that wait for calls that were put off try again; then the posted ones. */
static inline void sim_go_on(struct sim_world *world, struct sim_client *client)
{
    for (uint32_t i = 0; i < SIM_CALLS; i++) {
        struct sim_call *known = &client->calls[i];
        if (known->active && !known->posted && known->call.phase == DLK_PHASE_BLOCKED) {
            sim_submit(world, client, &known->call);
        }
    }
    sim_posted_go_on(world, client);
}

static inline void sim_expire_one(struct sim_world *world, struct sim_client *client,
                                  struct dlk_call *call)
{
    uint64_t now = sim_now_of(world, client);
    if (call->phase == DLK_PHASE_SENT) {
        dlk_book_lose(&client->book, call->slot, client->up, now);
    } else {
        dlk_book_expire_blocked(&client->book, call, now);
    }
    sim_observe(world, client, NULL);
    sim_complete(world, client, call);
}

static inline void sim_expire(struct sim_world *world, struct sim_client *client)
{
    uint64_t now = sim_now_of(world, client);
    struct dlk_call *posted;
    for (uint32_t i = 0; i < SIM_CALLS; i++) {
        struct sim_call *known = &client->calls[i];
        bool runs = known->call.phase == DLK_PHASE_SENT || known->call.phase == DLK_PHASE_BLOCKED;
        if (known->active && !known->posted && runs && known->call.deadline_ns <= now) {
            sim_expire_one(world, client, &known->call);
        }
    }
    while ((posted = dlk_posted_due(&client->book, now)) != NULL) {
        sim_expire_one(world, client, posted);
    }
    sim_put_debts(world, client);
    sim_go_on(world, client);
    for (uint32_t i = 0; i < SIM_CALLS; i++) {
        const struct sim_call *known = &client->calls[i];
        if (known->active && !known->ended && known->call.deadline_ns <= now - 40 * SIM_MS) {
            sim_fail(world, "c%u: call %u is over its time", client->index, known->serial);
        }
    }
}

/* Has this call taken what is held, and would its undoing be the end of that? */
static inline bool sim_took(const struct sim_client *client, const struct sim_call *known)
{
    const struct dlk_call *call = &known->call;
    bool over = call->phase == DLK_PHASE_ENDED || call->phase == DLK_PHASE_SEEN;
    bool took = (call->verb == DLK_VERB_TRYLOCK || call->verb == DLK_VERB_LOCK)
                && call->status == DLK_STATUS_SUCCESS;
    const struct dlk_hold *hold = sim_hold(client, sim_hold_number(call->lock_id, call->owner));
    return over && took && sim_held_token(hold) == call->token && hold->now.count == 1
           && hold->running == DLK_NONE;
}

static inline void sim_cancel(struct sim_world *world, struct sim_client *client,
                              struct sim_call *known)
{
    bool took = sim_took(client, known);
    uint32_t number = sim_hold_number(known->call.lock_id, known->call.owner);
    sim_say(world, "c%u cancels call %u in phase %u", client->index, known->serial,
            known->call.phase);
    dlk_book_cancel(&client->book, &known->call, sim_now_of(world, client));
    known->active = false;
    known->ended = true;
    sim_observe(world, client, &known->call);
    if (took && sim_held_token(sim_hold(client, number)) != 0) {
        sim_fail(world, "c%u: call %u was cancelled, and its hold stays", client->index,
                 known->serial);
    }
    sim_put_debts(world, client);
    sim_go_on(world, client);
}

/* ---- The end of a connection ---- */

static inline void sim_wire_end(struct sim_world *world, struct sim_client *client, bool over)
{
    uint64_t now = sim_now_of(world, client);
    if (client->link >= 0) {
        struct sim_link *link = &world->links[client->link];
        link->client_gone = true;
        sim_pipe_close(world, &link->up);
        client->link = -1;
    }
    client->up = false;
    client->forgets = over;
    for (uint32_t index = 0; index < client->book.pending_high; index++) {
        struct dlk_call *ended = dlk_book_disconnect(&client->book, index, over, now);
        sim_observe(world, client, NULL);
        if (ended != NULL) {
            sim_complete(world, client, ended);
        }
    }
    client->forgets = false;
    sim_go_on(world, client);
}

static inline void sim_wire_break(struct sim_world *world, struct sim_client *client)
{
    sim_say(world, "c%u: its connection is gone", client->index);
    if (client->up) {
        dlk_book_tell(&client->book, NULL, DLK_NOTICE_LINK_DOWN);
        sim_observe(world, client, NULL);
    }
    sim_wire_end(world, client, false);
}

/* ---- In ---- */

/* Reads at most `most` answers. */
static inline void sim_read(struct sim_world *world, struct sim_client *client, uint32_t most)
{
    const void *frame;
    struct dlk_reply reply;
    if (!client->up) {
        return;
    }
    struct sim_link *link = &world->links[client->link];
    while (most-- > 0 && (frame = sim_pipe_take(world, &link->down)) != NULL) {
        memcpy(&reply, frame, sizeof(reply));
        sim_say(world, "c%u reads op %u result %u id %x token %llu lease %u held %llu us",
                client->index, reply.op, reply.result, reply.request_id,
                (unsigned long long)reply.token, reply.lease_ms,
                (unsigned long long)reply.held_us);
        sim_check_place(world, client, &reply);
        struct dlk_call *ended =
            dlk_book_reply(&client->book, &reply, sim_now_of(world, client));
        sim_observe(world, client, NULL);
        if (ended != NULL) {
            sim_complete(world, client, ended);
        }
    }
    sim_pipe_pack(&link->down);
    sim_put_debts(world, client);
    sim_go_on(world, client);
    if (client->up && sim_pipe_ended(world, &link->down)) {
        sim_wire_break(world, client);
    }
}

/* ---- The keeper ---- */

static inline uint64_t sim_patience_ns(const struct sim_client *client)
{
    uint64_t timeout_ns = (uint64_t)client->book.reply_timeout_ms * SIM_MS;
    uint64_t quarter_ns = (uint64_t)client->book.session_ttl_ms * SIM_MS / 4;
    return client->book.number != 0 && quarter_ns < timeout_ns ? quarter_ns : timeout_ns;
}

static inline uint64_t sim_ping_due_ns(const struct sim_client *client)
{
    const struct dlk_book *book = &client->book;
    uint64_t last_ns =
        book->renewed_ns > client->ping_sent_ns ? book->renewed_ns : client->ping_sent_ns;
    return last_ns + (uint64_t)book->session_ttl_ms * SIM_MS / 4;
}

static inline void sim_await_ping(struct sim_world *world, struct sim_client *client, uint64_t now)
{
    struct dlk_call *ping = &client->ping.call;
    bool late = now >= client->ping_sent_ns + sim_patience_ns(client);
    if (ping->phase == DLK_PHASE_SENT && ping->deadline_ns <= now) {
        sim_expire_one(world, client, ping);
    }
    bool unanswered =
        ping->phase == DLK_PHASE_SENT || ping->status == DLK_STATUS_BAD_RESPONSE;
    if (client->up && late && unanswered && dlk_book_session_left_ms(&client->book, now) == 0) {
        sim_wire_break(world, client);
    }
}

static inline void sim_keep_ping(struct sim_world *world, struct sim_client *client, uint64_t now)
{
    struct sim_call *ping = &client->ping;
    if (ping->call.phase == DLK_PHASE_SENT) {
        sim_await_ping(world, client, now);
    } else if (sim_ping_due_ns(client) <= now) {
        *ping = (struct sim_call){.active = true, .serial = 0};
        ping->call.verb = DLK_VERB_PING;
        dlk_book_prepare(&ping->call);
        sim_submit(world, client, &ping->call);
        client->ping_sent_ns = now;
    }
}

static inline void sim_keep(struct sim_world *world, struct sim_client *client)
{
    const struct dlk_request *request;
    uint64_t now = sim_now_of(world, client);
    bool any = false;
    dlk_book_pass(&client->book, now);
    sim_observe(world, client, NULL);
    sim_check_told(world, client);
    if (client->up) {
        sim_keep_ping(world, client, now);
    }
    if (client->up && dlk_book_has_kept(&client->book)
        && client->retried_ns + (uint64_t)client->book.session_ttl_ms * SIM_MS / 4 <= now) {
        client->retried_ns = now;
        dlk_book_retry_kept(&client->book);
        sim_put_debts(world, client);
    }
    while (client->up && client->crowded_until_ns <= world->now
           && (request = dlk_book_next_renewal(&client->book, any, now)) != NULL) {
        sim_put(world, client, request);
        any = true;
    }
}

#endif
