/*
 * An engine with one lock of each kind and four sessions, and a way to ask it that reads like the
 * law: what the engine's unit tests share. Session `slot` is client 1000 + slot, lock `slot` has
 * the id 100 + slot.
 */
#ifndef DLOCK_ENGINE_WORLD_H
#define DLOCK_ENGINE_WORLD_H

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

enum slot { ATOMIC, RW, FAIR, SEMAPHORE, LOCKS };
enum { EX = DLK_MODE_EXCLUSIVE, SH = DLK_MODE_SHARED };
enum { TTL_MS = 10000, MAX_LEASE_MS = 8000, CLAIM_MS = 2000, SESSIONS = 4, PERMITS = 2, EPOCH = 7 };
enum { OUTBOX = 64 };

struct world {
    struct dlk_engine *engine;
    uint64_t now;
    uint32_t next_request;
    struct dlk_reply told[OUTBOX]; /* what the last call said */
    size_t n_told;
    struct dlk_event events[OUTBOX];
    size_t n_events;
};

static inline uint64_t ms(uint64_t value)
{
    return value * 1000000u;
}

/* ---- The outbox of the last call ---- */

static inline void take_outbox(struct world *world)
{
    struct dlk_reply *replies;
    struct dlk_event *events;
    size_t count = dlk_engine_replies(world->engine, &replies);
    world->n_told = count < OUTBOX ? count : OUTBOX;
    memcpy(world->told, replies, world->n_told * sizeof(*replies));
    count = dlk_engine_events(world->engine, &events);
    world->n_events = count < OUTBOX ? count : OUTBOX;
    memcpy(world->events, events, world->n_events * sizeof(*events));
    dlk_engine_clear(world->engine);
    assert(dlk_engine_check(world->engine) == 0);
}

/* What a request was told in the last call; DLK_RESULT_COUNT: nothing. */
static inline struct dlk_reply told(const struct world *world, uint32_t request_id)
{
    for (size_t i = world->n_told; i > 0; i--) {
        if (world->told[i - 1].request_id == request_id) {
            return world->told[i - 1];
        }
    }
    return (struct dlk_reply){.result = DLK_RESULT_COUNT};
}

static inline const struct dlk_event *event(const struct world *world, uint32_t op, uint32_t slot)
{
    for (size_t i = 0; i < world->n_events; i++) {
        if (world->events[i].op == op && world->events[i].slot == slot) {
            return &world->events[i];
        }
    }
    return NULL;
}

/* ---- Calls ---- */

static inline uint32_t command(struct world *world, struct dlk_command order)
{
    dlk_engine_command(world->engine, &order, world->now);
    take_outbox(world);
    assert(event(world, DLK_EVENT_DONE, order.slot) != NULL);
    return event(world, DLK_EVENT_DONE, order.slot)->result;
}

static inline uint32_t session_command(struct world *world, uint32_t op, uint32_t slot)
{
    return command(world, (struct dlk_command){.op = op, .slot = slot, .id = 1000 + slot,
                                               .ttl_ms = TTL_MS, .lease_ms = MAX_LEASE_MS,
                                               .attach = 1});
}

/* What an ended session had may be freed. */
static inline void session_end(struct world *world, uint32_t slot)
{
    assert(session_command(world, DLK_COMMAND_SESSION_END, slot) == DLK_RESULT_DONE);
}

static inline uint32_t lock_command(struct world *world, uint32_t op, uint32_t slot)
{
    static const uint32_t kinds[] = {DLK_KIND_ATOMIC, DLK_KIND_RW, DLK_KIND_FAIR,
                                     DLK_KIND_SEMAPHORE};
    return command(world, (struct dlk_command){.op = op, .slot = slot, .id = 100 + slot,
                                               .kind = kinds[slot],
                                               .size = op == DLK_COMMAND_LOCK_OPEN ? PERMITS : 0});
}

static inline uint32_t server_command(struct world *world, uint32_t op, uint64_t value)
{
    return command(world, (struct dlk_command){.op = op, .value = value});
}

static inline void tick(struct world *world)
{
    dlk_engine_tick(world->engine, world->now, world->now);
    take_outbox(world);
}

static inline void later(struct world *world, uint64_t after_ms)
{
    world->now += ms(after_ms);
    tick(world);
}

/* ---- Requests ---- */

static inline struct dlk_request request(struct world *world, uint32_t op, uint32_t session,
                                         uint32_t slot)
{
    return (struct dlk_request){
        .request_id = ++world->next_request,
        .op = (uint8_t)op,
        .session = session,
        .lock_id = 100 + slot,
        .slot = slot,
        .entry = DLK_NONE,
        .owner = 1,
    };
}

static inline struct dlk_reply ask(struct world *world, struct dlk_request asked)
{
    dlk_engine_step(world->engine, &asked, 1, world->now);
    take_outbox(world);
    assert(told(world, asked.request_id).result != DLK_RESULT_COUNT);
    return told(world, asked.request_id);
}

static inline struct dlk_request lock_request(struct world *world, uint32_t session, uint32_t slot,
                                              uint32_t mode, uint32_t lease_ms, uint32_t wait_ms,
                                              uint32_t flags)
{
    struct dlk_request asked = request(world, DLK_OP_LOCK, session, slot);
    asked.mode = (uint8_t)mode;
    asked.lease_ms = lease_ms;
    asked.wait_ms = wait_ms;
    asked.flags = (uint16_t)flags;
    return asked;
}

/* Without a lease, without a wait. */
static inline struct dlk_reply try(struct world *world, uint32_t session, uint32_t slot,
                                   uint32_t mode)
{
    return ask(world, lock_request(world, session, slot, mode, 0, 0, 0));
}

static inline struct dlk_reply leased(struct world *world, uint32_t session, uint32_t slot,
                                      uint32_t mode, uint32_t lease_ms)
{
    return ask(world, lock_request(world, session, slot, mode, lease_ms, 0, 0));
}

static inline struct dlk_reply wait(struct world *world, uint32_t session, uint32_t slot,
                                    uint32_t mode, uint32_t wait_ms)
{
    return ask(world, lock_request(world, session, slot, mode, 0, wait_ms, 0));
}

static inline struct dlk_reply ticket(struct world *world, uint32_t session, uint32_t mode)
{
    return ask(world, lock_request(world, session, FAIR, mode, 0, 0, DLK_FLAG_TICKET));
}

/* About what an earlier reply gave: a hold, a place in the queue or a ticket. */
static inline struct dlk_request about(struct world *world, uint32_t op, uint32_t slot,
                                       struct dlk_reply given)
{
    struct dlk_request asked = request(world, op, given.session, slot);
    asked.mode = given.mode;
    asked.token = given.token;
    asked.entry = given.entry;
    asked.value = given.request_id;
    return asked;
}

static inline struct dlk_reply tell(struct world *world, uint32_t op, uint32_t slot,
                                    struct dlk_reply given)
{
    return ask(world, about(world, op, slot, given));
}

static inline struct dlk_reply unlock(struct world *world, uint32_t slot, struct dlk_reply given)
{
    return tell(world, DLK_OP_UNLOCK, slot, given);
}

static inline struct dlk_reply extend(struct world *world, uint32_t slot, struct dlk_reply given,
                                      uint32_t lease_ms)
{
    struct dlk_request asked = about(world, DLK_OP_EXTEND, slot, given);
    asked.lease_ms = lease_ms;
    return ask(world, asked);
}

static inline struct dlk_reply redeem(struct world *world, struct dlk_reply given,
                                      uint32_t lease_ms, uint32_t wait_ms)
{
    struct dlk_request asked = about(world, DLK_OP_REDEEM, FAIR, given);
    asked.lease_ms = lease_ms;
    asked.wait_ms = wait_ms;
    asked.flags = wait_ms != 0 ? DLK_FLAG_TICKET : 0;
    return ask(world, asked);
}

static inline size_t entries(const struct world *world, uint32_t slot)
{
    return dlk_engine_view(world->engine, slot, NULL, 0);
}

/* ---- Beginning and end ---- */

static inline struct world world_of(uint32_t max_entries)
{
    const struct dlk_limits limits = {.max_locks = 8, .max_sessions = 8, .max_cells = 4,
                                      .max_entries = max_entries, .max_lease_ms = 3600000,
                                      .ticket_claim_ms = CLAIM_MS};
    struct world world = {.engine = dlk_engine_new(&limits, EPOCH), .now = ms(1)};
    assert(world.engine != NULL);
    assert(server_command(&world, DLK_COMMAND_READY, 1) == DLK_RESULT_DONE);
    for (uint32_t slot = 0; slot < SESSIONS; slot++) {
        assert(session_command(&world, DLK_COMMAND_SESSION_OPEN, slot) == DLK_RESULT_DONE);
    }
    for (uint32_t slot = 0; slot < LOCKS; slot++) {
        assert(lock_command(&world, DLK_COMMAND_LOCK_OPEN, slot) == DLK_RESULT_DONE);
    }
    return world;
}

struct test {
    const char *name;
    void (*run)(struct world *world);
    uint32_t max_entries; /* 0: enough */
};

static inline int run_tests(const struct test *tests, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct world world = world_of(tests[i].max_entries != 0 ? tests[i].max_entries : 32);
        printf("%s\n", tests[i].name);
        fflush(stdout);
        tests[i].run(&world);
        dlk_engine_free(world.engine);
    }
    return 0;
}

#endif
