/*
 * Clients over queue pairs, on a real device, for a plane that runs in its thread
 * (plane_world.h): each is made of a pair and a completion queue, and polled by the test. Without a
 * device such a test is skipped, or fails if DLOCK_TEST_RDMA=1 says that there must be one.
 */
#ifndef DLOCK_VERBS_PLANE_WORLD_H
#define DLOCK_VERBS_PLANE_WORLD_H

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "plane_world.h"
#include "verbs_pair_internal.h"
#include "verbs_server.h"

enum { SKIPPED = 77, RING_REPLIES = 1024, RING_MESSAGES = 64 };

/* One end of a queue pair, and what has come over it. */
struct ring {
    struct peer who; /* whose frames it sends; its fd means nothing */
    struct dlk_verbs_device *device;
    struct ibv_cq *cq;
    struct dlk_pair *pair;
    struct dlk_verbs_address server;
    struct dlk_reply replies[RING_REPLIES];
    uint64_t came;
    uint64_t taken;
    uint64_t held[RING_MESSAGES]; /* buffers of messages that are not given back */
    uint32_t n_held;
    bool hold; /* gives no buffer back: tells nothing */
    bool bye;
    bool broken;
    struct dlk_pair_answer answer; /* of the last operation */
    uint64_t answers;
};

static inline struct dlk_verbs_port world_port(void)
{
    struct dlk_verbs_wish wish = {.device = ""};
    const char *must = getenv("DLOCK_TEST_RDMA");
    char reason[DLK_REASON_BYTES];
    struct dlk_verbs_port port;

    if (dlk_verbs_choose(&wish, &port, reason)) {
        return port;
    }
    fprintf(stderr, "%s\n", reason);
    exit(must != NULL && strcmp(must, "1") == 0 ? 1 : SKIPPED);
}

/* A plane that serves RDMA too. */
static inline void world_start_verbs(struct world *world, const struct dlk_plane_config *config)
{
    struct dlk_verbs_port port = world_port();
    char reason[DLK_REASON_BYTES];
    int error = -1;

    memset(world, 0, sizeof(*world));
    world->plane = dlk_plane_new(config, &error);
    assert(world->plane != NULL && error == 0);
    if (!dlk_plane_verbs_open(world->plane, &port, reason)) {
        fprintf(stderr, "%s\n", reason);
        assert(false);
    }
    assert(reason[0] != '\0' && strchr(reason, '\n') == NULL);
    assert(pthread_create(&world->thread, NULL, world_run, world) == 0);
}

/* ---- What comes ---- */

static inline void ring_message(struct ring *ring, const struct ibv_wc *wc)
{
    const struct dlk_reply *replies = dlk_pair_bytes(ring->pair, wc);

    for (uint32_t i = 0; i < wc->byte_len / DLK_FRAME_BYTES; i++) {
        assert(ring->came - ring->taken < RING_REPLIES);
        memcpy(&ring->replies[ring->came++ % RING_REPLIES], &replies[i], sizeof(replies[i]));
    }
    if (ring->hold) {
        assert(ring->n_held < RING_MESSAGES);
        ring->held[ring->n_held++] = wc->wr_id;
    } else {
        dlk_pair_release(ring->pair, wc->wr_id);
    }
}

static inline void ring_completed(struct ring *ring, const struct ibv_wc *wc)
{
    enum dlk_pair_receipt receipt;

    switch (dlk_pair_kind(wc->wr_id)) {
    case DLK_PAIR_RECEIVE:
        receipt = dlk_pair_received(ring->pair, wc);
        assert(receipt != DLK_RECEIPT_WINDOW && receipt != DLK_RECEIPT_MALFORMED);
        if (receipt != DLK_RECEIPT_BROKEN) {
            ring_message(ring, wc);
        }
        ring->bye |= receipt == DLK_RECEIPT_BYE;
        break;
    case DLK_PAIR_SEND:
        dlk_pair_sent(ring->pair, wc);
        break;
    case DLK_PAIR_OPERATION:
        dlk_pair_operated(ring->pair, wc, &ring->answer);
        ring->answers++;
        break;
    }
    ring->broken |= wc->status != IBV_WC_SUCCESS;
}

static inline void ring_poll(struct ring *ring)
{
    struct ibv_wc wc[16];
    int count = ibv_poll_cq(ring->cq, 16, wc);

    assert(count >= 0);
    for (int i = 0; i < count; i++) {
        ring_completed(ring, &wc[i]);
    }
    if (!ring->hold && !ring->broken && !ring->bye) {
        dlk_pair_tell(ring->pair);
    }
    if (count == 0) {
        sched_yield(); /* the plane may have this very core */
    }
}

/* Polls until it is so; a machine may be slow. */
#define RING_AWAIT(ring, condition)                                                            \
    do {                                                                                       \
        uint64_t until_ns = dlk_now_ns() + (uint64_t)WORLD_PATIENCE_MS * DLK_NS_PER_MS;         \
        while (!(condition)) {                                                                 \
            ring_poll(ring);                                                                   \
            assert(dlk_now_ns() < until_ns);                                                   \
        }                                                                                      \
    } while (0)

/* ---- What goes ---- */

/* All of them, as the window allows. */
static inline void ring_send(struct ring *ring, const void *frames, size_t length)
{
    size_t sent = 0;

    while (sent < length) {
        ptrdiff_t n = dlk_pair_send(ring->pair, (const char *)frames + sent, length - sent);
        assert(n >= 0);
        sent += (size_t)n;
        if (sent < length) {
            RING_AWAIT(ring, dlk_pair_room(ring->pair) > 0);
        }
    }
}

static inline struct dlk_reply ring_next(struct ring *ring)
{
    RING_AWAIT(ring, ring->came > ring->taken);
    return ring->replies[ring->taken++ % RING_REPLIES];
}

static inline struct dlk_reply ring_ask(struct ring *ring, struct dlk_request request)
{
    ring_send(ring, &request, sizeof(request));
    struct dlk_reply reply = ring_next(ring);
    assert(reply.session == ring->who.id && reply.request_id == request.request_id);
    return reply;
}

static inline struct dlk_reply ring_lock(struct ring *ring, uint32_t lock_slot, uint32_t wait_ms)
{
    struct dlk_request request = peer_request(&ring->who, DLK_OP_LOCK, lock_slot);

    request.wait_ms = wait_ms;
    return ring_ask(ring, request);
}

static inline struct dlk_reply ring_unlock(struct ring *ring, uint32_t lock_slot,
                                           const struct dlk_reply *grant)
{
    struct dlk_request request = peer_request(&ring->who, DLK_OP_UNLOCK, lock_slot);

    request.token = grant->token;
    request.entry = grant->entry;
    return ring_ask(ring, request);
}

/* One-sided, awaited. Its status; what was found is in `answer`. */
static inline enum ibv_wc_status ring_operate(struct ring *ring, uint32_t verb, uint32_t slot,
                                              uint32_t key, uint64_t value, uint64_t compare)
{
    struct dlk_pair_operation operation = {.address = ring->server.cells + slot * 8ULL,
                                           .value = value,
                                           .compare = compare,
                                           .key = key,
                                           .verb = verb};
    uint64_t before = ring->answers;

    assert(ring->server.cells != 0 && key != 0);
    assert(dlk_pair_operate(ring->pair, &operation, 1) == 1);
    RING_AWAIT(ring, ring->answers > before);
    return ring->answer.status;
}

/* ---- Begin and end ---- */

static inline void ring_make(struct ring *ring, struct dlk_verbs_address *own)
{
    struct dlk_verbs_port port = world_port();
    char reason[DLK_REASON_BYTES];

    memset(ring, 0, sizeof(*ring));
    ring->device = dlk_verbs_device_open(&port, DLK_DEVICE_SHARED, reason);
    assert(ring->device != NULL);
    ring->cq = dlk_ibv->create_cq(ring->device->context, 128, NULL, NULL, 0);
    assert(ring->cq != NULL);
    struct dlk_pair_config config = {.device = ring->device,
                                     .send_completions = ring->cq,
                                     .receive_completions = ring->cq,
                                     .window = DLK_VERBS_WINDOW,
                                     .reads = DLK_PAIR_READS_MAX};
    ring->pair = dlk_pair_new(&config, reason);
    assert(ring->pair != NULL);
    dlk_pair_address(ring->pair, own);
}

/* As the control thread: a queue pair for it, which the plane has then. */
static inline void ring_connect(struct ring *ring, struct world *world, uint32_t slot, uint32_t id)
{
    struct dlk_command open = {.op = DLK_COMMAND_LINK_OPEN, .slot = slot, .id = id};
    struct dlk_verbs_address own;
    char reason[DLK_REASON_BYTES] = "";

    ring_make(ring, &own);
    ring->who.id = id;
    ring->who.slot = slot;
    int status
        = dlk_plane_verbs_pair(world->plane, &own, &ring->server, &open.value, reason);
    if (status != DLK_STATUS_SUCCESS) {
        fprintf(stderr, "%s\n", reason);
    }
    assert(status == DLK_STATUS_SUCCESS);
    assert(world_command(world, open) == DLK_RESULT_DONE);
    assert(dlk_pair_connect(ring->pair, &ring->server, reason));
}

static inline void ring_attach(struct ring *ring, struct world *world, uint32_t slot, uint32_t id,
                               uint32_t attach)
{
    struct dlk_attach frame = peer_attach_frame(slot, id, attach);

    ring_connect(ring, world, slot, id);
    ring_send(ring, &frame, sizeof(frame));
    struct dlk_reply reply = ring_next(ring);
    assert(reply.op == DLK_OP_ATTACH && reply.result == DLK_RESULT_DONE);
    assert(reply.request_id == frame.request_id && reply.session == id && reply.epoch == 5);
}

/* A session of its own, and a queue pair for it. */
static inline void ring_join(struct ring *ring, struct world *world, uint32_t slot)
{
    world_open_session(world, slot, 1000 + slot, 1, WORLD_TTL_MS);
    ring_attach(ring, world, slot, 1000 + slot, 1);
}

/* Without a word: the process has died. */
static inline void ring_vanish(struct ring *ring)
{
    dlk_pair_free(ring->pair);
    assert(dlk_ibv->destroy_cq(ring->cq) == 0);
    dlk_verbs_device_close(ring->device);
    ring->pair = NULL;
}

static inline void ring_leave(struct ring *ring)
{
    if (dlk_pair_bye(ring->pair) == 1) {
        RING_AWAIT(ring, dlk_pair_arrived(ring->pair) || ring->broken);
    }
    ring_vanish(ring);
}

#endif
