/*
 * Two ends of a queue pair in one process, on a real device; each with a completion queue of its
 * own, polled by hand. Without a device a test that begins with world_port is skipped, or fails if
 * DLOCK_TEST_RDMA=1 says that there must be one.
 */
#ifndef VERBS_WORLD_H
#define VERBS_WORLD_H

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "verbs_pair_internal.h"

enum { SKIPPED = 77, FRAMES = 4096, SPARE = 64, PATIENCE_S = 20 };

struct frame {
    uint64_t number;
    uint64_t more[7];
};

/* What has come in at one end. */
struct seen {
    uint64_t frames;
    uint64_t empty;
    uint64_t answers;
    struct dlk_pair_answer last;
    enum dlk_pair_receipt receipt; /* the last one that was no MESSAGE */
    enum ibv_wc_status status;     /* the last one that was no SUCCESS */
    uint32_t sends_flushed;
};

struct end {
    struct dlk_verbs_device *device;
    struct ibv_cq *cq;
    struct ibv_srq *srq; /* NULL: it receives by itself */
    struct ibv_mr *srq_region;
    unsigned char *srq_memory;
    struct dlk_pair *pair;
    struct dlk_verbs_address address;
    struct seen seen;
    uint64_t next_frame; /* number of the frame that must come next */
    bool hold;           /* messages are not taken out: nothing is told */
};

static inline struct dlk_verbs_port world_port(uint32_t version)
{
    struct dlk_verbs_wish wish = {.version = version};
    struct dlk_verbs_port port;
    char reason[DLK_REASON_BYTES];
    const char *must = getenv("DLOCK_TEST_RDMA");
    if (dlk_verbs_choose(&wish, &port, reason)) {
        return port;
    }
    fprintf(stderr, "%s\n", reason);
    exit(must != NULL && strcmp(must, "1") == 0 ? 1 : SKIPPED);
}

static inline void end_post_shared(struct end *end, uint64_t buffer)
{
    struct ibv_sge sge = {
        .addr = (uintptr_t)(end->srq_memory + buffer * DLK_VERBS_MESSAGE_BYTES),
        .length = DLK_VERBS_MESSAGE_BYTES,
        .lkey = end->srq_region->lkey,
    };
    struct ibv_recv_wr wr = {.wr_id = buffer, .sg_list = &sge, .num_sge = 1};
    struct ibv_recv_wr *bad = NULL;
    assert(ibv_post_srq_recv(end->srq, &wr, &bad) == 0);
}

static inline void end_share(struct end *end)
{
    struct ibv_srq_init_attr wanted = {.attr = {.max_wr = SPARE, .max_sge = 1}};
    size_t bytes = (size_t)SPARE * DLK_VERBS_MESSAGE_BYTES;
    end->srq = dlk_ibv->create_srq(end->device->pd, &wanted);
    end->srq_memory = aligned_alloc(4096, bytes);
    assert(end->srq != NULL && end->srq_memory != NULL);
    end->srq_region =
        dlk_ibv->reg_mr(end->device->pd, end->srq_memory, bytes, IBV_ACCESS_LOCAL_WRITE);
    assert(end->srq_region != NULL);
    for (uint64_t i = 0; i < SPARE; i++) {
        end_post_shared(end, i);
    }
}

struct end_wish {
    bool share;
    uint32_t window;       /* 0: the usual one */
    uint32_t reads;        /* that it wants under way */
    uint32_t reads_served;
    int access;
    uint32_t mark;
};

static inline void end_open(struct end *end, const struct dlk_verbs_port *port,
                            const struct end_wish *wish)
{
    char reason[DLK_REASON_BYTES];
    memset(end, 0, sizeof(*end));
    end->device = dlk_verbs_device_open(port, DLK_DEVICE_OWN, reason);
    assert(end->device != NULL);
    end->cq = dlk_ibv->create_cq(end->device->context, 256, NULL, NULL, 0);
    assert(end->cq != NULL);
    if (wish->share) {
        end_share(end);
    }
    struct dlk_pair_config config = {
        .device = end->device,
        .send_completions = end->cq,
        .receive_completions = end->cq,
        .shared_receives = end->srq,
        .window = wish->window != 0 ? wish->window : DLK_VERBS_WINDOW,
        .reads = wish->reads,
        .reads_served = wish->reads_served,
        .access = wish->access,
        .mark = wish->mark,
    };
    end->pair = dlk_pair_new(&config, reason);
    if (end->pair == NULL) {
        fprintf(stderr, "%s\n", reason);
    }
    assert(end->pair != NULL);
    dlk_pair_address(end->pair, &end->address);
}

static inline void ends_connect(struct end *a, struct end *b)
{
    char reason[DLK_REASON_BYTES] = "";
    bool done = dlk_pair_connect(a->pair, &b->address, reason)
                && dlk_pair_connect(b->pair, &a->address, reason);
    if (!done) {
        fprintf(stderr, "%s\n", reason);
    }
    assert(done);
}

static inline void ends_open(struct end *a, struct end *b, const struct end_wish *wish_a,
                             const struct end_wish *wish_b)
{
    struct dlk_verbs_port port = world_port(0);
    end_open(a, &port, wish_a);
    end_open(b, &port, wish_b);
    ends_connect(a, b);
}

static inline void end_close(struct end *end)
{
    dlk_pair_free(end->pair);
    if (end->srq != NULL) {
        assert(dlk_ibv->destroy_srq(end->srq) == 0);
        assert(dlk_ibv->dereg_mr(end->srq_region) == 0);
        free(end->srq_memory);
    }
    assert(dlk_ibv->destroy_cq(end->cq) == 0);
    dlk_verbs_device_close(end->device);
}

/* ---- What comes in ---- */

static inline const unsigned char *end_bytes(const struct end *end, const struct ibv_wc *wc)
{
    return end->srq != NULL ? end->srq_memory + wc->wr_id * DLK_VERBS_MESSAGE_BYTES
                            : (const unsigned char *)dlk_pair_bytes(end->pair, wc);
}

static inline void end_receive(struct end *end, const struct ibv_wc *wc)
{
    enum dlk_pair_receipt receipt = dlk_pair_received(end->pair, wc);
    if (receipt != DLK_RECEIPT_MESSAGE) {
        end->seen.receipt = receipt;
    }
    if (receipt != DLK_RECEIPT_MESSAGE && receipt != DLK_RECEIPT_BYE) {
        return;
    }
    end->seen.empty += wc->byte_len == 0;
    for (uint32_t at = 0; at < wc->byte_len; at += DLK_FRAME_BYTES) {
        struct frame frame;
        memcpy(&frame, end_bytes(end, wc) + at, sizeof(frame));
        assert(frame.number == end->next_frame && frame.more[6] == ~frame.number);
        end->next_frame++;
        end->seen.frames++;
    }
    if (end->hold) {
        return;
    }
    if (end->srq != NULL) {
        end_post_shared(end, wc->wr_id);
        dlk_pair_taken(end->pair, 1);
    } else {
        dlk_pair_release(end->pair, wc->wr_id);
    }
}

static inline void end_completion(struct end *end, const struct ibv_wc *wc)
{
    enum dlk_pair_kind kind = dlk_pair_kind(wc->wr_id);
    assert(wc->qp_num == dlk_pair_number(end->pair));
    if (wc->status != IBV_WC_SUCCESS && wc->status != IBV_WC_WR_FLUSH_ERR) {
        end->seen.status = wc->status;
    }
    if (kind == DLK_PAIR_RECEIVE) {
        end_receive(end, wc);
        return;
    }
    assert(dlk_pair_mark(wc->wr_id) == end->pair->mark >> 32);
    if (kind == DLK_PAIR_SEND) {
        dlk_pair_sent(end->pair, wc);
        end->seen.sends_flushed += wc->status == IBV_WC_WR_FLUSH_ERR;
    } else {
        dlk_pair_operated(end->pair, wc, &end->seen.last);
        end->seen.answers++;
    }
}

static inline void end_poll(struct end *end)
{
    struct ibv_wc wc[16];
    int count = ibv_poll_cq(end->cq, 16, wc);
    assert(count >= 0);
    for (int i = 0; i < count; i++) {
        end_completion(end, &wc[i]);
    }
}

static inline void ends_poll(struct end *a, struct end *b)
{
    end_poll(a);
    end_poll(b);
}

/* Polls both until it is so. Each wait may last very long: a machine may be slow. */
#define WAIT_FOR(a, b, condition)                                                              \
    do {                                                                                       \
        uint64_t until_ns = dlk_now_ns() + (uint64_t)PATIENCE_S * DLK_NS_PER_S;                 \
        while (!(condition)) {                                                                 \
            ends_poll(a, b);                                                                   \
            assert(dlk_now_ns() < until_ns);                                                   \
        }                                                                                      \
    } while (0)

/* ---- What goes out ---- */

/* Frames from this number on; returns how many were taken. */
static inline uint64_t end_send(struct end *end, uint64_t first, uint64_t count)
{
    struct frame frames[128];
    count = count < 128 ? count : 128;
    for (uint64_t i = 0; i < count; i++) {
        frames[i] = (struct frame){.number = first + i};
        frames[i].more[6] = ~(first + i);
    }
    ptrdiff_t sent = dlk_pair_send(end->pair, frames, count * DLK_FRAME_BYTES);
    assert(sent >= 0 && sent % DLK_FRAME_BYTES == 0);
    return (uint64_t)sent / DLK_FRAME_BYTES;
}

#endif
