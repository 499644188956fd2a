/* A device that is open, and what its ports are like. */
#include "verbs_device.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "verbs_pair.h"

enum {
    VENDOR_RXE = 0xffffff,
    VENDOR_SIW = 0x626d74,
    GID_TABLE_MAX = 256 /* entries that an address vector can name */
};

/* ---- GIDs ---- */

static bool gid_is_zero(const uint8_t gid[DLK_GID_BYTES])
{
    static const uint8_t zeros[DLK_GID_BYTES];
    return memcmp(gid, zeros, DLK_GID_BYTES) == 0;
}

static bool gid_maps_ipv4(const uint8_t gid[DLK_GID_BYTES])
{
    static const uint8_t prefix[12] = {[10] = 0xff, [11] = 0xff};
    return memcmp(gid, prefix, sizeof(prefix)) == 0;
}

static bool gid_is_link_local(const uint8_t gid[DLK_GID_BYTES])
{
    return gid[0] == 0xfe && (gid[1] & 0xc0) == 0x80;
}

/* What sysfs says, for a library that cannot be asked. */
static uint32_t gid_type_of_sysfs(const char *device, uint32_t port, uint32_t index)
{
    char path[160];
    char text[32] = "";
    snprintf(path, sizeof(path), "/sys/class/infiniband/%.63s/ports/%u/gid_attrs/types/%u",
             device, port, index);
    FILE *file = fopen(path, "re");
    if (file != NULL) {
        if (fgets(text, sizeof(text), file) == NULL) {
            text[0] = '\0';
        }
        fclose(file);
    }
    return strstr(text, "v2") != NULL ? DLK_GID_ROCE_2 : DLK_GID_ROCE_1;
}

/* One entry of the table. False: it is empty. */
static bool gid_entry(struct ibv_context *context, const struct dlk_verbs_port *port,
                      uint32_t index, uint8_t gid[DLK_GID_BYTES], uint32_t *type)
{
    struct ibv_gid_entry entry;
    union ibv_gid raw;
    if (dlk_ibv->query_gid_ex != NULL
        && dlk_ibv->query_gid_ex(context, port->port, index, &entry, 0, sizeof(entry)) == 0) {
        memcpy(gid, entry.gid.raw, DLK_GID_BYTES);
        *type = entry.gid_type == IBV_GID_TYPE_ROCE_V2   ? DLK_GID_ROCE_2
                : entry.gid_type == IBV_GID_TYPE_ROCE_V1 ? DLK_GID_ROCE_1
                                                         : DLK_GID_INFINIBAND;
        return !gid_is_zero(gid);
    }
    if (dlk_ibv->query_gid(context, (uint8_t)port->port, (int)index, &raw) != 0) {
        return false;
    }
    memcpy(gid, raw.raw, DLK_GID_BYTES);
    *type = port->ethernet ? gid_type_of_sysfs(port->device, port->port, index)
                           : (uint32_t)DLK_GID_INFINIBAND;
    return !gid_is_zero(gid);
}

static bool gid_is_wished(const struct dlk_verbs_wish *wish, const uint8_t gid[DLK_GID_BYTES])
{
    if (wish == NULL) {
        return true;
    }
    if (!gid_is_zero(wish->gid) && memcmp(wish->gid, gid, DLK_GID_BYTES) != 0) {
        return false;
    }
    return wish->version == 0 || (wish->version == 4) == gid_maps_ipv4(gid);
}

/* More is better; 0: no such GID. */
static uint32_t gid_rank(const uint8_t gid[DLK_GID_BYTES], uint32_t type)
{
    uint32_t rank = gid_maps_ipv4(gid) ? 3 : gid_is_link_local(gid) ? 1 : 2;
    return type == DLK_GID_ROCE_1 ? rank : rank + 4;
}

static bool gid_choose(struct ibv_context *context, const struct dlk_verbs_wish *wish,
                       int entries, struct dlk_verbs_port *port)
{
    uint32_t best = 0;
    for (uint32_t i = 0; i < (uint32_t)entries && i < GID_TABLE_MAX; i++) {
        uint8_t gid[DLK_GID_BYTES];
        uint32_t type = 0;
        if (gid_entry(context, port, i, gid, &type) && gid_is_wished(wish, gid)
            && gid_rank(gid, type) > best) {
            best = gid_rank(gid, type);
            memcpy(port->gid, gid, sizeof(gid));
            port->gid_index = i;
            port->gid_type = type;
        }
    }
    return best != 0;
}

/* ---- Ports ---- */

/* No driver stands behind a device that is made of software. */
static bool has_driver(const char *device)
{
    char path[128];
    snprintf(path, sizeof(path), "/sys/class/infiniband/%.63s/device/driver", device);
    return access(path, F_OK) == 0;
}

static uint32_t atomicity_of(enum ibv_atomic_cap capability)
{
    return capability == IBV_ATOMIC_GLOB  ? DLK_ATOMICITY_GLOBAL
           : capability == IBV_ATOMIC_HCA ? DLK_ATOMICITY_DEVICE
                                          : DLK_ATOMICITY_NONE;
}

static uint32_t not_negative(int value)
{
    return value > 0 ? (uint32_t)value : 0;
}

static void describe_device(struct ibv_context *context, struct dlk_verbs_port *out)
{
    struct ibv_device_attr limits;
    const char *name = dlk_ibv->get_device_name(context->device);
    snprintf(out->device, sizeof(out->device), "%s", name);
    if (dlk_ibv->query_device(context, &limits) != 0) {
        return; /* a device that is just going: nothing it can do */
    }
    out->soft = limits.vendor_id == VENDOR_RXE || limits.vendor_id == VENDOR_SIW
                || !has_driver(out->device);
    out->atomicity = atomicity_of(limits.atomic_cap);
    out->windows_max =
        limits.device_cap_flags & IBV_DEVICE_MEM_WINDOW ? not_negative(limits.max_mw) : 0;
    out->completions_max = not_negative(limits.max_cqe);
    out->receives_max = limits.max_srq > 0 ? not_negative(limits.max_srq_wr) : 0;
    out->reads_max = not_negative(limits.max_qp_rd_atom);
}

bool dlk_verbs_port_describe(struct ibv_context *context, uint8_t number,
                             const struct dlk_verbs_wish *wish, struct dlk_verbs_port *out)
{
    struct ibv_port_attr port;
    memset(out, 0, sizeof(*out));
    describe_device(context, out);
    out->port = number;
    if (dlk_verbs_query_port(context, number, &port) != 0) {
        return false;
    }
    out->ethernet = port.link_layer == IBV_LINK_LAYER_ETHERNET;
    out->active = port.state == IBV_PORT_ACTIVE;
    out->mtu = 128U << port.active_mtu;
    out->lid = port.lid;
    return gid_choose(context, wish, port.gid_tbl_len, out);
}

/* ---- What can be sent inline ---- */

static bool inline_try(struct ibv_pd *pd, struct ibv_cq *cq, uint32_t bytes)
{
    struct ibv_qp_init_attr wanted = {
        .send_cq = cq,
        .recv_cq = cq,
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = DLK_PAIR_SEND_DEPTH + DLK_PAIR_READS_MAX,
                .max_recv_wr = DLK_VERBS_WINDOW,
                .max_send_sge = 1,
                .max_recv_sge = 1,
                .max_inline_data = bytes},
    };
    struct ibv_qp *qp = dlk_ibv->create_qp(pd, &wanted);
    if (qp != NULL) {
        dlk_ibv->destroy_qp(qp);
    }
    return qp != NULL;
}

bool dlk_verbs_inline_probe(struct ibv_pd *pd, struct dlk_verbs_port *port, char *reason)
{
    struct ibv_cq *cq = dlk_ibv->create_cq(pd->context, 1, NULL, NULL, 0);
    if (cq == NULL) {
        dlk_verbs_say_errno(reason, "make a completion queue", errno);
        return false;
    }
    uint32_t bytes = DLK_VERBS_MESSAGE_BYTES;
    while (bytes != 0 && !inline_try(pd, cq, bytes)) {
        bytes -= DLK_FRAME_BYTES;
    }
    if (bytes == 0) {
        int error = errno;
        if (inline_try(pd, cq, 0)) {
            dlk_verbs_say(reason, "it sends nothing inline, not even %d bytes", DLK_FRAME_BYTES);
        } else {
            dlk_verbs_say_errno(reason, "make a queue pair", error);
        }
    }
    dlk_ibv->destroy_cq(cq);
    port->inline_max = bytes;
    return bytes != 0;
}

/* ---- An open device ---- */

static pthread_mutex_t shared_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct dlk_verbs_device *shared_list; /* what clients of this process have open */

/* Nothing of the parent's is freed. Another thread of it may have held the mutex. */
void dlk_verbs_device_in_child(void)
{
    pthread_mutex_init(&shared_mutex, NULL);
    shared_list = NULL;
}

static struct ibv_context *open_by_name(const char *name, char *reason)
{
    int count = 0;
    struct ibv_context *context = NULL;
    struct ibv_device **list = dlk_ibv->get_device_list(&count);
    dlk_verbs_say(reason, "there is no device %s any more", name);
    for (int i = 0; list != NULL && i < count; i++) {
        if (strcmp(dlk_ibv->get_device_name(list[i]), name) == 0) {
            context = dlk_ibv->open_device(list[i]);
            if (context == NULL) {
                dlk_verbs_say_errno(reason, "open the device", errno);
            }
            break;
        }
    }
    if (list != NULL) {
        dlk_ibv->free_device_list(list);
    }
    return context;
}

/* Is the GID still where it was found? An address that is taken away and given anew moves. */
static bool gid_stands(const struct dlk_verbs_device *device, char *reason)
{
    uint8_t gid[DLK_GID_BYTES];
    uint32_t type = 0;
    if (gid_entry(device->context, &device->port, device->port.gid_index, gid, &type)
        && memcmp(gid, device->port.gid, sizeof(gid)) == 0) {
        return true;
    }
    dlk_verbs_say(reason, "the GID table of %s has changed: choose again", device->port.device);
    return false;
}

static bool device_fill(struct dlk_verbs_device *device, char *reason)
{
    struct ibv_port_attr port;
    device->context = open_by_name(device->port.device, reason);
    if (device->context == NULL) {
        return false;
    }
    int error = dlk_ibv->query_device(device->context, &device->limits);
    if (error == 0) {
        error = dlk_verbs_query_port(device->context, (uint8_t)device->port.port, &port);
    }
    if (error != 0) {
        dlk_verbs_say_errno(reason, "ask the device what it can do", error);
        return false;
    }
    device->mtu = port.active_mtu;
    device->pd = dlk_ibv->alloc_pd(device->context);
    if (device->pd == NULL) {
        dlk_verbs_say_errno(reason, "make a protection domain", errno);
        return false;
    }
    return gid_stands(device, reason)
           && (device->port.inline_max >= DLK_FRAME_BYTES
               || dlk_verbs_inline_probe(device->pd, &device->port, reason));
}

static void device_free(struct dlk_verbs_device *device)
{
    if (device->pd != NULL) {
        dlk_ibv->dealloc_pd(device->pd);
    }
    if (device->context != NULL) {
        dlk_ibv->close_device(device->context);
    }
    free(device);
}

static struct dlk_verbs_device *device_new(const struct dlk_verbs_port *port, char *reason)
{
    struct dlk_verbs_device *device = calloc(1, sizeof(*device));
    if (device == NULL) {
        dlk_verbs_say_errno(reason, "open the device", ENOMEM);
        return NULL;
    }
    device->port = *port;
    device->process = dlk_verbs_process();
    device->users = 1;
    if (!device_fill(device, reason)) {
        device_free(device);
        return NULL;
    }
    return device;
}

static bool same_port(const struct dlk_verbs_port *a, const struct dlk_verbs_port *b)
{
    return strcmp(a->device, b->device) == 0 && a->port == b->port
           && a->gid_index == b->gid_index && memcmp(a->gid, b->gid, sizeof(a->gid)) == 0;
}

static struct dlk_verbs_device *shared_open(const struct dlk_verbs_port *port, char *reason)
{
    struct dlk_verbs_device *device = shared_list;
    while (device != NULL && !same_port(&device->port, port)) {
        device = device->next;
    }
    if (device != NULL) {
        device->users++;
        return device;
    }
    device = device_new(port, reason);
    if (device != NULL) {
        device->shared = true;
        device->next = shared_list;
        shared_list = device;
    }
    return device;
}

struct dlk_verbs_device *dlk_verbs_device_open(const struct dlk_verbs_port *port,
                                               enum dlk_verbs_sharing sharing, char *reason)
{
    if (dlk_verbs_library(reason) == NULL) {
        return NULL;
    }
    if (sharing == DLK_DEVICE_OWN) {
        return device_new(port, reason);
    }
    pthread_mutex_lock(&shared_mutex);
    struct dlk_verbs_device *device = shared_open(port, reason);
    pthread_mutex_unlock(&shared_mutex);
    return device;
}

void dlk_verbs_device_close(struct dlk_verbs_device *device)
{
    if (device == NULL || device->process != dlk_verbs_process()) {
        return;
    }
    if (!device->shared) {
        device_free(device);
        return;
    }
    pthread_mutex_lock(&shared_mutex);
    if (--device->users == 0) {
        struct dlk_verbs_device **link = &shared_list;
        while (*link != device) {
            link = &(*link)->next;
        }
        *link = device->next;
        device_free(device);
    }
    pthread_mutex_unlock(&shared_mutex);
}
