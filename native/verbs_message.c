/* Messages over a queue pair. All of this is short: no memory, no clock, no system call that the
 * driver does not need. */
#include <arpa/inet.h>

#include "verbs_pair_internal.h"

enum { CHUNK = DLK_VERBS_WINDOW /* messages of one post */ };

/* ---- The sender ---- */

/* Sends that the send queue has a place for. */
static inline uint32_t queue_places(const struct dlk_pair *pair)
{
    uint32_t sent = atomic_load_explicit(&pair->credit.sent, memory_order_relaxed);
    return DLK_PAIR_SEND_DEPTH - (sent - dlk_credit_get(&pair->sends_done));
}

static inline uint32_t messages_room(const struct dlk_pair *pair)
{
    uint32_t room = dlk_credit_room(&pair->credit);
    uint32_t places = queue_places(pair);
    return room < places ? room : places;
}

size_t dlk_pair_room(const struct dlk_pair *pair)
{
    return (size_t)messages_room(pair) * pair->bytes_max;
}

/* A send by its number, which its completion tells; every 8th asks for one. */
static inline struct ibv_send_wr message(const struct dlk_pair *pair, uint32_t number,
                                         uint32_t immediate)
{
    return (struct ibv_send_wr){
        .wr_id = (uint64_t)DLK_PAIR_SEND << 62 | pair->mark | number,
        .opcode = IBV_WR_SEND_WITH_IMM,
        .send_flags = number % DLK_PAIR_SIGNAL_EVERY == 0 ? IBV_SEND_INLINE | IBV_SEND_SIGNALED
                                                          : IBV_SEND_INLINE,
        .imm_data = htonl(immediate),
    };
}

static inline int post(struct dlk_pair *pair, struct ibv_send_wr *first)
{
    struct ibv_send_wr *bad = NULL;
    return ibv_post_send(pair->qp, first, &bad) == 0 ? 1 : dlk_pair_gone(pair);
}

/* As many messages as there are, of which each but the last is full. */
static int post_messages(struct dlk_pair *pair, const void *frames, size_t length,
                         uint32_t messages)
{
    struct ibv_send_wr wr[CHUNK];
    struct ibv_sge sge[CHUNK];
    uint32_t number = atomic_load_explicit(&pair->credit.sent, memory_order_relaxed);
    uint32_t immediate = dlk_credit_spend(&pair->credit, messages);
    uintptr_t at = (uintptr_t)frames;
    for (uint32_t i = 0; i < messages; i++) {
        uint32_t bytes = length < pair->bytes_max ? (uint32_t)length : pair->bytes_max;
        sge[i] = (struct ibv_sge){.addr = at, .length = bytes};
        wr[i] = message(pair, ++number, immediate);
        wr[i].sg_list = &sge[i];
        wr[i].num_sge = 1;
        wr[i].next = &wr[i + 1];
        at += bytes;
        length -= bytes;
    }
    wr[messages - 1].next = NULL;
    return post(pair, wr);
}

ptrdiff_t dlk_pair_send(struct dlk_pair *pair, const void *frames, size_t length)
{
    size_t sent = 0;
    length -= length % DLK_FRAME_BYTES;
    if (dlk_pair_state(pair) != 0) {
        return DLK_PAIR_GONE;
    }
    while (sent < length) {
        size_t bytes = length - sent;
        uint32_t messages = 1;
        uint32_t room = messages_room(pair);
        uint32_t most = room < CHUNK ? room : CHUNK;
        if (most == 0) {
            break;
        }
        if (bytes > pair->bytes_max) {
            bytes = bytes < most * (size_t)pair->bytes_max ? bytes : most * pair->bytes_max;
            messages = (uint32_t)((bytes + pair->bytes_max - 1) / pair->bytes_max);
        }
        if (post_messages(pair, (const char *)frames + sent, bytes, messages) < 0) {
            return DLK_PAIR_GONE;
        }
        sent += bytes;
    }
    return (ptrdiff_t)sent;
}

bool dlk_pair_owes(const struct dlk_pair *pair)
{
    return dlk_credit_owes(&pair->credit);
}

static int post_empty(struct dlk_pair *pair, uint32_t flags, unsigned int signalled)
{
    if (dlk_credit_places(&pair->credit) == 0 || queue_places(pair) == 0) {
        return 0;
    }
    uint32_t number = atomic_load_explicit(&pair->credit.sent, memory_order_relaxed) + 1;
    struct ibv_send_wr wr =
        message(pair, number, dlk_credit_spend(&pair->credit, 1) | flags);
    wr.send_flags |= signalled;
    return post(pair, &wr);
}

int dlk_pair_tell(struct dlk_pair *pair)
{
    if (dlk_pair_state(pair) != 0) {
        return DLK_PAIR_GONE;
    }
    return dlk_credit_owes(&pair->credit) ? post_empty(pair, 0, 0) : 0;
}

int dlk_pair_bye(struct dlk_pair *pair)
{
    if (dlk_pair_state(pair) != 0) {
        return DLK_PAIR_GONE;
    }
    int sent = post_empty(pair, DLK_VERBS_BYE, IBV_SEND_SIGNALED);
    if (sent == 1) {
        atomic_fetch_or_explicit(&pair->state, DLK_STATE_ENDED, memory_order_relaxed);
    }
    return sent;
}

bool dlk_pair_arrived(const struct dlk_pair *pair)
{
    return dlk_credit_get(&pair->sends_done) == dlk_credit_get(&pair->credit.sent)
           && !dlk_pair_broken(pair);
}

/* ---- The receiver ---- */

enum dlk_pair_receipt dlk_pair_received(struct dlk_pair *pair, const struct ibv_wc *wc)
{
    if (wc->status != IBV_WC_SUCCESS) {
        (void)dlk_pair_gone(pair);
        return DLK_RECEIPT_BROKEN;
    }
    uint32_t immediate = ntohl(wc->imm_data);
    if (wc->opcode != IBV_WC_RECV || (wc->wc_flags & IBV_WC_WITH_IMM) == 0
        || wc->byte_len % DLK_FRAME_BYTES != 0
        || (immediate & ~(DLK_VERBS_BYE | 0xffffU)) != 0) {
        return DLK_RECEIPT_MALFORMED;
    }
    if (!dlk_credit_receive(&pair->credit, immediate)) {
        return DLK_RECEIPT_WINDOW;
    }
    return (immediate & DLK_VERBS_BYE) != 0 ? DLK_RECEIPT_BYE : DLK_RECEIPT_MESSAGE;
}

const void *dlk_pair_bytes(const struct dlk_pair *pair, const struct ibv_wc *wc)
{
    return pair->memory + (uint32_t)wc->wr_id * (size_t)DLK_PAIR_RECEIVE_BYTES;
}

int dlk_pair_post_idle(struct dlk_pair *pair)
{
    struct ibv_recv_wr *bad = NULL;
    struct ibv_recv_wr *first = pair->idle;
    pair->idle = NULL;
    pair->idle_count = 0;
    return ibv_post_recv(pair->qp, first, &bad);
}

/* Told when it is posted, and only then. */
void dlk_pair_release(struct dlk_pair *pair, uint64_t wr_id)
{
    struct ibv_recv_wr *wr = &pair->receives[(uint32_t)wr_id].wr;
    wr->next = pair->idle;
    pair->idle = wr;
    if (++pair->idle_count < pair->idle_post) {
        return;
    }
    uint32_t posted = pair->idle_count;
    if (dlk_pair_post_idle(pair) != 0) {
        (void)dlk_pair_gone(pair);
        return;
    }
    dlk_credit_take(&pair->credit, posted);
}

void dlk_pair_taken(struct dlk_pair *pair, uint32_t messages)
{
    dlk_credit_take(&pair->credit, messages);
}

void dlk_pair_sent(struct dlk_pair *pair, const struct ibv_wc *wc)
{
    if (wc->status != IBV_WC_SUCCESS) {
        (void)dlk_pair_gone(pair);
    }
    atomic_store_explicit(&pair->sends_done, (uint32_t)wc->wr_id, memory_order_release);
}
