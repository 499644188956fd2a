/*
 * The way out: the engine's outbox becomes frames in their connections. Replies of one connection
 * are sent together, straight from the outbox when they are all of one; what a connection does not
 * take at once is kept for it, and while that is much the plane does not read from it.
 */
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "plane.h"

/* ---- Output that is blocked ---- */

void dlk_plane_drop_output(struct dlk_plane *plane, struct dlk_plane_link *link)
{
    if (link->output != NULL) {
        free(link->output);
        link->output = NULL;
        plane->n_blocked--;
    }
    link->output_start = link->output_end = link->output_room = 0;
}

static bool keep(struct dlk_plane *plane, struct dlk_plane_link *link, const void *bytes,
                 size_t length)
{
    size_t kept = link->output_end - link->output_start;

    if (kept + length > DLK_PLANE_OUTPUT_MAX) {
        return false;
    }
    if (link->output_end + length > link->output_room) {
        size_t room = link->output_room != 0 ? link->output_room : 4096;
        while (room < kept + length) {
            room *= 2;
        }
        unsigned char *output = malloc(room);
        if (output == NULL) {
            return false;
        }
        if (link->output != NULL) {
            memcpy(output, link->output + link->output_start, kept);
            free(link->output);
        } else {
            plane->n_blocked++;
        }
        link->output = output;
        link->output_room = (uint32_t)room;
        link->output_start = 0;
        link->output_end = (uint32_t)kept;
    }
    memcpy(link->output + link->output_end, bytes, length);
    link->output_end += (uint32_t)length;
    link->paused = kept + length > DLK_PLANE_OUTPUT_PAUSE;
    return true;
}

void dlk_plane_drain(struct dlk_plane *plane, uint32_t number)
{
    struct dlk_plane_link *link = &plane->links[number];
    ptrdiff_t sent;

    if (link->output == NULL) {
        return;
    }
    sent = plane->transport->calls->send(plane->transport, number,
                                         link->output + link->output_start,
                                         link->output_end - link->output_start);
    if (sent < 0) {
        plane->counters[DLK_COUNT_SEND_FAIL]++;
        dlk_plane_link_lost(plane, number);
        return;
    }
    link->output_start += (uint32_t)sent;
    if (link->output_start == link->output_end) {
        dlk_plane_drop_output(plane, link);
    }
    if (link->paused && link->output_end - link->output_start <= DLK_PLANE_OUTPUT_PAUSE / 2) {
        link->paused = false;
        dlk_plane_enqueue(plane, number); /* what came meanwhile has been told already */
    }
}

void dlk_plane_deliver(struct dlk_plane *plane, uint32_t number, const void *bytes, size_t length)
{
    struct dlk_plane_link *link = &plane->links[number];
    ptrdiff_t sent = 0;

    if (link->output == NULL) {
        sent = plane->transport->calls->send(plane->transport, number, bytes, length);
        if (sent == (ptrdiff_t)length) {
            return;
        }
        if (sent < 0) {
            plane->counters[DLK_COUNT_SEND_FAIL]++;
            dlk_plane_link_lost(plane, number);
            return;
        }
    }
    if (!keep(plane, link, (const unsigned char *)bytes + sent, length - (size_t)sent)) {
        plane->counters[DLK_COUNT_SEND_FAIL]++;
        dlk_plane_link_fault(plane, number, DLK_FAULT_OUTPUT);
    }
}

/* ---- The outbox ---- */

/* Carries out what is to be carried out, addresses the replies, and counts those of each link.
 * Returns how many links there are. */
static uint32_t address(struct dlk_plane *plane, struct dlk_reply *replies, size_t count)
{
    uint32_t n_touched = 0;

    if (plane->verbs != NULL && plane->verbs->operates) {
        dlk_plane_cells_by_device(plane, replies, count);
    }
    for (size_t i = 0; i < count; i++) {
        if (replies[i].result == DLK_RESULT_ACTION) {
            dlk_plane_cell_carry_out(plane, &replies[i]);
        }
        uint32_t number = dlk_plane_link_of(plane, replies[i].session);
        plane->reply_links[i] = number;
        if (number == DLK_NONE) {
            plane->counters[DLK_COUNT_REPLIES_DROPPED]++;
            continue;
        }
        struct dlk_plane_link *link = &plane->links[number];
        dlk_codec_reply(&replies[i], link->client_id);
        if (link->group_count++ == 0) {
            plane->touched[n_touched++] = number;
        }
    }
    return n_touched;
}

static void send_chunk(struct dlk_plane *plane, struct dlk_reply *replies, size_t count)
{
    uint32_t n_touched = address(plane, replies, count);
    uint32_t end = 0;

    if (n_touched == 1 && plane->links[plane->touched[0]].group_count == count) {
        plane->links[plane->touched[0]].group_count = 0;
        dlk_plane_deliver(plane, plane->touched[0], replies, count * sizeof(*replies));
        return;
    }
    for (uint32_t i = 0; i < n_touched; i++) {
        struct dlk_plane_link *link = &plane->links[plane->touched[i]];
        link->group_end = end; /* grows to the end of its group below */
        end += link->group_count;
    }
    for (size_t i = 0; i < count; i++) {
        if (plane->reply_links[i] != DLK_NONE) {
            plane->grouped[plane->links[plane->reply_links[i]].group_end++] = replies[i];
        }
    }
    for (uint32_t i = 0; i < n_touched; i++) {
        struct dlk_plane_link *link = &plane->links[plane->touched[i]];
        size_t group_count = link->group_count;
        link->group_count = 0;
        dlk_plane_deliver(plane, plane->touched[i],
                          &plane->grouped[link->group_end - group_count],
                          group_count * sizeof(*replies));
    }
}

/* A session that has ended takes its connection along, after its last replies. A cycle has been
 * told before the reply that names it. */
static void handle_event(struct dlk_plane *plane, const struct dlk_event *event)
{
    if (event->op == DLK_EVENT_DEADLOCK) {
        return;
    }
    if (event->op == DLK_EVENT_SESSION_ENDED) {
        uint32_t number = dlk_plane_link_of(plane, event->slot);
        if (number != DLK_NONE) {
            dlk_plane_link_retire(plane, number);
        }
    }
    dlk_plane_event(plane, event);
}

/* Everything that a command, a step or a tick has left in the engine's outbox. Counters first: who
 * has seen an answer shall find it counted. */
void dlk_plane_outbox(struct dlk_plane *plane)
{
    struct dlk_reply *replies;
    struct dlk_event *events;
    size_t n_replies = dlk_engine_replies(plane->engine, &replies);
    size_t n_events = dlk_engine_events(plane->engine, &events);

    if (n_replies == 0 && n_events == 0) {
        return;
    }
    dlk_plane_publish(plane);
    for (size_t i = 0; i < n_events; i++) {
        if (events[i].op == DLK_EVENT_DEADLOCK) {
            dlk_plane_event(plane, &events[i]);
        }
    }
    for (size_t done = 0; done < n_replies; done += DLK_PLANE_CHUNK) {
        size_t left = n_replies - done;
        send_chunk(plane, replies + done, left < DLK_PLANE_CHUNK ? left : DLK_PLANE_CHUNK);
    }
    for (size_t i = 0; i < n_events; i++) {
        handle_event(plane, &events[i]);
    }
    dlk_engine_clear(plane->engine);
}
