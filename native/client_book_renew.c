/*
 * Renewal: a lease whose acquisition asked for it is extended as long as its hold is held. A
 * renewal is a request of nobody's: it does not occupy its hold, so that an unlock never waits for
 * it, and its answer counts only if the hold still has that token. It is due when a third of the
 * lease has gone, and asked again after a sixth; all that are due soon go together. The same way a
 * hold is verified at a new primary, one without a lease too: once, at once. It may not do I/O or
 * read a clock.
 */
#include "client_book.h"

/* Under way at a time: the other request slots are for those who wait. */
enum { RENEWALS_MAX = 4096, NS_PER_MS = 1000000 };

static bool renews(const struct dlk_hold *hold)
{
    return hold->now.leased && hold->now.renew_ms != 0;
}

static uint64_t lease_ns(const struct dlk_hold *hold)
{
    return (uint64_t)hold->now.renew_ms * NS_PER_MS;
}

/* After how long without success it is asked again. */
static uint64_t pace_ns(const struct dlk_book *book, const struct dlk_hold *hold)
{
    uint64_t timeout_ns = (uint64_t)book->reply_timeout_ms * NS_PER_MS;
    uint64_t sixth_ns = lease_ns(hold) / 6;
    uint64_t pace = sixth_ns < timeout_ns && renews(hold) ? sixth_ns : timeout_ns;
    return pace > NS_PER_MS ? pace : NS_PER_MS;
}

/* Counted from the end, for the server may have granted less than was asked. */
static uint64_t third_gone_ns(const struct dlk_hold *hold)
{
    uint64_t left_ns = lease_ns(hold) - lease_ns(hold) / 3;
    return hold->now.end_ns > left_ns ? hold->now.end_ns - left_ns : 0;
}

uint64_t dlk_renewal_due_ns(const struct dlk_book *book, const struct dlk_hold *hold)
{
    if (hold->now.state != DLK_ENTRY_HELD || !(renews(hold) || hold->verify)) {
        return DLK_NEVER_NS;
    }
    uint64_t due_ns = hold->verify ? 0 : third_gone_ns(hold);
    uint64_t again_ns =
        hold->renewal_sent_ns != 0 ? hold->renewal_sent_ns + pace_ns(book, hold) : 0;
    return due_ns > again_ns ? due_ns : again_ns;
}

/* One that is not due yet may go along with others, unless it was sent just now. */
static bool may_go(const struct dlk_book *book, const struct dlk_hold *hold, bool early,
                   uint64_t now_ns)
{
    if (dlk_renewal_due_ns(book, hold) <= now_ns) {
        return true;
    }
    return early && renews(hold) && third_gone_ns(hold) <= now_ns + lease_ns(hold) / 6
           && (hold->renewal_sent_ns == 0
               || hold->renewal_sent_ns + pace_ns(book, hold) <= now_ns);
}

static struct dlk_pending *new_renewal(struct dlk_book *book, struct dlk_hold *hold,
                                       uint64_t now_ns)
{
    uint32_t index = book->renewals_under_way < RENEWALS_MAX
                         ? dlk_pending_new(book, dlk_pending_kept(true))
                         : DLK_NONE;
    if (index == DLK_NONE) {
        return NULL;
    }
    struct dlk_pending *pending = &book->pending[index];
    pending->request = (struct dlk_request){
        .request_id = pending->request.request_id,
        .op = DLK_OP_EXTEND,
        .mode = hold->now.mode,
        .session = book->client_id,
        .lock_id = hold->lock_id,
        .slot = hold->slot,
        .entry = hold->now.entry,
        .owner = hold->owner,
        .token = hold->now.token,
    };
    pending->call = NULL;
    pending->state = DLK_OP_STATE_RENEWAL;
    pending->sent_ns = now_ns;
    pending->hold = (uint32_t)(hold - book->holds);
    hold->renewal = index;
    book->renewals_under_way++;
    return pending;
}

/* One without an answer is sent again: the first answer strikes it, and counts from when
 * it was sent first. */
const struct dlk_request *dlk_book_next_renewal(struct dlk_book *book, bool early,
                                                uint64_t now_ns)
{
    if (book->removed || book->renewals.count == 0) {
        return NULL;
    }
    struct dlk_hold *hold = &book->holds[dlk_heap_first_id(&book->renewals)];
    if (!may_go(book, hold, early, now_ns)) {
        return NULL;
    }
    struct dlk_pending *pending = hold->renewal != DLK_NONE ? &book->pending[hold->renewal]
                                                            : new_renewal(book, hold, now_ns);
    if (pending == NULL) {
        return NULL;
    }
    pending->request.lease_ms = hold->now.renew_ms;
    hold->renewal_sent_ns = now_ns;
    dlk_hold_watch(book, hold);
    return &pending->request;
}

static void strike(struct dlk_book *book, uint32_t index)
{
    struct dlk_hold *hold = &book->holds[book->pending[index].hold];
    if (hold->renewal == index) {
        hold->renewal = DLK_NONE;
    }
    book->renewals_under_way--;
    dlk_pending_free(book, index);
}

/* Does it still hold what was to be renewed? A token is given out once. */
static bool is_meant(const struct dlk_hold *hold, const struct dlk_pending *pending)
{
    return hold->in_use && !hold->gone && hold->now.state == DLK_ENTRY_HELD
           && hold->now.token == pending->request.token;
}

void dlk_renewal_reply(struct dlk_book *book, uint32_t index, const struct dlk_reply *reply,
                       uint64_t now_ns)
{
    const struct dlk_pending *pending = &book->pending[index];
    struct dlk_hold *hold = &book->holds[pending->hold];
    if (is_meant(hold, pending)) {
        switch (reply->result) {
        case DLK_RESULT_EXTENDED:
            hold->verify = false;
            dlk_belief_extend(book, &hold->now, pending, reply);
            dlk_hold_confirm(book, hold, now_ns);
            break;
        case DLK_RESULT_NOT_HELD:
            dlk_hold_lose(book, hold, reply->result);
            break;
        case DLK_RESULT_NO_LOCK:
            dlk_hold_lose(book, hold, reply->result);
            dlk_hold_forget(book, hold);
            break;
        case DLK_RESULT_NOT_READY:
        case DLK_RESULT_INVALID:
            /* Not until somebody knows better, who may have said so while the answer came. */
            hold->verify = reply->result == DLK_RESULT_NOT_READY
                           && dlk_pending_outdated(book, pending);
            hold->renewal_sent_ns = hold->verify ? 0 : hold->renewal_sent_ns;
            dlk_hold_watch(book, hold);
            break;
        default:
            break; /* not now: asked again in its time */
        }
    }
    strike(book, index);
}

/* The connection has failed: with the next one it goes at once. */
void dlk_renewal_lose(struct dlk_book *book, uint32_t index)
{
    strike(book, index);
}
