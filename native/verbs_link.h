/*
 * A client's connection over a queue pair of its own (connection.h). It has its own completion
 * queue, for what is received, sent and operated, and a completion channel, whose descriptor is
 * what there is to watch. Only the device is shared by the clients of a process.
 *
 * What it takes from and gives to the client is frames: an operation on an object that the client
 * carries out by itself is a request with a key in `reserved`, and its completion becomes the
 * reply.
 *
 * The roles of connection.h are those of verbs_pair.h: what is posted is the sender's, completions
 * are the reader's. This header is for verbs_link.c and verbs_link_frames.c.
 */
#ifndef DLOCK_VERBS_LINK_H
#define DLOCK_VERBS_LINK_H

#include "connection.h"
#include "verbs_pair.h"

enum {
    DLK_LINK_POLLED_MAX = 16, /* completions of one look at the queue */
    /* Twice as many as can be under way: the sender may post the next one while the reader still
     * makes a reply of the last, and does not take its place. */
    DLK_LINK_OPERATIONS = 2 * DLK_PAIR_READS_MAX
};

/* What the reply to an operation needs. The sender's until it is posted, then the reader's. */
struct dlk_operation {
    uint64_t compare;
    uint32_t request_id;
    uint32_t op;
    _Atomic uint64_t object; /* its id and DLK_OBJECT_BIT; 0: none is under way here */
};

#define DLK_OBJECT_BIT ((uint64_t)1 << 32)

struct dlk_queue_pair {
    struct dlk_connection connection;
    struct dlk_verbs_device *device;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct dlk_pair *pair;
    uint32_t process;
    uint32_t client_id;
    uint32_t epoch;
    uint64_t cells;
    int bell_fd; /* wakes the reader when the connection is shut */
    _Atomic bool over;
    /* The reader's: completions that were polled and not yet taken; of the first, how many bytes
     * were. */
    struct ibv_wc polled[DLK_LINK_POLLED_MAX];
    uint32_t polled_count;
    uint32_t polled_taken;
    uint32_t bytes_taken;
    bool ended;      /* by the other end, or by an error */
    uint32_t events; /* not acknowledged yet */
    struct dlk_operation operations[DLK_LINK_OPERATIONS];
    /* The sender's. */
    uint32_t operation_next;
    bool wants_operation; /* what it could not send was one; else it was a message */
};

/* verbs_link_frames.c: the calls of connection.h */
ssize_t dlk_verbs_link_send(struct dlk_connection *connection, const void *frames,
                            size_t length);
ssize_t dlk_verbs_link_receive(struct dlk_connection *connection, void *frames, size_t room);

#endif
