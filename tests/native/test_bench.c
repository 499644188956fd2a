/*
 * The measuring ends against a real plane and against the echo, so that the sanitizers see them:
 * everything is answered, counted and given back. Nothing here is timed.
 */
#include <stdio.h>

#include "abi_bench.h"
#include "client_world.h"

enum { CONNECTIONS = 4, WINDOW = 8, DURATION_MS = 20, SAMPLES = 4096 };

static void test_engine(void)
{
    struct dlk_bench_engine config = {.locks = 256, .sessions = 3, .batch = 32, .held = 128,
                                      .duration_ms = 1};
    struct dlk_bench_result result;
    struct dlk_bench_memory memory;
    for (config.kind = 0; config.kind < DLK_KIND_COUNT; config.kind++) {
        for (config.bare = 0; config.bare < 2; config.bare++) {
            assert(dlk_bench_engine(&config, &result) == 0);
            assert(result.errors == 0 && result.count >= 128 && result.count % 128 == 0);
        }
    }
    config.kind = DLK_KIND_COUNT;
    assert(dlk_bench_engine(&config, &result) == EINVAL);
    assert(dlk_bench_memory(20000, &memory) == 0);
    assert(memory.queued >= memory.held && memory.held >= memory.opened);
    assert(dlk_bench_memory(0, &memory) == EINVAL);
}

struct echo {
    int listener;
    uint32_t connections;
    uint32_t wait_mode;
    int result;
};

static void *echo_run(void *argument)
{
    struct echo *echo = argument;
    echo->result = dlk_bench_echo(echo->listener, echo->connections, echo->wait_mode);
    return NULL;
}

static void test_echo(uint32_t connections, uint32_t window, uint32_t wait_mode)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    struct echo echo = {socket(AF_INET, SOCK_STREAM, 0), connections, wait_mode, -1};
    struct peer peers[CONNECTIONS];
    int32_t fds[CONNECTIONS];
    uint64_t counts[CONNECTIONS];
    uint32_t samples[SAMPLES];
    struct dlk_bench_result result;
    pthread_t thread;
    assert(bind(echo.listener, (struct sockaddr *)&address, sizeof(address)) == 0);
    assert(listen(echo.listener, CONNECTIONS) == 0);
    assert(getsockname(echo.listener, (struct sockaddr *)&address, &length) == 0);
    assert(pthread_create(&thread, NULL, echo_run, &echo) == 0);
    for (uint32_t i = 0; i < connections; i++) {
        peer_connect_port(&peers[i], ntohs(address.sin_port));
        fds[i] = peers[i].fd;
    }
    struct dlk_bench_load load = {.work = DLK_BENCH_ECHO, .wait_mode = wait_mode,
                                  .connections = connections, .window = window,
                                  .duration_ms = DURATION_MS, .samples_room = SAMPLES,
                                  .fds = fds, .counts = counts, .samples_ns = samples};
    assert(dlk_bench_load(&load, &result) == 0);
    assert(result.errors == 0 && result.count > 0 && result.samples > 0);
    for (uint32_t i = 0; i < connections; i++) {
        peer_close(&peers[i]);
    }
    pthread_join(thread, NULL);
    assert(echo.result == 0);
    close(echo.listener);
}

/* Locks of their own, or the one lock of slot 0 for which all wait. */
static void test_pairs(struct world *world, bool shared_name)
{
    struct peer peers[CONNECTIONS];
    int32_t fds[CONNECTIONS];
    uint32_t client_ids[CONNECTIONS];
    uint32_t lock_ids[CONNECTIONS * WINDOW];
    uint32_t slots[CONNECTIONS * WINDOW];
    uint64_t counts[CONNECTIONS];
    struct dlk_bench_result result;
    uint64_t total = 0;
    for (uint32_t i = 0; i < CONNECTIONS; i++) {
        peer_join(&peers[i], world, i + (shared_name ? CONNECTIONS : 0));
        fds[i] = peers[i].fd;
        client_ids[i] = peers[i].id;
    }
    for (uint32_t i = 0; i < CONNECTIONS * WINDOW; i++) {
        slots[i] = shared_name ? 0 : i;
        lock_ids[i] = 100 + slots[i];
    }
    struct dlk_bench_load load = {.work = DLK_BENCH_PAIRS, .wait_mode = DLK_WAIT_BLOCK,
                                  .connections = CONNECTIONS, .window = WINDOW,
                                  .wait_ms = shared_name ? WORLD_PATIENCE_MS : 0,
                                  .duration_ms = DURATION_MS, .hand_over = shared_name,
                                  .fds = fds, .client_ids = client_ids, .lock_ids = lock_ids,
                                  .slots = slots, .counts = counts};
    assert(dlk_bench_load(&load, &result) == 0);
    assert(result.errors == 0 && result.refused == 0);
    for (uint32_t i = 0; i < CONNECTIONS; i++) {
        total += counts[i];
    }
    assert(result.count > 0 && total == result.count);
    lock_ids[0]++; /* no such lock: every answer to it is wrong */
    assert(dlk_bench_load(&load, &result) == 0 && result.errors > 0);
    for (uint32_t i = 0; i < CONNECTIONS; i++) {
        peer_close(&peers[i]);
    }
}

static void test_crowd(struct world *world, uint32_t hold_us)
{
    static uint32_t slot = 2 * CONNECTIONS;
    struct user users[CONNECTIONS];
    struct dlk_client *clients[CONNECTIONS];
    uint64_t counts[CONNECTIONS];
    uint32_t samples[SAMPLES];
    struct dlk_bench_result result;
    for (uint32_t i = 0; i < CONNECTIONS; i++) {
        users[i] = join_as(world, slot++, DLK_WAIT_ADAPTIVE, WORLD_TTL_MS, REPLY_TIMEOUT_MS);
        get_lock(&users[i], 0, DLK_KIND_ATOMIC, 0);
        clients[i] = users[i].client;
    }
    struct dlk_bench_crowd crowd = {.clients = CONNECTIONS, .lock_id = 100,
                                    .wait_ms = WAIT_LONG_MS, .duration_ms = DURATION_MS,
                                    .hold_us = hold_us, .samples_room = SAMPLES,
                                    .client = clients, .counts = counts, .samples_ns = samples};
    assert(dlk_bench_crowd(&crowd, &result) == 0);
    assert(result.errors == 0 && result.refused == 0 && result.count > 0);
    assert(result.samples > 0 && result.samples < result.count);
    for (uint32_t i = 0; i < CONNECTIONS; i++) {
        dlk_client_free(clients[i]);
    }
}

/* `count` clients, each with a lock or an object of its own. */
static void test_calls(struct world *world, uint32_t work, uint32_t count, uint32_t wait_mode)
{
    static uint32_t slot = 4 * CONNECTIONS;
    struct user users[CONNECTIONS];
    struct dlk_client *clients[CONNECTIONS];
    uint32_t ids[CONNECTIONS];
    uint64_t values[CONNECTIONS] = {0};
    uint32_t samples[SAMPLES];
    uint32_t unlock_samples[SAMPLES];
    struct dlk_bench_result result;
    bool pairs = work == DLK_BENCH_LOCK_UNLOCK;
    uint64_t total = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct dlk_command open = {
            .op = DLK_COMMAND_CELL_OPEN, .slot = slot, .id = 100 + slot, .value = 7};
        ids[i] = pairs ? 100 + i : 100 + slot;
        values[i] = 7;
        users[i] = join_as(world, slot, wait_mode, WORLD_TTL_MS, REPLY_TIMEOUT_MS);
        clients[i] = users[i].client;
        get_lock(&users[i], i, DLK_KIND_ATOMIC, 0);
        assert(world_command(world, open) == DLK_RESULT_DONE);
        assert(dlk_client_add_object(clients[i], 100 + slot, slot) == DLK_STATUS_SUCCESS);
        slot++;
    }
    struct dlk_bench_calls calls = {.work = work, .clients = count, .duration_ms = DURATION_MS,
                                    .samples_room = SAMPLES, .client = clients, .ids = ids,
                                    .values = values, .samples_ns = samples,
                                    .unlock_samples_ns = unlock_samples};
    assert(dlk_bench_calls(&calls, &result) == 0);
    assert(result.errors == 0 && result.count > 0 && result.samples > 0);
    for (uint32_t i = 0; i < count; i++) {
        total += values[i] - 7;
        assert(!pairs || simple(&users[i], DLK_VERB_TRYLOCK, i, 0) == DLK_STATUS_SUCCESS);
        assert(!pairs || simple(&users[i], DLK_VERB_UNLOCK, i, 0) == DLK_STATUS_SUCCESS);
    }
    bool changes = work == DLK_BENCH_FETCH_ADD || work == DLK_BENCH_COMPARE_SWAP;
    assert(changes ? total >= result.count && total <= result.count + count : total == 0);
    values[0]++; /* not what the object holds: the first answer is wrong */
    assert(dlk_bench_calls(&calls, &result) == 0 && (result.errors == 1) == !pairs);
    for (uint32_t i = 0; i < count; i++) {
        dlk_client_free(clients[i]);
    }
    calls.clients = 0;
    assert(dlk_bench_calls(&calls, &result) == EINVAL);
}

int main(void)
{
    struct dlk_plane_config config = world_config();
    struct world world;
    config.limits.max_cells = config.limits.max_sessions;
    test_engine();
    test_echo(1, 1, DLK_WAIT_BLOCK);
    test_echo(1, 2000, DLK_WAIT_POLL);
    test_echo(CONNECTIONS, WINDOW, DLK_WAIT_BLOCK);
    test_echo(CONNECTIONS, WINDOW, DLK_WAIT_POLL);
    world_start(&world, &config);
    for (uint32_t lock = 0; lock < CONNECTIONS * WINDOW; lock++) {
        world_open_lock(&world, lock, 100 + lock, DLK_KIND_ATOMIC);
    }
    test_pairs(&world, false);
    test_pairs(&world, true);
    test_crowd(&world, 0);
    test_crowd(&world, 200);
    for (uint32_t work = DLK_BENCH_LOCK_UNLOCK; work <= DLK_BENCH_READ; work++) {
        test_calls(&world, work, 1, DLK_WAIT_BLOCK);
        test_calls(&world, work, CONNECTIONS, DLK_WAIT_POLL);
    }
    world_stop(&world);
    printf("done\n");
    return 0;
}
