/*
 * The calls that no thread waits for: where each of them stands until it is collected or cancelled.
 *
 * Put off, it stands behind the operation that runs on its hold, or with those that want a request
 * slot; its answer awaited, in no list; ended, among those to be collected. Whatever has a deadline
 * is in a wheel: a slot for each tick, looked at when its tick is over. A deadline that has moved
 * on meanwhile (the server said QUEUED) is found there and put where it belongs. Every step takes
 * the same time however many there are. It may not do I/O or read a clock.
 */
#include "client_book.h"

#include <stddef.h>

/* ---- Lists ---- */

static void push_last(struct dlk_calls *calls, struct dlk_call *call)
{
    call->next = NULL;
    call->previous = calls->last;
    if (calls->last != NULL) {
        calls->last->next = call;
    } else {
        calls->first = call;
    }
    calls->last = call;
}

static void push_first(struct dlk_calls *calls, struct dlk_call *call)
{
    call->previous = NULL;
    call->next = calls->first;
    if (calls->first != NULL) {
        calls->first->previous = call;
    } else {
        calls->last = call;
    }
    calls->first = call;
}

static void unlink_from(struct dlk_calls *calls, struct dlk_call *call)
{
    if (call->previous != NULL) {
        call->previous->next = call->next;
    } else {
        calls->first = call->next;
    }
    if (call->next != NULL) {
        call->next->previous = call->previous;
    } else {
        calls->last = call->previous;
    }
}

/* ---- The wheel of deadlines ---- */

static void unwatch(struct dlk_call *call)
{
    if (call->watched_from == NULL) {
        return;
    }
    *call->watched_from = call->watched_next;
    if (call->watched_next != NULL) {
        call->watched_next->watched_from = call->watched_from;
    }
    call->watched_from = NULL;
}

static void watch(struct dlk_posted *posted, struct dlk_call *call)
{
    uint64_t tick = call->deadline_ns >> DLK_WHEEL_TICK_SHIFT;
    if (call->deadline_ns == DLK_NEVER_NS) {
        return;
    }
    struct dlk_call **slot =
        &posted->wheel[(tick > posted->tick ? tick : posted->tick) % DLK_WHEEL_SLOTS];
    call->watched_next = *slot;
    call->watched_from = slot;
    if (*slot != NULL) {
        (*slot)->watched_from = &call->watched_next;
    }
    *slot = call;
}

struct dlk_call *dlk_posted_due(struct dlk_book *book, uint64_t now_ns)
{
    struct dlk_posted *posted = &book->posted;
    uint64_t now_tick = now_ns >> DLK_WHEEL_TICK_SHIFT;
    if (now_tick > posted->tick + DLK_WHEEL_SLOTS) {
        posted->tick = now_tick - DLK_WHEEL_SLOTS;
    }
    for (;;) {
        while (posted->passed != NULL) {
            struct dlk_call *call = posted->passed;
            unwatch(call);
            if (call->deadline_ns <= now_ns) {
                return call;
            }
            watch(posted, call);
        }
        if (posted->tick >= now_tick) {
            return NULL;
        }
        struct dlk_call **slot = &posted->wheel[posted->tick++ % DLK_WHEEL_SLOTS];
        posted->passed = *slot;
        *slot = NULL;
        if (posted->passed != NULL) {
            posted->passed->watched_from = &posted->passed;
        }
    }
}

/* ---- Places ---- */

static struct dlk_hold *hold_of(const struct dlk_book *book, const struct dlk_call *call)
{
    bool of_lock = (call->verb >= DLK_VERB_TRYLOCK && call->verb <= DLK_VERB_EXTEND)
                   || call->verb == DLK_VERB_LOOK;
    uint32_t index =
        of_lock ? dlk_map_get(&book->locks, call->lock_id, call->owner) : DLK_NONE;
    return index != DLK_NONE ? &book->holds[index] : NULL;
}

static bool may_wait(const struct dlk_call *call)
{
    return call->verb == DLK_VERB_LOCK && call->wait_ms != 0;
}

static bool has_room(const struct dlk_book *book, bool waits)
{
    return book->pending_used + dlk_pending_kept(waits) < DLK_INFLIGHT_MAX;
}

bool dlk_posted_has_room(const struct dlk_book *book, const struct dlk_call *call)
{
    return has_room(book, may_wait(call));
}

bool dlk_posted_behind_parked(const struct dlk_book *book, const struct dlk_call *call)
{
    const struct dlk_hold *hold = hold_of(book, call);
    return hold != NULL && hold->running != DLK_NONE
           && dlk_pending_parked(&book->pending[hold->running]);
}

bool dlk_posted_must_queue(const struct dlk_book *book, const struct dlk_call *call)
{
    const struct dlk_posted *posted = &book->posted;
    const struct dlk_call *same =
        may_wait(call) ? posted->crowded_wait.first : posted->crowded_short.first;
    if (same != NULL || posted->again.first != NULL) {
        return true;
    }
    if (posted->crowded_wait.first == NULL && posted->crowded_short.first == NULL) {
        return false;
    }
    const struct dlk_hold *hold = hold_of(book, call);
    return hold != NULL && hold->crowded;
}

static struct dlk_calls *list_of(struct dlk_book *book, const struct dlk_call *call)
{
    switch (call->place) {
    case DLK_PLACE_BEHIND:
        return &book->holds[call->slot].behind;
    case DLK_PLACE_AGAIN:
        return &book->posted.again;
    case DLK_PLACE_CROWDED_SHORT:
        return &book->posted.crowded_short;
    case DLK_PLACE_CROWDED_WAIT:
        return &book->posted.crowded_wait;
    case DLK_PLACE_ENDED:
        return &book->posted.ended;
    default:
        return NULL;
    }
}

/* One that had been put off before is still the first of its kind. */
static void place_blocked(struct dlk_book *book, struct dlk_call *call, bool before)
{
    struct dlk_hold *hold = hold_of(book, call);
    if (hold != NULL && (hold->running != DLK_NONE || hold->crowded)) {
        call->slot = (uint32_t)(hold - book->holds);
        call->place = DLK_PLACE_BEHIND;
    } else {
        call->place = may_wait(call) ? DLK_PLACE_CROWDED_WAIT : DLK_PLACE_CROWDED_SHORT;
        if (hold != NULL) {
            hold->crowded = true;
        }
    }
    (before ? push_first : push_last)(list_of(book, call), call);
}

void dlk_posted_place(struct dlk_book *book, struct dlk_call *call)
{
    bool before = call->place == DLK_PLACE_RUNNING;
    call->place = DLK_PLACE_RUNNING;
    if (call->phase == DLK_PHASE_BLOCKED) {
        place_blocked(book, call, before);
    }
    unwatch(call);
    watch(&book->posted, call);
}

/* Out of the list of its place; those behind it stay there. */
static void leave_place(struct dlk_book *book, struct dlk_call *call)
{
    struct dlk_calls *list = list_of(book, call);
    if (list != NULL) {
        unlink_from(list, call);
    }
    if (call->place == DLK_PLACE_CROWDED_SHORT || call->place == DLK_PLACE_CROWDED_WAIT) {
        struct dlk_hold *hold = hold_of(book, call);
        if (hold != NULL) {
            hold->crowded = false;
        }
    }
}

void dlk_posted_promote(struct dlk_book *book, struct dlk_hold *hold, bool all)
{
    struct dlk_call *call;
    while ((call = hold->behind.first) != NULL) {
        unlink_from(&hold->behind, call);
        call->place = DLK_PLACE_AGAIN;
        push_last(&book->posted.again, call);
        if (!all) {
            return;
        }
    }
}

void dlk_posted_begun(struct dlk_book *book, const struct dlk_call *call)
{
    struct dlk_hold *hold = hold_of(book, call);
    if (hold != NULL && hold->behind.first != NULL && hold->running == DLK_NONE
        && !hold->crowded) {
        dlk_posted_promote(book, hold, false);
    }
}

void dlk_posted_remove(struct dlk_book *book, struct dlk_call *call)
{
    uint32_t place = call->place;
    if (place == DLK_PLACE_NONE) {
        return;
    }
    leave_place(book, call);
    unwatch(call);
    call->place = DLK_PLACE_NONE;
    if (place != DLK_PLACE_RUNNING && place != DLK_PLACE_ENDED) {
        dlk_posted_begun(book, call);
    }
}

void dlk_posted_end(struct dlk_book *book, struct dlk_call *call)
{
    dlk_posted_remove(book, call);
    call->place = DLK_PLACE_ENDED;
    push_last(&book->posted.ended, call);
}

struct dlk_call *dlk_posted_next(struct dlk_book *book, bool up)
{
    struct dlk_posted *posted = &book->posted;
    struct dlk_call *call = posted->again.first;
    if (call == NULL && (!up || has_room(book, false))) {
        call = posted->crowded_short.first;
    }
    if (call == NULL && (!up || has_room(book, true))) {
        call = posted->crowded_wait.first;
    }
    if (call != NULL) {
        leave_place(book, call);
        call->place = DLK_PLACE_RUNNING;
    }
    return call;
}

struct dlk_call *dlk_posted_take(struct dlk_book *book)
{
    struct dlk_call *call = book->posted.ended.first;
    if (call != NULL) {
        unlink_from(&book->posted.ended, call);
        call->place = DLK_PLACE_NONE;
        call->phase = DLK_PHASE_SEEN;
    }
    return call;
}
