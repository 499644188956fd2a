/*
 * Calls that no thread waits for, against a real plane: posted, collected through one descriptor,
 * cancelled in every phase, put off in thousands, and ended by whoever reads their answer.
 */
#include <stdio.h>
#include <stdlib.h>

#include "collect_world.h"

enum { ROOM = 64, CROWD = DLK_INFLIGHT_MAX + 1000, FEW = 300 };

/* Collects by the descriptor alone until this one call has come; nothing else may come. */
static int await(const struct user *user, const struct dlk_call *call)
{
    struct dlk_ended ended[ROOM];
    size_t count;
    dlk_client_flush(user->client);
    count = collect_some(user, ended, ROOM);
    assert(count == 1 && ended[0].cookie == (uintptr_t)call && ended[0].status == call->status);
    assert(ended[0].result == call->result);
    return ended[0].status;
}

static void test_a_pair(struct world *world)
{
    struct user user = join(world, 1);
    struct dlk_ended ended[ROOM];
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    struct dlk_call call = make_call(TRY, 4, 1, 0);
    assert(!readable(&user, 0));
    assert(post(&user, &call) == S(PENDING) && dlk_client_post(user.client, &call) == S(EASYNC));
    assert(await(&user, &call) == S(SUCCESS) && call.token != 0);
    call.verb = UNLOCK;
    assert(post(&user, &call) == S(PENDING) && await(&user, &call) == S(SUCCESS));
    /* What is decided at once is not collected. */
    assert(post(&user, &call) == S(ALREADY_UNLOCKED));
    assert(dlk_client_collect(user.client, ended, ROOM) == 0 && !readable(&user, 0));
    dlk_client_free(user.client);
}

/* With room for one at a time, and asked for only when the descriptor says so. */
static void test_one_at_a_time(struct world *world)
{
    struct user user = join(world, 2);
    struct dlk_call calls[10];
    assert(dlk_client_collect_fd(user.client) >= 0);
    for (uint32_t i = 0; i < 10; i++) {
        get_lock(&user, 8 + i, DLK_KIND_ATOMIC, 1);
        calls[i] = make_call(TRY, 8 + i, 1, 0);
        assert(post(&user, &calls[i]) == S(PENDING));
    }
    get_lock(&user, 18, DLK_KIND_ATOMIC, 1);
    assert(simple(&user, TRY, 18, 1) == S(SUCCESS)); /* has read all answers before its own */
    for (int i = 0; i < 10; i++) {
        struct dlk_ended ended;
        assert(collect_some(&user, &ended, 1) == 1);
        assert(call_of(&ended) == &calls[i] && ended.status == S(SUCCESS));
    }
    assert(!readable(&user, 0));
    for (int i = 0; i < 10; i++) {
        calls[i].verb = UNLOCK;
        assert(post(&user, &calls[i]) == S(PENDING));
    }
    collect_all(&user, 10, S(SUCCESS));
    dlk_client_free(user.client);
}

/* Posted at once on one hold, they are carried out in order; one that needs no server lets the next
 * go on. */
static void test_in_order(struct world *world)
{
    static const uint32_t verbs[] = {TRY, UNLOCK, UNLOCK, TRY, UNLOCK};
    struct user user = join(world, 20);
    struct dlk_call calls[5];
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    for (int i = 0; i < 5; i++) {
        calls[i] = make_call(verbs[i], 4, 1, 0);
        assert(post(&user, &calls[i]) == S(PENDING));
    }
    dlk_client_flush(user.client);
    for (int i = 0; i < 5; i++) {
        struct dlk_ended ended;
        assert(collect_some(&user, &ended, 1) == 1 && call_of(&ended) == &calls[i]);
        assert(ended.status == (i == 2 ? S(ALREADY_UNLOCKED) : S(SUCCESS)));
    }
    dlk_client_free(user.client);
}

/* ---- Many ---- */

static struct dlk_call crowd[CROWD];

/* More waits than there are request slots, all for a lock that this same client holds: the unlock
 * goes out all the same, every wait ends, every hold is given back. */
static void test_more_waits_than_slots(struct world *world)
{
    struct user user = join(world, 3);
    uint64_t waits = world_count(world, DLK_COUNT_WAITS);
    get_lock(&user, 24, DLK_KIND_RW, 0);
    assert(simple(&user, TRY, 24, 0) == S(SUCCESS));
    for (uint32_t i = 0; i < CROWD; i++) {
        get_lock(&user, 24, DLK_KIND_RW, 1 + i);
        crowd[i] = make_call(WAIT, 24, 1 + i, WAIT_LONG_MS);
        crowd[i].mode = DLK_MODE_SHARED;
        assert(post(&user, &crowd[i]) == S(PENDING));
        if (i % 1000 == 0) {
            dlk_client_flush(user.client);
        }
    }
    while (dlk_client_flush(user.client) == S(PENDING)) {
    }
    world_await_count(world, DLK_COUNT_WAITS, waits + 16000);
    assert(crowd[CROWD - 1].phase != crowd[0].phase); /* the last one is put off */
    struct dlk_call unlock = make_call(UNLOCK, 24, 0, 0);
    assert(simple(&user, UNLOCK, 24, 0) == S(SUCCESS));
    collect_all(&user, CROWD, S(SUCCESS));
    for (uint32_t i = 0; i < CROWD; i++) {
        crowd[i].verb = UNLOCK;
        assert(post(&user, &crowd[i]) == S(PENDING));
    }
    collect_all(&user, CROWD, S(SUCCESS));
    assert(post(&user, &unlock) == S(ALREADY_UNLOCKED) && dlk_client_debts(user.client) == 0);
    dlk_client_free(user.client);
}

/* Every wait of a full window is cancelled, those that were put off too: nothing stays behind. */
static void test_cancelled_in_thousands(struct world *world)
{
    struct user user = join(world, 4);
    struct user other = join(world, 5);
    struct dlk_ended ended[ROOM];
    get_lock(&other, 5, DLK_KIND_ATOMIC, 0);
    assert(simple(&other, TRY, 5, 0) == S(SUCCESS));
    for (uint32_t i = 0; i < CROWD; i++) {
        get_lock(&user, 5, DLK_KIND_ATOMIC, 1 + i);
        crowd[i] = make_call(WAIT, 5, 1 + i, WAIT_LONG_MS);
        assert(post(&user, &crowd[i]) == S(PENDING));
    }
    dlk_client_flush(user.client);
    for (uint32_t i = 0; i < CROWD; i++) {
        dlk_client_cancel(user.client, &crowd[(i * 7919) % CROWD]);
    }
    while (dlk_client_settle(user.client, 50) == S(PENDING)) {
    }
    assert(dlk_client_debts(user.client) == 0);
    assert(dlk_client_collect(user.client, ended, ROOM) == 0);
    assert(simple(&other, UNLOCK, 5, 0) == S(SUCCESS));
    assert(simple(&other, TRY, 5, 0) == S(SUCCESS));
    assert(simple(&other, UNLOCK, 5, 0) == S(SUCCESS));
    dlk_client_free(user.client);
    dlk_client_free(other.client);
}

/* ---- Cancelled in every phase ---- */

static void test_cancelled(struct world *world)
{
    struct user user = join(world, 6);
    struct dlk_ended ended[ROOM];
    struct dlk_call lock = make_call(WAIT, 6, 1, WAIT_LONG_MS);
    struct dlk_call unlock = make_call(UNLOCK, 6, 1, 0);
    get_lock(&user, 6, DLK_KIND_ATOMIC, 1);
    get_lock(&user, 6, DLK_KIND_ATOMIC, 2);
    /* Never posted; posted but not flushed, with one put off behind it. */
    dlk_client_cancel(user.client, &lock);
    assert(post(&user, &lock) == S(PENDING) && post(&user, &unlock) == S(PENDING));
    dlk_client_cancel(user.client, &unlock);
    dlk_client_cancel(user.client, &lock);
    assert(simple(&user, TRY, 6, 2) == S(SUCCESS) && simple(&user, UNLOCK, 6, 2) == S(SUCCESS));
    /* Answered by a grant that nobody has collected: a synchronous call has read it. */
    assert(post(&user, &lock) == S(PENDING));
    while (lock.phase == 3) { /* sent */
        assert(simple(&user, TRY, 6, 2) == S(FAIL));
    }
    dlk_client_cancel(user.client, &lock);
    assert(simple(&user, TRY, 6, 2) == S(SUCCESS) && simple(&user, UNLOCK, 6, 2) == S(SUCCESS));
    /* Collected already: the grant is given back as well. */
    assert(post(&user, &lock) == S(PENDING) && await(&user, &lock) == S(SUCCESS));
    dlk_client_cancel(user.client, &lock);
    assert(simple(&user, TRY, 6, 2) == S(SUCCESS) && simple(&user, UNLOCK, 6, 2) == S(SUCCESS));
    /* A cancelled unlock is still carried out. */
    assert(post(&user, &lock) == S(PENDING) && await(&user, &lock) == S(SUCCESS));
    assert(post(&user, &unlock) == S(PENDING));
    dlk_client_cancel(user.client, &unlock);
    assert(simple(&user, TRY, 6, 2) == S(SUCCESS) && simple(&user, UNLOCK, 6, 2) == S(SUCCESS));
    while (dlk_client_settle(user.client, 50) == S(PENDING)) {
    }
    assert(dlk_client_collect(user.client, ended, ROOM) == 0 && !readable(&user, 0));
    dlk_client_free(user.client);
}

/* ---- Whoever reads the answer ---- */

static void *wait_for_lock(void *argument)
{
    const struct user *user = argument;
    assert(simple(user, WAIT, 7, 1) == S(SUCCESS));
    return NULL;
}

/* A thread that waits leads, and reads the answers of posted calls: it rings for them. */
static void test_a_leader_rings(struct world *world)
{
    struct user user = join(world, 7);
    struct user holder = join(world, 8);
    pthread_t leader;
    uint64_t waits = world_count(world, DLK_COUNT_WAITS);
    get_lock(&holder, 7, DLK_KIND_ATOMIC, 0);
    get_lock(&user, 7, DLK_KIND_ATOMIC, 1);
    get_lock(&user, 8, DLK_KIND_ATOMIC, 1);
    assert(simple(&holder, TRY, 7, 0) == S(SUCCESS));
    assert(pthread_create(&leader, NULL, wait_for_lock, &user) == 0);
    world_await_count(world, DLK_COUNT_WAITS, waits + 1);
    for (int i = 0; i < FEW; i++) {
        struct dlk_call call = make_call(i % 2 == 0 ? TRY : UNLOCK, 8, 1, 0);
        assert(post(&user, &call) == S(PENDING) && await(&user, &call) == S(SUCCESS));
    }
    assert(simple(&holder, UNLOCK, 7, 0) == S(SUCCESS));
    assert(pthread_join(leader, NULL) == 0);
    dlk_client_free(user.client);
    dlk_client_free(holder.client);
}

static void *keep(void *unused)
{
    (void)unused;
    assert(dlk_keeper_run() == S(SUCCESS));
    return NULL;
}

/* While the loop is busy elsewhere the keeper looks for the answer to its PING and finds that of a
 * posted call. */
static void test_the_keeper_rings(struct world *world)
{
    struct user user = join_as(world, 9, DLK_WAIT_ADAPTIVE, 400, REPLY_TIMEOUT_MS);
    pthread_t keeper;
    get_lock(&user, 9, DLK_KIND_ATOMIC, 1);
    assert(pthread_create(&keeper, NULL, keep, NULL) == 0);
    for (int i = 0; i < 4; i++) {
        struct dlk_call call = make_call(i % 2 == 0 ? TRY : UNLOCK, 9, 1, 0);
        assert(post(&user, &call) == S(PENDING));
        dlk_client_flush(user.client);
        usleep(250000); /* two PINGs */
        assert(await(&user, &call) == S(SUCCESS));
    }
    dlk_keeper_stop();
    assert(pthread_join(keeper, NULL) == 0);
    dlk_client_free(user.client);
}

static void add_lock(struct world *world, uint32_t slot)
{
    world_open_lock(world, slot, 100 + slot, DLK_KIND_ATOMIC);
}

int main(void)
{
    static struct world world;
    struct dlk_plane_config config = world_config();
    world_start(&world, &config);
    for (uint32_t slot = 4; slot < 24; slot++) {
        add_lock(&world, slot);
    }
    world_open_lock(&world, 24, 124, DLK_KIND_RW);
    test_a_pair(&world);
    test_one_at_a_time(&world);
    test_in_order(&world);
    test_more_waits_than_slots(&world);
    test_cancelled_in_thousands(&world);
    test_cancelled(&world);
    test_a_leader_rings(&world);
    test_the_keeper_rings(&world);
    world_stop(&world);
    puts("client_collect: ok");
    return 0;
}
