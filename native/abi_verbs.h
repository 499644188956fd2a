/*
 * RDMA verbs as Python and the rest of the core see them: devices, the two ends of a queue pair,
 * what a plane does with them. The second part of what dlock_abi.h begins; the same rules. No type
 * of libibverbs is named here: it is loaded at run time, and a build without its headers has these
 * functions too, which then say so.
 */
#ifndef DLOCK_ABI_VERBS_H
#define DLOCK_ABI_VERBS_H

#include "dlock_abi.h"

enum dlk_verbs_limit {
    DLK_VERBS_WINDOW = 16,         /* messages under way in one direction of a queue pair */
    DLK_VERBS_MESSAGE_BYTES = 512, /* of a message at most: what a receive buffer holds */
    DLK_VERBS_PACKET_BITS = 24,
    DLK_GID_BYTES = 16,
    DLK_DEVICE_NAME_BYTES = 64,
    DLK_REASON_BYTES = 256 /* a text for people, with its '\0' */
};

/* The upper half of the immediate data of every message; the lower half is how many messages its
 * sender has taken from the other end so far, modulo 65536. A message without a frame only tells
 * that. */
enum dlk_verbs_immediate { DLK_VERBS_BYE = 0x80000000 /* the sender ends the connection */ };

enum dlk_gid_type { DLK_GID_INFINIBAND = 0, DLK_GID_ROCE_1 = 1, DLK_GID_ROCE_2 = 2 };

/* IBV_ATOMIC_*: nobody; with each other (HCA); with the processor too. */
enum dlk_atomicity { DLK_ATOMICITY_NONE = 0, DLK_ATOMICITY_DEVICE = 1, DLK_ATOMICITY_GLOBAL = 2 };

/* What is asked for. All zeros: whatever is best. */
struct dlk_verbs_wish {
    char device[64];  /* its name; empty: any */
    uint8_t gid[16];  /* the GID to be used; zeros: any */
    uint32_t port;    /* 0: any */
    uint32_t version; /* of the internet protocol that a GID should map, 4 or 6; 0: any */
};

/* A port of a device, and the GID that would be used there. */
struct dlk_verbs_port {
    char device[64];
    uint8_t gid[16];
    uint32_t port;
    uint32_t gid_index;
    uint32_t gid_type;   /* enum dlk_gid_type */
    uint32_t ethernet;   /* 1: RoCE; 0: InfiniBand */
    uint32_t active;     /* 1: the port is up */
    uint32_t soft;       /* 1: made of software (rxe, siw) */
    uint32_t mtu;        /* bytes, of a path through it */
    uint32_t lid;
    uint32_t atomicity;  /* enum dlk_atomicity */
    uint32_t inline_max; /* bytes of a message that can be sent inline; 0: not looked at */
    uint32_t windows_max;
    uint32_t completions_max;
    uint32_t receives_max; /* of a shared receive queue */
    uint32_t reads_max;    /* reads and atomics that are served at once, of one queue pair */
};

/* What one end of a queue pair tells the other, on the control plane. */
struct dlk_verbs_address {
    uint32_t queue_pair;
    uint32_t packet; /* the sequence number of the first that it sends */
    uint8_t gid[16];
    uint16_t lid;
    uint8_t mtu;      /* as verbs number it: 1: 256 bytes, .. 5: 4096 */
    uint8_t ethernet;
    uint32_t window;        /* messages that it has room for */
    uint32_t message_bytes; /* the longest that it takes */
    uint32_t reads;         /* reads and atomics that it serves at once */
    uint32_t reserved;
    uint64_t cells; /* server: where the first cell lies; 0: no operation of the client's own */
};

/* 1: libibverbs is there. 0: `reason` says why not (no headers when it was built, no library). */
int dlk_verbs_load(char *reason);
/* Every port of every device, and of each port the GID that is best; returns how many there are,
 * writes at most room. A device that cannot be opened is left out, and `reason` names the last. */
size_t dlk_verbs_ports(struct dlk_verbs_port *out, size_t room, char *reason);
/* The port to use. Those that are active; hardware before software; RoCE 2 before 1; and of those
 * alike the first. 0: none, `reason` says why, of each that was looked at. */
int dlk_verbs_choose(const struct dlk_verbs_wish *wish, struct dlk_verbs_port *out, char *reason);

/* ---- The client's end ---- */

struct dlk_queue_pair;

/* At this port, not yet connected; `own` is for the other end. NULL: `reason`. */
struct dlk_queue_pair *dlk_queue_pair_new(const struct dlk_verbs_port *port,
                                          struct dlk_verbs_address *own, char *reason);
/* One that no client has got (dlk_link.queue_pair). In a forked child it does nothing. */
void dlk_queue_pair_free(struct dlk_queue_pair *pair);

/* ---- The plane's ---- */

/* Before its first turn: from now on it serves verbs too, at this port. `reason` says with what,
 * and which of its sizes had to be smaller; or, 0, why not: it serves as before. */
int dlk_plane_verbs_open(struct dlk_plane *plane, const struct dlk_verbs_port *port, char *reason);
/* The control thread only. A queue pair that is ready for this client, and what it is to be told;
 * LINK_OPEN hands it to the plane. SUCCESS; SERVER_NO_RESOURCE: no room for another one; ERROR: the
 * device cannot be used, or not with this other end; `reason` says why. */
int dlk_plane_verbs_pair(struct dlk_plane *plane, const struct dlk_verbs_address *peer,
                         struct dlk_verbs_address *own, uint64_t *pair, char *reason);
/* One that LINK_OPEN has not handed over, or that it could not (its DONE says so). */
void dlk_plane_verbs_pair_free(struct dlk_plane *plane, uint64_t pair);

#endif
