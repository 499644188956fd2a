/*
 * A client over a queue pair: how it gets one and loses it, and what a slow other end means. What
 * it does the same over whatever connection is in the tests of the client, which run over a queue
 * pair once more.
 */
#define DLOCK_TEST_VERBS

#include "client.h"
#include "client_world.h"

#define TRY DLK_VERB_TRYLOCK
#define UNLOCK DLK_VERB_UNLOCK
#define S(name) DLK_STATUS_##name

enum { MANY = 2000, SHORT_MS = 300 };

static void await_flag(_Atomic bool *flag)
{
    for (int i = 0; i < WORLD_PATIENCE_MS && !*flag; i++) {
        usleep(1000);
    }
    assert(*flag);
}

/* ---- Attaching ---- */

/* As an event loop does it: never waits, and sleeps on the descriptor that it is told. */
static void test_without_waiting(struct world *world)
{
    struct user user = {.client = new_client(DLK_WAIT_ADAPTIVE, REPLY_TIMEOUT_MS),
                        .link = link_to(dlk_plane_port(world->plane), 1, WORLD_TTL_MS)};
    struct dlk_link link = user.link;
    int status;
    world_open_session(world, 1, 1001, 1, WORLD_TTL_MS);
    user.relay = relay_begin(&link);
    link.flags |= DLK_LINK_NOWAIT;
    while ((status = dlk_client_attach(user.client, &link)) == S(PENDING)) {
        int for_room = -1;
        struct pollfd ready = {.fd = dlk_client_attach_fd(user.client, &for_room),
                               .events = POLLIN};
        assert(ready.fd >= 0 && for_room == 0);
        assert(poll(&ready, 1, WORLD_PATIENCE_MS) == 1);
        link.queue_pair = NULL;
    }
    assert(status == S(SUCCESS));
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    assert(simple(&user, TRY, 4, 1) == S(SUCCESS) && simple(&user, UNLOCK, 4, 1) == S(SUCCESS));
    dlk_client_free(user.client);
}

static void test_refused(struct world *world)
{
    struct user user = join(world, 2);
    user.link.attach++; /* which nobody has given out */
    assert(attach(&user) == S(BAD_RESPONSE) && dlk_client_attached(user.client) == 0);
    reattach(world, &user);
    assert(dlk_client_attached(user.client) == 1);
    dlk_client_free(user.client);
}

static void test_no_answer(struct world *world)
{
    struct user user = {.client = new_client(DLK_WAIT_BLOCK, REPLY_TIMEOUT_MS),
                        .link = link_to(dlk_plane_port(world->plane), 3, WORLD_TTL_MS)};
    struct dlk_link link = user.link;
    user.relay = relay_begin(&link);
    user.relay->deaf = true;
    link.timeout_ms = SHORT_MS;
    int status = dlk_client_attach(user.client, &link);
    link.queue_pair = NULL;
    while (status == S(PENDING)) {
        status = dlk_client_attach(user.client, &link);
    }
    assert(status == S(BAD_RESPONSE));
    dlk_client_free(user.client);
}

/* Whatever becomes of it, a queue pair that was handed over is freed; one that was not, by hand. */
static void test_not_taken(struct world *world)
{
    struct user user = join(world, 4);
    struct dlk_link link = user.link;
    struct dlk_verbs_port port = relay_port();
    struct dlk_verbs_address own;
    char reason[DLK_REASON_BYTES];
    link.flags = DLK_LINK_VERBS;
    link.queue_pair = dlk_queue_pair_new(&port, &own, reason);
    assert(link.queue_pair != NULL);
    user.client->attaching.busy = true; /* another thread is at it */
    assert(dlk_client_attach(user.client, &link) == S(EASYNC));
    user.client->attaching.busy = false;
    link.queue_pair = dlk_queue_pair_new(&port, &own, reason);
    link.peer = (struct dlk_verbs_address){.queue_pair = 1}; /* an address that makes no sense */
    assert(dlk_client_attach(user.client, &link) == S(BAD_RESPONSE));
    dlk_queue_pair_free(dlk_queue_pair_new(&port, &own, reason));
    dlk_queue_pair_free(NULL);
    dlk_client_free(user.client);
}

/* ---- The end ---- */

static void test_either_end_says_bye(struct world *world)
{
    struct user user = join(world, 5);
    dlk_client_detach(user.client);
    await_flag(&user.relay->client_end);
    reattach(world, &user);
    world_supersede(world, 5, 1005, 77);
    struct dlk_call call = make_call(DLK_VERB_PING, 4, 1, 0);
    assert(run_call(&user, &call) == S(BAD_RESPONSE));
    assert(dlk_client_attached(user.client) == 0);
    dlk_client_free(user.client);
}

/* It vanishes without a word, as a machine that loses power: the retries say so. What was to be
 * given back is owed, and given back over the next connection. */
static void test_other_end_gone(struct world *world)
{
    struct user user = join(world, 6);
    struct user other = join(world, 7);
    get_lock(&user, 6, DLK_KIND_ATOMIC, 1);
    get_lock(&other, 6, DLK_KIND_ATOMIC, 1);
    assert(simple(&user, TRY, 6, 1) == S(SUCCESS));
    relay_close(user.relay);
    assert(simple(&user, UNLOCK, 6, 1) == S(BAD_RESPONSE));
    assert(dlk_client_attached(user.client) == 0 && dlk_client_debts(user.client) == 1);
    assert(simple(&other, TRY, 6, 1) == S(FAIL));
    reattach(world, &user);
    while (dlk_client_settle(user.client, 50) == S(PENDING)) {
    }
    assert(simple(&other, TRY, 6, 1) == S(SUCCESS) && simple(&other, UNLOCK, 6, 1) == S(SUCCESS));
    dlk_client_free(user.client);
    dlk_client_free(other.client);
}

/* ---- A window ---- */

/* Far more than the other end has room for while it takes nothing: they wait here, in order, and
 * go on when it does. */
static void test_slow_other_end(struct world *world, uint32_t slot, uint32_t wait_mode)
{
    static struct dlk_call calls[MANY];
    struct user user = join_as(world, slot, wait_mode, WORLD_TTL_MS, REPLY_TIMEOUT_MS);
    user.relay->deaf = true;
    for (int i = 0; i < MANY; i++) {
        calls[i] = make_call(DLK_VERB_PING, 4, 1, 0);
    }
    assert(dlk_client_batch_start(user.client, calls, MANY) == S(PENDING));
    assert(dlk_client_flush(user.client) == S(PENDING)); /* it does not all fit */
    user.relay->deaf = false;
    while (dlk_client_batch_wait(user.client, calls, MANY) == S(PENDING)) {
    }
    for (int i = 0; i < MANY; i++) {
        assert(calls[i].status == S(SUCCESS));
    }
    dlk_client_free(user.client);
}

int main(void)
{
    struct dlk_plane_config config = world_config();
    static struct world world;
    world_start(&world, &config);
    world_open_lock(&world, 4, 104, DLK_KIND_ATOMIC);
    world_open_lock(&world, 6, 106, DLK_KIND_ATOMIC);
    test_without_waiting(&world);
    test_refused(&world);
    test_no_answer(&world);
    test_not_taken(&world);
    test_either_end_says_bye(&world);
    test_other_end_gone(&world);
    test_slow_other_end(&world, 8, DLK_WAIT_BLOCK);
    test_slow_other_end(&world, 9, DLK_WAIT_ADAPTIVE);
    test_slow_other_end(&world, 10, DLK_WAIT_POLL);
    world_stop(&world);
    puts("a client over a queue pair: ok");
    return 0;
}
