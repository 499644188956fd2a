/*
 * What the control thread sees of the plane: commands in, events and counters out. Neither side
 * ever waits: commands that do not fit are the control thread's to keep, events that do not fit lie
 * in the plane's own list.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "plane.h"

/* ---- The control thread's side ---- */

/* CONFIRMED does not queue behind what the plane must not carry out without it. */
int dlk_plane_send_command(struct dlk_plane *plane, const struct dlk_command *command)
{
    if (command->op == DLK_COMMAND_CONFIRMED) {
        dlk_plane_confirmed(plane, command->value);
        return 1;
    }
    if (!dlk_ring_put(&plane->commands, command)) {
        return 0;
    }
    if (dlk_ring_must_wake(&plane->commands)) {
        plane->transport->calls->wake(plane->transport);
    }
    return 1;
}

int dlk_plane_take_event(struct dlk_plane *plane, struct dlk_event *event)
{
    if (dlk_ring_take(&plane->events, event)) {
        return 1;
    }
    if (dlk_ring_may_sleep(&plane->events)) {
        return 0;
    }
    return dlk_ring_take(&plane->events, event) ? 1 : 0;
}

int dlk_plane_event_fd(const struct dlk_plane *plane)
{
    return plane->event_fd;
}

void dlk_plane_event_fd_clear(struct dlk_plane *plane)
{
    uint64_t wake_ups;
    ssize_t taken = read(plane->event_fd, &wake_ups, sizeof(wake_ups));

    (void)taken; /* it fails only where nothing is to be cleared */
}

void dlk_plane_counters(const struct dlk_plane *plane, uint64_t *out, size_t count)
{
    const uint64_t *engine = dlk_engine_counters(plane->engine);

    for (size_t i = 0; i < count && i < DLK_COUNT_MAX; i++) {
        out[i] = i < DLK_COUNT_CONNECTIONS
                     ? __atomic_load_n(&engine[i], __ATOMIC_RELAXED)
                     : atomic_load_explicit(&plane->published[i], memory_order_relaxed);
    }
}

/* ---- The plane thread's side ---- */

/* The engine counts what stands before CONNECTIONS, where all may read it; the plane the rest. */
void dlk_plane_publish(struct dlk_plane *plane)
{
    for (size_t i = DLK_COUNT_CONNECTIONS; i < DLK_COUNT_MAX; i++) {
        atomic_store_explicit(&plane->published[i], plane->counters[i], memory_order_relaxed);
    }
}

/* Without memory for an event the two threads would disagree for ever: the plane stops, as after a
 * crash, and dlk_plane_run says why. */
static void keep(struct dlk_plane *plane, const struct dlk_event *event)
{
    if (plane->backlog_end == plane->backlog_room) {
        size_t kept = plane->backlog_end - plane->backlog_start;
        size_t room = kept * 2 > DLK_PLANE_RING ? kept * 2 : DLK_PLANE_RING;
        struct dlk_event *backlog = malloc(room * sizeof(*backlog));
        if (backlog == NULL) {
            plane->failed = ENOMEM;
            return;
        }
        if (kept > 0) {
            memcpy(backlog, plane->backlog + plane->backlog_start, kept * sizeof(*backlog));
        }
        free(plane->backlog);
        plane->backlog = backlog;
        plane->backlog_start = 0;
        plane->backlog_end = kept;
        plane->backlog_room = room;
    }
    plane->backlog[plane->backlog_end++] = *event;
}

void dlk_plane_event(struct dlk_plane *plane, const struct dlk_event *event)
{
    if (plane->backlog_start == plane->backlog_end && dlk_ring_put(&plane->events, event)) {
        return;
    }
    /* These can be caused without end; the counters still know of them. */
    bool of_client = event->op == DLK_EVENT_VERBS && event->id != 0;
    if (event->op != DLK_EVENT_BAD_PEER && event->op != DLK_EVENT_DEADLOCK && !of_client) {
        keep(plane, event);
    }
}

void dlk_plane_flush_events(struct dlk_plane *plane)
{
    const uint64_t one = 1;

    while (plane->backlog_start != plane->backlog_end
           && dlk_ring_put(&plane->events, &plane->backlog[plane->backlog_start])) {
        plane->backlog_start++;
    }
    if (plane->backlog_start == plane->backlog_end && plane->backlog != NULL) {
        free(plane->backlog);
        plane->backlog = NULL;
        plane->backlog_start = plane->backlog_end = plane->backlog_room = 0;
    }
    if (!dlk_ring_empty(&plane->events) && dlk_ring_must_wake(&plane->events)) {
        ssize_t written = write(plane->event_fd, &one, sizeof(one));
        (void)written; /* it fails only when 2^64 wake-ups are unread */
    }
}

static struct dlk_event *done_event(const struct dlk_plane *plane)
{
    struct dlk_event *events;
    size_t count = dlk_engine_events(plane->engine, &events);

    return &events[count - 1]; /* every command leaves its DONE event last */
}

static void carry_out(struct dlk_plane *plane, const struct dlk_command *command, uint64_t now_ns)
{
    if (command->op == DLK_COMMAND_SESSION_SUPERSEDE || command->op == DLK_COMMAND_SESSION_CLOSE) {
        /* Before the answer: nothing of the old connection may be obeyed any more. */
        uint32_t number = dlk_plane_link_of(plane, command->slot);
        if (number != DLK_NONE && plane->links[number].client_id == command->id) {
            dlk_plane_link_retire(plane, number);
        }
    }
    if (command->op == DLK_COMMAND_LINK_OPEN) {
        struct dlk_event opened = {.op = DLK_EVENT_DONE,
                                   .result = dlk_plane_link_open(plane, command),
                                   .slot = command->slot,
                                   .id = command->id,
                                   .cookie = command->cookie};
        dlk_plane_event(plane, &opened);
        return;
    }
    dlk_engine_command(plane->engine, command, now_ns);
    struct dlk_event *done = done_event(plane);
    if (done->result == DLK_RESULT_DONE) {
        if (command->op == DLK_COMMAND_SESSION_OPEN
            || command->op == DLK_COMMAND_SESSION_SUPERSEDE) {
            plane->attach_used[command->slot] = false;
        } else if (command->op == DLK_COMMAND_CELL_OPEN) {
            done->value = dlk_plane_cell_open(plane, command->slot, command->value);
        } else if (command->op == DLK_COMMAND_CELL_CLOSE) {
            dlk_plane_cell_close(plane, command->slot);
        }
    }
    dlk_plane_outbox(plane);
}

bool dlk_plane_commands(struct dlk_plane *plane)
{
    struct dlk_command command;

    if (dlk_ring_empty(&plane->commands)) {
        return true;
    }
    dlk_plane_clock(plane); /* after they were put, before they are answered */
    if (!dlk_plane_may_serve(plane, DLK_PLANE_HELD_BEGUN)) {
        return false;
    }
    for (int i = 0; i < DLK_PLANE_RING && dlk_ring_take(&plane->commands, &command); i++) {
        carry_out(plane, &command, plane->clock_ns);
    }
    return true;
}

/* After a stall nobody is judged by the time that the machine has lost: at least a second, so that
 * what lies in the control plane's sockets is handled too. */
void dlk_plane_grace(struct dlk_plane *plane)
{
    uint64_t grace_ms = plane->stalled_ns / DLK_NS_PER_MS;
    struct dlk_command command = {.op = DLK_COMMAND_GRACE};

    grace_ms = grace_ms < 1000 ? 1000 : grace_ms;
    command.value = grace_ms > 5000 ? 5000 : grace_ms;
    plane->stalled_ns = 0;
    plane->counters[DLK_COUNT_STALLS]++;
    dlk_engine_command(plane->engine, &command, plane->clock_ns);
    dlk_engine_clear(plane->engine); /* nobody asked for its DONE event */
}
