/*
 * Posted calls and threads, against a real plane: exclusion between those that wait and those that
 * are posted, several collectors, cancels that cross their grants, and connections that are
 * replaced while calls are posted.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "collect_world.h"

enum { ROOM = 64, LOOPS = 16, THREADS = 4, ROUNDS = 60, PAIRS = 4000, RACERS = 200 };

static struct user shared;
static int inside; /* guarded by lock 4, which is what the test is about */
static _Atomic int entered;

/* ---- Exclusion between waiting threads and posted calls ---- */

static void *contend(void *argument)
{
    uint64_t owner = (uintptr_t)argument;
    for (int i = 0; i < ROUNDS; i++) {
        assert(simple(&shared, WAIT, 4, owner) == S(SUCCESS));
        assert(inside++ == 0);
        atomic_fetch_add(&entered, 1);
        assert(inside-- == 1);
        assert(simple(&shared, UNLOCK, 4, owner) == S(SUCCESS));
    }
    return NULL;
}

/* A round of one posted owner: the grant is there, or the unlock. True: it goes on. */
static bool turn(struct dlk_call *call, int *rounds)
{
    assert(call->status == S(SUCCESS));
    if (call->verb == UNLOCK) {
        call->verb = WAIT;
        return ++*rounds < ROUNDS;
    }
    assert(inside++ == 0);
    atomic_fetch_add(&entered, 1);
    assert(inside-- == 1);
    call->verb = UNLOCK;
    return true;
}

static size_t collect_by_waiting(const struct user *user, struct dlk_ended *ended, size_t room)
{
    size_t count;
    while ((count = dlk_client_collect_wait(user->client, ended, room, 1000)) == 0) {
    }
    return count;
}

typedef size_t collect_function(const struct user *, struct dlk_ended *, size_t);

static void loop(collect_function *collect)
{
    struct dlk_call calls[LOOPS];
    int rounds[LOOPS] = {0};
    int left = LOOPS;
    struct dlk_ended ended[ROOM];
    for (uint64_t i = 0; i < LOOPS; i++) {
        calls[i] = make_call(WAIT, 4, 100 + i, WAIT_LONG_MS);
        assert(post(&shared, &calls[i]) == S(PENDING));
    }
    while (left != 0) {
        dlk_client_flush(shared.client);
        size_t count = collect(&shared, ended, ROOM);
        for (size_t i = 0; i < count; i++) {
            struct dlk_call *call = call_of(&ended[i]);
            if (turn(call, &rounds[call - calls])) {
                assert(post(&shared, call) == S(PENDING));
            } else {
                left--;
            }
        }
    }
}

static void test_exclusion(struct world *world, uint32_t slot, collect_function *collect)
{
    pthread_t threads[THREADS];
    shared = join(world, slot);
    entered = 0;
    for (uint64_t i = 0; i < LOOPS; i++) {
        get_lock(&shared, 4, DLK_KIND_ATOMIC, 100 + i);
    }
    for (uintptr_t i = 0; i < THREADS; i++) {
        get_lock(&shared, 4, DLK_KIND_ATOMIC, 1 + i);
        assert(pthread_create(&threads[i], NULL, contend, (void *)(i + 1)) == 0);
    }
    loop(collect);
    for (int i = 0; i < THREADS; i++) {
        assert(pthread_join(threads[i], NULL) == 0);
    }
    assert(entered == (THREADS + LOOPS) * ROUNDS && dlk_client_debts(shared.client) == 0);
    dlk_client_free(shared.client);
}

/* ---- Several collectors ---- */

static struct dlk_call many[PAIRS];
static _Atomic int times_collected[PAIRS];
static _Atomic int collected;

static void *collect_until_all(void *argument)
{
    size_t room = (uintptr_t)argument;
    struct dlk_ended ended[ROOM];
    while (collected < PAIRS) {
        size_t count = dlk_client_collect_wait(shared.client, ended, room, 20);
        for (size_t i = 0; i < count; i++) {
            times_collected[call_of(&ended[i]) - many]++;
            assert(ended[i].status == S(SUCCESS));
        }
        collected += (int)count;
    }
    return NULL;
}

static void test_several_collectors(struct world *world)
{
    static const uintptr_t rooms[THREADS] = {1, 2, 7, ROOM};
    pthread_t threads[THREADS];
    shared = join(world, 3);
    for (uint32_t i = 0; i < 8; i++) {
        get_lock(&shared, 8 + i, DLK_KIND_ATOMIC, 1);
    }
    for (int i = 0; i < THREADS; i++) {
        assert(pthread_create(&threads[i], NULL, collect_until_all, (void *)rooms[i]) == 0);
    }
    for (uint32_t i = 0; i < PAIRS; i++) {
        many[i] = make_call(i / 8 % 2 == 0 ? TRY : UNLOCK, 8 + i % 8, 1, 0);
        assert(post(&shared, &many[i]) == S(PENDING));
        if (i % 16 == 15) {
            dlk_client_flush(shared.client);
        }
    }
    for (int i = 0; i < THREADS; i++) {
        assert(pthread_join(threads[i], NULL) == 0);
    }
    for (int i = 0; i < PAIRS; i++) {
        assert(times_collected[i] == 1);
    }
    dlk_client_free(shared.client);
}

/* ---- Cancels that cross their grants ---- */

static _Atomic bool stop;

static void *collect_until_stopped(void *unused)
{
    struct dlk_ended ended[ROOM];
    (void)unused;
    while (!stop) {
        if (readable(&shared, 5)) {
            dlk_client_collect(shared.client, ended, ROOM);
        }
    }
    return NULL;
}

/* Each is cancelled, some before their grant, some with it, some after it was collected: the lock
 * is passed on each time, and at the end nobody has it. */
static void test_cancels_cross_grants(struct world *world)
{
    static struct dlk_call calls[RACERS];
    struct user other = join(world, 5);
    pthread_t collector;
    shared = join(world, 4);
    get_lock(&other, 5, DLK_KIND_ATOMIC, 0);
    stop = false;
    assert(pthread_create(&collector, NULL, collect_until_stopped, NULL) == 0);
    srand(5);
    for (int round = 0; round < 10; round++) {
        for (uint64_t i = 0; i < RACERS; i++) {
            get_lock(&shared, 5, DLK_KIND_ATOMIC, 1 + i);
            calls[i] = make_call(WAIT, 5, 1 + i, WAIT_LONG_MS);
            assert(post(&shared, &calls[i]) == S(PENDING));
        }
        dlk_client_flush(shared.client);
        uint32_t first = (uint32_t)rand() % RACERS;
        for (uint32_t i = 0; i < RACERS; i++) {
            if (rand() % 8 == 0) {
                usleep((useconds_t)(rand() % 200));
            }
            dlk_client_cancel(shared.client, &calls[(first + i * 7) % RACERS]);
        }
        while (dlk_client_settle(shared.client, 50) == S(PENDING)) {
        }
        assert(dlk_client_debts(shared.client) == 0);
        assert(simple(&other, TRY, 5, 0) == S(SUCCESS));
        assert(simple(&other, UNLOCK, 5, 0) == S(SUCCESS));
    }
    stop = true;
    assert(pthread_join(collector, NULL) == 0);
    dlk_client_free(shared.client);
    dlk_client_free(other.client);
}

/* ---- Connections that are replaced ---- */

static _Atomic bool replaced;

static void *post_pairs(void *argument)
{
    uint64_t *answers = argument;
    struct dlk_call calls[8];
    struct dlk_ended ended[ROOM];
    while (!replaced) {
        size_t under_way = 0;
        for (uint32_t i = 0; i < 8; i++) {
            calls[i] = make_call(i % 2 == 0 ? TRY : UNLOCK, 8 + i / 2, 1, 0);
            under_way += post(&shared, &calls[i]) == S(PENDING);
        }
        dlk_client_flush(shared.client);
        while (under_way != 0) {
            size_t count = collect_some(&shared, ended, ROOM);
            for (size_t i = 0; i < count; i++) {
                assert(ended[i].status != S(PENDING));
                answers[ended[i].status == S(BAD_RESPONSE)]++;
            }
            under_way -= count;
        }
    }
    return NULL;
}

static void test_connections_are_replaced(struct world *world)
{
    uint64_t answers[2] = {0};
    pthread_t poster;
    shared = join(world, 6);
    for (uint32_t i = 0; i < 4; i++) {
        get_lock(&shared, 8 + i, DLK_KIND_ATOMIC, 1);
    }
    replaced = false;
    assert(pthread_create(&poster, NULL, post_pairs, answers) == 0);
    for (int i = 0; i < 30; i++) {
        usleep(3000);
        reattach(world, &shared);
    }
    usleep(20000);
    replaced = true;
    assert(pthread_join(poster, NULL) == 0);
    assert(answers[0] != 0);
    while (dlk_client_settle(shared.client, 50) == S(PENDING)) {
    }
    assert(dlk_client_debts(shared.client) == 0 && dlk_client_attached(shared.client));
    dlk_client_free(shared.client);
}

int main(void)
{
    static struct world world;
    struct dlk_plane_config config = world_config();
    world_start(&world, &config);
    for (uint32_t slot = 4; slot < 24; slot++) {
        world_open_lock(&world, slot, 100 + slot, DLK_KIND_ATOMIC);
    }
    test_exclusion(&world, 1, collect_some);
    test_exclusion(&world, 2, collect_by_waiting);
    test_several_collectors(&world);
    test_cancels_cross_grants(&world);
    test_connections_are_replaced(&world);
    world_stop(&world);
    puts("client_collect_threads: ok");
    return 0;
}
