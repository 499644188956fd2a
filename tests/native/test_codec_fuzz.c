/* Hostile bytes against a real plane over loopback: random, mutated, truncated and oversized. The
 * server goes on serving a good client, counts what it refused, and its tables stay whole. The
 * seeds are fixed: a failure comes again. */
#include "plane.h"
#include "plane_world.h"

enum { ROUNDS = 400, FRAMES_MAX = 64, GOOD_LOCK = 3, HOSTILE = 1, GOOD = 2, HOSTILE_LOCKS = 16 };

static uint64_t random_state;

/* xorshift64*: the same numbers everywhere. */
static uint64_t next_random(void)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1du;
}

static uint32_t below(uint32_t end)
{
    return (uint32_t)(next_random() >> 33) % end;
}

static void random_bytes(void *out, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        ((uint8_t *)out)[i] = (uint8_t)(next_random() >> 40);
    }
}

/* A frame that the codec lets pass, with anything in the fields that are the engine's to judge. */
static struct dlk_request plausible(struct peer *peer)
{
    struct dlk_request request = peer_request(peer, DLK_OP_PING + below(DLK_OP_COUNT - 2), 0);
    uint32_t slot = 8 + below(HOSTILE_LOCKS);

    request.request_id = below(4) == 0 ? below(20) : request.request_id;
    request.mode = (uint8_t)below(DLK_MODE_COUNT);
    request.flags = (uint16_t)below(DLK_FLAG_ALL + 1);
    request.slot = below(16) == 0 ? (uint32_t)next_random() : slot;
    request.lock_id = below(16) == 0 ? (uint32_t)next_random() : 100 + slot;
    request.entry = below(2) == 0 ? below(100) : DLK_NONE;
    request.owner = below(4);
    request.token = below(2) == 0 ? next_random() : ((uint64_t)5 << DLK_COUNTER_BITS) + below(999);
    request.value = below(2) == 0 ? next_random() : below(20);
    request.lease_ms = below(3) == 0 ? 0 : (uint32_t)(next_random() >> (32 + below(32)));
    request.wait_ms = below(2) == 0 ? 0 : (uint32_t)(next_random() >> (32 + below(32)));
    return request;
}

/* One hostile connection; returns whether it sent what must be refused. */
static bool attack(struct world *world, uint32_t attach)
{
    struct dlk_attach frame = peer_attach_frame(HOSTILE, 1000 + HOSTILE, attach);
    struct dlk_request requests[FRAMES_MAX];
    uint32_t count = 1 + below(FRAMES_MAX);
    uint32_t kind = below(5);
    struct peer peer;

    if (kind == 0) { /* no attach frame at all */
        peer_connect(&peer, world);
        random_bytes(requests, sizeof(requests));
        requests[0].op = 0;
        peer_send(&peer, requests, DLK_FRAME_BYTES + below(sizeof(requests) - DLK_FRAME_BYTES));
        assert(peer_closed(&peer));
        peer_close(&peer);
        return true;
    }
    if (kind == 1) { /* an attach frame with one bit changed */
        uint32_t bit = 32 + below(8 * (uint32_t)sizeof(frame) - 32); /* behind the request id */
        ((uint8_t *)&frame)[bit / 8] ^= (uint8_t)(1u << bit % 8);
        peer_connect(&peer, world);
        peer_send(&peer, &frame, sizeof(frame));
        assert(peer_closed(&peer));
        peer_close(&peer);
        return true;
    }
    peer_attach(&peer, world, HOSTILE, 1000 + HOSTILE, attach);
    for (uint32_t i = 0; i < count; i++) {
        requests[i] = plausible(&peer);
    }
    size_t length = count * DLK_FRAME_BYTES;
    if (kind == 2) { /* something that the codec refuses */
        requests[below(count)].reserved = 1 + next_random() % 1000;
    } else if (kind == 3) { /* cut off inside a frame */
        length -= 1 + below(DLK_FRAME_BYTES - 1);
    }
    peer_send(&peer, requests, length);
    if (kind == 2) {
        assert(peer_closed(&peer));
    } else if (below(2) == 0) { /* leaves at once, or once everything is answered */
        shutdown(peer.fd, SHUT_WR);
        assert(peer_closed(&peer));
    }
    peer_close(&peer);
    return kind == 2;
}

static void run(uint64_t seed)
{
    struct dlk_plane_config config = world_config();
    static struct world world;
    uint64_t refused = 0;
    struct peer good;

    random_state = seed;
    world_start(&world, &config);
    world_open_lock(&world, GOOD_LOCK, 100 + GOOD_LOCK, DLK_KIND_FAIR);
    for (uint32_t i = 0; i < HOSTILE_LOCKS; i++) {
        world_open_lock(&world, 8 + i, 108 + i, i % DLK_KIND_COUNT);
    }
    peer_join(&good, &world, GOOD);
    world_open_session(&world, HOSTILE, 1000 + HOSTILE, 1, WORLD_TTL_MS);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        refused += attack(&world, round + 1);
        assert(world_supersede(&world, HOSTILE, 1000 + HOSTILE, round + 2) == DLK_RESULT_DONE);
        struct dlk_reply grant = peer_lock(&good, GOOD_LOCK, 0);
        assert(grant.result == DLK_RESULT_GRANTED);
        assert(peer_unlock(&good, GOOD_LOCK, &grant).result == DLK_RESULT_RELEASED);
        world.n_events = 0; /* nobody asks for them here */
    }
    assert(refused > ROUNDS / 4);
    assert(world_count(&world, DLK_COUNT_BAD_REQUEST)
               + world_count(&world, DLK_COUNT_CLIENT_ID_VERIFY_FAIL)
           == refused);
    struct dlk_command leave = {
        .op = DLK_COMMAND_SESSION_CLOSE, .slot = HOSTILE, .id = 1000 + HOSTILE};
    assert(world_command(&world, leave) == DLK_RESULT_DONE);
    peer_close(&good);
    dlk_plane_stop(world.plane);
    assert(pthread_join(world.thread, NULL) == 0 && world.result == 0);
    assert(dlk_engine_check(world.plane->engine) == 0);
    assert(dlk_engine_entries_in_use(world.plane->engine) == 0);
    dlk_plane_free(world.plane);
}

int main(void)
{
    static const uint64_t seeds[] = {1, 0x9e3779b97f4a7c15u, 20240229};

    for (size_t i = 0; i < sizeof(seeds) / sizeof(seeds[0]); i++) {
        run(seeds[i]);
    }
    return 0;
}
