/*
 * A book on its way to a new primary, by hand: what the tests of claims and of verification share.
 * The next epoch is NEXT.
 */
#ifndef DLOCK_BOOK_CLAIM_WORLD_H
#define DLOCK_BOOK_CLAIM_WORLD_H

#include "book_world.h"


enum { NEXT = EPOCH + 1, OTHER = 8 };

static inline struct dlk_book keeping_book(uint32_t kind)
{
    struct dlk_book book;
    struct dlk_link link = link_of(EPOCH);
    dlk_book_init(&book, TIMEOUT_MS);
    book.keep_waits = true;
    book.number = 1;
    dlk_book_attach(&book, &link, T0, T0);
    assert(dlk_book_add_lock(&book, LOCK, 5, kind, OWNER) == S(SUCCESS));
    return book;
}

static inline void disconnect(struct dlk_book *book, uint64_t now_ns)
{
    for (uint32_t i = 0; i < book->pending_high; i++) {
        dlk_book_disconnect(book, i, false, now_ns);
    }
    dlk_book_begin_claims(book, now_ns);
}

static inline struct dlk_claim claim_of(struct dlk_book *book, uint64_t now_ns)
{
    struct dlk_claim claim;
    assert(dlk_book_claims(book, &claim, 1, now_ns) >= 1);
    return claim;
}

static inline void seal(struct dlk_book *book)
{
    dlk_book_seal(book);
    for (uint32_t i = 0; i < book->pending_high; i++) {
        dlk_book_seal_wait(book, i, T0);
    }
}

static inline void attach_next(struct dlk_book *book, uint32_t epoch, uint64_t now_ns)
{
    struct dlk_link link = link_of(epoch);
    for (uint32_t i = 0; i < book->pending_high; i++) {
        dlk_book_sift(book, i, epoch, now_ns);
    }
    dlk_book_attach(book, &link, now_ns, now_ns);
}

static inline struct dlk_call *reply_next(struct dlk_book *book, const struct dlk_request *request,
                                   uint32_t result, uint64_t now_ns)
{
    struct dlk_reply answer = answer_to(request, result);
    answer.epoch = NEXT;
    return dlk_book_reply(book, &answer, now_ns);
}

static inline uint32_t told(struct dlk_book *book, uint32_t kind)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < book->news.count; i++) {
        count += book->news.notices[i].kind == kind;
    }
    dlk_book_told(book);
    return count;
}

static inline int status_of(struct dlk_book *book, uint32_t verb)
{
    struct dlk_call call = ask_for(verb, 0, 0);
    assert(turn_of(book, &call, T0) == DLK_TURN_DONE);
    return call.status;
}

static inline struct dlk_book holding_book(uint32_t kind, uint32_t lease_ms)
{
    struct dlk_book book = keeping_book(kind);
    struct dlk_call call = ask_for(TRY, lease_ms, 0);
    assert(run(&book, &call, R(GRANTED), T0) == S(SUCCESS));
    return book;
}

#endif
