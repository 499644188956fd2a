/*
 * Clients over queue pairs and over TCP at one plane: they exclude each other, count together, and
 * a number that is destroyed cannot be reached with its key any more. On a real device.
 */
#include "client_world.h"
#include "verbs_plane_world.h"

#define TRY DLK_VERB_TRYLOCK
#define WAIT DLK_VERB_LOCK
#define UNLOCK DLK_VERB_UNLOCK
#define S(name) DLK_STATUS_##name

enum { LOCK_SLOT = 4, CELL = 7, CELL_ID = 107, ROUNDS = 150, CLIENTS = 4 };

struct member {
    pthread_t thread;
    struct user user;
};

static uint32_t key; /* of the cell */
static uint64_t inside; /* guarded by the lock */

/* As a client does it: a queue pair, the exchange over the control plane, the attach. */
static struct user join_over_verbs(struct world *world, uint32_t slot, uint32_t wait_mode)
{
    struct user user = {.client = new_client(wait_mode, REPLY_TIMEOUT_MS),
                        .link = link_to(dlk_plane_port(world->plane), slot, WORLD_TTL_MS)};
    struct dlk_command open = {.op = DLK_COMMAND_LINK_OPEN, .slot = slot, .id = 1000 + slot};
    struct dlk_verbs_port port = world_port();
    struct dlk_verbs_address own;
    struct dlk_link link = user.link;
    char reason[DLK_REASON_BYTES] = "";
    world_open_session(world, slot, 1000 + slot, 1, WORLD_TTL_MS);
    link.flags = DLK_LINK_VERBS;
    link.queue_pair = dlk_queue_pair_new(&port, &own, reason);
    assert(link.queue_pair != NULL);
    assert(dlk_plane_verbs_pair(world->plane, &own, &link.peer, &open.value, reason)
           == S(SUCCESS));
    assert(world_command(world, open) == DLK_RESULT_DONE);
    int status = dlk_client_attach(user.client, &link);
    link.queue_pair = NULL;
    while (status == S(PENDING)) {
        status = dlk_client_attach(user.client, &link);
    }
    assert(status == S(SUCCESS));
    return user;
}

static void get_object(const struct user *user)
{
    assert(dlk_client_add_object(user->client, CELL_ID, CELL) == S(SUCCESS));
    assert(dlk_client_object_key(user->client, CELL_ID, key) == S(SUCCESS));
}

static int add(const struct user *user, uint64_t addend, uint64_t *found)
{
    struct dlk_call call = {
        .verb = DLK_VERB_FETCH_ADD, .lock_id = CELL_ID, .operand = addend};
    int status = run_call(user, &call);
    *found = call.value;
    return status;
}

static void *use(void *argument)
{
    struct member *member = argument;
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t found;
        assert(simple(&member->user, WAIT, LOCK_SLOT, 1) == S(SUCCESS));
        assert(inside++ % 2 == 0);
        assert(add(&member->user, 1, &found) == S(SUCCESS));
        assert(inside++ % 2 == 1);
        assert(simple(&member->user, UNLOCK, LOCK_SLOT, 1) == S(SUCCESS));
        assert(add(&member->user, 1, &found) == S(SUCCESS));
    }
    return NULL;
}

static void test_together(struct world *world)
{
    static const uint32_t modes[] = {DLK_WAIT_BLOCK, DLK_WAIT_ADAPTIVE, DLK_WAIT_POLL};
    struct member members[CLIENTS];
    uint64_t found;
    inside = 0;
    for (uint32_t i = 0; i < CLIENTS; i++) {
        members[i].user = i < 3 ? join_over_verbs(world, 1 + i, modes[i]) : join(world, 1 + i);
        get_lock(&members[i].user, LOCK_SLOT, DLK_KIND_ATOMIC, 1);
        get_object(&members[i].user);
    }
    for (uint32_t i = 0; i < CLIENTS; i++) {
        assert(pthread_create(&members[i].thread, NULL, use, &members[i]) == 0);
    }
    for (uint32_t i = 0; i < CLIENTS; i++) {
        assert(pthread_join(members[i].thread, NULL) == 0);
    }
    for (uint32_t i = 0; i < CLIENTS; i++) {
        assert(add(&members[i].user, 0, &found) == S(SUCCESS));
        assert(found == 2 * CLIENTS * ROUNDS);
        dlk_client_free(members[i].user.client);
    }
    assert(inside == 2 * CLIENTS * ROUNDS);
}

/* What is known at the plane of requests, it knows of those that asked it. */
static void test_past_the_server(struct world *world)
{
    struct user user = join_over_verbs(world, 10, DLK_WAIT_ADAPTIVE);
    uint64_t found;
    get_object(&user);
    assert(simple(&user, DLK_VERB_PING, LOCK_SLOT, 0) == S(SUCCESS));
    uint64_t requests = world_count(world, DLK_COUNT_REQUESTS);
    for (int i = 0; i < 100; i++) {
        assert(add(&user, 1, &found) == S(SUCCESS));
    }
    assert(world_count(world, DLK_COUNT_REQUESTS) == requests);
    assert(dlk_client_object_key(user.client, CELL_ID, 0) == S(SUCCESS));
    assert(add(&user, 1, &found) == S(SUCCESS));
    assert(simple(&user, DLK_VERB_PING, LOCK_SLOT, 0) == S(SUCCESS));
    assert(world_count(world, DLK_COUNT_REQUESTS) >= requests + 2);
    dlk_client_free(user.client);
}

/* The cell is closed while a client still has its key. */
static void test_destroyed(struct world *world)
{
    struct user user = join_over_verbs(world, 11, DLK_WAIT_ADAPTIVE);
    struct dlk_command end = {.op = DLK_COMMAND_CELL_CLOSE, .slot = CELL, .id = CELL_ID};
    uint64_t found;
    get_object(&user);
    assert(add(&user, 1, &found) == S(SUCCESS));
    assert(world_command(world, end) == DLK_RESULT_DONE);
    assert(add(&user, 1, &found) == S(OBJECT_NOT_GET));
    assert(dlk_client_attached(user.client) == 0);
    dlk_client_free(user.client);
}

/* Its server ends with a word, which a thread that waits for its turn hears. */
static void test_server_leaves(struct world *world)
{
    struct user user = join_over_verbs(world, 12, DLK_WAIT_BLOCK);
    struct dlk_call ping = make_call(DLK_VERB_PING, LOCK_SLOT, 0, 0);
    world_stop(world);
    assert(run_call(&user, &ping) == S(BAD_RESPONSE));
    assert(dlk_client_attached(user.client) == 0);
    dlk_client_free(user.client);
}

int main(void)
{
    struct dlk_plane_config config = world_config();
    struct dlk_command open = {.op = DLK_COMMAND_CELL_OPEN, .slot = CELL, .id = CELL_ID};
    static struct world world;
    world_start_verbs(&world, &config);
    world_open_lock(&world, LOCK_SLOT, 100 + LOCK_SLOT, DLK_KIND_ATOMIC);
    open.cookie = ++world.cookie;
    assert(dlk_plane_send_command(world.plane, &open) == 1);
    key = (uint32_t)world_event(&world, DLK_EVENT_DONE, open.cookie).value;
    assert(key != 0);
    test_together(&world);
    test_past_the_server(&world);
    test_destroyed(&world);
    test_server_leaves(&world);
    puts("clients over queue pairs and TCP at one plane: ok");
    return 0;
}
