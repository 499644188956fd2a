/*
 * Devices: which there are, which is best (dlk_verbs_ports, dlk_verbs_choose of abi_verbs.h), and
 * one that is open. It makes no queue pair but the one by which it tries how much can be sent
 * inline.
 *
 * A client's device is opened once a process, with one protection domain, and counted: a thousand
 * clients share it. A server opens one for itself: the events of its queue pairs and its keys are
 * its own. Any thread may call what is declared here; a forked child may not.
 */
#ifndef DLOCK_VERBS_DEVICE_H
#define DLOCK_VERBS_DEVICE_H

#include "abi_verbs.h"
#include "verbs_library.h"

struct dlk_verbs_device {
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_device_attr limits;
    struct dlk_verbs_port port; /* the one that it was opened for; inline_max is known */
    enum ibv_mtu mtu;           /* of a path through that port */
    /* verbs_device.c's own */
    uint32_t process; /* dlk_verbs_process when it was opened */
    uint32_t users;
    bool shared;
    struct dlk_verbs_device *next;
};

enum dlk_verbs_sharing {
    DLK_DEVICE_OWN = 0,   /* a context and protection domain for this caller alone */
    DLK_DEVICE_SHARED = 1 /* the process's */
};

/* As dlk_verbs_ports or dlk_verbs_choose described it. NULL: `reason`. */
struct dlk_verbs_device *dlk_verbs_device_open(const struct dlk_verbs_port *port,
                                               enum dlk_verbs_sharing sharing, char *reason);
/* Closed when its last user has said so, who has destroyed all that was made of it before. In a
 * forked child: does nothing. */
void dlk_verbs_device_close(struct dlk_verbs_device *device);

/* In a child, before all else: forgets what its parent had open. */
void dlk_verbs_device_in_child(void);

/* ---- For verbs_choose.c ---- */

/* Of an open device: everything of a port but inline_max, with the GID there that is best of those
 * that are wished for. True: there is such a GID. */
bool dlk_verbs_port_describe(struct ibv_context *context, uint8_t number,
                             const struct dlk_verbs_wish *wish, struct dlk_verbs_port *out);
/* Finds out inline_max by making queue pairs. False: none can be made of which dlock has any use;
 * `reason`. */
bool dlk_verbs_inline_probe(struct ibv_pd *pd, struct dlk_verbs_port *port, char *reason);

#endif
