/* One end of a queue pair is made, connected, broken, freed. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "verbs_pair_internal.h"

enum pair_attribute {
    TIMEOUT = 14,     /* 67 ms until a packet is sent again */
    RETRIES = 6,      /* 7 is for ever on soft-RoCE */
    RNR_RETRIES = 6,  /* the same */
    RNR_TIMER = 20,   /* 10 ms */
    HOP_LIMIT = 64,   /* RoCE v2 is routed */
    PACKET_MASK = (1 << DLK_VERBS_PACKET_BITS) - 1
};

/* ---- Made and freed ---- */

static bool pair_memory(struct dlk_pair *pair, uint32_t buffers, char *reason)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t results_at = (size_t)buffers * DLK_PAIR_RECEIVE_BYTES;
    size_t results = pair->operations_max != 0 ? DLK_PAIR_READS_MAX : 0;
    size_t bytes = results_at + results * sizeof(*pair->results);
    if (bytes == 0) {
        return true;
    }
    bytes = (bytes + page - 1) / page * page;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        dlk_verbs_say_errno(reason, "get memory for a queue pair", errno);
        return false;
    }
    pair->memory = memory;
    pair->memory_bytes = bytes;
    pair->results = (uint64_t *)(void *)(pair->memory + results_at);
    pair->region = dlk_ibv->reg_mr(pair->device->pd, memory, bytes, IBV_ACCESS_LOCAL_WRITE);
    if (pair->region == NULL) {
        dlk_verbs_say_errno(reason, "register the buffers of a queue pair", errno);
        return false;
    }
    return true;
}

static bool pair_queue(struct dlk_pair *pair, const struct dlk_pair_config *config, char *reason)
{
    bool own = config->shared_receives == NULL;
    struct ibv_qp_init_attr wanted = {
        .send_cq = config->send_completions,
        .recv_cq = config->receive_completions,
        .srq = config->shared_receives,
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = DLK_PAIR_SEND_DEPTH + config->reads,
                .max_recv_wr = own ? config->window : 0,
                .max_send_sge = 1,
                .max_recv_sge = own ? 1 : 0,
                .max_inline_data = config->device->port.inline_max},
    };
    struct ibv_qp_attr start = {
        .qp_state = IBV_QPS_INIT,
        .port_num = (uint8_t)config->device->port.port,
        .qp_access_flags = (unsigned int)config->access,
    };
    pair->qp = dlk_ibv->create_qp(config->device->pd, &wanted);
    if (pair->qp == NULL) {
        dlk_verbs_say_errno(reason, "make a queue pair", errno);
        return false;
    }
    int error = dlk_ibv->modify_qp(
        pair->qp, &start, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
    if (error != 0) {
        dlk_verbs_say_errno(reason, "begin with a queue pair", error);
        return false;
    }
    return true;
}

static bool pair_receives(struct dlk_pair *pair, uint32_t buffers, char *reason)
{
    pair->receives = calloc(buffers, sizeof(*pair->receives));
    if (pair->receives == NULL) {
        dlk_verbs_say_errno(reason, "get memory for a queue pair", ENOMEM);
        return false;
    }
    for (uint32_t i = 0; i < buffers; i++) {
        struct dlk_receive *receive = &pair->receives[i];
        receive->sge = (struct ibv_sge){
            .addr = (uintptr_t)(pair->memory + (size_t)i * DLK_PAIR_RECEIVE_BYTES),
            .length = DLK_PAIR_RECEIVE_BYTES,
            .lkey = pair->region->lkey,
        };
        receive->wr = (struct ibv_recv_wr){
            .wr_id = i, .next = pair->idle, .sg_list = &receive->sge, .num_sge = 1};
        pair->idle = &receive->wr;
    }
    pair->idle_post = buffers / DLK_CREDIT_WINDOW_MIN;
    int error = dlk_pair_post_idle(pair);
    if (error != 0) {
        dlk_verbs_say_errno(reason, "post the receives of a queue pair", error);
    }
    return error == 0;
}

struct dlk_pair *dlk_pair_new(const struct dlk_pair_config *config, char *reason)
{
    struct dlk_pair *pair = aligned_alloc(alignof(struct dlk_pair), sizeof(*pair));
    uint32_t own = config->shared_receives == NULL ? config->window : 0;
    uint32_t limit = (uint32_t)config->device->limits.max_qp_rd_atom;
    assert(config->window >= DLK_CREDIT_WINDOW_MIN && config->window <= DLK_CREDIT_WINDOW_MAX);
    assert(config->reads <= DLK_PAIR_READS_MAX && config->mark < 1U << 30);
    if (pair == NULL) {
        dlk_verbs_say_errno(reason, "get memory for a queue pair", ENOMEM);
        return NULL;
    }
    memset(pair, 0, sizeof(*pair));
    dlk_credit_init(&pair->credit, config->window);
    pair->device = config->device;
    pair->process = dlk_verbs_process();
    pair->mark = (uint64_t)config->mark << 32;
    pair->operations_max = config->reads;
    pair->reads_served = config->reads_served < limit ? config->reads_served : limit;
    if (getrandom(&pair->packet, sizeof(pair->packet), 0) != sizeof(pair->packet)) {
        pair->packet = (uint32_t)(uintptr_t)pair; /* any number will do */
    }
    pair->packet &= PACKET_MASK;
    if (!pair_memory(pair, own, reason) || !pair_queue(pair, config, reason)
        || (own != 0 && !pair_receives(pair, own, reason))) {
        dlk_pair_free(pair);
        return NULL;
    }
    return pair;
}

void dlk_pair_free(struct dlk_pair *pair)
{
    if (pair == NULL || pair->process != dlk_verbs_process()) {
        return;
    }
    if (pair->qp != NULL) {
        dlk_ibv->destroy_qp(pair->qp);
    }
    if (pair->region != NULL) {
        dlk_ibv->dereg_mr(pair->region);
    }
    if (pair->memory != NULL) {
        munmap(pair->memory, pair->memory_bytes);
    }
    free(pair->receives);
    free(pair);
}

/* ---- Connected ---- */

void dlk_pair_address(const struct dlk_pair *pair, struct dlk_verbs_address *own)
{
    const struct dlk_verbs_port *port = &pair->device->port;
    *own = (struct dlk_verbs_address){
        .queue_pair = pair->qp->qp_num,
        .packet = pair->packet,
        .lid = (uint16_t)port->lid,
        .mtu = (uint8_t)pair->device->mtu,
        .ethernet = (uint8_t)port->ethernet,
        .window = pair->credit.window,
        .message_bytes = pair->receives != NULL ? DLK_PAIR_RECEIVE_BYTES : DLK_VERBS_MESSAGE_BYTES,
        .reads = pair->reads_served,
    };
    memcpy(own->gid, port->gid, sizeof(own->gid));
}

static bool peer_fits(const struct dlk_pair *pair, const struct dlk_verbs_address *peer,
                      char *reason)
{
    const struct dlk_verbs_port *port = &pair->device->port;
    if (peer->ethernet != port->ethernet) {
        dlk_verbs_say(reason, "one end is InfiniBand, the other Ethernet: %s here cannot reach it",
                      port->device);
        return false;
    }
    if (peer->mtu < IBV_MTU_256 || peer->mtu > IBV_MTU_4096 || peer->queue_pair > PACKET_MASK
        || peer->packet > PACKET_MASK || peer->window < DLK_CREDIT_WINDOW_MIN
        || peer->window > DLK_CREDIT_WINDOW_MAX || peer->message_bytes < DLK_FRAME_BYTES) {
        dlk_verbs_say(reason, "the other end's address makes no sense: queue pair %u, packet %u, "
                              "mtu %u, window %u, message of %u bytes",
                      peer->queue_pair, peer->packet, peer->mtu, peer->window,
                      peer->message_bytes);
        return false;
    }
    return true;
}

static struct ibv_ah_attr route_to(const struct dlk_pair *pair,
                                   const struct dlk_verbs_address *peer)
{
    const struct dlk_verbs_port *port = &pair->device->port;
    struct ibv_ah_attr route = {
        .dlid = peer->lid,
        .port_num = (uint8_t)port->port,
        /* Between InfiniBand subnets (the first half of a GID) too. */
        .is_global = port->ethernet || memcmp(peer->gid, port->gid, 8) != 0,
        .grh = {.sgid_index = (uint8_t)port->gid_index, .hop_limit = HOP_LIMIT},
    };
    memcpy(route.grh.dgid.raw, peer->gid, sizeof(peer->gid));
    return route;
}

static int ready_to_receive(struct dlk_pair *pair, const struct dlk_verbs_address *peer)
{
    enum ibv_mtu mtu = pair->device->mtu;
    struct ibv_qp_attr attributes = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = (enum ibv_mtu)peer->mtu < mtu ? (enum ibv_mtu)peer->mtu : mtu,
        .rq_psn = peer->packet,
        .dest_qp_num = peer->queue_pair,
        .ah_attr = route_to(pair, peer),
        .max_dest_rd_atomic = (uint8_t)pair->reads_served,
        .min_rnr_timer = RNR_TIMER,
    };
    return dlk_ibv->modify_qp(pair->qp, &attributes,
                              IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN
                                  | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC
                                  | IBV_QP_MIN_RNR_TIMER);
}

static int ready_to_send(struct dlk_pair *pair)
{
    struct ibv_qp_attr attributes = {
        .qp_state = IBV_QPS_RTS,
        .sq_psn = pair->packet,
        .max_rd_atomic = (uint8_t)pair->operations_max,
        .timeout = TIMEOUT,
        .retry_cnt = RETRIES,
        .rnr_retry = RNR_RETRIES,
    };
    return dlk_ibv->modify_qp(pair->qp, &attributes,
                              IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY
                                  | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

bool dlk_pair_connect(struct dlk_pair *pair, const struct dlk_verbs_address *peer, char *reason)
{
    if (!peer_fits(pair, peer, reason)) {
        return false;
    }
    uint32_t bytes = smaller(pair->device->port.inline_max, DLK_VERBS_MESSAGE_BYTES);
    uint32_t issued = (uint32_t)pair->device->limits.max_qp_init_rd_atom;
    pair->bytes_max = smaller(bytes, peer->message_bytes) / DLK_FRAME_BYTES * DLK_FRAME_BYTES;
    pair->credit.peer_window = peer->window;
    pair->operations_max = smaller(pair->operations_max, smaller(peer->reads, issued));
    int error = ready_to_receive(pair, peer);
    if (error == 0) {
        error = ready_to_send(pair);
    }
    if (error != 0) {
        dlk_verbs_say_errno(reason, "connect the queue pair: no way to the other end", error);
        return false;
    }
    return true;
}

uint32_t dlk_pair_number(const struct dlk_pair *pair)
{
    return pair->qp->qp_num;
}

bool dlk_pair_revoke(struct dlk_pair *pair)
{
    struct ibv_qp_attr none = {.qp_access_flags = 0};
    return dlk_ibv->modify_qp(pair->qp, &none, IBV_QP_ACCESS_FLAGS) == 0;
}

void dlk_pair_break(struct dlk_pair *pair)
{
    struct ibv_qp_attr error = {.qp_state = IBV_QPS_ERR};
    (void)dlk_pair_gone(pair);
    (void)dlk_ibv->modify_qp(pair->qp, &error, IBV_QP_STATE);
}

bool dlk_pair_broken(const struct dlk_pair *pair)
{
    return (dlk_pair_state(pair) & DLK_STATE_BROKEN) != 0;
}

enum dlk_verbs_event dlk_pair_cause(enum ibv_wc_status status)
{
    switch (status) {
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RESP_TIMEOUT_ERR:
    case IBV_WC_REM_ABORT_ERR:
        return DLK_VERBS_PEER_GONE;
    case IBV_WC_REM_ACCESS_ERR:
        return DLK_VERBS_ACCESS;
    case IBV_WC_RNR_RETRY_EXC_ERR:
        return DLK_VERBS_WINDOW_FULL;
    default:
        return DLK_VERBS_PAIR_ERROR;
    }
}
