/*
 * What one end of a queue pair is made of: for verbs_pair.c, which makes it, verbs_message.c and
 * verbs_operation.c, which use it; for nobody else.
 */
#ifndef DLOCK_VERBS_PAIR_INTERNAL_H
#define DLOCK_VERBS_PAIR_INTERNAL_H

#include <assert.h>

#include "verbs_pair.h"

/* A pair says no more to the other end: an error, or its own bye. */
enum dlk_pair_state { DLK_STATE_BROKEN = 1, DLK_STATE_ENDED = 2 };

/* A receive buffer of its own: 7 frames, so that those of a window and the results of operations
 * lie in two pages. A process of many clients has to lock them all. */
enum { DLK_PAIR_RECEIVE_BYTES = 448 };
static_assert(DLK_VERBS_WINDOW * DLK_PAIR_RECEIVE_BYTES + DLK_PAIR_READS_MAX * 8 <= 2 * 4096,
              "two pages");

/* Such a buffer, always ready to be posted again. */
struct dlk_receive {
    struct ibv_recv_wr wr;
    struct ibv_sge sge;
};

struct dlk_pair {
    struct dlk_credit credit;
    /* Read by both roles, hardly ever written. */
    alignas(64) struct ibv_qp *qp;
    _Atomic uint32_t state; /* enum dlk_pair_state */
    uint32_t bytes_max;     /* of a message to the other end */
    uint32_t operations_max;
    uint64_t mark;          /* at its place in a wr_id */
    struct ibv_mr *region;  /* receive buffers, then results; NULL: has neither */
    uint64_t *results;      /* of operations, by their number modulo READS_MAX */
    /* The sender's, but what the receiver frees. */
    alignas(64) _Atomic uint32_t sends_done;
    _Atomic uint32_t operations_done;
    uint32_t operations;
    uint64_t cookies[DLK_PAIR_READS_MAX];
    /* The receiver's. */
    alignas(64) struct dlk_receive *receives;
    struct ibv_recv_wr *idle; /* taken out, not yet posted again */
    uint32_t idle_count;
    uint32_t idle_post; /* as many are posted at once */
    unsigned char *memory;
    size_t memory_bytes;
    /* Set up. */
    struct dlk_verbs_device *device;
    uint32_t process;
    uint32_t packet;
    uint32_t reads_served;
};

static inline uint32_t dlk_pair_state(const struct dlk_pair *pair)
{
    return atomic_load_explicit(&pair->state, memory_order_relaxed);
}

static inline int dlk_pair_gone(struct dlk_pair *pair)
{
    atomic_fetch_or_explicit(&pair->state, DLK_STATE_BROKEN, memory_order_relaxed);
    return DLK_PAIR_GONE;
}

/* Posts the receives that were taken out; 0 or an errno. */
int dlk_pair_post_idle(struct dlk_pair *pair);

#endif
