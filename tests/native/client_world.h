/*
 * Clients of a real plane: what the client's tests share. Session `slot` belongs to client id
 * 1000 + slot, lock `slot` has the id 100 + slot. Each attach supersedes the one before. A test
 * that is compiled with DLOCK_TEST_VERBS does all this over queue pairs.
 */
#ifndef DLOCK_CLIENT_WORLD_H
#define DLOCK_CLIENT_WORLD_H

#include "plane_world.h"
#ifdef DLOCK_TEST_VERBS
#include "verbs_relay.h"
#endif

enum { REPLY_TIMEOUT_MS = 20000, WAIT_LONG_MS = 25000 };

struct user {
    struct dlk_client *client;
    struct dlk_link link;
    struct relay *relay; /* over verbs: the other end */
};

static inline struct dlk_client *new_client(uint32_t wait_mode, uint32_t reply_timeout_ms)
{
    struct dlk_client_config config = {.wait_mode = wait_mode,
                                       .reply_timeout_ms = reply_timeout_ms};
    struct dlk_client *client = dlk_client_new(&config);
    assert(client != NULL);
    return client;
}

static inline int attach(struct user *user)
{
    struct dlk_link link = user->link;
    int status;
#ifdef DLOCK_TEST_VERBS
    if (link.flags == 0) {
        user->relay = relay_begin(&link); /* it ends with its connection, or with the process */
    }
#endif
    while ((status = dlk_client_attach(user->client, &link)) == DLK_STATUS_PENDING) {
        link.queue_pair = NULL;
    }
    return status;
}

static inline struct dlk_link link_to(uint32_t port, uint32_t slot, uint32_t ttl_ms)
{
    return (struct dlk_link){
        .host = "127.0.0.1",
        .port = port,
        .client_id = 1000 + slot,
        .session_slot = slot,
        .attach = 1,
        .epoch = 5,
        .session_ttl_ms = ttl_ms,
        .max_lease_ms = DLK_MAX_LEASE_MS_DEFAULT,
        .timeout_ms = WORLD_PATIENCE_MS,
        .secret = {1, 2, 3, (uint8_t)slot},
    };
}

static inline struct user join_as(struct world *world, uint32_t slot, uint32_t wait_mode,
                                  uint32_t ttl_ms, uint32_t reply_timeout_ms)
{
    struct user user = {.client = new_client(wait_mode, reply_timeout_ms),
                        .link = link_to(dlk_plane_port(world->plane), slot, ttl_ms)};
    world_open_session(world, slot, 1000 + slot, 1, ttl_ms);
    assert(attach(&user) == DLK_STATUS_SUCCESS);
    return user;
}

static inline struct user join(struct world *world, uint32_t slot)
{
    return join_as(world, slot, DLK_WAIT_ADAPTIVE, WORLD_TTL_MS, REPLY_TIMEOUT_MS);
}

/* As the control plane does in a re-initialisation. */
static inline void reattach(struct world *world, struct user *user)
{
    user->link.attach++;
    assert(world_supersede(world, user->link.session_slot, user->link.client_id,
                           user->link.attach) == DLK_RESULT_DONE);
    assert(attach(user) == DLK_STATUS_SUCCESS);
}

static inline void get_lock(const struct user *user, uint32_t lock, uint32_t kind, uint64_t owner)
{
    assert(dlk_client_add_lock(user->client, 100 + lock, lock, kind, owner)
           == DLK_STATUS_SUCCESS);
}

static inline struct dlk_call make_call(uint32_t verb, uint32_t lock, uint64_t owner,
                                        uint32_t wait_ms)
{
    return (struct dlk_call){
        .verb = verb, .lock_id = 100 + lock, .owner = owner, .wait_ms = wait_ms};
}

static inline int finish_call(const struct user *user, struct dlk_call *call, int status)
{
    while (status == DLK_STATUS_PENDING) {
        status = dlk_client_wait(user->client, call);
    }
    return status;
}

static inline int run_call(const struct user *user, struct dlk_call *call)
{
    return finish_call(user, call, dlk_client_call(user->client, call));
}

static inline int simple(const struct user *user, uint32_t verb, uint32_t lock, uint64_t owner)
{
    struct dlk_call call = make_call(verb, lock, owner, WAIT_LONG_MS);
    return run_call(user, &call);
}

#endif
