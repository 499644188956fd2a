/*
 * A client that operates on objects by itself, over a queue pair. The other end has cells of its
 * own: what is found there was done past the server, what is found at the plane behind it was not.
 */
#define DLOCK_TEST_VERBS

#include "client_world.h"

#define ADD DLK_VERB_FETCH_ADD
#define SWAP DLK_VERB_COMPARE_SWAP
#define READ DLK_VERB_READ
#define S(name) DLK_STATUS_##name

enum { OBJECT = 500, SLOT = 3, OTHER = 501, OTHER_SLOT = 4, THREADS = 6, ROUNDS = 200, MANY = 300 };

static struct user shared; /* the client that the threads of one test share */

static void get_objects(const struct user *user)
{
    uint32_t key = user->relay->region->rkey;
    assert(dlk_client_add_object(user->client, OBJECT, SLOT) == S(SUCCESS));
    assert(dlk_client_add_object(user->client, OTHER, OTHER_SLOT) == S(SUCCESS));
    assert(dlk_client_object_key(user->client, OBJECT, key) == S(SUCCESS));
    assert(dlk_client_object_key(user->client, OTHER, key) == S(SUCCESS));
}

static struct dlk_call operation(uint32_t verb, uint64_t operand, uint64_t swap)
{
    return (struct dlk_call){.verb = verb, .lock_id = OBJECT, .operand = operand, .swap = swap};
}

static int operate(const struct user *user, uint32_t verb, uint64_t operand, uint64_t swap,
                   uint64_t *value)
{
    struct dlk_call call = operation(verb, operand, swap);
    int status = run_call(user, &call);
    *value = call.value;
    return status;
}

static uint64_t cell(const struct user *user)
{
    return user->relay->cells[SLOT];
}

/* ---- What it does ---- */

static void test_each_operation(struct world *world, uint32_t slot, uint32_t wait_mode)
{
    struct user user = join_as(world, slot, wait_mode, WORLD_TTL_MS, REPLY_TIMEOUT_MS);
    uint64_t requests = world_count(world, DLK_COUNT_REQUESTS);
    uint64_t value;
    get_objects(&user);
    assert(operate(&user, ADD, 5, 0, &value) == S(SUCCESS) && value == 0);
    assert(operate(&user, ADD, (uint64_t)-2, 0, &value) == S(SUCCESS) && value == 5);
    assert(operate(&user, READ, 0, 0, &value) == S(SUCCESS) && value == 3);
    assert(operate(&user, SWAP, 4, 9, &value) == S(OBJECT_CAS_FAILED) && value == 3);
    assert(operate(&user, SWAP, 3, 9, &value) == S(SUCCESS) && value == 9);
    assert(operate(&user, READ, 0, 0, &value) == S(SUCCESS) && value == 9 && cell(&user) == 9);
    assert(world_count(world, DLK_COUNT_REQUESTS) == requests);
    dlk_client_free(user.client);
}

static void *add_one_by_one(void *argument)
{
    uint64_t seen = 0;
    (void)argument;
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t value;
        assert(operate(&shared, ADD, 1, 0, &value) == S(SUCCESS));
        assert(i == 0 || value > seen);
        seen = value;
        assert(operate(&shared, READ, 0, 0, &value) == S(SUCCESS) && value > seen);
    }
    return NULL;
}

/* While they do, one of them asks the server for locks on the same queue pair. */
static void test_many_threads(struct world *world)
{
    pthread_t threads[THREADS];
    shared = join(world, 4);
    get_objects(&shared);
    get_lock(&shared, 4, DLK_KIND_ATOMIC, 1);
    for (int i = 0; i < THREADS; i++) {
        assert(pthread_create(&threads[i], NULL, add_one_by_one, NULL) == 0);
    }
    for (int i = 0; i < ROUNDS; i++) {
        assert(simple(&shared, DLK_VERB_TRYLOCK, 4, 1) == S(SUCCESS));
        assert(simple(&shared, DLK_VERB_UNLOCK, 4, 1) == S(SUCCESS));
    }
    for (int i = 0; i < THREADS; i++) {
        assert(pthread_join(threads[i], NULL) == 0);
    }
    assert(cell(&shared) == THREADS * ROUNDS);
    dlk_client_free(shared.client);
}

/* More at once than a queue pair may have under way, mixed with what the server is asked. */
static void test_batch(struct world *world)
{
    static struct dlk_call calls[MANY];
    struct user user = join(world, 5);
    get_objects(&user);
    for (uint64_t i = 0; i < MANY; i++) {
        calls[i] = operation(i % 3 == 2 ? DLK_VERB_PING : ADD, i, 0);
    }
    int status = dlk_client_batch(user.client, calls, MANY);
    while (status == S(PENDING)) {
        status = dlk_client_batch_wait(user.client, calls, MANY);
    }
    uint64_t sum = 0;
    for (uint64_t i = 0; i < MANY; i++) {
        assert(calls[i].status == S(SUCCESS));
        if (i % 3 != 2) {
            assert(calls[i].value == sum); /* in order */
            sum += i;
        }
    }
    assert(cell(&user) == sum);
    dlk_client_free(user.client);
}

/* Found by the descriptor alone, as an event loop does. */
static void test_posted(struct world *world)
{
    static struct dlk_call calls[MANY];
    struct user user = join(world, 6);
    struct dlk_ended ended[32];
    struct pollfd ready = {.fd = dlk_client_collect_fd(user.client), .events = POLLIN};
    size_t left = MANY;
    get_objects(&user);
    for (uint64_t i = 0; i < MANY; i++) {
        calls[i] = operation(ADD, 1, 0);
        assert(dlk_client_post(user.client, &calls[i]) == S(PENDING));
    }
    dlk_client_flush(user.client);
    while (left != 0) {
        assert(poll(&ready, 1, WORLD_PATIENCE_MS) == 1);
        size_t count = dlk_client_collect(user.client, ended, 32);
        for (size_t i = 0; i < count; i++) {
            assert(ended[i].status == S(SUCCESS));
        }
        left -= count;
    }
    assert(cell(&user) == MANY);
    dlk_client_free(user.client);
}

/* ---- When it may ---- */

/* The other end's processor stands still; the session is all that counts. */
static void test_server_stands_still(struct world *world)
{
    struct user user = join(world, 7);
    struct dlk_call ping = operation(DLK_VERB_PING, 0, 0);
    uint64_t value;
    get_objects(&user);
    user.relay->deaf = true;
    assert(dlk_client_start(user.client, &ping) == S(PENDING));
    for (uint64_t i = 0; i < ROUNDS; i++) {
        assert(operate(&user, ADD, 1, 0, &value) == S(SUCCESS) && value == i);
    }
    assert(dlk_client_poll(user.client, &ping) == S(PENDING));
    user.relay->deaf = false;
    assert(finish_call(&user, &ping, S(PENDING)) == S(SUCCESS));
    dlk_client_free(user.client);
}

/* No completion keeps the session believed in, and without a live session the server is asked: its
 * cell is another one. Its answer renews the session. */
static void test_only_while_the_session_lives(struct world *world)
{
    enum { SESSION = 8, TTL_MS = 1000 };
    struct user user = {.client = new_client(DLK_WAIT_ADAPTIVE, REPLY_TIMEOUT_MS),
                        .link = link_to(dlk_plane_port(world->plane), SESSION, TTL_MS)};
    uint64_t value = 0;
    int status = S(SUCCESS);
    world_open_session(world, SESSION, 1000 + SESSION, 1, WORLD_TTL_MS);
    assert(attach(&user) == S(SUCCESS));
    get_objects(&user);
    while (status == S(SUCCESS) && value == 0) {
        status = operate(&user, READ, 0, 0, &value);
    }
    if (status == S(BAD_RESPONSE)) { /* completed when it could have ended */
        status = operate(&user, READ, 0, 0, &value);
    }
    assert(status == S(SUCCESS) && value == 1000);
    while (status == S(SUCCESS) && value == 1000) {
        status = operate(&user, READ, 0, 0, &value);
    }
    assert(dlk_client_attached(user.client) == 1);
    dlk_client_free(user.client);
}

static void test_without_a_key(struct world *world)
{
    struct user user = join(world, 9);
    uint64_t value;
    get_objects(&user);
    assert(operate(&user, ADD, 1, 0, &value) == S(SUCCESS) && value == 0);
    assert(dlk_client_object_key(user.client, OBJECT, 0) == S(SUCCESS));
    assert(operate(&user, READ, 0, 0, &value) == S(SUCCESS) && value == 1000);
    assert(cell(&user) == 1);
    dlk_client_free(user.client);
}

/* ---- How it fails ---- */

/* The key of an object that is gone: nothing was touched, its caller hears what the server would
 * say, the connection is over, and the next one asks the server. */
static void test_key_of_a_destroyed_object(struct world *world)
{
    struct user user = join(world, 10);
    uint64_t value;
    get_objects(&user);
    assert(operate(&user, ADD, 1, 0, &value) == S(SUCCESS));
    assert(dlk_ibv->dereg_mr(user.relay->region) == 0);
    user.relay->region = NULL;
    assert(operate(&user, ADD, 1, 0, &value) == S(OBJECT_NOT_GET));
    assert(cell(&user) == 1 && dlk_client_attached(user.client) == 0);
    struct dlk_call unsent = operation(ADD, 1, 0);
    assert(run_call(&user, &unsent) == S(BAD_RESPONSE) && unsent.sent == 0);
    reattach(world, &user);
    assert(dlk_client_object_key(user.client, OBJECT, user.relay->region->rkey) == S(SUCCESS));
    assert(operate(&user, READ, 0, 0, &value) == S(SUCCESS) && value == 1000);
    struct dlk_call other = operation(ADD, 1, 0);
    other.lock_id = OTHER; /* whose key nobody has refused */
    assert(dlk_client_object_key(user.client, OTHER, user.relay->region->rkey) == S(SUCCESS));
    assert(run_call(&user, &other) == S(SUCCESS) && user.relay->cells[OTHER_SLOT] == 1);
    dlk_client_free(user.client);
}

/* The other end does not answer any more: nobody knows, nothing is repeated. */
static void test_unknown_outcome(struct world *world)
{
    struct user user = join(world, 11);
    uint64_t value;
    get_objects(&user);
    assert(operate(&user, ADD, 1, 0, &value) == S(SUCCESS));
    relay_close(user.relay);
    struct dlk_call lost = operation(ADD, 1, 0);
    assert(run_call(&user, &lost) == S(BAD_RESPONSE) && lost.sent == 1);
    assert(dlk_client_attached(user.client) == 0 && dlk_client_debts(user.client) == 0);
    reattach(world, &user);
    assert(cell(&user) == 0);
    dlk_client_free(user.client);
}

static void open_cell(struct world *world, uint32_t slot, uint32_t id)
{
    struct dlk_command open = {
        .op = DLK_COMMAND_CELL_OPEN, .slot = slot, .id = id, .value = 1000};
    assert(world_command(world, open) == DLK_RESULT_DONE);
}

int main(void)
{
    struct dlk_plane_config config = world_config();
    static struct world world;
    world_start(&world, &config);
    world_open_lock(&world, 4, 104, DLK_KIND_ATOMIC);
    open_cell(&world, SLOT, OBJECT);
    open_cell(&world, OTHER_SLOT, OTHER);
    test_each_operation(&world, 1, DLK_WAIT_BLOCK);
    test_each_operation(&world, 2, DLK_WAIT_ADAPTIVE);
    test_each_operation(&world, 3, DLK_WAIT_POLL);
    test_many_threads(&world);
    test_batch(&world);
    test_posted(&world);
    test_server_stands_still(&world);
    test_only_while_the_session_lives(&world);
    test_without_a_key(&world);
    test_key_of_a_destroyed_object(&world);
    test_unknown_outcome(&world);
    world_stop(&world);
    puts("a client's own operations: ok");
    return 0;
}
