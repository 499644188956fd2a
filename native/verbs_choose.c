/* Which ports there are, which one is taken, and what is said if none can be. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "verbs_device.h"

enum { PORTS_MAX = 64 };

/* ---- What there is ---- */

static void say_no_device(char *reason)
{
    if (access("/sys/class/infiniband", F_OK) != 0) {
        dlk_verbs_say(reason, "this machine has no RDMA device: its kernel has no driver of one "
                              "loaded (soft-RoCE: modprobe rdma_rxe)");
    } else if (access("/sys/class/infiniband_verbs", F_OK) != 0) {
        dlk_verbs_say(reason, "programs cannot use RDMA devices here: modprobe ib_uverbs");
    } else {
        dlk_verbs_say(reason,
                      "this machine has no RDMA device, or libibverbs has no driver for it "
                      "(Debian: apt install ibverbs-providers; soft-RoCE: rdma link add rxe0 type "
                      "rxe netdev eth0)");
    }
}

struct port_found {
    struct dlk_verbs_port port;
    bool has_gid; /* one that is wished for */
};

/* What is looked for, and what was found. */
struct search {
    const struct dlk_verbs_wish *wish;
    struct port_found *found;
    size_t count; /* may be more than PORTS_MAX: those were not written */
    char *reason; /* of the last device that cannot be used */
};

static bool usable_transport(struct ibv_device *device, char *reason)
{
    if (device->transport_type == IBV_TRANSPORT_IB) {
        return true;
    }
    dlk_verbs_say(reason, "%s is neither InfiniBand nor RoCE: it sends no immediate data",
                  dlk_ibv->get_device_name(device));
    return false;
}

static void look_at_device(struct search *search, struct ibv_device *device)
{
    struct ibv_device_attr limits;
    char what[DLK_DEVICE_NAME_BYTES + 16];
    if (!usable_transport(device, search->reason)) {
        return;
    }
    snprintf(what, sizeof(what), "open %s", dlk_ibv->get_device_name(device));
    struct ibv_context *context = dlk_ibv->open_device(device);
    if (context == NULL) {
        dlk_verbs_say_errno(search->reason, what, errno);
        return;
    }
    int error = dlk_ibv->query_device(context, &limits);
    if (error != 0) {
        dlk_verbs_say_errno(search->reason, what, error);
        limits.phys_port_cnt = 0;
    }
    for (uint8_t number = 1; number <= limits.phys_port_cnt; number++, search->count++) {
        if (search->count < PORTS_MAX) {
            struct port_found *found = &search->found[search->count];
            found->has_gid =
                dlk_verbs_port_describe(context, number, search->wish, &found->port);
        }
    }
    dlk_ibv->close_device(context);
}

/* Only the wished device is opened, if one is. */
static void look_at_all(struct search *search)
{
    int devices = 0;
    if (dlk_verbs_library(search->reason) == NULL) {
        return;
    }
    struct ibv_device **list = dlk_ibv->get_device_list(&devices);
    if (list == NULL || devices == 0) {
        say_no_device(search->reason);
    }
    for (int i = 0; list != NULL && i < devices; i++) {
        const char *name = dlk_ibv->get_device_name(list[i]);
        if (search->wish == NULL || search->wish->device[0] == '\0'
            || strncmp(search->wish->device, name, sizeof(search->wish->device)) == 0) {
            look_at_device(search, list[i]);
        }
    }
    if (list != NULL && search->count == 0 && search->reason[0] == '\0') {
        dlk_verbs_say(search->reason, "there is no device %.63s; there are:",
                      search->wish->device);
        for (int i = 0; i < devices; i++) {
            dlk_verbs_say_more(search->reason, "%s", dlk_ibv->get_device_name(list[i]));
        }
    }
    if (list != NULL) {
        dlk_ibv->free_device_list(list);
    }
}

size_t dlk_verbs_ports(struct dlk_verbs_port *out, size_t room, char *reason)
{
    struct port_found found[PORTS_MAX];
    struct search search = {.found = found, .reason = reason};
    reason[0] = '\0';
    look_at_all(&search);
    for (size_t i = 0; i < search.count && i < room && i < PORTS_MAX; i++) {
        out[i] = found[i].port;
    }
    return search.count < PORTS_MAX ? search.count : PORTS_MAX;
}

/* ---- The choice ---- */

/* More is better; 0: cannot be used, and why. */
static uint32_t rank(const struct port_found *found, const struct dlk_verbs_wish *wish,
                     char *reason)
{
    const struct dlk_verbs_port *port = &found->port;
    if (wish->port != 0 && wish->port != port->port) {
        return 0;
    }
    if (!port->active) {
        dlk_verbs_say_more(reason, "%s port %u is not active", port->device, port->port);
        return 0;
    }
    if (!found->has_gid) {
        dlk_verbs_say_more(reason, "%s port %u has no %s", port->device, port->port,
                           port->ethernet ? "such GID: its network device needs an address"
                                          : "such GID");
        return 0;
    }
    return 1 + (port->soft ? 0U : 2U) + (port->gid_type == DLK_GID_ROCE_1 ? 0U : 1U);
}

/* Opens it to see how much it sends inline; a process whose clients have it open knows already. */
static bool try_port(struct dlk_verbs_port *port, char *reason)
{
    char why[DLK_REASON_BYTES] = "";
    struct dlk_verbs_device *device = dlk_verbs_device_open(port, DLK_DEVICE_SHARED, why);
    if (device == NULL) {
        dlk_verbs_say_more(reason, "%s port %u: %s", port->device, port->port, why);
        return false;
    }
    port->inline_max = device->port.inline_max;
    dlk_verbs_device_close(device);
    return true;
}

int dlk_verbs_choose(const struct dlk_verbs_wish *wish, struct dlk_verbs_port *out, char *reason)
{
    struct port_found found[PORTS_MAX];
    uint32_t ranks[PORTS_MAX];
    struct search search = {.wish = wish, .found = found, .reason = reason};
    reason[0] = '\0';
    look_at_all(&search);
    size_t count = search.count < PORTS_MAX ? search.count : PORTS_MAX;
    for (size_t i = 0; i < count; i++) {
        ranks[i] = rank(&found[i], wish, reason);
    }
    for (size_t tries = 0; tries < count; tries++) {
        size_t best = 0;
        for (size_t i = 1; i < count; i++) {
            best = ranks[i] > ranks[best] ? i : best;
        }
        if (ranks[best] == 0) {
            break;
        }
        if (try_port(&found[best].port, reason)) {
            *out = found[best].port;
            reason[0] = '\0';
            return 1;
        }
        ranks[best] = 0;
    }
    if (reason[0] == '\0') {
        dlk_verbs_say(reason, "no device has a port %u", wish->port);
    }
    return 0;
}
