/*
 * What the book has to tell without being asked: notices, in the order in which things happened,
 * until the shell takes them. Each is about a change and is told once. A client without a number
 * has nobody to tell. And the deadlines behind them: ends of leases and of the session are told
 * from the moment on in which left_ms is 0. It may not do I/O or read a clock.
 */
#include "client_book.h"

#include <stdlib.h>

enum { NOTICES_FIRST = 16, NS_PER_MS = 1000000 };

/* ---- What is to be told ---- */

static bool make_room(struct dlk_news *news)
{
    if (news->count < news->room) {
        return true;
    }
    uint32_t room = news->room == 0 ? NOTICES_FIRST : 2 * news->room;
    struct dlk_notice *wider = realloc(news->notices, room * sizeof(*wider));
    if (wider == NULL) {
        return false;
    }
    news->notices = wider;
    news->room = room;
    return true;
}

void dlk_book_tell(struct dlk_book *book, const struct dlk_hold *hold, enum dlk_notice_kind kind)
{
    struct dlk_news *news = &book->news;
    if (book->number == 0) {
        return;
    }
    news->any = true;
    if (!make_room(news)) {
        news->overflow = true;
        return;
    }
    news->notices[news->count++] = (struct dlk_notice){
        .client = book->number,
        .owner = hold != NULL ? hold->owner : 0,
        .token = hold != NULL ? hold->now.token : 0,
        .lock_id = hold != NULL ? hold->lock_id : 0,
        .kind = (uint32_t)kind,
    };
}

void dlk_book_told(struct dlk_book *book)
{
    book->news.count = 0;
    book->news.overflow = false;
    book->news.any = false;
}

/* ---- Deadlines ---- */

/* From when on an authority that runs until until_ns has less than a millisecond left. */
static uint64_t gone_ns(uint64_t until_ns)
{
    return until_ns >= NS_PER_MS ? until_ns - NS_PER_MS + 1 : 0;
}

/* A hold that stands on the living session has no end of its own. */
static uint64_t end_ns(const struct dlk_book *book, const struct dlk_hold *hold)
{
    const struct dlk_belief *belief = &hold->now;
    if (book->number == 0 || belief->state != DLK_ENTRY_HELD || belief->suspended) {
        return DLK_NEVER_NS;
    }
    if (belief->leased) {
        return gone_ns(belief->end_ns);
    }
    return belief->epoch != book->epoch ? gone_ns(belief->session_until_ns) : DLK_NEVER_NS;
}

static void put_in(struct dlk_heap *heap, uint32_t id, uint64_t when_ns)
{
    if (when_ns != DLK_NEVER_NS) {
        dlk_heap_set(heap, id, when_ns);
    } else {
        dlk_heap_remove(heap, id);
    }
}

static void watch(struct dlk_book *book, struct dlk_hold *hold)
{
    uint32_t id = (uint32_t)(hold - book->holds);
    uint64_t before_ns = dlk_book_due_ns(book, true);
    if (hold->now.state != DLK_ENTRY_HELD) {
        hold->renewal = DLK_NONE;
        hold->renewal_sent_ns = 0;
        hold->verify = false;
    }
    put_in(&book->ends, id, end_ns(book, hold));
    put_in(&book->renewals, id, dlk_renewal_due_ns(book, hold));
    hold->watched = dlk_heap_has(&book->ends, id) || dlk_heap_has(&book->renewals, id);
    if (dlk_book_due_ns(book, true) < before_ns) {
        book->news.any = true;
    }
}

void dlk_hold_watch(struct dlk_book *book, struct dlk_hold *hold)
{
    bool ends = hold->now.state == DLK_ENTRY_HELD
                && (hold->now.leased || hold->now.epoch != book->epoch)
                && (book->number != 0 || hold->now.renew_ms != 0);
    if (ends || hold->watched || hold->verify) {
        watch(book, hold);
    }
}

static uint64_t session_gone_ns(const struct dlk_book *book)
{
    bool told = book->number == 0 || book->session_suspended || book->session_until_ns == 0;
    return told ? DLK_NEVER_NS : gone_ns(book->session_until_ns);
}

uint64_t dlk_book_due_ns(const struct dlk_book *book, bool up)
{
    uint64_t due_ns = session_gone_ns(book);
    uint64_t end_ns = dlk_heap_first_ns(&book->ends);
    uint64_t renewal_ns =
        up && !book->removed ? dlk_heap_first_ns(&book->renewals) : DLK_NEVER_NS;
    due_ns = end_ns < due_ns ? end_ns : due_ns;
    return renewal_ns < due_ns ? renewal_ns : due_ns;
}

static void suspend(struct dlk_book *book, struct dlk_hold *hold)
{
    hold->now.suspended = true;
    dlk_book_tell(book, hold, DLK_NOTICE_SUSPENDED);
    watch(book, hold);
}

void dlk_book_pass(struct dlk_book *book, uint64_t now_ns)
{
    while (dlk_heap_first_ns(&book->ends) <= now_ns) {
        suspend(book, &book->holds[dlk_heap_first_id(&book->ends)]);
    }
    if (session_gone_ns(book) <= now_ns) {
        book->session_suspended = true;
        dlk_book_tell(book, NULL, DLK_NOTICE_SESSION_SUSPENDED);
    }
}

/* ---- Changes ---- */

void dlk_hold_lose(struct dlk_book *book, struct dlk_hold *hold, uint32_t result)
{
    dlk_book_tell(book, hold,
                  result == DLK_RESULT_BROKEN ? DLK_NOTICE_BROKEN : DLK_NOTICE_LOST);
    hold->lost = (uint8_t)result;
    dlk_belief_end(book, hold);
    dlk_hold_watch(book, hold);
}

void dlk_hold_refuse(struct dlk_book *book, struct dlk_hold *hold)
{
    dlk_hold_lose(book, hold, DLK_RESULT_NOT_HELD);
    hold->refused = true;
}

/* One that stands on a session that is not confirmed itself is told with that. */
void dlk_hold_confirm(struct dlk_book *book, struct dlk_hold *hold, uint64_t now_ns)
{
    if (hold->now.suspended && dlk_book_left_ms(book, &hold->now, now_ns) != 0) {
        hold->now.suspended = false;
        dlk_book_tell(book, hold, DLK_NOTICE_CONFIRMED);
    }
    book->confirm_later = book->confirm_later || (hold->now.suspended && !hold->now.leased);
    dlk_hold_watch(book, hold);
}

static void confirm_all(struct dlk_book *book, uint64_t now_ns)
{
    book->confirm_later = false;
    for (uint32_t i = 0; i < book->holds_high; i++) {
        struct dlk_hold *hold = &book->holds[i];
        bool stands_on_it = hold->now.state == DLK_ENTRY_HELD && !hold->now.leased
                            && hold->now.epoch == book->epoch;
        if (hold->in_use && stands_on_it && hold->now.suspended) {
            dlk_hold_confirm(book, hold, now_ns);
        }
    }
}

/* A hold that the server has not confirmed in its present epoch ends with the session as it was:
 * one whose time is over is told after the new session, which does not speak for it. */
void dlk_holds_attach(struct dlk_book *book, uint64_t now_ns)
{
    for (uint32_t i = 0; i < book->holds_high; i++) {
        struct dlk_hold *hold = &book->holds[i];
        if (hold->in_use && !hold->gone) {
            hold->renewal_sent_ns = 0;
            dlk_hold_watch(book, hold);
        }
    }
    while (dlk_heap_first_ns(&book->ends) <= now_ns) {
        suspend(book, &book->holds[dlk_heap_first_id(&book->ends)]);
    }
}

void dlk_session_tell(struct dlk_book *book, uint64_t now_ns)
{
    if (dlk_book_session_left_ms(book, now_ns) == 0) {
        return;
    }
    if (book->session_suspended) {
        book->session_suspended = false;
        book->news.any = true;
        dlk_book_tell(book, NULL, DLK_NOTICE_SESSION_CONFIRMED);
    }
    if (book->confirm_later) {
        confirm_all(book, now_ns);
    }
}

void dlk_session_remove(struct dlk_book *book)
{
    if (!book->removed) {
        book->removed = true;
        book->session_suspended = true;
        dlk_book_tell(book, NULL, DLK_NOTICE_REMOVED);
    }
}

void dlk_hold_break(struct dlk_book *book, struct dlk_hold *hold)
{
    dlk_pending_undo(book, hold, DLK_OP_UNLOCK, hold->now.token, hold->now.entry);
    dlk_hold_lose(book, hold, DLK_RESULT_BROKEN);
}

/* Is it the hold that this operation gives back? The server may yet answer that it did nothing. */
static void note_broken(struct dlk_book *book, uint32_t running, uint64_t token)
{
    struct dlk_pending *pending = running != DLK_NONE ? &book->pending[running] : NULL;
    if (pending != NULL && pending->request.op == DLK_OP_UNLOCK
        && pending->request.token == token) {
        pending->broken = true;
    }
}

/* A ticket that has become this hold without our knowledge, since the answer was lost: it is given
 * up, which ends the hold. Only if no hold is meant: the handle of a ticket that was passed is
 * another's by now. */
static bool break_ticket(struct dlk_book *book, struct dlk_hold *hold, uint32_t entry)
{
    if (hold->now.state != DLK_ENTRY_TICKET || hold->now.entry != entry
        || hold->running != DLK_NONE) {
        return false;
    }
    dlk_pending_undo(book, hold, DLK_OP_GIVE_UP, hold->now.token, entry);
    dlk_belief_end(book, hold);
    return true;
}

static struct dlk_hold *held_with(struct dlk_book *book, uint64_t token)
{
    for (uint32_t i = 0; i < book->holds_high; i++) {
        struct dlk_hold *hold = &book->holds[i];
        if (hold->in_use && hold->now.state == DLK_ENTRY_HELD && hold->now.token == token) {
            return hold;
        }
    }
    return NULL;
}

/* A newer claim has displaced the hold: it is lost. Or an operator takes it away: it is believed no
 * longer, and given back, which is what the server waits for. One that is not held any more has
 * been given back already, or is about to. */
bool dlk_book_noticed(struct dlk_book *book, const struct dlk_reply *reply)
{
    bool displaced = reply->result == DLK_RESULT_NOT_HELD;
    if (reply->op != DLK_OP_NOTICE || (reply->result != DLK_RESULT_BROKEN && !displaced)
        || reply->session != book->client_id || reply->epoch != book->epoch) {
        return false;
    }
    struct dlk_hold *hold = held_with(book, reply->token);
    if (displaced) {
        if (hold != NULL) {
            dlk_hold_refuse(book, hold);
        }
        return true;
    }
    if (hold != NULL) {
        dlk_hold_break(book, hold);
        return true;
    }
    for (uint32_t i = 0; i < book->holds_high; i++) {
        hold = &book->holds[i];
        if (hold->in_use && break_ticket(book, hold, reply->entry)) {
            break;
        }
        note_broken(book, hold->in_use ? hold->running : DLK_NONE, reply->token);
    }
    return true;
}
