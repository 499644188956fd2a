/*
 * What docs/lock-kinds.md promises in every state of a walk, and after every action. Each check
 * returns what is broken, in words, or NULL.
 */
#ifndef WALK_CHECK_H
#define WALK_CHECK_H

#include "walk.h"

static inline struct known *known_by_request(struct known *list, size_t count, uint32_t request_id)
{
    for (size_t i = 0; i < count; i++) {
        if (list[i].view.request_id == request_id) {
            return &list[i];
        }
    }
    return NULL;
}

static inline const struct known *hold_before(const struct world *world, uint64_t token)
{
    for (size_t i = 0; i < world->count_before; i++) {
        if (held(&world->before[i]) && world->before[i].view.token == token) {
            return &world->before[i];
        }
    }
    return NULL;
}

/* ---- The outbox: every request is answered once, every waiter at most once ---- */

/* A hold that is broken, or was: told to its session while that is open. */
static inline const char *take_notice(const struct world *world, const struct dlk_reply *reply)
{
    const struct known *hold = hold_before(world, reply->token);
    if (hold == NULL || hold->view.session != reply->session
        || world->session[reply->session] != IS_OPEN || reply->result != DLK_RESULT_BROKEN) {
        return "a notice to somebody who holds no such thing";
    }
    return breaking(hold) || world->act.op == ACT_BREAK ? NULL : "a notice of a hold that stays";
}

static inline const char *take_other_reply(struct world *world, const struct dlk_reply *reply)
{
    if (reply->op == DLK_OP_NOTICE) {
        return take_notice(world, reply);
    }
    struct known *waiter =
        known_by_request(world->before, world->count_before, reply->request_id);
    if (waiter == NULL || !waiter->waits || waiter->view.session != reply->session) {
        return "a reply that nobody waits for";
    }
    if (reply->result != DLK_RESULT_GRANTED && reply->result != DLK_RESULT_TIMED_OUT
        && reply->result != DLK_RESULT_TICKETED && reply->result != DLK_RESULT_REMOVED) {
        return "a waiter was answered something else";
    }
    waiter->waits = false;
    return NULL;
}

static inline const char *take_replies(struct world *world)
{
    struct dlk_reply *replies;
    size_t count = dlk_engine_replies(world->engine, &replies);
    const struct dlk_reply *own = NULL;
    for (size_t i = 0; i < count; i++) {
        if (world->request_id != 0 && replies[i].request_id == world->request_id) {
            own = &replies[i];
        }
    }
    if (world->request_id != 0 && own == NULL) {
        return "a request without an answer";
    }
    for (size_t i = 0; i < count; i++) {
        const char *broken = &replies[i] == own ? NULL : take_other_reply(world, &replies[i]);
        if (broken != NULL) {
            return broken;
        }
    }
    if (own != NULL) {
        world->result = own->result;
        world->entry = own->entry;
        bool redeemed = world->act.op == ACT_REDEEM || world->act.op == ACT_RESEND;
        if (own->result == DLK_RESULT_GRANTED && own->token <= world->highest_token
            && !(redeemed && hold_before(world, own->token) != NULL)) {
            return "a token that does not grow";
        }
    }
    return NULL;
}

/* After a break: how many holders that can be told were not? */
static inline size_t untold(const struct world *world)
{
    struct dlk_reply *replies;
    size_t count = dlk_engine_replies(world->engine, &replies);
    size_t n = 0;
    for (size_t i = 0; world->act.op == ACT_BREAK && i < world->count_before; i++) {
        const struct known *hold = &world->before[i];
        n += held(hold) && world->session[hold->view.session] == IS_OPEN;
    }
    for (size_t i = 0; i < count && n > 0; i++) {
        n -= replies[i].op == DLK_OP_NOTICE;
    }
    return n;
}

static inline const char *take_events(struct world *world)
{
    struct dlk_event *events;
    size_t count = dlk_engine_events(world->engine, &events);
    for (size_t i = 0; i < count; i++) {
        uint32_t slot = events[i].slot;
        if (events[i].op == DLK_EVENT_DONE && events[i].result != DLK_RESULT_DONE) {
            return "a command was refused";
        } else if (events[i].op == DLK_EVENT_SESSION_ENDED) {
            if (world->act.op != ACT_TICK || world->deadline[slot] > world->now) {
                return "a session ended before its time";
            }
            world->session[slot] = IS_ENDED;
        } else if (events[i].op == DLK_EVENT_SESSION_FREED) {
            if (world->act.op == ACT_LEAVE && world->act.session == slot) {
                continue; /* and is open again by now */
            }
            if (world->session[slot] != IS_LEAVING) {
                return "a session was freed that may have something";
            }
            world->session[slot] = IS_FREE;
        } else if (events[i].op == DLK_EVENT_LOCK_CLOSED) {
            if (!world->closing) {
                return "a lock closed that somebody has got";
            }
            world->closing = false;
            world->closed = true;
        }
    }
    return NULL;
}

/* ---- What the view does not show ---- */

static inline void learn(struct world *world, const struct dlk_entry_view *view,
                         struct known *known)
{
    bool own = view->request_id == world->request_id && world->act.op != ACT_RESEND;
    uint32_t was = own && world->act.op == ACT_REDEEM ? world->target : view->request_id;
    const struct known *before = known_by_request(world->before, world->count_before, was);
    *known = (struct known){.wait_end = NEVER, .claim_end = NEVER, .lease = world->act.lease};
    if (before != NULL && before->view.state == DLK_ENTRY_TICKET
        && view->state == DLK_ENTRY_HELD && world->act.op == ACT_RESEND) {
        before = NULL; /* the ticket was passed just before, so the repetition came anew */
    }
    if (before != NULL) {
        *known = *before;
    } else {
        known->arrival = ++world->arrivals;
    }
    known->view = *view;
    if (own) {
        known->entry = world->entry;
        known->lease = world->act.lease;
        known->wait_end = world->now + world->act.wait * UNIT;
        known->waits = world->result == DLK_RESULT_QUEUED;
    }
    if (view->state != DLK_ENTRY_QUEUED) {
        known->wait_end = NEVER;
    }
    if (view->state != DLK_ENTRY_TICKET || (own && world->result == DLK_RESULT_TICKETED)) {
        known->claim_end = NEVER;
    }
}

static inline bool fits(const struct world *world, const struct known *known)
{
    uint32_t exclusive = 0;
    uint32_t readers = 0;
    for (size_t i = 0; i < world->count && held(&world->known[i]); i++) {
        *(shared(&world->known[i]) ? &readers : &exclusive) += 1;
    }
    if (world->kind == DLK_KIND_SEMAPHORE) {
        return exclusive < world->size;
    }
    return exclusive == 0 && (shared(known) || readers == 0);
}

/* Nobody waits who could be granted; a ticket whose turn has come is claimed in time or passed. */
static inline const char *check_settled(struct world *world)
{
    bool reserved = false;
    for (size_t i = 0; i < world->count; i++) {
        struct known *known = &world->known[i];
        if (held(known)) {
            if (lapsed(world, known) && !held(&world->known[world->count - 1])) {
                return "a lapsed hold keeps others waiting";
            }
            continue;
        }
        if ((reserved && !shared(known)) || !fits(world, known)) {
            return NULL;
        }
        if (known->view.state == DLK_ENTRY_QUEUED) {
            return "one waits who could be granted";
        }
        if (known->claim_end == NEVER) {
            known->claim_end = world->now + CLAIM * UNIT;
        }
        if (known->claim_end <= world->now && i + 1 < world->count) {
            return "a ticket holds others up beyond its claim";
        }
        reserved = true;
        if (!shared(known)) {
            return NULL;
        }
    }
    return NULL;
}

/* ---- Promises ---- */

static inline const char *check_exclusion(const struct world *world)
{
    uint32_t exclusive = 0;
    uint32_t readers = 0;
    for (size_t i = 0; i < world->count && held(&world->known[i]); i++) {
        *(shared(&world->known[i]) ? &readers : &exclusive) += 1;
    }
    uint32_t capacity = world->kind == DLK_KIND_SEMAPHORE ? world->size : 1;
    if (exclusive > capacity) {
        return "more exclusive holders than the kind allows";
    }
    return exclusive != 0 && readers != 0 ? "a writer is not alone" : NULL;
}

/* Does the entry have an end of its own, which has come? A hold has one authority: its lease, or
 * without one its session. A ticket is passed after its claim, when somebody stands behind it or
 * has newly come. */
static inline bool is_over(const struct world *world, size_t index)
{
    const struct known *old = &world->before[index];
    enum session_is session = world->session[old->view.session];
    bool ended = session != IS_OPEN && session != IS_ENDED;
    if (held(old)) {
        return old->view.end_ns == NEVER ? ended : old->view.end_ns <= world->now;
    }
    bool new = world->act.op == ACT_LOCK || world->act.op == ACT_RESEND; /* of a passed ticket */
    bool behind = index + 1 < world->count_before || new;
    return ended || old->waits || old->wait_end <= world->now
           || (old->claim_end <= world->now && behind);
}

/* Nothing is taken away from anybody before its time, and a lease never shrinks. */
static inline const char *check_lost(const struct world *world)
{
    for (size_t i = 0; i < world->count_before; i++) {
        const struct known *old = &world->before[i];
        const struct known *there = NULL;
        for (size_t k = 0; k < world->count; k++) {
            bool same = held(old) ? world->known[k].view.token == old->view.token
                                  : world->known[k].arrival == old->arrival;
            there = same ? &world->known[k] : there;
        }
        bool left = world->act.op == ACT_LEAVE && world->act.session == old->view.session;
        bool meant = world->target == old->view.request_id && world->act.op != ACT_EXTEND
                     && world->act.op != ACT_RESEND;
        bool gives = meant && world->act.op != ACT_REDEEM;
        if (there == NULL && !left && !gives && !is_over(world, i)) {
            return held(old) ? "a hold was taken away" : "a place in the queue was taken away";
        }
        if (there != NULL && gives) {
            return "what was given back is still there";
        }
        if (there != NULL && held(old) && there->view.end_ns < old->view.end_ns) {
            return "a lease shrank";
        }
        if (there != NULL && breaking(old)
            && (!breaking(there) || there->view.end_ns != old->view.end_ns)) {
            return "a hold that an operator asks for was extended";
        }
        if (there != NULL && held(old) && world->act.op == ACT_BREAK && !breaking(there)) {
            return "a hold was not broken";
        }
    }
    return NULL;
}

/* First come, first served: who is granted overtakes nobody, but readers overtake a reader's
 * ticket. */
static inline const char *check_grants(struct world *world)
{
    uint64_t highest = world->highest_token;
    for (size_t i = 0; i < world->count && held(&world->known[i]); i++) {
        const struct known *got = &world->known[i];
        if (hold_before(world, got->view.token) != NULL) {
            continue;
        }
        if (got->view.token <= world->highest_token) {
            return "a token that does not grow";
        }
        if (got->view.end_ns != (got->lease != 0 ? world->now + got->lease * UNIT : NEVER)) {
            return "a lease that does not run from its grant";
        }
        highest = got->view.token > highest ? got->view.token : highest;
        for (size_t k = 0; k < world->count; k++) {
            const struct known *waiter = &world->known[k];
            bool readers = shared(got) && shared(waiter)
                           && waiter->view.state == DLK_ENTRY_TICKET;
            if (!held(waiter) && waiter->arrival < got->arrival && !readers) {
                return "an earlier waiter was overtaken";
            }
        }
    }
    world->highest_token = highest;
    return NULL;
}

static inline const char *check_waiters(const struct world *world)
{
    for (size_t i = 0; i < world->count; i++) {
        const struct known *known = &world->known[i];
        if ((known->view.state == DLK_ENTRY_QUEUED) != known->waits) {
            return known->waits ? "a waiter was forgotten" : "one waits who was answered";
        }
        if (known->waits && world->act.op == ACT_TICK && known->wait_end <= world->now) {
            return "a wait that does not end";
        }
        bool stays = world->act.op == ACT_TICK && lapsed(world, known);
        if (breaking(known) && (stays || !held(known))) {
            return "a broken hold stays beyond its lease";
        }
        bool ticked = world->act.op == ACT_TICK || world->act.op == ACT_END;
        bool keeps = held(known) && known->view.end_ns != NEVER
                     && !(ticked && lapsed(world, known));
        enum session_is session = world->session[known->view.session];
        if (session != IS_OPEN && session != IS_ENDED && !keeps) {
            return "a leaving session keeps what it may not";
        }
        if (session == IS_ENDED && known->waits) {
            return "an ended session waits";
        }
    }
    for (size_t i = 0; i < world->count_before; i++) {
        const struct known *old = &world->before[i];
        bool meant = world->target == old->view.request_id;
        if (old->waits && !meant
            && known_by_request((struct known *)world->known, world->count, old->view.request_id)
                   == NULL) {
            return "a waiter vanished without an answer";
        }
    }
    return NULL;
}

/* When a tick would next change something. */
static inline uint64_t due(const struct world *world)
{
    uint64_t first = NEVER;
    for (size_t slot = 0; slot < SESSIONS; slot++) {
        if (world->session[slot] == IS_OPEN && world->deadline[slot] < first) {
            first = world->deadline[slot];
        }
    }
    bool queue = world->count != 0 && !held(&world->known[world->count - 1]);
    for (size_t i = 0; i < world->count; i++) {
        const struct known *known = &world->known[i];
        bool leaving = world->session[known->view.session] == IS_LEAVING;
        bool timed = held(known) && (queue || leaving || breaking(known));
        uint64_t end = timed ? known->view.end_ns : known->wait_end;
        if (known->claim_end < end && i + 1 < world->count) {
            end = known->claim_end;
        }
        first = end < first ? end : first;
    }
    return first;
}

static inline const char *check_timers(const struct world *world)
{
    uint64_t deadline = dlk_engine_next_deadline(world->engine);
    if (deadline > due(world)) {
        return "the timer comes late";
    }
    if (world->act.op != ACT_TICK) {
        return NULL;
    }
    for (size_t slot = 0; slot < SESSIONS; slot++) {
        if (world->session[slot] == IS_OPEN && world->deadline[slot] <= world->now) {
            return "a session that does not end";
        }
    }
    return deadline <= world->now ? "a timer that is never over" : NULL;
}

static inline const char *check_all(struct world *world, bool settled)
{
    const char *broken = check_exclusion(world);
    broken = broken != NULL ? broken : check_lost(world);
    broken = broken != NULL ? broken : check_grants(world);
    broken = broken != NULL ? broken : check_waiters(world);
    broken = broken != NULL || !settled ? broken : check_settled(world);
    broken = broken != NULL ? broken : check_timers(world);
    if (broken == NULL && dlk_engine_entries_in_use(world->engine) != world->count) {
        return "an entry leaked";
    }
    if (broken == NULL && dlk_engine_check(world->engine) != 0) {
        return "dlk_engine_check";
    }
    return broken;
}

/* One action and all its checks. False: it means nothing in this state. */
static inline bool walk_act(struct world *world, const struct act *act)
{
    world->act = *act;
    world->request_id = 0;
    world->target = 0;
    world->result = DLK_RESULT_COUNT;
    world->closed = false;
    if (!walk_carry_out(world)) {
        return false;
    }
    memcpy(world->before, world->known, sizeof(world->before));
    world->count_before = world->count;
    const char *broken = take_replies(world);
    broken = broken != NULL ? broken : take_events(world);
    broken = broken == NULL && untold(world) != 0 ? "a holder was not told" : broken;
    dlk_engine_clear(world->engine);
    struct dlk_entry_view views[ENTRIES];
    world->count = dlk_engine_view(world->engine, 0, views, ENTRIES);
    for (size_t i = 0; i < world->count; i++) {
        learn(world, &views[i], &world->known[i]);
    }
    bool settled = act->op < ACT_RETURN || act->op == ACT_TICK || act->op == ACT_BREAK;
    world->broken = broken != NULL ? broken : check_all(world, settled);
    if (world->closed) {
        walk_command(world, DLK_COMMAND_LOCK_OPEN, 0);
        dlk_engine_clear(world->engine);
    }
    return true;
}

#endif
