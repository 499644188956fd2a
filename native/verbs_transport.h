/*
 * RDMA at a server, as its plane sees it: a transport that is built around the TCP transport. A
 * link is a connection of either kind; the plane does not care which. What it has besides the calls
 * of transport.h is here: queue pairs that the control thread makes, what is to be logged, and the
 * cells that clients operate on by themselves. No type of libibverbs is named here, so that a build
 * without its headers has the same plane.
 *
 * Threads. `pair` and `pair_free` belong to the control thread, and neither keeps the plane thread
 * waiting, unless the device is lost at that moment. All else is the plane thread's, as in
 * transport.h.
 */
#ifndef DLOCK_VERBS_TRANSPORT_H
#define DLOCK_VERBS_TRANSPORT_H

#include "abi_verbs.h"
#include "transport.h"

struct dlk_verbs_setting {
    struct dlk_transport *tcp; /* the new transport's from when it is there */
    uint32_t links;            /* of both kinds, as the TCP transport was told */
    uint32_t clients;          /* as many queue pairs are wanted */
    uint64_t *cells;           /* page aligned; whole pages */
    uint32_t n_cells;
};

/* For the log: as DLK_EVENT_VERBS. */
struct dlk_verbs_notice {
    uint32_t event; /* enum dlk_verbs_event */
    uint32_t client_id;
    uint32_t code;
    uint32_t links;
};

enum dlk_cell_outcome {
    DLK_CELL_UNTOUCHED = 0, /* certainly not carried out, and nobody else can reach the cell: the
                             * processor may do it */
    DLK_CELL_DONE,          /* found: what was there before */
    DLK_CELL_UNKNOWN        /* the device broke over it */
};

struct dlk_cell_operation {
    uint32_t slot;
    uint32_t op; /* DLK_OP_FETCH_ADD, COMPARE_SWAP or READ */
    uint64_t value;
    uint64_t compare;
    uint64_t found;
    uint32_t outcome; /* enum dlk_cell_outcome */
    uint32_t reserved;
};

struct dlk_verbs_transport;

struct dlk_verbs_calls {
    /* A queue pair for this peer, connected to it; dlk_plane_verbs_pair has the contract. */
    int (*pair)(struct dlk_verbs_transport *verbs, const struct dlk_verbs_address *peer,
                struct dlk_verbs_address *own, uint64_t *handle, char *reason);
    /* One that was not handed over; of any other handle nothing happens. */
    void (*pair_free)(struct dlk_verbs_transport *verbs, uint64_t handle);

    /* From now on it is the transport's, and the next that accept gives out. False: there is no
     * such queue pair (any more), or no memory. */
    bool (*hand_over)(struct dlk_verbs_transport *verbs, uint64_t handle, uint32_t client_id);
    /* The oldest that has not been taken. False: none. */
    bool (*notice)(struct dlk_verbs_transport *verbs, struct dlk_verbs_notice *out);
    /* Are there links that were closed, whose last messages have not arrived? */
    bool (*lingers)(const struct dlk_verbs_transport *verbs);

    /* Clients can reach this cell with the key that it returns; 0: nobody can. */
    uint32_t (*cell_open)(struct dlk_verbs_transport *verbs, uint32_t slot);
    /* Nobody can reach it any more. */
    void (*cell_close)(struct dlk_verbs_transport *verbs, uint32_t slot);
    /* While `operates` is true: in their order, by the device that the clients go through. Waits
     * for the device. */
    void (*operate)(struct dlk_verbs_transport *verbs, struct dlk_cell_operation *operations,
                    uint32_t count);
};

struct dlk_verbs_transport {
    struct dlk_transport base;
    const struct dlk_verbs_calls *calls;
    bool operates; /* cells may not be touched by the processor now: operate */
    bool noticed;  /* notice has something */
};

/* Serves this port beside TCP. `reason` says with what, and which of its sizes had to be smaller
 * than wanted; or, NULL, why not, and the TCP transport is the caller's still. */
struct dlk_verbs_transport *dlk_verbs_transport_new(const struct dlk_verbs_setting *setting,
                                                    const struct dlk_verbs_port *port,
                                                    char *reason);

#endif
