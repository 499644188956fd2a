/*
 * A recovering engine, and a way to claim that reads like the law: what the tests of claims share.
 * Sessions 0 to 2 are early ones, session 3 is not. A number is what a former server counted.
 */
#ifndef DLOCK_CLAIM_WORLD_H
#define DLOCK_CLAIM_WORLD_H

#include "engine_world.h"

enum { PLAIN = 3, EARLY_SESSIONS = 3, GRACE_MS = 6000 };

static const uint32_t kind_of[LOCKS] = {DLK_KIND_ATOMIC, DLK_KIND_RW, DLK_KIND_FAIR,
                                        DLK_KIND_SEMAPHORE};

static inline uint64_t former(uint64_t number)
{
    return ((uint64_t)(EPOCH - 1) << DLK_COUNTER_BITS) + number;
}

static inline struct dlk_claim got(uint32_t slot)
{
    return (struct dlk_claim){.owner = 1, .lock_id = 100 + slot, .slot = slot,
                              .kind = kind_of[slot], .size = slot == SEMAPHORE ? PERMITS : 1,
                              .result = DLK_RESULT_COUNT};
}

static inline struct dlk_claim holds(uint32_t slot, uint32_t mode, uint64_t number)
{
    struct dlk_claim claim = got(slot);
    claim.state = DLK_ENTRY_HELD;
    claim.mode = mode;
    claim.token = former(number);
    claim.count = 1;
    return claim;
}

static inline struct dlk_claim holds_leased(uint32_t slot, uint64_t number, uint32_t remaining_ms)
{
    struct dlk_claim claim = holds(slot, EX, number);
    claim.leased = 1;
    claim.remaining_ms = remaining_ms;
    return claim;
}

static inline struct dlk_claim lapsed(struct dlk_claim claim)
{
    claim.lapsed = 1;
    claim.remaining_ms = 0;
    return claim;
}

static inline struct dlk_claim waits(uint32_t slot, uint32_t mode, uint64_t number,
                                     uint32_t request_id)
{
    struct dlk_claim claim = got(slot);
    claim.state = DLK_ENTRY_QUEUED;
    claim.mode = mode;
    claim.stamp = former(number);
    claim.request_id = request_id;
    claim.wait_ms = DLK_WAIT_FOREVER;
    return claim;
}

static inline struct dlk_claim has_ticket(uint32_t mode, uint64_t number)
{
    struct dlk_claim claim = got(FAIR);
    claim.state = DLK_ENTRY_TICKET;
    claim.mode = mode;
    claim.stamp = former(number);
    return claim;
}

static inline struct dlk_command claim_command(uint32_t session, struct dlk_claim *claims,
                                               uint32_t count)
{
    return (struct dlk_command){.op = DLK_COMMAND_CLAIM, .slot = session, .id = 1000 + session,
                                .value = (uint64_t)(uintptr_t)claims, .size = count};
}

/* One claim; `believed`: the roster still lists the session, or the application's word counts. */
static inline uint32_t claims_as(struct world *world, uint32_t session, struct dlk_claim claim,
                                 bool believed)
{
    struct dlk_command order = claim_command(session, &claim, 1);
    order.kind = believed;
    assert(command(world, order) == DLK_RESULT_DONE);
    return claim.result;
}

static inline uint32_t claims(struct world *world, uint32_t session, struct dlk_claim claim)
{
    return claims_as(world, session, claim, false);
}

/* What a client says of the hold that it claimed. */
static inline struct dlk_reply as_reply(uint32_t session, struct dlk_claim claim)
{
    return (struct dlk_reply){.session = session, .mode = (uint8_t)claim.mode,
                              .token = claim.token, .entry = DLK_NONE,
                              .request_id = claim.request_id};
}

/* The notice of the last call that the hold of this claim is lost. */
static inline bool told_lost(const struct world *world, uint32_t session, struct dlk_claim claim)
{
    for (size_t i = 0; i < world->n_told; i++) {
        if (world->told[i].op == DLK_OP_NOTICE && world->told[i].session == session
            && world->told[i].token == claim.token
            && world->told[i].result == DLK_RESULT_NOT_HELD) {
            return true;
        }
    }
    return false;
}

static inline bool is_held(const struct world *world, uint32_t slot, uint64_t token)
{
    struct dlk_entry_view views[32];
    size_t count = dlk_engine_view(world->engine, slot, views, 32);
    assert(count <= 32);
    for (size_t i = 0; i < count; i++) {
        if (views[i].state == DLK_ENTRY_HELD && views[i].token == token) {
            return true;
        }
    }
    return false;
}

static inline uint64_t counted(const struct world *world, enum dlk_counter counter)
{
    return dlk_engine_counters(world->engine)[counter];
}

static inline uint32_t all_is_ready(struct world *world)
{
    return command(world, (struct dlk_command){.op = DLK_COMMAND_READY, .value = DLK_READY_ALL,
                                               .ttl_ms = GRACE_MS});
}

static inline void open_early(struct world *world, uint32_t slot)
{
    assert(command(world, (struct dlk_command){.op = DLK_COMMAND_SESSION_OPEN, .slot = slot,
                                               .id = 1000 + slot, .ttl_ms = TTL_MS,
                                               .lease_ms = MAX_LEASE_MS, .attach = 1,
                                               .kind = DLK_SESSION_EARLY})
           == DLK_RESULT_DONE);
}

static inline struct world recovering_world(uint32_t max_entries)
{
    const struct dlk_limits limits = {.max_locks = 8, .max_sessions = 8, .max_cells = 4,
                                      .max_entries = max_entries, .max_lease_ms = 3600000,
                                      .ticket_claim_ms = CLAIM_MS};
    struct world world = {.engine = dlk_engine_new(&limits, EPOCH), .now = ms(1)};
    assert(world.engine != NULL);
    assert(server_command(&world, DLK_COMMAND_READY, DLK_READY_RECOVERING) == DLK_RESULT_DONE);
    for (uint32_t slot = 0; slot < EARLY_SESSIONS; slot++) {
        open_early(&world, slot);
    }
    assert(session_command(&world, DLK_COMMAND_SESSION_OPEN, PLAIN) == DLK_RESULT_DONE);
    return world;
}

static inline int run_recoveries(const struct test *tests, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct world world =
            recovering_world(tests[i].max_entries != 0 ? tests[i].max_entries : 32);
        printf("%s\n", tests[i].name);
        fflush(stdout);
        tests[i].run(&world);
        dlk_engine_free(world.engine);
    }
    return 0;
}

#endif
