/* Completions and device events, and what they mean for a queue pair. See verbs_server.h. */
#include <assert.h>
#include <string.h>

#include "clock.h"
#include "verbs_server.h"

enum { TOGETHER = 32 /* completions of one poll */ };

/* ---- What there is to tell ---- */

/* The loss of the device is told whatever else is: it takes the place of the last one. */
void dlk_server_notice(struct dlk_verbs_server *server, uint32_t event, uint32_t client_id,
                       uint32_t code, uint32_t links)
{
    if (server->n_notices == DLK_SERVER_NOTICES) {
        if (event != DLK_VERBS_DEVICE_LOST) {
            return;
        }
        server->n_notices--;
    }
    uint32_t at = (server->notices_head + server->n_notices++) % DLK_SERVER_NOTICES;
    server->notices[at] = (struct dlk_verbs_notice){
        .event = event, .client_id = client_id, .code = code, .links = links};
    server->base.noticed = true;
}

/* To be told by the next look; what is not linked yet is told when it is. */
void dlk_server_flag(struct dlk_verbs_server *server, struct dlk_server_pair *pair,
                     uint32_t flags)
{
    pair->flags |= flags;
    if (pair->state == DLK_SERVER_LINKED && !pair->ready) {
        pair->ready = true;
        dlk_list_put(server, &server->ready, (uint32_t)(pair - server->pairs));
    }
}

void dlk_server_took(struct dlk_verbs_server *server, struct dlk_server_pair *pair,
                     uint32_t messages)
{
    dlk_pair_taken(pair->pair, messages);
    if (!pair->owing && dlk_pair_owes(pair->pair)) {
        pair->owing = true;
        dlk_list_put(server, &server->owing, (uint32_t)(pair - server->pairs));
    }
}

/* Credits, of those to whom nothing else was sent in the meantime. */
void dlk_server_tell(struct dlk_verbs_server *server)
{
    while (server->owing.count > 0) {
        struct dlk_server_pair *pair
            = &server->pairs[dlk_list_take(server, &server->owing)];
        pair->owing = false;
        if (pair->pair != NULL && pair->state == DLK_SERVER_LINKED && !pair->gone) {
            (void)dlk_pair_tell(pair->pair); /* no place: a message has to come first */
        }
    }
}

/* ---- The end of a queue pair ---- */

static void end(struct dlk_verbs_server *server, struct dlk_server_pair *pair)
{
    pair->gone = true;
    if (pair->state == DLK_SERVER_CLOSED) {
        pair->state = DLK_SERVER_DEAD;
    } else {
        dlk_server_flag(server, pair, DLK_READY_RECEIVE | DLK_READY_HANG_UP);
    }
}

static void fail(struct dlk_verbs_server *server, struct dlk_server_pair *pair, uint32_t event,
                 uint32_t code)
{
    bool told = pair->gone || pair->state == DLK_SERVER_CLOSED;

    if (pair->state == DLK_SERVER_DEAD) {
        return;
    }
    end(server, pair);
    if (!told) {
        dlk_server_notice(server, event, pair->client_id, code, 1);
    }
}

void dlk_server_drop(struct dlk_verbs_server *server, struct dlk_server_pair *pair)
{
    for (; pair->count > 0; pair->count--) {
        dlk_verbs_queues_again(&server->queues, pair->messages[pair->head].buffer);
        pair->head = (pair->head + 1) % DLK_VERBS_WINDOW;
    }
    pair->offset = 0;
}

/* Nothing of a closed connection is obeyed any more: neither frames nor operations on cells. */
static bool silence(struct dlk_verbs_server *server, struct dlk_server_pair *pair)
{
    if (pair->gone) {
        return false;
    }
    if (server->cells.cells != NULL && !dlk_pair_revoke(pair->pair)) {
        dlk_pair_break(pair->pair);
        return false;
    }
    return dlk_pair_bye(pair->pair) != DLK_PAIR_GONE;
}

/* What was sent is still delivered, if it can be. */
void dlk_server_close_link(struct dlk_verbs_server *server, struct dlk_server_pair *pair)
{
    uint32_t index = (uint32_t)(pair - server->pairs);

    server->link_pairs[pair->link] = DLK_SERVER_NONE;
    pair->link = DLK_SERVER_NONE;
    pair->flags = 0;
    dlk_server_drop(server, pair);
    pair->state = silence(server, pair) ? DLK_SERVER_CLOSED : DLK_SERVER_DEAD;
    pair->linger_ns = dlk_now_ns() + (uint64_t)DLK_SERVER_LINGER_MS * DLK_NS_PER_MS;
    dlk_list_put(server, &server->closed, index);
}

uint64_t dlk_server_bury(struct dlk_verbs_server *server, uint32_t most)
{
    while (server->closed.count > 0) {
        uint32_t index = server->closed.items[server->closed.head];
        const struct dlk_server_pair *pair = &server->pairs[index];
        if (pair->state != DLK_SERVER_DEAD && dlk_now_ns() < pair->linger_ns) {
            return pair->linger_ns;
        }
        if (most-- == 0) {
            return 0;
        }
        dlk_list_take(server, &server->closed);
        dlk_server_free_pair(server, index);
    }
    return UINT64_MAX;
}

/* ---- Completions ---- */

static void keep(struct dlk_verbs_server *server, struct dlk_server_pair *pair,
                 const struct ibv_wc *wc)
{
    uint32_t at = (pair->head + pair->count) % DLK_VERBS_WINDOW;

    assert(pair->count < DLK_VERBS_WINDOW); /* its credits were looked at */
    pair->messages[at]
        = (struct dlk_server_message){.buffer = (uint32_t)wc->wr_id, .length = wc->byte_len};
    pair->count++;
    dlk_server_flag(server, pair, DLK_READY_RECEIVE);
}

/* True: the buffer holds something that is to be received. */
static bool received(struct dlk_verbs_server *server, struct dlk_server_pair *pair,
                     const struct ibv_wc *wc)
{
    enum dlk_pair_receipt receipt = dlk_pair_received(pair->pair, wc);
    bool fault = receipt == DLK_RECEIPT_WINDOW || receipt == DLK_RECEIPT_MALFORMED;

    if (receipt == DLK_RECEIPT_BROKEN) {
        fail(server, pair, dlk_pair_cause(wc->status), wc->status);
        return false;
    }
    if (fault) {
        dlk_pair_break(pair->pair);
        fail(server, pair,
             receipt == DLK_RECEIPT_WINDOW ? DLK_VERBS_WINDOW_FULL : DLK_VERBS_PAIR_ERROR, 0);
        return false;
    }
    bool open = !pair->gone
                && (pair->state == DLK_SERVER_LINKED || pair->state == DLK_SERVER_OFFERED);
    if (open && wc->byte_len > 0) {
        keep(server, pair, wc);
    } else if (open) {
        dlk_server_took(server, pair, 1);
    }
    if (receipt == DLK_RECEIPT_BYE) {
        end(server, pair);
    }
    return open && wc->byte_len > 0;
}

static void completed(struct dlk_verbs_server *server, const struct ibv_wc *wc)
{
    struct dlk_server_pair *pair = dlk_server_find(server, wc->qp_num);
    bool receive = dlk_pair_kind(wc->wr_id) == DLK_PAIR_RECEIVE;

    if (receive && (pair == NULL || !received(server, pair, wc))) {
        dlk_verbs_queues_again(&server->queues, (uint32_t)wc->wr_id);
    }
    if (pair == NULL || (!receive && dlk_pair_mark(wc->wr_id) != pair->mark)) {
        return;
    }
    if (!receive) {
        dlk_pair_sent(pair->pair, wc);
        if (wc->status != IBV_WC_SUCCESS) {
            fail(server, pair, dlk_pair_cause(wc->status), wc->status);
        } else if (pair->state == DLK_SERVER_CLOSED && dlk_pair_arrived(pair->pair)) {
            pair->state = DLK_SERVER_DEAD;
        }
    }
    if (pair->blocked && !pair->gone && dlk_pair_room(pair->pair) > 0) {
        pair->blocked = false;
        dlk_server_flag(server, pair, DLK_READY_SEND);
    }
}

void dlk_server_poll(struct dlk_verbs_server *server)
{
    struct ibv_wc wc[TOGETHER];
    int n = TOGETHER;

    while (n == TOGETHER && server->device != NULL) {
        n = ibv_poll_cq(server->queues.completions, TOGETHER, wc);
        for (int i = 0; i < n; i++) {
            completed(server, &wc[i]);
        }
    }
    if (n < 0) {
        dlk_server_lose_device(server, IBV_EVENT_CQ_ERR);
    }
}

/* ---- Events of the device ---- */

static void pair_event(struct dlk_verbs_server *server, uint32_t number, uint32_t event)
{
    struct dlk_server_pair *pair = dlk_server_find(server, number);
    bool access = event == IBV_EVENT_QP_ACCESS_ERR;

    if (dlk_verbs_cells_own(&server->cells, number)) {
        dlk_server_lose_device(server, event);
    } else if (pair != NULL) {
        fail(server, pair, access ? DLK_VERBS_ACCESS : DLK_VERBS_PAIR_ERROR,
             access                            ? IBV_WC_REM_ACCESS_ERR
             : event == IBV_EVENT_QP_REQ_ERR ? IBV_WC_REM_INV_REQ_ERR
                                             : IBV_WC_FATAL_ERR);
    }
}

static void port_event(struct dlk_verbs_server *server, int port, uint32_t event)
{
    if (port == (int)server->device->port.port) {
        dlk_server_notice(server,
                          event == IBV_EVENT_PORT_ERR ? DLK_VERBS_PORT_DOWN : DLK_VERBS_PORT_UP, 0,
                          event, 0);
    }
}

void dlk_server_async(struct dlk_verbs_server *server)
{
    struct ibv_async_event event;

    while (server->device != NULL
           && dlk_ibv->get_async_event(server->device->context, &event) == 0) {
        uint32_t type = event.event_type;
        bool of_pair = type == IBV_EVENT_QP_FATAL || type == IBV_EVENT_QP_REQ_ERR
                       || type == IBV_EVENT_QP_ACCESS_ERR;
        uint32_t number = of_pair ? event.element.qp->qp_num : 0;
        int port = event.element.port_num;

        dlk_ibv->ack_async_event(&event);
        if (of_pair) {
            pair_event(server, number, type);
        } else if (type == IBV_EVENT_PORT_ERR || type == IBV_EVENT_PORT_ACTIVE) {
            port_event(server, port, type);
        } else if (type == IBV_EVENT_DEVICE_FATAL || type == IBV_EVENT_CQ_ERR
                   || type == IBV_EVENT_SRQ_ERR) {
            dlk_server_lose_device(server, type);
        }
    }
}
