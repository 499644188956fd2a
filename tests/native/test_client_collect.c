/*
 * Calls that no thread waits for, against a real plane: posted, collected through one descriptor,
 * cancelled in every phase, put off in thousands, and ended by whoever reads their answer.
 */
#include <stdio.h>
#include <stdlib.h>

#include "client_world.h"

#define TRY DLK_VERB_TRYLOCK
#define WAIT DLK_VERB_LOCK
#define UNLOCK DLK_VERB_UNLOCK
#define S(name) DLK_STATUS_##name

enum { ROOM = 64 };

static bool readable(const struct user *user, int timeout_ms)
{
    struct pollfd ready = {.fd = dlk_client_collect_fd(user->client), .events = POLLIN};
    assert(ready.fd >= 0);
    return poll(&ready, 1, timeout_ms) == 1;
}

static int post(const struct user *user, struct dlk_call *call)
{
    call->cookie = (uintptr_t)call;
    return dlk_client_post(user->client, call);
}

/* Collects by the descriptor alone until this one call has come; nothing else may come. */
static int await(const struct user *user, const struct dlk_call *call)
{
    struct dlk_ended ended[ROOM];
    size_t count;
    dlk_client_flush(user->client);
    do {
        assert(readable(user, WORLD_PATIENCE_MS));
        count = dlk_client_collect(user->client, ended, ROOM);
    } while (count == 0);
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
    test_a_pair(&world);
    world_stop(&world);
    puts("client_collect: ok");
    return 0;
}
