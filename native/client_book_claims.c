/*
 * What a client tells a new primary of its locks, and what it makes of the answer. The server knows
 * nothing but what its clients claim, and gives out new ids above all that were claimed: so what it
 * has not taken over must never be named to it again. It may not do I/O or read a clock.
 *
 * In order: claims, what was said to each, seal; then the attach, in which the waits that were
 * taken over go on; then verify. For a client that keeps no waits the attach may come first.
 */
#include "client_book.h"

enum { NS_PER_MS = 1000000 };

void dlk_book_begin_claims(struct dlk_book *book, uint64_t now_ns)
{
    for (uint32_t i = 0; i < book->holds_high; i++) {
        book->holds[i].claimed = false;
    }
    for (uint32_t i = 0; i < book->pending_high; i++) {
        book->pending[i].accepted = false;
    }
    dlk_map_free(&book->survivors);
    book->claims_ns = now_ns == 0 || book->claims_ns == 0 ? now_ns : book->claims_ns;
}

/* ---- Claims ---- */

/* The wait of this owner that has a place in the queue of the former server; NULL: none. */
static const struct dlk_pending *placed_wait(const struct dlk_book *book,
                                             const struct dlk_hold *hold)
{
    const struct dlk_pending *pending =
        hold->running != DLK_NONE ? &book->pending[hold->running] : NULL;
    return pending != NULL && dlk_pending_parked(pending) && pending->stamp != 0 ? pending : NULL;
}

static void claim_wait(const struct dlk_pending *pending, struct dlk_claim *claim, uint64_t now_ns)
{
    uint32_t left_ms = dlk_wait_left_ms(pending, now_ns);
    claim->state = DLK_ENTRY_QUEUED;
    claim->stamp = pending->stamp;
    claim->mode = pending->request.mode;
    claim->request_id = pending->request.request_id;
    claim->wait_ms = left_ms != 0 ? left_ms : 1;
    claim->remaining_ms = pending->request.lease_ms;
    claim->leased = pending->request.lease_ms != 0;
    claim->flags = pending->request.flags & (DLK_FLAG_TICKET | DLK_FLAG_FINAL_EXPIRY);
}

static void claim_hold(const struct dlk_book *book, const struct dlk_belief *belief,
                       struct dlk_claim *claim, uint64_t now_ns)
{
    uint64_t until_ns = dlk_belief_until_ns(book, belief);
    claim->token = belief->token;
    claim->count = belief->count;
    claim->leased = belief->leased;
    claim->remaining_ms = belief->leased ? (uint32_t)dlk_ms_until(until_ns, now_ns) : 0;
    claim->lapsed = until_ns < now_ns + NS_PER_MS;
    claim->flags = belief->final_expiry ? (uint32_t)DLK_FLAG_FINAL_EXPIRY : 0;
}

static struct dlk_claim claim_of(const struct dlk_book *book, const struct dlk_hold *hold,
                                 uint64_t now_ns)
{
    const struct dlk_belief *belief = &hold->now;
    const struct dlk_pending *wait = placed_wait(book, hold);
    struct dlk_claim claim = {
        .lock_id = hold->lock_id,
        .slot = hold->slot,
        .kind = hold->kind,
        .size = hold->kind == DLK_KIND_SEMAPHORE ? 0 : 1,
        .owner = hold->owner,
        .state = belief->state,
        .mode = belief->mode,
    };
    if (wait != NULL) {
        claim_wait(wait, &claim, now_ns);
    } else if (belief->state == DLK_ENTRY_HELD) {
        claim_hold(book, belief, &claim, now_ns);
    } else if (belief->state == DLK_ENTRY_TICKET) {
        claim.stamp = belief->token;
    }
    return claim;
}

size_t dlk_book_claims(const struct dlk_book *book, struct dlk_claim *out, size_t room,
                       uint64_t now_ns)
{
    size_t count = 0;
    for (uint32_t i = 0; i < book->holds_high; i++) {
        const struct dlk_hold *hold = &book->holds[i];
        if (!hold->in_use || hold->gone || hold->unknown) {
            continue;
        }
        if (count < room) {
            out[count] = claim_of(book, hold, now_ns);
        }
        count++;
    }
    return count;
}

/* ---- What was said to them ---- */

static bool survives(const struct dlk_book *book, const struct dlk_hold *hold)
{
    return dlk_map_get(&book->survivors, hold->lock_id, 0) != DLK_NONE;
}

static void lose_claim(struct dlk_book *book, struct dlk_hold *hold)
{
    if (hold->now.state == DLK_ENTRY_HELD) {
        dlk_hold_refuse(book, hold);
    } else {
        dlk_belief_reset(&hold->now);
    }
}

/* Meanwhile it may have been given up. Without memory a lock counts as one that is not known. */
void dlk_book_claimed(struct dlk_book *book, const struct dlk_claim *claim, int32_t status)
{
    bool taken = status == DLK_STATUS_SUCCESS;
    if (taken && dlk_map_get(&book->survivors, claim->lock_id, 0) == DLK_NONE) {
        dlk_map_put(&book->survivors, claim->lock_id, 0, 1);
    }
    uint32_t index = dlk_map_get(&book->locks, claim->lock_id, claim->owner);
    if (index == DLK_NONE || claim->state == DLK_ENTRY_FREE) {
        return;
    }
    struct dlk_hold *hold = &book->holds[index];
    if (claim->state == DLK_ENTRY_QUEUED) {
        struct dlk_pending *wait =
            hold->running != DLK_NONE ? &book->pending[hold->running] : NULL;
        if (wait != NULL && dlk_pending_parked(wait)
            && wait->request.request_id == claim->request_id) {
            wait->accepted = taken;
        }
        return;
    }
    uint64_t named = claim->state == DLK_ENTRY_HELD ? claim->token : claim->stamp;
    if (hold->now.state != claim->state || hold->now.token != named) {
        return;
    }
    hold->claimed = taken;
    if (!taken) {
        lose_claim(book, hold);
    }
}

void dlk_book_seal(struct dlk_book *book)
{
    for (uint32_t i = 0; i < book->holds_high; i++) {
        struct dlk_hold *hold = &book->holds[i];
        if (!hold->in_use || hold->gone) {
            continue;
        }
        if (hold->now.state != DLK_ENTRY_FREE && !hold->claimed) {
            lose_claim(book, hold);
        }
        hold->unknown = hold->unknown || !survives(book, hold);
    }
}

/* One without a place at the former server, or whose place was not taken over, is asked anew if the
 * lock is there. */
struct dlk_call *dlk_book_seal_wait(struct dlk_book *book, uint32_t index, uint64_t now_ns)
{
    struct dlk_pending *pending = &book->pending[index];
    if (index >= book->pending_high || !dlk_pending_parked(pending)) {
        return NULL;
    }
    const struct dlk_hold *hold = &book->holds[pending->hold];
    if (hold->gone || !survives(book, hold)) {
        pending->accepted = false;
        return dlk_wait_end(book, index, DLK_STATUS_LOCK_NOT_GET, now_ns);
    }
    pending->fresh = !pending->accepted;
    return NULL;
}

/* ---- Verification ---- */

void dlk_book_verify(struct dlk_book *book)
{
    book->verified++;
    for (uint32_t i = 0; i < book->holds_high; i++) {
        struct dlk_hold *hold = &book->holds[i];
        bool unconfirmed = hold->now.state == DLK_ENTRY_HELD && hold->now.epoch != book->epoch;
        if (hold->in_use && !hold->gone && unconfirmed && hold->renewal == DLK_NONE) {
            hold->verify = true;
            hold->renewal_sent_ns = 0;
            dlk_hold_watch(book, hold);
        }
    }
    dlk_book_retry_kept(book);
}
