/*
 * What must hold in every simulated world: who believes in what, what the engine says to that, and
 * what the notices tell. Nothing here changes the world but its memory of what was told.
 */
#ifndef DLOCK_SIM_CHECK_H
#define DLOCK_SIM_CHECK_H

#include "sim.h"

static inline bool sim_numbered(const struct sim_client *client)
{
    return client->book.number != 0;
}

static inline const struct dlk_hold *sim_hold(const struct sim_client *client, uint32_t hold)
{
    uint32_t index = dlk_map_get(&client->book.locks, sim_lock_id(hold / SIM_OWNERS),
                                 sim_owner(hold % SIM_OWNERS));
    return index != DLK_NONE ? &client->book.holds[index] : NULL;
}

static inline uint32_t sim_hold_number(uint32_t lock_id, uint64_t owner)
{
    return (lock_id - sim_lock_id(0)) * SIM_OWNERS + ((uint32_t)owner - 1);
}

static inline uint64_t sim_held_token(const struct dlk_hold *hold)
{
    return hold != NULL && hold->now.state == DLK_ENTRY_HELD ? hold->now.token : 0;
}

static inline uint64_t sim_left_ms(const struct sim_world *world, const struct sim_client *client,
                                   const struct dlk_hold *hold)
{
    return dlk_book_left_ms(&client->book, &hold->now, sim_local_ns(client, world->now));
}

/* ---- Notices ---- */

static inline void sim_notice_of_hold(struct sim_world *world, struct sim_client *client,
                                      const struct dlk_notice *notice)
{
    uint32_t number = sim_hold_number(notice->lock_id, notice->owner);
    struct sim_told *told = &client->told[number];
    const struct dlk_hold *hold = sim_hold(client, number);
    bool over = notice->kind == DLK_NOTICE_LOST || notice->kind == DLK_NOTICE_BROKEN;
    unsigned long long token = notice->token;
    if (world->weather.healthy && told->renews && notice->kind != DLK_NOTICE_CONFIRMED) {
        sim_fail(world, "c%u: token %llu renews, all is well, and notice %u comes", client->index,
                 token, notice->kind);
    }
    bool returned = notice->kind == DLK_NOTICE_BROKEN && told->given_up == notice->token;
    if (told->token != notice->token && !returned) { /* returned: NOT_READY to its unlock */
        sim_fail(world, "c%u: notice %u of token %llu, but %llu is held", client->index,
                 notice->kind, token, (unsigned long long)told->token);
    }
    if (over) {
        told->token = 0;
        told->lost = notice->token;
        told->suspended = false;
        return;
    }
    bool suspends = notice->kind == DLK_NOTICE_SUSPENDED;
    bool nothing_left = hold == NULL || sim_left_ms(world, client, hold) == 0;
    if (told->suspended == suspends || (nothing_left != suspends && !told->forsaken)) {
        sim_fail(world, "c%u: notice %u of token %llu, %s, left %llu ms", client->index,
                 notice->kind, token, told->suspended ? "suspended before" : "not suspended",
                 (unsigned long long)(hold != NULL ? sim_left_ms(world, client, hold) : 0));
    }
    told->suspended = suspends;
}

static inline void sim_notice_of_session(struct sim_world *world, struct sim_client *client,
                                         const struct dlk_notice *notice)
{
    uint64_t left_ms = dlk_book_session_left_ms(&client->book, sim_local_ns(client, world->now));
    bool suspends = notice->kind == DLK_NOTICE_SESSION_SUSPENDED;
    bool wrong = false;
    if (notice->kind == DLK_NOTICE_LINK_DOWN) {
        wrong = !client->up;
    } else if (notice->kind == DLK_NOTICE_REMOVED) {
        wrong = client->removed || left_ms != 0;
        client->removed = true;
        client->session_suspended = true;
    } else {
        wrong = client->session_suspended == suspends || (left_ms == 0) != suspends
                || (suspends && world->weather.healthy);
        client->session_suspended = suspends;
    }
    if (wrong) {
        sim_fail(world, "c%u: notice %u of the session, which has %llu ms left", client->index,
                 notice->kind, (unsigned long long)left_ms);
    }
}

static inline void sim_take_notices(struct sim_world *world, struct sim_client *client)
{
    struct dlk_news *news = &client->book.news;
    for (uint32_t i = 0; i < news->count; i++) {
        const struct dlk_notice *notice = &news->notices[i];
        sim_say(world, "c%u notice %u lock %u owner %llx token %llu", client->index, notice->kind,
                notice->lock_id, (unsigned long long)notice->owner,
                (unsigned long long)notice->token);
        world->notices[notice->kind]++;
        if (notice->client != client->book.number || !sim_numbered(client)) {
            sim_fail(world, "c%u: a notice of client %llu", client->index,
                     (unsigned long long)notice->client);
        }
        if (notice->lock_id != 0) {
            sim_notice_of_hold(world, client, notice);
        } else {
            sim_notice_of_session(world, client, notice);
        }
    }
    dlk_book_told(&client->book);
}

/* ---- What the book says after each thing that it was told ---- */

/* A hold goes because its user gave it up (`given_up` names it), or else it is told. */
static inline void sim_observe_hold(struct sim_world *world, struct sim_client *client,
                                    uint32_t number, bool given_up)
{
    struct sim_told *told = &client->told[number];
    const struct dlk_hold *hold = sim_hold(client, number);
    uint64_t token = sim_held_token(hold);
    if (told->token != 0 && token != told->token) {
        if (!given_up && !told->forsaken && sim_numbered(client)) {
            sim_fail(world, "c%u: token %llu is gone, and nobody was told", client->index,
                     (unsigned long long)told->token);
        }
        told->given_up = told->token;
        told->token = 0;
    }
    if (token != 0 && told->token == 0) {
        if (token == told->lost) {
            sim_fail(world, "c%u: token %llu was told lost, and is held again", client->index,
                     (unsigned long long)token);
        }
        told->token = token;
        told->suspended = told->suspended && token == told->given_up; /* NOT_READY restored it */
    }
    told->forsaken = token != 0 && hold->now.count == 0;
    told->renews = token != 0 && hold->now.leased && hold->now.renew_ms != 0;
}

static inline void sim_observe(struct sim_world *world, struct sim_client *client,
                               const struct dlk_call *given_up)
{
    sim_take_notices(world, client);
    for (uint32_t number = 0; number < SIM_HOLDS; number++) {
        bool meant = given_up != NULL && given_up->lock_id >= sim_lock_id(0)
                     && sim_hold_number(given_up->lock_id, given_up->owner) == number;
        sim_observe_hold(world, client, number, meant);
    }
}

/* The keeper has looked: everything that could have ended has been told, and nothing else. */
static inline void sim_check_told(struct sim_world *world, struct sim_client *client)
{
    const struct dlk_book *book = &client->book;
    if (!sim_numbered(client)) {
        return;
    }
    uint64_t now = sim_local_ns(client, world->now);
    if (book->session_until_ns != 0
        && client->session_suspended != (dlk_book_session_left_ms(book, now) == 0)) {
        sim_fail(world, "c%u: the session was told to be %s", client->index,
                 client->session_suspended ? "suspended" : "confirmed");
    }
    for (uint32_t number = 0; number < SIM_HOLDS; number++) {
        const struct dlk_hold *hold = sim_hold(client, number);
        bool own = sim_held_token(hold) != 0
                   && (hold->now.leased || hold->now.epoch != book->epoch);
        if (own && client->told[number].suspended != (sim_left_ms(world, client, hold) == 0)) {
            sim_fail(world, "c%u: token %llu was told to be %s, left %llu ms", client->index,
                     (unsigned long long)hold->now.token,
                     client->told[number].suspended ? "suspended" : "good",
                     (unsigned long long)sim_left_ms(world, client, hold));
        }
    }
}

static inline void sim_check_ended(struct sim_world *world, const struct sim_client *client,
                                   const struct dlk_call *call)
{
    bool acquires = call->verb == DLK_VERB_TRYLOCK || call->verb == DLK_VERB_LOCK;
    bool taken = call->status == DLK_STATUS_SUCCESS
                 || (acquires && call->status == DLK_STATUS_ALREADY_LOCKED);
    bool wrong = call->phase != DLK_PHASE_ENDED || call->status == DLK_STATUS_PENDING;
    if (acquires && taken) {
        wrong = wrong || call->token == 0 || call->held_mode != call->mode || call->count == 0;
    }
    if (call->status == DLK_STATUS_DEADLOCK) {
        wrong = wrong || (call->flags & DLK_FLAG_DEADLOCK) == 0 || call->value == 0;
    }
    if (wrong) {
        sim_fail(world, "c%u: verb %u ends with status %x, token %llu, mode %u, count %u",
                 client->index, call->verb, (unsigned)call->status,
                 (unsigned long long)call->token, call->held_mode, call->count);
    }
}

/* ---- Waits ---- */

/* The call whose request this is, if its client still waits for the answer. */
static inline struct sim_call *sim_call_of(const struct sim_client *client, uint32_t request_id)
{
    const struct dlk_book *book = &client->book;
    uint32_t index = request_id % DLK_INFLIGHT_MAX;
    bool awaited = index < book->pending_high
                   && book->pending[index].request.request_id == request_id
                   && dlk_pending_of_call(&book->pending[index]);
    return awaited ? (struct sim_call *)book->pending[index].call : NULL;
}

/* At the server, before anything can be lost on the way. */
static inline void sim_note_answer(struct sim_world *world, const struct dlk_reply *reply)
{
    for (uint32_t i = 0; i < SIM_POOL; i++) {
        const struct sim_client *client = &world->clients[i];
        if (client->life != SIM_LIVING || reply->op == DLK_OP_NOTICE
            || reply->result == DLK_RESULT_QUEUED || client->client_id == 0
            || client->client_id != world->roster[reply->session]) {
            continue;
        }
        struct sim_call *known = sim_call_of(client, reply->request_id);
        if (known != NULL) {
            known->answered = true;
        }
    }
}

/* A wait that is said to be queued again has the place that it had, unless it had been over. */
static inline void sim_check_place(struct sim_world *world, const struct sim_client *client,
                                   const struct dlk_reply *reply)
{
    if (reply->result != DLK_RESULT_QUEUED || reply->session != client->client_id
        || reply->epoch != client->book.epoch) {
        return;
    }
    struct sim_call *known = sim_call_of(client, reply->request_id);
    const struct dlk_pending *pending =
        known != NULL ? &client->book.pending[known->call.slot] : NULL;
    if (pending == NULL || !pending->kept) {
        return;
    }
    if (known->queued && pending->stamp != 0) {
        world->kept++;
        if (pending->stamp != reply->token && !known->answered) {
            sim_fail(world, "c%u: call %u had place %llu, and is queued at %llu", client->index,
                     known->serial, (unsigned long long)pending->stamp,
                     (unsigned long long)reply->token);
        }
    }
    known->queued = true;
}

/* A wait that is kept and had its place ends without an answer only when its time is over. */
static inline void sim_check_wait(struct sim_world *world, const struct sim_client *client,
                                  const struct sim_call *known)
{
    const struct dlk_call *call = &known->call;
    if (call->verb != DLK_VERB_LOCK || call->status != DLK_STATUS_BAD_RESPONSE
        || call->result == DLK_RESULT_REMOVED || !client->book.keep_waits || !known->queued
        || client->forgets) {
        return;
    }
    uint64_t waited_ns = sim_local_ns(client, world->now) - known->begun_ns;
    if (call->wait_ms == DLK_WAIT_FOREVER
        || waited_ns + 2 * SIM_MS < (uint64_t)call->wait_ms * SIM_MS) {
        sim_fail(world, "c%u: call %u wanted to wait %u ms, and ended after %llu", client->index,
                 known->serial, call->wait_ms, (unsigned long long)(waited_ns / SIM_MS));
    }
}

/* ---- Beliefs ---- */

static inline bool sim_broken_at_once(const struct sim_world *world, uint64_t token)
{
    uint32_t count = world->n_broken < SIM_BROKEN ? world->n_broken : SIM_BROKEN;
    for (uint32_t i = 0; i < count; i++) {
        if (world->broken[i] == token) {
            return true;
        }
    }
    return false;
}

/* What is believed must be so at the server, by its clock, for longer than now. A hold that it has
 * not confirmed may be unknown to it: then it must not have granted anything since. */
static inline void sim_check_held(struct sim_world *world, const struct sim_client *client,
                                  const struct dlk_call *look, const struct dlk_entry_view *views,
                                  size_t count)
{
    if (sim_hold(client, sim_hold_number(look->lock_id, look->owner))->now.epoch != world->epoch) {
        return;
    }
    for (size_t i = 0; i < count; i++) {
        const struct dlk_entry_view *view = &views[i];
        if (view->state != DLK_ENTRY_HELD || view->token != look->token) {
            continue;
        }
        uint64_t end_ns = view->end_ns != UINT64_MAX ? view->end_ns : view->session_end_ns;
        bool ended = end_ns <= world->now && !world->recovering;
        if (ended || view->client_id != client->client_id
            || view->owner != look->owner || view->mode != look->held_mode) {
            sim_fail(world, "c%u believes in token %llu for %llu ms more; it ended %lld ns ago",
                     client->index, (unsigned long long)look->token,
                     (unsigned long long)look->left_ms, (long long)(world->now - end_ns));
        }
        return;
    }
    sim_fail(world, "c%u believes in token %llu of lock %u for %llu ms more; nobody holds it",
             client->index, (unsigned long long)look->token, look->lock_id,
             (unsigned long long)look->left_ms);
}

/* What is believed, was lost from sight or not, has been nobody else's since it was granted. */
static inline void sim_check_between(struct sim_world *world, const struct sim_client *client,
                                     const struct dlk_call *look, uint32_t lock)
{
    const uint64_t *granted = world->granted[lock];
    uint64_t others = granted[DLK_MODE_EXCLUSIVE];
    if (look->held_mode == DLK_MODE_EXCLUSIVE && granted[DLK_MODE_SHARED] > others) {
        others = granted[DLK_MODE_SHARED];
    }
    if (sim_kind[lock] != DLK_KIND_SEMAPHORE && others > look->token) {
        sim_fail(world, "c%u believes in token %llu of lock %u, of which %llu was granted since",
                 client->index, (unsigned long long)look->token, look->lock_id,
                 (unsigned long long)others);
    }
}

/* A call that only looks: what the user is told. */
static inline struct dlk_call sim_look(struct sim_world *world, struct sim_client *client,
                                       uint32_t lock, uint32_t owner)
{
    const struct dlk_request *request = NULL;
    struct dlk_call look = {
        .verb = DLK_VERB_LOOK, .lock_id = sim_lock_id(lock), .owner = sim_owner(owner)};
    dlk_book_prepare(&look);
    if (dlk_book_begin(&client->book, &look, sim_local_ns(client, world->now), &request)
        != DLK_TURN_DONE) {
        sim_fail(world, "c%u: a look asks the server", client->index);
    }
    return look;
}

static inline void sim_check_lock(struct sim_world *world, uint32_t lock)
{
    struct dlk_entry_view views[SIM_ENTRIES];
    size_t count = dlk_engine_view(world->engine, lock, views, SIM_ENTRIES);
    uint32_t n_exclusive = 0;
    uint32_t n_shared = 0;
    for (uint32_t i = 0; i < SIM_POOL * SIM_OWNERS; i++) {
        struct sim_client *client = &world->clients[i / SIM_OWNERS];
        if (client->life == SIM_UNUSED) {
            continue;
        }
        struct dlk_call look = sim_look(world, client, lock, i % SIM_OWNERS);
        if (look.status != DLK_STATUS_SUCCESS || look.left_ms == 0
            || sim_broken_at_once(world, look.token)) {
            continue;
        }
        world->beliefs++;
        sim_check_held(world, client, &look, views, count);
        sim_check_between(world, client, &look, lock);
        n_exclusive += look.held_mode == DLK_MODE_EXCLUSIVE;
        n_shared += look.held_mode == DLK_MODE_SHARED;
    }
    uint32_t room = sim_kind[lock] == DLK_KIND_SEMAPHORE ? SIM_PERMITS : 1;
    if (n_exclusive > room || (n_exclusive != 0 && n_shared != 0)) {
        sim_fail(world, "lock %u: %u believe to hold it exclusively, %u shared",
                 sim_lock_id(lock), n_exclusive, n_shared);
    }
}

static inline void sim_check_beliefs(struct sim_world *world)
{
    for (uint32_t lock = 0; lock < SIM_LOCKS; lock++) {
        sim_check_lock(world, lock);
    }
}

#endif
