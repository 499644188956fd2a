/*
 * Posted calls named by their own address, collected through the descriptor: what the tests of
 * client_collect.c share.
 */
#ifndef DLOCK_COLLECT_WORLD_H
#define DLOCK_COLLECT_WORLD_H

#include "client_world.h"

#define TRY DLK_VERB_TRYLOCK
#define WAIT DLK_VERB_LOCK
#define UNLOCK DLK_VERB_UNLOCK
#define S(name) DLK_STATUS_##name

static inline bool readable(const struct user *user, int timeout_ms)
{
    struct pollfd ready = {.fd = dlk_client_collect_fd(user->client), .events = POLLIN};
    assert(ready.fd >= 0);
    return poll(&ready, 1, timeout_ms) == 1;
}

static inline int post(const struct user *user, struct dlk_call *call)
{
    call->cookie = (uintptr_t)call;
    return dlk_client_post(user->client, call);
}

static inline struct dlk_call *call_of(const struct dlk_ended *ended)
{
    return (struct dlk_call *)(uintptr_t)ended->cookie;
}

/* At least one, found by the descriptor alone. */
static inline size_t collect_some(const struct user *user, struct dlk_ended *ended, size_t room)
{
    size_t count;
    do {
        assert(readable(user, WORLD_PATIENCE_MS));
        count = dlk_client_collect(user->client, ended, room);
    } while (count == 0);
    return count;
}

/* Sends, and collects `count` calls, each of which must end with this status. */
static inline void collect_all(const struct user *user, size_t count, int status)
{
    struct dlk_ended ended[64];
    dlk_client_flush(user->client);
    while (count != 0) {
        size_t some = collect_some(user, ended, count < 64 ? count : 64);
        for (size_t i = 0; i < some; i++) {
            assert(ended[i].status == status && call_of(&ended[i])->status == status);
        }
        count -= some;
    }
}

#endif
