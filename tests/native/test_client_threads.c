/*
 * Many threads on one client, many requests on one connection, against a real plane: exclusion,
 * waiters that delay nobody, serialised holds, batches, and cancels that cross their grants.
 */
#include <stdio.h>
#include <stdlib.h>

#include "client_world.h"

#define TRY DLK_VERB_TRYLOCK
#define WAIT DLK_VERB_LOCK
#define UNLOCK DLK_VERB_UNLOCK
#define S(name) DLK_STATUS_##name

enum { THREADS = 8, ROUNDS = 100, CELL = 3, IN_FLIGHT = 1000 };

static struct user shared; /* the client that the threads of one test share */
static int inside;         /* guarded by lock 4, which is what the test is about */
static int rounds_done;

static void each_thread(void *(*body)(void *))
{
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++) {
        assert(pthread_create(&threads[i], NULL, body, (void *)(i + 1)) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        assert(pthread_join(threads[i], NULL) == 0);
    }
}

/* ---- Exclusion between owners ---- */

static void *contend(void *argument)
{
    uint64_t owner = (uintptr_t)argument;
    uint32_t own_lock = 8 + (uint32_t)owner;
    for (int i = 0; i < ROUNDS; i++) {
        assert(simple(&shared, WAIT, 4, owner) == S(SUCCESS));
        assert(inside++ == 0);
        assert(simple(&shared, TRY, own_lock, owner) == S(SUCCESS));
        assert(simple(&shared, UNLOCK, own_lock, owner) == S(SUCCESS));
        rounds_done++;
        assert(inside-- == 1);
        assert(simple(&shared, UNLOCK, 4, owner) == S(SUCCESS));
    }
    return NULL;
}

static void test_exclusion(struct world *world, uint32_t slot, uint32_t wait_mode)
{
    shared = join_as(world, slot, wait_mode, WORLD_TTL_MS, REPLY_TIMEOUT_MS);
    rounds_done = 0;
    for (uint64_t owner = 1; owner <= THREADS; owner++) {
        get_lock(&shared, 4, DLK_KIND_ATOMIC, owner);
        get_lock(&shared, 8 + (uint32_t)owner, DLK_KIND_ATOMIC, owner);
    }
    each_thread(contend);
    assert(rounds_done == THREADS * ROUNDS && dlk_client_debts(shared.client) == 0);
    dlk_client_free(shared.client);
}

/* ---- Waiting ---- */

struct waiting {
    pthread_t thread;
    const struct user *user;
    uint32_t lock;
    uint64_t owner;
    int status;
};

static void *wait_for_lock(void *argument)
{
    struct waiting *waiting = argument;
    waiting->status = simple(waiting->user, WAIT, waiting->lock, waiting->owner);
    return NULL;
}

static void begin_waiting(struct waiting *waiting)
{
    assert(pthread_create(&waiting->thread, NULL, wait_for_lock, waiting) == 0);
}

static int end_waiting(struct waiting *waiting)
{
    assert(pthread_join(waiting->thread, NULL) == 0);
    return waiting->status;
}

static void test_a_waiter_delays_nobody(struct world *world)
{
    struct user holder = join(world, 4);
    struct user user = join(world, 5);
    struct waiting waiting = {.user = &user, .lock = 4, .owner = 1};
    uint64_t waits = world_count(world, DLK_COUNT_WAITS);
    get_lock(&holder, 4, DLK_KIND_ATOMIC, 0);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    get_lock(&user, 5, DLK_KIND_ATOMIC, 2);
    assert(simple(&holder, TRY, 4, 0) == S(SUCCESS));
    begin_waiting(&waiting);
    world_await_count(world, DLK_COUNT_WAITS, waits + 1);
    for (int i = 0; i < 300; i++) {
        assert(simple(&user, TRY, 5, 2) == S(SUCCESS));
        assert(simple(&user, UNLOCK, 5, 2) == S(SUCCESS));
    }
    assert(simple(&holder, UNLOCK, 4, 0) == S(SUCCESS));
    assert(end_waiting(&waiting) == S(SUCCESS));
    assert(simple(&user, UNLOCK, 4, 1) == S(SUCCESS));
    dlk_client_free(holder.client);
    dlk_client_free(user.client);
}

/* Two threads with the same owner: while one waits at the server, the other's tries fail, and its
 * lock is decided when the first has it: a re-entry. */
static void test_same_owner(struct world *world)
{
    struct user holder = join(world, 6);
    struct user user = join(world, 7);
    struct waiting first = {.user = &user, .lock = 4, .owner = 1};
    struct waiting second = first;
    uint64_t waits = world_count(world, DLK_COUNT_WAITS);
    get_lock(&holder, 4, DLK_KIND_ATOMIC, 0);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    assert(simple(&holder, TRY, 4, 0) == S(SUCCESS));
    begin_waiting(&first);
    world_await_count(world, DLK_COUNT_WAITS, waits + 1);
    while (simple(&user, TRY, 4, 1) != S(FAIL)) {
    }
    assert(simple(&user, UNLOCK, 4, 1) == S(ALREADY_UNLOCKED));
    begin_waiting(&second);
    usleep(2000);
    assert(simple(&holder, UNLOCK, 4, 0) == S(SUCCESS));
    int a = end_waiting(&first);
    int b = end_waiting(&second);
    assert((a == S(SUCCESS) && b == S(ALREADY_LOCKED))
           || (b == S(SUCCESS) && a == S(ALREADY_LOCKED)));
    assert(simple(&user, UNLOCK, 4, 1) == S(ALREADY_LOCKED));
    assert(simple(&user, UNLOCK, 4, 1) == S(SUCCESS));
    dlk_client_free(holder.client);
    dlk_client_free(user.client);
}

/* A wait at the server that ends by itself, told from the local one that stood behind it. */
static void test_waits_end(struct world *world)
{
    struct user holder = join(world, 8);
    struct user user = join(world, 9);
    get_lock(&holder, 4, DLK_KIND_ATOMIC, 0);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    assert(simple(&holder, TRY, 4, 0) == S(SUCCESS));
    struct dlk_call call = make_call(WAIT, 4, 1, 60);
    struct dlk_call behind = make_call(WAIT, 4, 1, 1);
    assert(dlk_client_start(user.client, &call) == S(PENDING));
    assert(finish_call(&user, &behind, dlk_client_start(user.client, &behind)) == S(FAIL));
    assert(behind.result == DLK_RESULT_COUNT);
    assert(finish_call(&user, &call, S(PENDING)) == S(FAIL));
    assert(call.result == DLK_RESULT_TIMED_OUT);
    assert(simple(&holder, UNLOCK, 4, 0) == S(SUCCESS));
    dlk_client_free(holder.client);
    dlk_client_free(user.client);
}

/* ---- Cancel against grant ---- */

static struct user releaser;

static void *release_lock(void *argument)
{
    (void)argument;
    assert(simple(&releaser, UNLOCK, 4, 0) == S(SUCCESS));
    return NULL;
}

static void test_cancel_crosses_grant(struct world *world)
{
    struct user user = join(world, 11);
    releaser = join(world, 10);
    get_lock(&releaser, 4, DLK_KIND_ATOMIC, 0);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    for (int i = 0; i < 200; i++) {
        pthread_t thread;
        struct dlk_call call = make_call(WAIT, 4, 1, WAIT_LONG_MS);
        assert(simple(&releaser, WAIT, 4, 0) == S(SUCCESS));
        assert(dlk_client_start(user.client, &call) == S(PENDING));
        assert(pthread_create(&thread, NULL, release_lock, NULL) == 0);
        if (i % 4 != 0) {
            usleep((unsigned)(i % 4) * 40);
        }
        if (i % 2 != 0) {
            dlk_client_poll(user.client, &call);
        }
        dlk_client_cancel(user.client, &call);
        assert(pthread_join(thread, NULL) == 0);
        /* Nothing is left behind: the releaser gets it again, and the user holds nothing. */
        assert(simple(&user, UNLOCK, 4, 1) == S(ALREADY_UNLOCKED));
    }
    while (dlk_client_settle(user.client, 50) == S(PENDING)) {
    }
    assert(dlk_client_debts(user.client) == 0);
    assert(simple(&releaser, TRY, 4, 0) == S(SUCCESS));
    assert(simple(&releaser, UNLOCK, 4, 0) == S(SUCCESS));
    dlk_client_free(user.client);
    dlk_client_free(releaser.client);
}

/* ---- Many at once ---- */

static void test_batch(struct world *world)
{
    struct user user = join(world, 12);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 0);
    get_lock(&user, 5, DLK_KIND_ATOMIC, 0);
    struct dlk_call calls[] = {
        make_call(TRY, 4, 0, 0),    make_call(TRY, 5, 0, 0),    make_call(TRY, 4, 0, 0),
        make_call(UNLOCK, 4, 0, 0), make_call(UNLOCK, 4, 0, 0), make_call(UNLOCK, 4, 0, 0),
        make_call(TRY, 63, 0, 0),   make_call(UNLOCK, 5, 0, 0), make_call(TRY, 5, 0, 0),
    };
    static const int expected[] = {
        S(SUCCESS),        S(SUCCESS),          S(ALREADY_LOCKED),
        S(ALREADY_LOCKED), S(SUCCESS),          S(ALREADY_UNLOCKED),
        S(LOCK_NOT_GET),   S(SUCCESS),          S(SUCCESS),
    };
    size_t count = sizeof(calls) / sizeof(calls[0]);
    int status = dlk_client_batch(user.client, calls, count);
    while (status == S(PENDING)) {
        status = dlk_client_batch_wait(user.client, calls, count);
    }
    assert(status == S(SUCCESS));
    for (size_t i = 0; i < count; i++) {
        assert(calls[i].status == expected[i]);
    }
    assert(dlk_client_batch(user.client, calls, 0) == S(SUCCESS));
    assert(dlk_client_batch(user.client, calls, DLK_INFLIGHT_MAX / 2 + 1) == S(EINVAL));
    /* Given up: what it took is given back. */
    calls[0] = make_call(TRY, 4, 0, 0);
    dlk_client_batch_start(user.client, calls, 1);
    dlk_client_cancel(user.client, &calls[0]);
    assert(simple(&user, TRY, 4, 0) == S(SUCCESS));
    dlk_client_free(user.client);
}

static struct dlk_call adds[DLK_INFLIGHT_MAX / 2];

static void test_in_flight(struct world *world)
{
    struct user user = join(world, 13);
    assert(dlk_client_add_object(user.client, 100 + CELL, CELL) == S(SUCCESS));
    for (int i = 0; i < IN_FLIGHT; i++) {
        adds[i] = (struct dlk_call){
            .verb = DLK_VERB_FETCH_ADD, .lock_id = 100 + CELL, .operand = 1};
        dlk_client_start(user.client, &adds[i]);
    }
    for (int i = 0; i < IN_FLIGHT; i++) {
        while (dlk_client_poll(user.client, &adds[i]) == S(PENDING)) {
        }
        assert(adds[i].status == S(SUCCESS) && adds[i].value == (uint64_t)i);
    }
    size_t count = sizeof(adds) / sizeof(adds[0]);
    for (size_t i = 0; i < count; i++) {
        adds[i] = (struct dlk_call){
            .verb = DLK_VERB_FETCH_ADD, .lock_id = 100 + CELL, .operand = 1};
    }
    int status = dlk_client_batch(user.client, adds, count);
    while (status == S(PENDING)) {
        status = dlk_client_batch_wait(user.client, adds, count);
    }
    for (size_t i = 0; i < count; i++) {
        assert(adds[i].status == S(SUCCESS) && adds[i].value == IN_FLIGHT + i);
    }
    dlk_client_free(user.client);
}

static void *add_in_batches(void *argument)
{
    struct dlk_call calls[31];
    (void)argument;
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < 31; i++) {
            calls[i] = (struct dlk_call){
                .verb = DLK_VERB_FETCH_ADD, .lock_id = 100 + CELL, .operand = 1};
        }
        int status = round % 2 == 0 ? dlk_client_batch(shared.client, calls, 31)
                                    : dlk_client_batch_start(shared.client, calls, 31);
        while (status == S(PENDING)) {
            status = round % 3 == 0 ? dlk_client_batch_poll(shared.client, calls, 31)
                                    : dlk_client_batch_wait(shared.client, calls, 31);
        }
        for (int i = 0; i < 31; i++) {
            assert(calls[i].status == S(SUCCESS));
            assert(i == 0 || calls[i].value > calls[i - 1].value);
        }
    }
    return NULL;
}

static void test_batches_of_threads(struct world *world)
{
    struct dlk_call read = {.verb = DLK_VERB_READ, .lock_id = 100 + CELL};
    shared = join(world, 14);
    assert(dlk_client_add_object(shared.client, 100 + CELL, CELL) == S(SUCCESS));
    assert(run_call(&shared, &read) == S(SUCCESS));
    uint64_t before = read.value;
    each_thread(add_in_batches);
    assert(run_call(&shared, &read) == S(SUCCESS));
    assert(read.value == before + THREADS * 50 * 31);
    dlk_client_free(shared.client);
}

int main(void)
{
    struct dlk_plane_config config = world_config();
    struct world world;
    struct dlk_command cell = {.op = DLK_COMMAND_CELL_OPEN, .slot = CELL, .id = 100 + CELL};
    world_start(&world, &config);
    assert(world_command(&world, cell) == DLK_RESULT_DONE);
    for (uint32_t lock = 4; lock < 32; lock++) {
        world_open_lock(&world, lock, 100 + lock, DLK_KIND_ATOMIC);
    }
    test_exclusion(&world, 1, DLK_WAIT_BLOCK);
    test_exclusion(&world, 2, DLK_WAIT_ADAPTIVE);
    test_a_waiter_delays_nobody(&world);
    test_same_owner(&world);
    test_waits_end(&world);
    test_cancel_crosses_grant(&world);
    test_batch(&world);
    test_in_flight(&world);
    test_batches_of_threads(&world);
    world_stop(&world);
    printf("done\n");
    return 0;
}
