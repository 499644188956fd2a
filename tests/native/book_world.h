/*
 * One book with one lock, driven by hand: what the tests of the book share. The client is 42, the
 * epoch 3, the time T0.
 */
#ifndef DLOCK_BOOK_WORLD_H
#define DLOCK_BOOK_WORLD_H

#include <assert.h>
#include <string.h>

#include "client_book.h"

#define MS ((uint64_t)1000000)
#define T0 ((uint64_t)1000000000000)
#define S(name) DLK_STATUS_##name
#define R(name) DLK_RESULT_##name
#define TRY DLK_VERB_TRYLOCK
#define WAIT DLK_VERB_LOCK
#define UNLOCK DLK_VERB_UNLOCK
#define EXTEND DLK_VERB_EXTEND

enum { LOCK = 7, OWNER = 99, CLIENT = 42, EPOCH = 3, TTL_MS = 10000, TIMEOUT_MS = 5000 };

static inline struct dlk_link link_of(uint32_t epoch)
{
    return (struct dlk_link){.client_id = CLIENT,
                             .epoch = epoch,
                             .session_ttl_ms = TTL_MS,
                             .max_lease_ms = 3600000};
}

static inline struct dlk_book new_book(uint32_t kind)
{
    struct dlk_book book;
    struct dlk_link link = link_of(EPOCH);
    dlk_book_init(&book, TIMEOUT_MS);
    dlk_book_attach(&book, &link, T0, T0);
    assert(dlk_book_add_lock(&book, LOCK, 5, kind, OWNER) == S(SUCCESS));
    return book;
}

static inline struct dlk_call ask_for(uint32_t verb, uint32_t lease_ms, uint32_t wait_ms)
{
    struct dlk_call call = {.verb = verb,
                            .lock_id = LOCK,
                            .owner = OWNER,
                            .lease_ms = lease_ms,
                            .wait_ms = wait_ms,
                            .flags = DLK_FLAG_TICKET};
    dlk_book_prepare(&call);
    return call;
}

static inline struct dlk_request begin(struct dlk_book *book, struct dlk_call *call,
                                       uint64_t now_ns)
{
    const struct dlk_request *request = NULL;
    assert(dlk_book_begin(book, call, now_ns, &request) == DLK_TURN_SEND);
    return *request;
}

static inline enum dlk_turn turn_of(struct dlk_book *book, struct dlk_call *call,
                                    uint64_t now_ns)
{
    const struct dlk_request *request = NULL;
    return dlk_book_begin(book, call, now_ns, &request);
}

static inline struct dlk_reply answer_to(const struct dlk_request *request, uint32_t result)
{
    return (struct dlk_reply){
        .request_id = request->request_id,
        .op = request->op,
        .result = (uint16_t)result,
        .session = CLIENT,
        .epoch = EPOCH,
        .token = result == R(TICKETED) || result == R(QUEUED) ? 500 : 1000,
        .lease_ms = request->lease_ms,
        .entry = 17,
    };
}

static inline struct dlk_call *reply(struct dlk_book *book, const struct dlk_request *request,
                                     uint32_t result, uint64_t now_ns)
{
    struct dlk_reply answer = answer_to(request, result);
    return dlk_book_reply(book, &answer, now_ns);
}

static inline int run(struct dlk_book *book, struct dlk_call *call, uint32_t result,
                      uint64_t now_ns)
{
    struct dlk_request request = begin(book, call, now_ns);
    assert(reply(book, &request, result, now_ns) == call);
    return call->status;
}

static inline const struct dlk_belief *belief_of(const struct dlk_book *book)
{
    return &book->holds[dlk_map_get(&book->locks, LOCK, OWNER)].now;
}

static inline const struct dlk_request *next_debt(struct dlk_book *book)
{
    return dlk_book_next_unsent(book, T0);
}

#endif
