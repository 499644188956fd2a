/*
 * What all queue pairs of a server share: one device, one completion queue with its channel, one
 * shared receive queue and its buffers. How many queue pairs there is room for is decided here,
 * once: neither queue can overrun, whatever the clients do, since an overrun would end them all.
 * Knows nothing of links.
 */
#ifndef DLOCK_VERBS_QUEUES_H
#define DLOCK_VERBS_QUEUES_H

#include "verbs_device.h"

/* Buffers that wait to be posted together; the queue has so many more than the windows need. */
enum { DLK_QUEUES_AGAIN_MAX = 32 };

struct dlk_verbs_queues {
    struct dlk_verbs_device *device;
    struct ibv_comp_channel *channel;
    struct ibv_cq *completions;
    struct ibv_srq *receives;
    struct ibv_mr *region;
    unsigned char *buffers; /* of DLK_VERBS_MESSAGE_BYTES each */
    uint32_t n_buffers;
    uint32_t pairs_max;
    bool armed;               /* the next completion makes the channel readable */
    unsigned int unanswered;  /* events of the channel that have not been acknowledged */
    uint32_t n_again;
    struct ibv_recv_wr again[DLK_QUEUES_AGAIN_MAX];
    struct ibv_sge places[DLK_QUEUES_AGAIN_MAX];
};

/* On an open device, which stays the caller's; for so many queue pairs or, if it cannot be, fewer:
 * `reason` says for how many, and why. False: not even for one. */
bool dlk_verbs_queues_open(struct dlk_verbs_queues *queues, struct dlk_verbs_device *device,
                           uint32_t pairs, char *reason);
/* When there is no queue pair any more. */
void dlk_verbs_queues_close(struct dlk_verbs_queues *queues);

static inline const unsigned char *dlk_verbs_queues_buffer(const struct dlk_verbs_queues *queues,
                                                           uint32_t buffer)
{
    return queues->buffers + (size_t)buffer * DLK_VERBS_MESSAGE_BYTES;
}

/* This buffer may be posted again: it is, with the next ones. */
void dlk_verbs_queues_again(struct dlk_verbs_queues *queues, uint32_t buffer);

/* The next completion is to make the channel readable. To be polled once more after that. */
void dlk_verbs_queues_arm(struct dlk_verbs_queues *queues);
/* The channel is readable. */
void dlk_verbs_queues_disarm(struct dlk_verbs_queues *queues);

#endif
