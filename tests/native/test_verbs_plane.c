/* A plane whose connections are queue pairs: attaching, locks, bursts, ends. On a real device. */
#include "verbs_plane_world.h"

enum { LOCK = 3, CELL = 7 };

static void attach_and_lock(struct world *world)
{
    uint64_t before = world_count(world, DLK_COUNT_VERBS_CONNECTIONS);
    struct ring a;
    struct ring b;

    ring_join(&a, world, 1);
    ring_join(&b, world, 2);
    struct dlk_reply grant = ring_lock(&a, LOCK, 0);
    assert(grant.result == DLK_RESULT_GRANTED && grant.token >> DLK_COUNTER_BITS == 5);
    assert(ring_lock(&b, LOCK, 0).result == DLK_RESULT_BUSY);
    struct dlk_reply queued = ring_lock(&b, LOCK, DLK_WAIT_FOREVER);
    assert(queued.result == DLK_RESULT_QUEUED);
    assert(ring_unlock(&a, LOCK, &grant).result == DLK_RESULT_RELEASED);
    struct dlk_reply second = ring_next(&b);
    assert(second.result == DLK_RESULT_GRANTED && second.request_id == queued.request_id);
    assert(ring_unlock(&b, LOCK, &second).result == DLK_RESULT_RELEASED);
    assert(world_count(world, DLK_COUNT_VERBS_CONNECTIONS) == before + 2);
    ring_leave(&a);
    ring_leave(&b);
    assert(world_slot_event(world, DLK_EVENT_LINK_LOST, 1).id == 1001);
    assert(world_slot_event(world, DLK_EVENT_LINK_LOST, 2).id == 1002);
}

/* A lock goes from a client over TCP to one over a queue pair and back. */
static void tcp_and_verbs(struct world *world)
{
    struct peer tcp;
    struct ring ring;

    peer_join(&tcp, world, 3);
    ring_join(&ring, world, 4);
    for (int i = 0; i < 20; i++) {
        struct dlk_reply held = peer_lock(&tcp, LOCK, 0);
        assert(held.result == DLK_RESULT_GRANTED);
        assert(ring_lock(&ring, LOCK, DLK_WAIT_FOREVER).result == DLK_RESULT_QUEUED);
        assert(peer_unlock(&tcp, LOCK, &held).result == DLK_RESULT_RELEASED);
        held = ring_next(&ring);
        assert(held.result == DLK_RESULT_GRANTED);
        assert(peer_lock(&tcp, LOCK, DLK_WAIT_FOREVER).result == DLK_RESULT_QUEUED);
        assert(ring_unlock(&ring, LOCK, &held).result == DLK_RESULT_RELEASED);
        held = peer_next(&tcp);
        assert(held.result == DLK_RESULT_GRANTED);
        assert(peer_unlock(&tcp, LOCK, &held).result == DLK_RESULT_RELEASED);
    }
    ring_leave(&ring);
    assert(peer_ask(&tcp, peer_request(&tcp, DLK_OP_PING, 0)).result == DLK_RESULT_DONE);
    peer_close(&tcp);
}

/* Many more requests than the window has places for, answered in their order. */
static void a_burst(struct world *world)
{
    enum { COUNT = 2000 };
    static struct dlk_request requests[COUNT];
    static struct ring ring;
    int answered = 0;

    ring_join(&ring, world, 5);
    for (int i = 0; i < COUNT; i++) {
        requests[i] = peer_request(&ring.who, i % 2 == 0 ? DLK_OP_PING : DLK_OP_LOCK, 9);
        requests[i].lock_id = 777; /* no such lock */
    }
    for (int sent = 0; answered < COUNT;) {
        size_t left = (size_t)(COUNT - sent) * sizeof(requests[0]);
        if (left > 0) {
            ptrdiff_t n = dlk_pair_send(ring.pair, &requests[sent], left);
            assert(n >= 0);
            sent += (int)((size_t)n / sizeof(requests[0]));
        }
        struct dlk_reply reply = ring_next(&ring);
        assert(reply.request_id == requests[answered].request_id);
        assert(reply.result == (answered % 2 == 0 ? DLK_RESULT_DONE : DLK_RESULT_NO_LOCK));
        answered++;
    }
    ring_leave(&ring);
}

/* One that takes nothing out of its buffers: the server keeps its answers, serves the others, and
 * nothing is lost when it takes them after all. */
static void a_slow_reader(struct world *world)
{
    enum { COUNT = 128 };
    struct dlk_request requests[COUNT];
    static struct ring slow;
    static struct ring good;

    ring_join(&slow, world, 6);
    ring_join(&good, world, 7);
    slow.hold = true;
    for (int i = 0; i < COUNT; i++) {
        requests[i] = peer_request(&slow.who, DLK_OP_PING, 0);
        if (i < COUNT / 2) { /* each is a message, and so is its answer, in a turn of its own */
            uint64_t came = slow.came;
            ptrdiff_t n = dlk_pair_send(slow.pair, &requests[i], sizeof(requests[i]));
            assert(n >= 0);
            if (n == 0) {
                assert(i >= DLK_VERBS_WINDOW / 2); /* the server tells no more either */
                RING_AWAIT(&good, ring_ask(&good, peer_request(&good.who, DLK_OP_PING, 0)).result
                                      == DLK_RESULT_DONE);
                ring_poll(&slow);
                slow.who.next_request--;
                break;
            }
            if (i < DLK_VERBS_WINDOW - 2) {
                RING_AWAIT(&slow, slow.came > came);
            }
        }
    }
    uint32_t asked = slow.who.next_request;
    for (int i = 0; i < 50; i++) {
        assert(ring_ask(&good, peer_request(&good.who, DLK_OP_PING, 0)).result
               == DLK_RESULT_DONE);
        ring_poll(&slow);
    }
    slow.hold = false;
    for (uint32_t i = 0; i < slow.n_held; i++) {
        dlk_pair_release(slow.pair, slow.held[i]);
    }
    for (uint32_t i = 1; i <= asked; i++) {
        assert(ring_next(&slow).request_id == i);
    }
    assert(ring_ask(&slow, peer_request(&slow.who, DLK_OP_PING, 0)).result == DLK_RESULT_DONE);
    ring_leave(&slow);
    ring_leave(&good);
}

/* A stranger is refused, told so, and the connection ended. */
static void refused(struct world *world)
{
    struct dlk_attach frame = peer_attach_frame(8, 1008, 1);
    struct ring ring;

    world_open_session(world, 8, 1008, 1, WORLD_TTL_MS);
    ring_connect(&ring, world, 8, 1008);
    frame.secret[0] ^= 1;
    ring_send(&ring, &frame, sizeof(frame));
    assert(ring_next(&ring).result == DLK_RESULT_REFUSED);
    RING_AWAIT(&ring, ring.bye);
    struct dlk_event bad = world_event(world, DLK_EVENT_BAD_PEER, 0);
    assert(bad.result == DLK_FAULT_REFUSED && bad.id == 1008 && bad.value != 0);
    ring_vanish(&ring);
}

int main(void)
{
    for (uint32_t mode = DLK_WAIT_BLOCK; mode <= DLK_WAIT_POLL; mode++) {
        struct dlk_plane_config config = world_config();
        static struct world world;

        config.wait_mode = mode;
        world_start_verbs(&world, &config);
        world_open_lock(&world, LOCK, 100 + LOCK, DLK_KIND_ATOMIC);
        attach_and_lock(&world);
        tcp_and_verbs(&world);
        a_burst(&world);
        a_slow_reader(&world);
        refused(&world);
        assert(world_count(&world, DLK_COUNT_VERBS_PAIR_ERRORS) == 0);
        world_stop(&world);
    }
    return 0;
}
