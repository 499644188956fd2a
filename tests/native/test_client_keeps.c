/*
 * Waits that are kept, by threads and real planes: connections that are replaced while threads wait
 * and calls are posted, a connection that is given up for good, and a new primary that is told of
 * them.
 */
#include <stdatomic.h>
#include <stdio.h>

#include "collect_world.h"

enum { THREADS = 4, POSTED = 4, ROUNDS = 40, BREAKS = 40, ROOM = 16 };

static struct user shared;
static int inside; /* guarded by lock 4, which is what the test is about */
static _Atomic int entered;

static struct user join_keeping(struct world *world, uint32_t slot)
{
    struct dlk_client_config config = {
        .reply_timeout_ms = REPLY_TIMEOUT_MS, .keep_waits = 1, .wait_mode = DLK_WAIT_ADAPTIVE};
    struct user user = {.client = dlk_client_new(&config),
                        .link = link_to(dlk_plane_port(world->plane), slot, WORLD_TTL_MS)};
    world_open_session(world, slot, 1000 + slot, 1, WORLD_TTL_MS);
    assert(user.client != NULL && attach(&user) == S(SUCCESS));
    return user;
}

/* ---- Connections come and go ---- */

/* An unlock without an answer is owed, and made with the next connection. */
static void give_back(const struct user *user, uint64_t owner)
{
    int status = simple(user, UNLOCK, 4, owner);
    assert(status == S(SUCCESS) || status == S(BAD_RESPONSE));
}

static void *contend(void *argument)
{
    uint64_t owner = (uintptr_t)argument;
    for (int i = 0; i < ROUNDS;) {
        int status = simple(&shared, WAIT, 4, owner);
        if (status == S(BAD_RESPONSE)) {
            continue; /* asked while there was no connection */
        }
        assert(status == S(SUCCESS) && inside++ == 0);
        atomic_fetch_add(&entered, 1);
        assert(inside-- == 1);
        give_back(&shared, owner);
        i++;
    }
    return NULL;
}

/* What a posted call has come to. True: its owner's turn is over. */
static bool take_turn(struct dlk_call *call)
{
    if (call->verb == UNLOCK) {
        assert(call->status == S(SUCCESS) || call->status == S(BAD_RESPONSE));
        call->verb = WAIT;
        return true;
    }
    if (call->status == S(SUCCESS)) {
        assert(inside++ == 0);
        atomic_fetch_add(&entered, 1);
        assert(inside-- == 1);
        call->verb = UNLOCK;
    } else {
        assert(call->status == S(BAD_RESPONSE)); /* asked while there was no connection */
    }
    return false;
}

static void *collect(void *argument)
{
    struct dlk_call *calls = argument;
    struct dlk_ended ended[ROOM];
    int rounds[POSTED] = {0};
    bool posted[POSTED] = {false};
    bool all = false;
    while (!all) {
        all = true;
        for (size_t i = 0; i < POSTED; i++) {
            if (!posted[i] && rounds[i] < ROUNDS) {
                posted[i] = post(&shared, &calls[i]) == S(PENDING);
                rounds[i] += !posted[i] && take_turn(&calls[i]);
            }
            all = all && rounds[i] == ROUNDS;
        }
        dlk_client_flush(shared.client);
        size_t count = dlk_client_collect_wait(shared.client, ended, ROOM, 50);
        for (size_t i = 0; i < count; i++) {
            size_t which = (size_t)(call_of(&ended[i]) - calls);
            posted[which] = false;
            rounds[which] += take_turn(&calls[which]);
        }
    }
    return NULL;
}

static void waits_outlive_many_connections(struct world *world)
{
    pthread_t threads[THREADS];
    pthread_t collector;
    struct dlk_call calls[POSTED];
    struct user other = join(world, 2);
    shared = join_keeping(world, 1);
    get_lock(&other, 4, DLK_KIND_ATOMIC, 1);
    for (uint64_t owner = 1; owner <= THREADS + POSTED; owner++) {
        get_lock(&shared, 4, DLK_KIND_ATOMIC, owner);
    }
    for (uint64_t i = 0; i < THREADS; i++) {
        assert(pthread_create(&threads[i], NULL, contend, (void *)(uintptr_t)(i + 1)) == 0);
    }
    for (uint64_t i = 0; i < POSTED; i++) {
        calls[i] = make_call(WAIT, 4, THREADS + 1 + i, WAIT_LONG_MS);
    }
    assert(pthread_create(&collector, NULL, collect, calls) == 0);
    for (int i = 0; i < BREAKS; i++) {
        assert(simple(&other, WAIT, 4, 1) == S(SUCCESS) && inside++ == 0);
        reattach(world, &shared);
        assert(inside-- == 1 && simple(&other, UNLOCK, 4, 1) == S(SUCCESS));
    }
    for (int i = 0; i < THREADS; i++) {
        assert(pthread_join(threads[i], NULL) == 0);
    }
    assert(pthread_join(collector, NULL) == 0);
    while (dlk_client_settle(shared.client, 50) != S(SUCCESS)) {
    }
    assert(entered >= (THREADS + POSTED) * ROUNDS);
    assert(simple(&other, TRY, 4, 1) == S(SUCCESS) && simple(&other, UNLOCK, 4, 1) == S(SUCCESS));
    dlk_client_free(shared.client);
    dlk_client_free(other.client);
}

/* ---- A connection that is given up ---- */

static void *wait_in_vain(void *argument)
{
    struct dlk_call *call = argument;
    assert(run_call(&shared, call) == S(BAD_RESPONSE));
    return NULL;
}

/* With a connection, and without: nobody waits for what nobody will bring. */
static void nobody_waits_for_a_client_that_is_left(struct world *world, bool broken)
{
    pthread_t threads[THREADS];
    struct dlk_call calls[THREADS];
    uint32_t lock = 5 + broken;
    struct user other = join(world, 4 + broken);
    shared = join_keeping(world, 6 + broken);
    get_lock(&other, lock, DLK_KIND_ATOMIC, 1);
    assert(simple(&other, TRY, lock, 1) == S(SUCCESS));
    uint64_t waits = world_count(world, DLK_COUNT_WAITS);
    for (uint64_t i = 0; i < THREADS; i++) {
        calls[i] = make_call(WAIT, lock, i + 1, DLK_WAIT_FOREVER);
        get_lock(&shared, lock, DLK_KIND_ATOMIC, i + 1);
        assert(pthread_create(&threads[i], NULL, wait_in_vain, &calls[i]) == 0);
    }
    world_await_count(world, DLK_COUNT_WAITS, waits + THREADS);
    if (broken) {
        world_supersede(world, shared.link.session_slot, shared.link.client_id, 99);
        while (dlk_client_attached(shared.client)) {
        }
    }
    dlk_client_detach(shared.client);
    for (int i = 0; i < THREADS; i++) {
        assert(pthread_join(threads[i], NULL) == 0);
    }
    dlk_client_free(shared.client);
    dlk_client_free(other.client);
}

/* ---- A new primary ---- */

static void *wait_over_the_change(void *argument)
{
    struct dlk_call call = make_call(WAIT, 6, (uintptr_t)argument, DLK_WAIT_FOREVER);
    assert(run_call(&shared, &call) == S(SUCCESS));
    atomic_fetch_add(&entered, 1);
    assert(simple(&shared, UNLOCK, 6, (uintptr_t)argument) == S(SUCCESS));
    return NULL;
}

static void claim_all(struct world *next, struct user *user)
{
    struct dlk_claim claims[8];
    int32_t statuses[8];
    size_t count = dlk_client_claims(user->client, claims, 8);
    uint32_t held = 0;
    uint32_t queued = 0;
    assert(count <= 8 && !dlk_client_attached(user->client));
    for (size_t i = 0; i < count; i++) {
        struct dlk_command command = {.op = DLK_COMMAND_CLAIM,
                                      .slot = user->link.session_slot,
                                      .id = user->link.client_id,
                                      .size = 1,
                                      .value = (uint64_t)(uintptr_t)&claims[i]};
        assert(world_command(next, command) == DLK_RESULT_DONE);
        held += claims[i].result == DLK_RESULT_GRANTED;
        queued += claims[i].result == DLK_RESULT_QUEUED;
        statuses[i] = S(SUCCESS);
    }
    assert(held == 1 && queued == THREADS);
    dlk_client_claimed(user->client, claims, statuses, count);
    dlk_client_seal(user->client);
}

/* One holds, others wait in a row; the server is replaced by one of a higher epoch. */
static void a_new_primary_takes_holds_and_places_over(void)
{
    struct world former;
    struct world next;
    pthread_t threads[THREADS];
    struct dlk_plane_config config = world_config();
    world_start(&former, &config);
    config.epoch++;
    config.ready = DLK_READY_RECOVERING;
    world_start(&next, &config);
    world_open_lock(&former, 6, 106, DLK_KIND_ATOMIC);
    shared = join_keeping(&former, 1);
    atomic_store(&entered, 0);
    get_lock(&shared, 6, DLK_KIND_ATOMIC, 1);
    assert(simple(&shared, TRY, 6, 1) == S(SUCCESS));
    for (uint64_t owner = 2; owner < 2 + THREADS; owner++) {
        get_lock(&shared, 6, DLK_KIND_ATOMIC, owner);
        assert(pthread_create(&threads[owner - 2], NULL, wait_over_the_change,
                              (void *)(uintptr_t)owner) == 0);
        world_await_count(&former, DLK_COUNT_WAITS, owner - 1);
    }
    struct dlk_command open = {.op = DLK_COMMAND_SESSION_OPEN, .slot = 1, .id = 1001, .attach = 1,
                               .ttl_ms = WORLD_TTL_MS, .lease_ms = DLK_MAX_LEASE_MS_DEFAULT,
                               .kind = DLK_SESSION_EARLY, .secret = {1, 2, 3, 1}};
    assert(world_command(&next, open) == DLK_RESULT_DONE);
    assert(simple(&shared, DLK_VERB_PING, 6, 0) == S(SUCCESS)); /* each has heard of its place */
    claim_all(&next, &shared);
    assert(simple(&shared, TRY, 6, 1) == S(BAD_RESPONSE)); /* nothing is asked meanwhile */
    world_stop(&former);
    shared.link.port = dlk_plane_port(next.plane);
    shared.link.epoch++;
    assert(attach(&shared) == S(SUCCESS));
    dlk_client_verify(shared.client);
    assert(simple(&shared, UNLOCK, 6, 1) == S(SUCCESS)); /* it is certain: served at once */
    for (int i = 0; i < THREADS; i++) {
        assert(pthread_join(threads[i], NULL) == 0);
    }
    assert(entered == THREADS && world_count(&next, DLK_COUNT_GRANTS) == THREADS);
    dlk_client_free(shared.client);
    world_stop(&next);
}

static void *keep(void *unused)
{
    (void)unused;
    assert(dlk_keeper_run() == S(SUCCESS));
    return NULL;
}

int main(void)
{
    struct world world;
    pthread_t keeper;
    struct dlk_plane_config config = world_config();
    assert(pthread_create(&keeper, NULL, keep, NULL) == 0);
    world_start(&world, &config);
    world_open_lock(&world, 4, 104, DLK_KIND_ATOMIC);
    world_open_lock(&world, 5, 105, DLK_KIND_ATOMIC);
    world_open_lock(&world, 6, 106, DLK_KIND_ATOMIC);
    waits_outlive_many_connections(&world);
    nobody_waits_for_a_client_that_is_left(&world, false);
    nobody_waits_for_a_client_that_is_left(&world, true);
    world_stop(&world);
    a_new_primary_takes_holds_and_places_over();
    dlk_keeper_stop();
    assert(pthread_join(keeper, NULL) == 0);
    return 0;
}
