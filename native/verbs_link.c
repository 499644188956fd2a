/* The client's end of a queue pair, before a client has got it. */
#include <errno.h>
#include <stdlib.h>

#include "verbs_pair.h"

/* All of it is the client's own, but the device, which all clients of a process share. */
struct dlk_queue_pair {
    struct dlk_verbs_device *device;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct dlk_pair *pair;
    uint32_t process;
};

enum {
    COMPLETIONS = DLK_VERBS_WINDOW + DLK_PAIR_SEND_COMPLETIONS_MAX + DLK_PAIR_READS_MAX
};

static bool queue_pair_fill(struct dlk_queue_pair *link, const struct dlk_verbs_port *port,
                            char *reason)
{
    link->device = dlk_verbs_device_open(port, DLK_DEVICE_SHARED, reason);
    if (link->device == NULL) {
        return false;
    }
    link->channel = dlk_ibv->create_comp_channel(link->device->context);
    if (link->channel == NULL) {
        dlk_verbs_say_errno(reason, "make a completion channel", errno);
        return false;
    }
    link->cq =
        dlk_ibv->create_cq(link->device->context, COMPLETIONS, link, link->channel, 0);
    if (link->cq == NULL) {
        dlk_verbs_say_errno(reason, "make a completion queue", errno);
        return false;
    }
    struct dlk_pair_config config = {
        .device = link->device,
        .send_completions = link->cq,
        .receive_completions = link->cq,
        .window = DLK_VERBS_WINDOW,
        .reads = DLK_PAIR_READS_MAX,
    };
    link->pair = dlk_pair_new(&config, reason);
    return link->pair != NULL;
}

struct dlk_queue_pair *dlk_queue_pair_new(const struct dlk_verbs_port *port,
                                          struct dlk_verbs_address *own, char *reason)
{
    struct dlk_queue_pair *link = calloc(1, sizeof(*link));
    if (link == NULL) {
        dlk_verbs_say_errno(reason, "make a queue pair", ENOMEM);
        return NULL;
    }
    link->process = dlk_verbs_process();
    if (!queue_pair_fill(link, port, reason)) {
        dlk_queue_pair_free(link);
        return NULL;
    }
    dlk_pair_address(link->pair, own);
    return link;
}

void dlk_queue_pair_free(struct dlk_queue_pair *link)
{
    if (link == NULL || link->process != dlk_verbs_process()) {
        return;
    }
    dlk_pair_free(link->pair);
    if (link->cq != NULL) {
        dlk_ibv->destroy_cq(link->cq);
    }
    if (link->channel != NULL) {
        dlk_ibv->destroy_comp_channel(link->channel);
    }
    dlk_verbs_device_close(link->device);
    free(link);
}
