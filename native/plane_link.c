/*
 * The links: who may connect, what they send, and how they end. A link proves its session in its
 * first frame or goes; a frame that is wrong ends its link and nothing else.
 */
#include <string.h>

#include "clock.h"
#include "codec.h"
#include "plane.h"

/* ---- The queue of links to receive from ---- */

void dlk_plane_enqueue(struct dlk_plane *plane, uint32_t number)
{
    struct dlk_plane_link *link = &plane->links[number];

    if (!link->queued) {
        link->queued = true;
        plane->queue[(plane->queue_head + plane->queue_count++) % plane->n_links] = number;
    }
}

static uint32_t dequeue(struct dlk_plane *plane)
{
    uint32_t number = plane->queue[plane->queue_head];

    plane->queue_head = (plane->queue_head + 1) % plane->n_links;
    plane->queue_count--;
    plane->links[number].queued = false;
    return number;
}

/* ---- Links that have not attached, oldest first ---- */

static void append_new(struct dlk_plane *plane, uint32_t number)
{
    struct dlk_plane_link *link = &plane->links[number];

    link->older = plane->newest_new;
    link->newer = DLK_NONE;
    if (plane->newest_new != DLK_NONE) {
        plane->links[plane->newest_new].newer = number;
    } else {
        plane->oldest_new = number;
    }
    plane->newest_new = number;
    plane->n_new++;
}

static void remove_new(struct dlk_plane *plane, const struct dlk_plane_link *link)
{
    if (link->older != DLK_NONE) {
        plane->links[link->older].newer = link->newer;
    } else {
        plane->oldest_new = link->newer;
    }
    if (link->newer != DLK_NONE) {
        plane->links[link->newer].older = link->older;
    } else {
        plane->newest_new = link->older;
    }
    plane->n_new--;
}

/* ---- The end of a link ---- */

uint32_t dlk_plane_link_of(const struct dlk_plane *plane, uint32_t session)
{
    return session < plane->limits.max_sessions ? plane->session_links[session] : DLK_NONE;
}

static void end(struct dlk_plane *plane, uint32_t number)
{
    struct dlk_plane_link *link = &plane->links[number];

    if (link->state == DLK_LINK_NEW) {
        remove_new(plane, link);
    } else {
        plane->session_links[link->session] = DLK_NONE;
    }
    dlk_plane_drop_output(plane, link);
    plane->transport->calls->close(plane->transport, number);
    link->state = DLK_LINK_FREE;
    plane->free_links[plane->n_free_links++] = number;
}

void dlk_plane_link_retire(struct dlk_plane *plane, uint32_t number)
{
    dlk_plane_drain(plane, number); /* what fits; that may find that the link is lost */
    if (plane->links[number].state != DLK_LINK_FREE) {
        end(plane, number);
    }
}

void dlk_plane_link_lost(struct dlk_plane *plane, uint32_t number)
{
    const struct dlk_plane_link *link = &plane->links[number];

    if (link->partial_bytes != 0) {
        plane->counters[DLK_COUNT_NETWORK_FAIL]++;
    }
    if (link->state == DLK_LINK_ATTACHED) {
        struct dlk_event lost = {
            .op = DLK_EVENT_LINK_LOST, .slot = link->session, .id = link->client_id};
        plane->counters[DLK_COUNT_CLIENT_DISCONNECT]++;
        dlk_plane_event(plane, &lost);
    }
    end(plane, number);
}

void dlk_plane_link_fault(struct dlk_plane *plane, uint32_t number, uint32_t fault)
{
    struct dlk_plane_link *link = &plane->links[number];
    bool identity = fault == DLK_FAULT_REFUSED || fault == DLK_FAULT_CLIENT_ID;
    struct dlk_event event = {
        .op = DLK_EVENT_BAD_PEER, .result = fault, .slot = DLK_NONE, .id = link->client_id};
    uint8_t address[16];

    plane->counters[identity ? DLK_COUNT_CLIENT_ID_VERIFY_FAIL : DLK_COUNT_BAD_REQUEST]++;
    plane->transport->calls->peer(plane->transport, number, address);
    memcpy(&event.cookie, address, 8);
    memcpy(&event.value, address + 8, 8);
    dlk_plane_event(plane, &event);
    link->partial_bytes = 0; /* counted as the fault that it is */
    if (link->state == DLK_LINK_ATTACHED) {
        dlk_plane_link_lost(plane, number);
    } else {
        end(plane, number);
    }
}

/* ---- The begin of a link ---- */

static void accept_links(struct dlk_plane *plane)
{
    while (plane->accept_pending && plane->n_new < DLK_PLANE_UNATTACHED_MAX
           && plane->n_free_links > 0) {
        uint32_t number = plane->free_links[plane->n_free_links - 1];
        struct dlk_plane_link *link = &plane->links[number];
        int outcome = plane->transport->calls->accept(plane->transport, number);

        if (outcome == DLK_TRANSPORT_AGAIN) {
            plane->accept_pending = false;
            return;
        }
        if (outcome == DLK_TRANSPORT_EXHAUSTED) {
            plane->counters[DLK_COUNT_NETWORK_FAIL]++;
            plane->accept_retry_ns
                = plane->clock_ns + (uint64_t)DLK_PLANE_RETRY_MS * DLK_NS_PER_MS;
            return;
        }
        bool queued = link->queued; /* an earlier life may still stand in the queue */
        memset(link, 0, sizeof(*link));
        link->queued = queued;
        link->state = DLK_LINK_NEW;
        link->accepted_ns = dlk_plane_clock(plane);
        plane->n_free_links--;
        plane->counters[DLK_COUNT_CONNECTIONS]++;
        append_new(plane, number);
    }
}

static uint64_t attach_ns(const struct dlk_plane *plane)
{
    bool crowded = plane->n_new == DLK_PLANE_UNATTACHED_MAX;

    return (uint64_t)(crowded ? DLK_PLANE_ATTACH_CROWDED_MS : DLK_PLANE_ATTACH_MS)
           * DLK_NS_PER_MS;
}

/* Judged by when the sockets were last emptied: what came in time is not punished for a stall. */
void dlk_plane_end_unattached(struct dlk_plane *plane)
{
    while (plane->oldest_new != DLK_NONE
           && plane->links[plane->oldest_new].accepted_ns + attach_ns(plane)
                  <= plane->emptied_ns) {
        dlk_plane_link_fault(plane, plane->oldest_new, DLK_FAULT_ATTACH_LATE);
    }
}

uint64_t dlk_plane_link_deadline(const struct dlk_plane *plane)
{
    uint64_t deadline_ns = UINT64_MAX;

    if (plane->oldest_new != DLK_NONE) {
        deadline_ns = plane->links[plane->oldest_new].accepted_ns + attach_ns(plane);
    }
    if (plane->accept_pending && plane->n_new < DLK_PLANE_UNATTACHED_MAX
        && plane->accept_retry_ns < deadline_ns) {
        deadline_ns = plane->accept_retry_ns;
    }
    return deadline_ns;
}

static bool attach_allowed(const struct dlk_plane *plane, const struct dlk_attach *attach)
{
    return dlk_engine_attach_allowed(plane->engine, attach)
           && !plane->attach_used[attach->session_slot];
}

static void answer_attach(struct dlk_plane *plane, uint32_t number, uint32_t request_id,
                          uint32_t result)
{
    struct dlk_reply reply = {
        .request_id = request_id,
        .op = DLK_OP_ATTACH,
        .result = (uint16_t)result,
        .epoch = dlk_engine_epoch(plane->engine),
        .entry = DLK_NONE,
    };

    dlk_codec_reply(&reply, plane->links[number].client_id);
    dlk_plane_deliver(plane, number, &reply, sizeof(reply));
}

/* The first frame of a link. False: the link is gone. */
static bool attach(struct dlk_plane *plane, uint32_t number, const void *frame)
{
    struct dlk_plane_link *link = &plane->links[number];
    struct dlk_attach attach;
    uint32_t fault = dlk_codec_attach(frame, &attach);

    if (fault == DLK_FAULT_NONE || fault == DLK_FAULT_VERSION) {
        link->client_id = attach.client_id; /* what it says it is, for the log */
    }
    if (fault == DLK_FAULT_NONE && !attach_allowed(plane, &attach)) {
        answer_attach(plane, number, attach.request_id, DLK_RESULT_REFUSED);
        fault = DLK_FAULT_REFUSED;
    }
    if (fault != DLK_FAULT_NONE) {
        if (link->state != DLK_LINK_FREE) {
            dlk_plane_link_fault(plane, number, fault);
        }
        return false;
    }
    uint32_t before = plane->session_links[attach.session_slot];
    if (before != DLK_NONE) {
        dlk_plane_link_retire(plane, before); /* a new attach number came with a supersede: never */
    }
    remove_new(plane, link);
    link->state = DLK_LINK_ATTACHED;
    link->session = attach.session_slot;
    link->request_id = attach.request_id;
    plane->session_links[attach.session_slot] = number;
    plane->attach_used[attach.session_slot] = true;
    plane->attached[plane->n_attached++] = number;
    return true;
}

/* An attach renews its session like every request, and its answer says so: it is given only now,
 * when the clock has been read after the frame was there. */
void dlk_plane_answer_attached(struct dlk_plane *plane, uint64_t now_ns)
{
    for (uint32_t i = 0; i < plane->n_attached; i++) {
        uint32_t number = plane->attached[i];
        const struct dlk_plane_link *link = &plane->links[number];
        struct dlk_command renew = {
            .op = DLK_COMMAND_SESSION_RENEW, .slot = link->session, .id = link->client_id};

        if (link->state != DLK_LINK_ATTACHED) {
            continue;
        }
        dlk_engine_command(plane->engine, &renew, now_ns);
        dlk_engine_clear(plane->engine); /* nobody asked for its DONE event */
        answer_attach(plane, number, link->request_id, DLK_RESULT_DONE);
        dlk_engine_attached(plane->engine, link->session, now_ns);
        dlk_plane_outbox(plane);
    }
    plane->n_attached = 0;
}

/* ---- What lies in the links ---- */

/* One look at the transport: new links, drained output, links to receive from. */
size_t dlk_plane_look(struct dlk_plane *plane, uint64_t timeout_ns)
{
    size_t count = plane->transport->calls->wait(plane->transport, timeout_ns, plane->ready,
                                                 DLK_PLANE_LOOK);

    for (size_t i = 0; i < count; i++) {
        uint32_t flags = plane->ready[i].flags;
        uint32_t number = plane->ready[i].link;
        if ((flags & DLK_READY_ACCEPT) != 0) {
            plane->accept_pending = true;
            plane->accept_retry_ns = 0;
            continue;
        }
        if (plane->links[number].state == DLK_LINK_FREE) {
            continue;
        }
        plane->links[number].hang_up |= (flags & DLK_READY_HANG_UP) != 0;
        if ((flags & DLK_READY_RECEIVE) != 0) {
            dlk_plane_enqueue(plane, number);
        }
        if ((flags & DLK_READY_SEND) != 0) {
            dlk_plane_drain(plane, number);
        }
    }
    if (plane->accept_pending && plane->accept_retry_ns <= plane->clock_ns) {
        accept_links(plane);
    }
    if (plane->verbs != NULL && plane->verbs->noticed) {
        dlk_plane_verbs_notices(plane);
    }
    return count;
}

/* The frames that lie at the batch's end become requests of it. */
static void decode(struct dlk_plane *plane, uint32_t number, size_t frames)
{
    const struct dlk_plane_link *link = &plane->links[number];
    const struct dlk_request *received = &plane->batch[plane->n_batch];

    for (size_t i = 0; i < frames; i++) {
        if (link->state == DLK_LINK_NEW) {
            if (!attach(plane, number, &received[i])) {
                return;
            }
            continue;
        }
        struct dlk_request *request = &plane->batch[plane->n_batch];
        if (request != &received[i]) {
            *request = received[i];
        }
        uint32_t fault = dlk_codec_request(request, link->client_id, link->session);
        if (fault != DLK_FAULT_NONE) {
            dlk_plane_link_fault(plane, number, fault);
            return;
        }
        plane->n_batch++;
    }
}

/* Straight into the batch, behind what is kept of a frame whose rest has not come. */
static void receive_link(struct dlk_plane *plane, uint32_t number)
{
    struct dlk_plane_link *link = &plane->links[number];
    unsigned char *to = (unsigned char *)&plane->batch[plane->n_batch];
    size_t room = (DLK_STEP_MAX - plane->n_batch) * DLK_FRAME_BYTES - link->partial_bytes;

    if (link->state == DLK_LINK_FREE || link->paused) {
        return;
    }
    ptrdiff_t received = plane->transport->calls->receive(plane->transport, number,
                                                          to + link->partial_bytes, room);
    if (received == DLK_TRANSPORT_AGAIN) {
        return;
    }
    if (received < 0) {
        dlk_plane_link_lost(plane, number);
        return;
    }
    if ((size_t)received == room || link->hang_up) {
        dlk_plane_enqueue(plane, number);
    }
    memcpy(to, link->partial, link->partial_bytes);
    size_t bytes = link->partial_bytes + (size_t)received;
    link->partial_bytes = (uint8_t)(bytes % DLK_FRAME_BYTES);
    memcpy(link->partial, to + bytes - link->partial_bytes, link->partial_bytes);
    decode(plane, number, bytes / DLK_FRAME_BYTES);
}

/* The rest of the pass, as far as the batch goes. */
void dlk_plane_receive(struct dlk_plane *plane)
{
    plane->n_batch = 0;
    while (plane->pass_left > 0 && plane->n_batch < DLK_STEP_MAX
           && plane->n_attached < DLK_PLANE_UNATTACHED_MAX) {
        plane->pass_left--;
        receive_link(plane, dequeue(plane));
    }
}
