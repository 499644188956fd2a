/*
 * A small world for exhaustive walks: one lock, two sessions, few entries, time in whole units; and
 * the actions that can be taken in it. It knows of the engine what dlk_engine_view and the replies
 * show, and keeps itself what they do not: waits, claims, the order of arrival. walk_check.h says
 * what must be true after each action.
 */
#ifndef WALK_H
#define WALK_H

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

enum { SESSIONS = 2, ENTRIES = 4, UNIT_MS = 1000, CLAIM = 2, TTL = 3, LEASE = 2, WAIT = 1 };
#define UNIT ((uint64_t)UNIT_MS * 1000000u)
#define NEVER UINT64_MAX

enum act_op {
    ACT_LOCK,
    ACT_UNLOCK,
    ACT_EXTEND,
    ACT_REDEEM,
    ACT_GIVE_UP,
    ACT_CANCEL_WAIT,
    ACT_CANCEL_HOLD,
    ACT_RESEND,
    ACT_LEAVE,   /* the session closes, and opens again */
    ACT_END,     /* after it ended: what it had may be freed */
    ACT_RETURN,  /* opens again after it ended */
    ACT_CLOSE,   /* the lock: nobody has got it */
    ACT_OPEN,    /* the lock again */
    ACT_BREAK,   /* an operator asks for every hold */
    ACT_TICK,    /* what is due by now */
    ACT_PASS     /* a unit of time, and nobody looks */
};

struct act {
    uint8_t op;
    uint8_t session;
    uint8_t mode;
    uint8_t lease; /* units */
    uint8_t wait;  /* units; LOCK and REDEEM */
    uint8_t flags;
};

/* What the walk knows of an entry: what its view shows, and what only its past tells. */
struct known {
    struct dlk_entry_view view;
    uint64_t wait_end;
    uint64_t claim_end; /* NEVER: its turn has not come */
    uint32_t arrival;
    uint32_t entry; /* its handle */
    uint8_t lease; /* asked for, in units */
    bool waits;    /* told QUEUED, and nothing since */
};

enum session_is { IS_FREE, IS_OPEN, IS_ENDED, IS_LEAVING };

struct world {
    struct dlk_engine *engine;
    enum dlk_kind kind;
    uint32_t size;
    uint64_t now;
    uint64_t highest_token;
    uint32_t next_request;
    uint32_t arrivals;
    uint32_t lock_id;
    uint32_t client_id;
    bool closing;
    bool closed; /* by this action */
    enum session_is session[SESSIONS];
    uint64_t deadline[SESSIONS];
    struct known known[ENTRIES];
    size_t count;
    const char *broken; /* what the law says that is not so, or NULL */
    /* of the action under way */
    struct act act;
    struct known before[ENTRIES];
    size_t count_before;
    uint32_t request_id; /* 0: no request */
    uint32_t target;     /* request id of the entry that the action means */
    uint32_t result;     /* of the request itself */
    uint32_t entry;
};

static inline void world_say(const struct world *world)
{
    printf("now %llu\n", (unsigned long long)(world->now / UNIT));
    for (size_t i = 0; i < world->count; i++) {
        const struct known *known = &world->known[i];
        printf("  session %u %s mode %u request %u token %llx end %lld\n", known->view.session,
               known->view.state == DLK_ENTRY_HELD     ? "held"
               : known->view.state == DLK_ENTRY_QUEUED ? "queued"
                                                       : "ticket",
               known->view.mode, known->view.request_id, (unsigned long long)known->view.token,
               (long long)(known->view.end_ns / UNIT));
    }
}

static inline bool shared(const struct known *known)
{
    return known->view.mode == DLK_MODE_SHARED;
}

static inline bool held(const struct known *known)
{
    return known->view.state == DLK_ENTRY_HELD;
}

static inline bool breaking(const struct known *known)
{
    return (known->view.flags & DLK_ENTRY_BREAKING) != 0;
}

static inline bool lapsed(const struct world *world, const struct known *known)
{
    return held(known) && known->view.end_ns <= world->now;
}

/* ---- Choosing what an action means ---- */

/* The entry of the session in such a state; of several holds the one that ends first. */
static inline const struct known *find(const struct world *world, uint32_t session, bool holds)
{
    const struct known *best = NULL;
    for (size_t i = 0; i < world->count; i++) {
        const struct known *known = &world->known[i];
        if (known->view.session == session && held(known) == holds
            && (best == NULL || (holds && known->view.end_ns < best->view.end_ns))) {
            best = known;
        }
    }
    return best;
}

/* The request of an action; false: it has nothing to mean in this state. */
static inline bool request_of(struct world *world, struct dlk_request *out)
{
    const struct act *act = &world->act;
    static const uint8_t ops[] = {
        [ACT_LOCK] = DLK_OP_LOCK,          [ACT_UNLOCK] = DLK_OP_UNLOCK,
        [ACT_EXTEND] = DLK_OP_EXTEND,      [ACT_REDEEM] = DLK_OP_REDEEM,
        [ACT_GIVE_UP] = DLK_OP_GIVE_UP,    [ACT_CANCEL_WAIT] = DLK_OP_CANCEL,
        [ACT_CANCEL_HOLD] = DLK_OP_CANCEL, [ACT_RESEND] = DLK_OP_LOCK,
    };
    bool wants_hold = act->op == ACT_UNLOCK || act->op == ACT_EXTEND || act->op == ACT_CANCEL_HOLD;
    const struct known *meant = NULL;
    if (act->op != ACT_LOCK) {
        meant = find(world, act->session, wants_hold);
        if (meant == NULL) {
            return false;
        }
    }
    *out = (struct dlk_request){
        .request_id = ++world->next_request,
        .op = ops[act->op],
        .mode = meant != NULL ? meant->view.mode : act->mode,
        .flags = act->flags,
        .session = act->session,
        .lock_id = world->lock_id,
        .owner = 1,
        .entry = DLK_NONE,
        .token = meant != NULL ? meant->view.token : 0,
        .value = meant != NULL ? meant->view.request_id : 0,
        .lease_ms = act->lease * (uint32_t)UNIT_MS,
        .wait_ms = act->wait * (uint32_t)UNIT_MS,
    };
    if (act->op == ACT_RESEND) {
        out->request_id = meant->view.request_id;
        out->flags |= DLK_FLAG_RESEND;
    }
    if (act->op == ACT_REDEEM || act->op == ACT_GIVE_UP) {
        out->entry = meant->entry; /* which stays when a grant crosses */
    }
    world->target = meant != NULL ? meant->view.request_id : 0;
    world->request_id = out->request_id;
    return true;
}

/* ---- Carrying it out; the outbox is left for the checks ---- */

static inline void walk_command(struct world *world, uint32_t op, uint32_t slot)
{
    struct dlk_command command = {.op = op, .slot = slot, .id = world->lock_id};
    if (op == DLK_COMMAND_LOCK_OPEN) {
        command.kind = world->kind;
        command.size = world->size;
    }
    command.value = 1; /* READY */
    if ((op >= DLK_COMMAND_SESSION_OPEN && op <= DLK_COMMAND_SESSION_CLOSE)
        || op == DLK_COMMAND_SESSION_END) {
        command.id = slot + 1;
        command.ttl_ms = TTL * UNIT_MS;
        command.lease_ms = 10 * UNIT_MS;
    }
    if (op == DLK_COMMAND_BREAK) {
        command.value = 0; /* all */
        command.size = 0;  /* ask */
    }
    dlk_engine_command(world->engine, &command, world->now);
}

static inline void walk_session_open(struct world *world, uint32_t slot)
{
    walk_command(world, DLK_COMMAND_SESSION_OPEN, slot);
    world->session[slot] = IS_OPEN;
    world->deadline[slot] = world->now + TTL * UNIT;
}

/* False: the action means nothing in this state, and nothing was done. */
static inline bool walk_carry_out(struct world *world)
{
    uint32_t slot = world->act.session;
    struct dlk_request request;
    switch (world->act.op) {
    case ACT_LEAVE:
        if (world->session[slot] != IS_OPEN && world->session[slot] != IS_ENDED) {
            return false;
        }
        walk_command(world, DLK_COMMAND_SESSION_CLOSE, slot);
        walk_session_open(world, slot);
        return true;
    case ACT_END:
        if (world->session[slot] != IS_ENDED) {
            return false;
        }
        walk_command(world, DLK_COMMAND_SESSION_END, slot);
        world->session[slot] = IS_LEAVING;
        return true;
    case ACT_RETURN:
        if (world->session[slot] != IS_FREE) {
            return false;
        }
        walk_session_open(world, slot);
        return true;
    case ACT_CLOSE:
        if (world->closing || world->count == 0) {
            return false;
        }
        walk_command(world, DLK_COMMAND_LOCK_CLOSE, 0);
        world->closing = true;
        return true;
    case ACT_OPEN:
        if (!world->closing) {
            return false;
        }
        walk_command(world, DLK_COMMAND_LOCK_OPEN, 0);
        world->closing = false;
        return true;
    case ACT_BREAK:
        if (world->count == 0 || !held(&world->known[0])) {
            return false;
        }
        walk_command(world, DLK_COMMAND_BREAK, 0);
        return true;
    case ACT_TICK:
        dlk_engine_tick(world->engine, world->now, world->now);
        return true;
    case ACT_PASS:
        world->now += UNIT;
        return true;
    default:
        if (world->session[slot] != IS_OPEN || !request_of(world, &request)) {
            return false;
        }
        world->deadline[slot] = world->now + TTL * UNIT;
        dlk_engine_step(world->engine, &request, 1, world->now);
        return true;
    }
}

#endif
