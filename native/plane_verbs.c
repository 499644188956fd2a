/*
 * RDMA at the plane: what the control thread asks for, and what becomes of it. A queue pair is made
 * by the control thread and handed over by LINK_OPEN; from then on it is a link like any other.
 */
#include <string.h>

#include "plane.h"

/* ---- The control thread's side ---- */

int dlk_plane_verbs_open(struct dlk_plane *plane, const struct dlk_verbs_port *port, char *reason)
{
    struct dlk_verbs_setting setting = {
        .tcp = plane->transport,
        .links = plane->n_links,
        .clients = (plane->limits.max_sessions + 1) / 2, /* the others are sessions that ended */
        .cells = plane->cells,
        .n_cells = plane->limits.max_cells,
    };

    plane->verbs = dlk_verbs_transport_new(&setting, port, reason);
    if (plane->verbs == NULL) {
        return 0;
    }
    plane->transport = &plane->verbs->base;
    return 1;
}

static int say_none(char *reason)
{
    static const char text[] = "this server serves no RDMA";

    memcpy(reason, text, sizeof(text));
    return DLK_STATUS_ERROR;
}

int dlk_plane_verbs_pair(struct dlk_plane *plane, const struct dlk_verbs_address *peer,
                         struct dlk_verbs_address *own, uint64_t *pair, char *reason)
{
    if (plane->verbs == NULL) {
        return say_none(reason);
    }
    return plane->verbs->calls->pair(plane->verbs, peer, own, pair, reason);
}

void dlk_plane_verbs_pair_free(struct dlk_plane *plane, uint64_t pair)
{
    if (plane->verbs != NULL) {
        plane->verbs->calls->pair_free(plane->verbs, pair);
    }
}

/* ---- The plane thread's side ---- */

/* Whose it is will be proved by its attach frame; until then the log needs a name. */
uint32_t dlk_plane_link_open(struct dlk_plane *plane, const struct dlk_command *command)
{
    if (plane->verbs == NULL
        || !plane->verbs->calls->hand_over(plane->verbs, command->value, command->id)) {
        return DLK_RESULT_INVALID;
    }
    plane->counters[DLK_COUNT_VERBS_CONNECTIONS]++;
    plane->accept_pending = true;
    plane->accept_retry_ns = 0;
    return DLK_RESULT_DONE;
}

void dlk_plane_verbs_notices(struct dlk_plane *plane)
{
    struct dlk_verbs_notice notice;

    while (plane->verbs->calls->notice(plane->verbs, &notice)) {
        struct dlk_event event = {.op = DLK_EVENT_VERBS,
                                  .result = notice.event,
                                  .slot = DLK_NONE,
                                  .id = notice.client_id,
                                  .cookie = notice.code,
                                  .value = notice.links};
        plane->counters[DLK_COUNT_VERBS_PAIR_ERRORS] += notice.links;
        dlk_plane_event(plane, &event);
    }
}

bool dlk_plane_verbs_lingers(const struct dlk_plane *plane)
{
    return plane->verbs != NULL && plane->verbs->calls->lingers(plane->verbs);
}
