/*
 * A book that tells, and one hold with a lease that is renewed: what the tests of renewals and
 * notices share.
 */
#ifndef DLOCK_TELLING_WORLD_H
#define DLOCK_TELLING_WORLD_H

#include "book_world.h"

#define N(name) DLK_NOTICE_##name

enum { NUMBER = 6, LEASE_MS = 6000 };

static inline struct dlk_book telling_book(uint32_t kind)
{
    struct dlk_book book = new_book(kind);
    book.number = NUMBER;
    return book;
}

static inline struct dlk_call leased(uint32_t lease_ms)
{
    struct dlk_call call = ask_for(TRY, lease_ms, 0);
    call.renew = 1;
    return call;
}

/* A lease of LEASE_MS, renewed by itself, granted at T0. */
static inline void hold(struct dlk_book *book)
{
    struct dlk_call call = leased(LEASE_MS);
    assert(run(book, &call, R(GRANTED), T0) == S(SUCCESS));
}

/* Nothing else has been told since the last look. */
static inline void expect_told(struct dlk_book *book, const uint32_t *kinds, uint32_t count)
{
    assert(book->news.count == count);
    for (uint32_t i = 0; i < count; i++) {
        const struct dlk_notice *notice = &book->news.notices[i];
        bool of_hold = notice->kind <= N(CONFIRMED);
        assert(notice->kind == kinds[i] && notice->client == NUMBER);
        assert(notice->lock_id == (of_hold ? LOCK : 0u) && notice->owner == (of_hold ? OWNER : 0u));
        assert(notice->token == (of_hold ? 1000u : 0u));
    }
    dlk_book_told(book);
}

static inline void expect_one(struct dlk_book *book, uint32_t kind)
{
    expect_told(book, &kind, 1);
}

static inline void expect_nothing(struct dlk_book *book)
{
    expect_told(book, NULL, 0);
}

static inline struct dlk_request renewal(struct dlk_book *book, uint64_t now_ns)
{
    const struct dlk_request *request = dlk_book_next_renewal(book, false, now_ns);
    assert(request != NULL && request->op == DLK_OP_EXTEND);
    return *request;
}

static inline bool has_renewal(struct dlk_book *book, uint64_t now_ns)
{
    return dlk_book_next_renewal(book, false, now_ns) != NULL;
}

/* When the first renewal of hold() is due: a third of the lease after the grant, counted from the
 * end, which the drift has brought forward. */
static const uint64_t FIRST_DUE = T0 + (LEASE_MS - LEASE_MS / 1000) * MS - 4000 * MS;

#endif
