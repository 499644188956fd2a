/*
 * How long a plane may serve without a look at the state directory.
 *
 * A primary that another one has replaced must not answer: not when it was stopped and goes on,
 * not when its control thread hangs on a disk. So the control thread says when it last began a
 * look that found the directory to be its own (CONFIRMED), and the plane serves for confirm_ms
 * from then, by the same clock. After that it reads no socket, carries nothing out, ends nothing
 * and answers nothing until there is a newer confirmation: the turn ends where it is, and the next
 * one goes on from there. A new primary grants nothing for that long.
 *
 * The time is compared with a number that is looked up anew only when it has passed: a plane that
 * is confirmed often enough pays one comparison a turn.
 */
#include "clock.h"
#include "plane.h"

void dlk_plane_authority_begin(struct dlk_plane *plane, uint32_t confirm_ms)
{
    plane->confirm_ns = (uint64_t)confirm_ms * DLK_NS_PER_MS;
    plane->serve_until_ns = confirm_ms == 0 ? UINT64_MAX : 0;
    atomic_init(&plane->confirmed_ns, dlk_now_ns());
}

void dlk_plane_confirmed(struct dlk_plane *plane, uint64_t seen_ns)
{
    atomic_store_explicit(&plane->confirmed_ns, seen_ns, memory_order_relaxed);
}

bool dlk_plane_authorized(struct dlk_plane *plane, uint64_t now_ns)
{
    if (plane->confirm_ns != 0) {
        uint64_t confirmed_ns = atomic_load_explicit(&plane->confirmed_ns, memory_order_relaxed);
        plane->serve_until_ns = confirmed_ns + plane->confirm_ns;
    }
    return now_ns <= plane->serve_until_ns;
}

bool dlk_plane_hold_back(struct dlk_plane *plane, enum dlk_plane_held where)
{
    if (dlk_plane_authorized(plane, plane->clock_ns)) {
        return true;
    }
    plane->counters[DLK_COUNT_UNCONFIRMED]++;
    plane->held = where;
    plane->waited = false; /* nothing to learn from */
    dlk_plane_publish(plane);
    return false;
}

/* The gap between the two looks at the plane's own clock is seen as the stall that it is, so that
 * nobody's session is judged by it. */
bool dlk_plane_released(struct dlk_plane *plane)
{
    if (!dlk_plane_authorized(plane, dlk_now_ns())) {
        return false;
    }
    plane->held = DLK_PLANE_HELD_NOWHERE;
    dlk_plane_clock(plane);
    return true;
}
