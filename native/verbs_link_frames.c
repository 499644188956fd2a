/* What goes over a client's queue pair: frames as messages and operations, and the reverse. */
#include "verbs_link.h"

#include <errno.h>
#include <string.h>

#include "clock.h"

/* ---- The sender ---- */

/* A broken pair is the reader's to find, since it may still have answers to take: it is woken. */
static ssize_t gone(struct dlk_queue_pair *link)
{
    dlk_pair_break(link->pair);
    return -EAGAIN;
}

static bool keyed(const void *frame)
{
    struct dlk_request request;
    memcpy(&request, frame, sizeof(request));
    return request.reserved != 0;
}

static struct dlk_pair_operation operation_of(struct dlk_queue_pair *link, const void *frame)
{
    struct dlk_request asked;
    memcpy(&asked, frame, sizeof(asked));
    uint32_t place = link->operation_next++ % DLK_LINK_OPERATIONS;
    struct dlk_operation *operation = &link->operations[place];
    operation->compare = asked.token;
    operation->request_id = asked.request_id;
    operation->op = asked.op;
    atomic_store_explicit(&operation->object, DLK_OBJECT_BIT | asked.lock_id, memory_order_release);
    return (struct dlk_pair_operation){
        .address = link->cells + (uint64_t)asked.slot * sizeof(uint64_t),
        .value = asked.value,
        .compare = asked.token,
        .cookie = place,
        .key = (uint32_t)asked.reserved,
        .verb = asked.op == DLK_OP_FETCH_ADD      ? DLK_PAIR_FETCH_ADD
                : asked.op == DLK_OP_COMPARE_SWAP ? DLK_PAIR_COMPARE_SWAP
                                                  : DLK_PAIR_READ,
    };
}

/* Operations that stand one behind the other, as many as there is room for. Bytes of frames. */
static ssize_t operate(struct dlk_queue_pair *link, const unsigned char *frames, size_t length)
{
    struct dlk_pair_operation operations[DLK_PAIR_READS_MAX];
    uint32_t room = dlk_pair_operations_room(link->pair);
    uint32_t count = 0;
    while (count < room && (size_t)count * DLK_FRAME_BYTES < length
           && keyed(frames + (size_t)count * DLK_FRAME_BYTES)) {
        operations[count] = operation_of(link, frames + (size_t)count * DLK_FRAME_BYTES);
        count++;
    }
    link->wants_operation = count == 0;
    if (count == 0) {
        return -EAGAIN;
    }
    return dlk_pair_operate(link->pair, operations, count) == (int)count
               ? (ssize_t)count * DLK_FRAME_BYTES
               : gone(link);
}

/* The session is not live any more: the server is asked. */
static ssize_t ask_instead(struct dlk_queue_pair *link, const unsigned char *frame)
{
    struct dlk_request asked;
    memcpy(&asked, frame, sizeof(asked));
    asked.reserved = 0;
    return dlk_pair_send(link->pair, &asked, sizeof(asked));
}

/* Messages, up to the next operation. */
static ssize_t send_some(struct dlk_queue_pair *link, const unsigned char *frames, size_t length)
{
    size_t run = DLK_FRAME_BYTES;
    if (keyed(frames)) {
        return dlk_now_ns() < link->connection.live_until_ns ? operate(link, frames, length)
                                                             : ask_instead(link, frames);
    }
    while (run < length && !keyed(frames + run)) {
        run += DLK_FRAME_BYTES;
    }
    link->wants_operation = false;
    return dlk_pair_send(link->pair, frames, run);
}

ssize_t dlk_verbs_link_send(struct dlk_connection *connection, const void *frames, size_t length)
{
    struct dlk_queue_pair *link = (struct dlk_queue_pair *)connection;
    size_t sent = 0;
    ssize_t taken = 1;
    while (sent < length && taken > 0) {
        taken = send_some(link, (const unsigned char *)frames + sent, length - sent);
        sent += taken > 0 ? (size_t)taken : 0;
    }
    if (taken == DLK_PAIR_GONE) {
        return sent != 0 ? (ssize_t)sent : gone(link);
    }
    if (sent != 0) {
        return (ssize_t)sent;
    }
    link->wants_operation = link->wants_operation && length != 0;
    if (dlk_pair_tell(link->pair) == DLK_PAIR_GONE) { /* at the kept place */
        return gone(link);
    }
    return length != 0 || dlk_pair_owes(link->pair) ? -EAGAIN : 0;
}

/* ---- The reader ---- */

/* The frames of a message, as many as there is room for. True: all of them. */
static bool take_message(struct dlk_queue_pair *link, const struct ibv_wc *wc,
                         unsigned char *frames, size_t room, size_t *taken)
{
    size_t left = wc->byte_len - link->bytes_taken;
    size_t fit = room - room % DLK_FRAME_BYTES;
    size_t bytes = left < fit ? left : fit;
    const unsigned char *message = dlk_pair_bytes(link->pair, wc);
    memcpy(frames, message + link->bytes_taken, bytes);
    link->bytes_taken += (uint32_t)bytes;
    *taken = bytes;
    if (bytes < left) {
        return false;
    }
    link->bytes_taken = 0;
    dlk_pair_release(link->pair, wc->wr_id);
    return true;
}

static bool take_received(struct dlk_queue_pair *link, const struct ibv_wc *wc,
                          unsigned char *frames, size_t room, size_t *taken)
{
    enum dlk_pair_receipt receipt = link->bytes_taken != 0
                                        ? DLK_RECEIPT_MESSAGE /* the rest of it */
                                        : dlk_pair_received(link->pair, wc);
    switch (receipt) {
    case DLK_RECEIPT_BYE:
        link->ended = true;
        /* fall through */
    case DLK_RECEIPT_MESSAGE:
        return take_message(link, wc, frames, room, taken);
    default:
        link->ended = true;
        dlk_pair_break(link->pair);
        return true;
    }
}

/* The reply that a completion stands for. Without one the outcome is unknown: its call ends with
 * the connection. */
static bool answer(const struct dlk_queue_pair *link, const struct dlk_pair_answer *done,
                   struct dlk_reply *reply)
{
    const struct dlk_operation *operation = &link->operations[done->cookie];
    bool swaps = operation->op == DLK_OP_COMPARE_SWAP;
    *reply = (struct dlk_reply){
        .request_id = operation->request_id,
        .op = (uint8_t)operation->op,
        .result = swaps && done->value != operation->compare ? DLK_RESULT_CAS_FAILED
                                                             : DLK_RESULT_DONE,
        .session = link->client_id,
        .epoch = link->epoch,
        .value = done->value,
        .reserved = DLK_REPLY_ONE_SIDED,
    };
    if (done->status == IBV_WC_REM_ACCESS_ERR) {
        reply->result = DLK_RESULT_NO_OBJECT; /* its key is not valid: it was not touched */
    }
    return done->status == IBV_WC_SUCCESS || done->status == IBV_WC_REM_ACCESS_ERR;
}

static void take_operated(struct dlk_queue_pair *link, const struct ibv_wc *wc,
                          unsigned char *frames, size_t *taken)
{
    struct dlk_pair_answer done;
    struct dlk_reply reply;
    dlk_pair_operated(link->pair, wc, &done);
    if (answer(link, &done, &reply)) {
        memcpy(frames, &reply, sizeof(reply));
        *taken = sizeof(reply);
    }
    atomic_store_explicit(&link->operations[done.cookie].object, 0, memory_order_release);
}

/* One completion; there is room for a frame. False: not all of it fits. */
static bool take_one(struct dlk_queue_pair *link, const struct ibv_wc *wc, unsigned char *frames,
                     size_t room, size_t *taken)
{
    *taken = 0;
    switch (dlk_pair_kind(wc->wr_id)) {
    case DLK_PAIR_RECEIVE:
        return take_received(link, wc, frames, room, taken);
    case DLK_PAIR_OPERATION:
        take_operated(link, wc, frames, taken);
        return true;
    default:
        dlk_pair_sent(link->pair, wc);
        return true;
    }
}

/* Completions to be taken. False: there are none. */
static bool look(struct dlk_queue_pair *link)
{
    if (link->polled_taken < link->polled_count) {
        return true;
    }
    int count = ibv_poll_cq(link->cq, DLK_LINK_POLLED_MAX, link->polled);
    link->polled_taken = 0;
    link->polled_count = count > 0 ? (uint32_t)count : 0;
    if (count < 0) {
        link->ended = true;
    }
    return count > 0;
}

/* There is more here than there was room for, and the descriptor does not tell of it. */
static ssize_t not_all(struct dlk_connection *connection, size_t received)
{
    connection->armed = false;
    return (ssize_t)received;
}

ssize_t dlk_verbs_link_receive(struct dlk_connection *connection, void *frames, size_t room)
{
    struct dlk_queue_pair *link = (struct dlk_queue_pair *)connection;
    size_t received = 0;
    bool more = true; /* may be there: the last poll was not cut short by the end of the queue */
    while (more && look(link)) {
        size_t taken;
        if (room - received < DLK_FRAME_BYTES) {
            return not_all(connection, received); /* what one is may be asked only once */
        }
        const struct ibv_wc *wc = &link->polled[link->polled_taken];
        bool whole =
            take_one(link, wc, (unsigned char *)frames + received, room - received, &taken);
        received += taken;
        if (!whole) {
            return not_all(connection, received);
        }
        link->polled_taken++;
        connection->progress++;
        more = link->polled_taken < link->polled_count
               || link->polled_count == DLK_LINK_POLLED_MAX;
    }
    connection->failed = link->ended || dlk_pair_broken(link->pair) || atomic_load(&link->over);
    if (received != 0) {
        return (ssize_t)received;
    }
    return connection->failed ? -ECONNRESET : -EAGAIN;
}
