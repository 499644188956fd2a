/*
 * The client against a real plane: the ways of one call and of a batch in each waiting mode,
 * connections that break and come again, debts, heartbeats, forks.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>

#include "client_world.h"

#define TRY DLK_VERB_TRYLOCK
#define WAIT DLK_VERB_LOCK
#define UNLOCK DLK_VERB_UNLOCK
#define S(name) DLK_STATUS_##name

static void test_one_call(struct world *world, uint32_t slot, uint32_t wait_mode)
{
    struct user user = join_as(world, slot, wait_mode, WORLD_TTL_MS, REPLY_TIMEOUT_MS);
    struct dlk_call call = make_call(TRY, 0, 1, 0);
    get_lock(&user, 0, DLK_KIND_ATOMIC, 1);
    get_lock(&user, 0, DLK_KIND_ATOMIC, 2);
    call.lease_ms = 30000;
    assert(run_call(&user, &call) == S(SUCCESS));
    assert(call.token != 0 && call.count == 1 && call.holder == 1000 + slot);
    assert(call.left_ms > 20000 && call.left_ms <= 30000);
    assert(call.time_out > (uint64_t)time(NULL) + 20);
    assert(simple(&user, TRY, 0, 2) == S(FAIL));
    assert(simple(&user, TRY, 0, 1) == S(ALREADY_LOCKED));
    assert(simple(&user, UNLOCK, 0, 1) == S(ALREADY_LOCKED));
    for (int i = 0; i < 500; i++) {
        assert(simple(&user, UNLOCK, 0, 1) == S(SUCCESS));
        assert(simple(&user, TRY, 0, 1) == S(SUCCESS));
    }
    assert(simple(&user, UNLOCK, 0, 1) == S(SUCCESS));
    assert(simple(&user, UNLOCK, 0, 1) == S(ALREADY_UNLOCKED));
    assert(dlk_client_session_left_ms(user.client) > 0);
    assert(dlk_client_debts(user.client) == 0 && dlk_client_ignored(user.client) == 0);
    dlk_client_free(user.client);
}

/* A heartbeat over the control plane counts from when it was sent, in the same epoch only. */
static void test_heard(struct world *world)
{
    struct user user = join(world, 3);
    uint64_t later_ns = dlk_now_ns() + (uint64_t)WORLD_TTL_MS * DLK_NS_PER_MS;
    dlk_client_detach(user.client);
    dlk_client_heard(user.client, user.link.epoch + 1, later_ns);
    assert(dlk_client_session_left_ms(user.client) <= WORLD_TTL_MS);
    dlk_client_heard(user.client, user.link.epoch, later_ns);
    assert(dlk_client_session_left_ms(user.client) > WORLD_TTL_MS);
    dlk_client_free(user.client);
}

int main(void)
{
    struct dlk_plane_config config = world_config();
    struct world world;
    world_start(&world, &config);
    for (uint32_t lock = 0; lock < 32; lock++) {
        world_open_lock(&world, lock, 100 + lock,
                        lock == 1 ? DLK_KIND_FAIR : lock == 2 ? DLK_KIND_RW : DLK_KIND_ATOMIC);
    }
    test_one_call(&world, 0, DLK_WAIT_BLOCK);
    test_one_call(&world, 1, DLK_WAIT_ADAPTIVE);
    test_one_call(&world, 2, DLK_WAIT_POLL);
    test_heard(&world);
    world_stop(&world);
    printf("done\n");
    return 0;
}
