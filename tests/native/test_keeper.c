/*
 * The keeper with a real plane, or a silent peer where the plane cannot be made to do it: leases
 * renew while nobody calls, and what happens to a quiet client is told at once. The sessions here
 * live for an hour, so that no PING falls into a test: what is seen was watched for.
 */
#include <stdio.h>

#include "client.h"
#include "silent_peer.h"

#define S(name) DLK_STATUS_##name
#define N(name) DLK_NOTICE_##name

enum { NUMBER = 7, HOUR_MS = 3600000, SEMAPHORE_LOCK = 9, MANY = 5000, MANY_LEASE_MS = 8000 };

static struct dlk_notice next_notice(void)
{
    struct dlk_notice notice;
    assert(dlk_notices_wait(&notice, 1, WORLD_PATIENCE_MS) == 1);
    return notice;
}

static struct dlk_notice expect(uint32_t kind)
{
    struct dlk_notice notice = next_notice();
    assert(notice.kind == kind && notice.client == NUMBER);
    return notice;
}

static void expect_none(void)
{
    struct dlk_notice notice;
    assert(dlk_notices_wait(&notice, 1, 0) == 0);
}

static void set_number(const struct user *user)
{
    dlk_client_lock(user->client);
    user->client->book.number = NUMBER;
    dlk_client_unlock(user->client);
    dlk_keeper_poke();
}

static struct user join_quiet(struct world *world, uint32_t slot)
{
    struct user user = join_as(world, slot, DLK_WAIT_BLOCK, HOUR_MS, REPLY_TIMEOUT_MS);
    set_number(&user);
    return user;
}

static struct user join_silent_quiet(struct silent *peer)
{
    struct user user = join_silent(peer, REPLY_TIMEOUT_MS);
    dlk_client_lock(user.client);
    user.client->book.session_ttl_ms = HOUR_MS;
    user.client->book.session_until_ns = dlk_now_ns() + (uint64_t)HOUR_MS * DLK_NS_PER_MS;
    dlk_client_unlock(user.client);
    set_number(&user);
    return user;
}

static uint64_t take_lock(const struct user *user, uint32_t lock, uint32_t lease_ms)
{
    struct dlk_call call = make_call(DLK_VERB_LOCK, lock, 1, WAIT_LONG_MS);
    call.lease_ms = lease_ms;
    call.renew = 1;
    assert(run_call(user, &call) == S(SUCCESS));
    return call.token;
}

static uint64_t left_ms(const struct user *user, uint32_t lock, uint64_t owner)
{
    struct dlk_call call = make_call(DLK_VERB_LOOK, lock, owner, 0);
    assert(run_call(user, &call) == S(SUCCESS));
    return call.left_ms;
}

static bool busy_for(const struct user *user, uint32_t lock)
{
    return simple(user, DLK_VERB_TRYLOCK, lock, 1) == S(FAIL);
}

/* ---- Renewal ---- */

/* Until more of the lease is left than a moment before. */
static void await_renewal(const struct user *user, uint32_t lock, uint64_t owner)
{
    uint64_t end_ns = dlk_now_ns() + (uint64_t)WORLD_PATIENCE_MS * DLK_NS_PER_MS;
    uint64_t before_ms = left_ms(user, lock, owner);
    uint64_t now_ms;
    while ((now_ms = left_ms(user, lock, owner)) <= before_ms) {
        assert(dlk_now_ns() < end_ns);
        before_ms = now_ms;
        usleep(1000);
    }
}

/* A lease shorter than anything else the keeper would wake for: it is told of it. */
static void test_renewed_while_nobody_calls(struct world *world, uint32_t slot, bool numbered)
{
    struct user holder = numbered ? join_quiet(world, slot) : join(world, slot);
    struct user other = join(world, slot + 1);
    get_lock(&holder, 4, DLK_KIND_ATOMIC, 1);
    get_lock(&other, 4, DLK_KIND_ATOMIC, 1);
    uint64_t token = take_lock(&holder, 4, 6000);
    await_renewal(&holder, 4, 1);
    await_renewal(&holder, 4, 1);
    assert(busy_for(&other, 4));
    struct dlk_call look = make_call(DLK_VERB_LOOK, 4, 1, 0);
    assert(run_call(&holder, &look) == S(SUCCESS) && look.token == token && look.count == 1);
    assert(simple(&holder, DLK_VERB_UNLOCK, 4, 1) == S(SUCCESS));
    assert(simple(&other, DLK_VERB_TRYLOCK, 4, 1) == S(SUCCESS));
    assert(simple(&other, DLK_VERB_UNLOCK, 4, 1) == S(SUCCESS));
    dlk_client_free(holder.client);
    dlk_client_free(other.client);
}

static void open_semaphore(struct world *world, uint32_t slot, uint32_t size)
{
    struct dlk_command open = {.op = DLK_COMMAND_LOCK_OPEN,
                               .slot = slot,
                               .id = 100 + slot,
                               .kind = DLK_KIND_SEMAPHORE,
                               .size = size};
    assert(world_command(world, open) == DLK_RESULT_DONE);
}

static struct dlk_call many[MANY];

/* Thousands: none is lost over several leases, nor is any suspended. */
static void test_many_renewals(struct world *world)
{
    struct user user = join_quiet(world, 3);
    open_semaphore(world, SEMAPHORE_LOCK, MANY);
    for (uint32_t i = 0; i < MANY; i++) {
        get_lock(&user, SEMAPHORE_LOCK, DLK_KIND_SEMAPHORE, i);
        many[i] = make_call(DLK_VERB_TRYLOCK, SEMAPHORE_LOCK, i, 0);
        many[i].lease_ms = MANY_LEASE_MS;
        many[i].renew = 1;
    }
    int status = dlk_client_batch(user.client, many, MANY);
    while (status == S(PENDING)) {
        status = dlk_client_batch_wait(user.client, many, MANY);
    }
    world_await_count(world, DLK_COUNT_REQUESTS,
                      world_count(world, DLK_COUNT_REQUESTS) + 4 * MANY);
    for (uint32_t i = 0; i < MANY; i++) {
        assert(many[i].status == S(SUCCESS) && left_ms(&user, SEMAPHORE_LOCK, i) > 0);
    }
    expect_none();
    dlk_client_free(user.client);
}

enum { THREADS_LOCK = 10, THREADS = 4, ROUNDS = 30, SHORT_LEASE_MS = 60 };

struct worker {
    pthread_t thread;
    const struct user *user;
    uint64_t owner;
};

/* Holds for as long as some renewals take, and gives back in the middle of one. */
static void *work(void *argument)
{
    const struct worker *worker = argument;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        struct dlk_call call = make_call(DLK_VERB_TRYLOCK, THREADS_LOCK, worker->owner, 0);
        call.lease_ms = SHORT_LEASE_MS;
        call.renew = 1;
        assert(run_call(worker->user, &call) == S(SUCCESS));
        usleep(1000 * (round * 7 % 45));
        call.verb = DLK_VERB_UNLOCK;
        assert(run_call(worker->user, &call) == S(SUCCESS));
    }
    return NULL;
}

/* Threads and the keeper on one connection: nobody waits for a renewal, nor for its lead. */
static void test_renewals_among_threads(struct world *world)
{
    struct user user = join_quiet(world, 17);
    struct worker workers[THREADS];
    open_semaphore(world, THREADS_LOCK, THREADS);
    for (uint32_t i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.user = &user, .owner = i};
        get_lock(&user, THREADS_LOCK, DLK_KIND_SEMAPHORE, i);
        assert(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        assert(pthread_join(workers[i].thread, NULL) == 0);
    }
    dlk_client_lock(user.client);
    assert(user.client->book.ends.count == 0 && user.client->book.renewals.count == 0);
    dlk_client_unlock(user.client);
    dlk_client_free(user.client);
    struct dlk_notice notice; /* on a busy machine such a lease may have ended */
    while (dlk_notices_wait(&notice, 1, 0) != 0) {
        assert(notice.kind == N(SUSPENDED) || notice.kind == N(CONFIRMED));
    }
}

/* The server does not answer: told in time; then its answer says what has become of the hold. */
static void test_unanswered(uint32_t result, uint32_t kind)
{
    struct silent peer;
    struct user user = join_silent_quiet(&peer);
    struct dlk_call call = make_call(DLK_VERB_TRYLOCK, 4, 1, 0);
    struct dlk_request request;
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    call.lease_ms = 300;
    call.renew = 1;
    assert(dlk_client_start(user.client, &call) == S(PENDING));
    take(&peer, &request);
    struct dlk_reply reply = answer_to(&request, DLK_RESULT_GRANTED);
    reply.lease_ms = 300;
    give(&peer, &reply);
    assert(finish_call(&user, &call, S(PENDING)) == S(SUCCESS));
    take(&peer, &request);
    assert(request.op == DLK_OP_EXTEND && request.token == 77 && request.lease_ms == 300);
    struct dlk_request again;
    take(&peer, &again); /* asked again, under the same id */
    assert(again.op == DLK_OP_EXTEND && again.request_id == request.request_id);
    struct dlk_notice notice = expect(N(SUSPENDED));
    assert(notice.lock_id == 104 && notice.owner == 1 && notice.token == 77);
    assert(left_ms(&user, 4, 1) == 0);
    reply = answer_to(&request, result);
    reply.lease_ms = HOUR_MS;
    give(&peer, &reply);
    assert(expect(kind).token == 77);
    assert((left_ms(&user, 4, 1) > 0) == (kind == N(CONFIRMED)));
    expect_none();
    leave_silent(&peer, &user);
}

/* The link is down over the end of the lease; a new connection brings the renewal, and with it the
 * truth: nobody had it, or somebody did. */
static void test_link_down_over_the_end(struct world *world, uint32_t slot, bool stolen)
{
    struct user user = join_quiet(world, slot);
    struct user thief = join(world, slot + 1);
    uint32_t lock = slot - 5;
    get_lock(&user, lock, DLK_KIND_ATOMIC, 1);
    get_lock(&thief, lock, DLK_KIND_ATOMIC, 1);
    uint64_t token = take_lock(&user, lock, 1000);
    user.link.attach++;
    assert(world_supersede(world, slot, user.link.client_id, user.link.attach)
           == DLK_RESULT_DONE);
    expect(N(LINK_DOWN));
    assert(expect(N(SUSPENDED)).token == token);
    if (stolen) {
        take_lock(&thief, lock, 0);
    }
    assert(attach(&user) == S(SUCCESS));
    assert(expect(stolen ? N(LOST) : N(CONFIRMED)).token == token);
    dlk_client_free(user.client);
    dlk_client_free(thief.client);
}

/* ---- What is seen because it is watched ---- */

static void test_link_down_is_seen(void)
{
    struct silent peer;
    struct user user = join_silent_quiet(&peer);
    assert(shutdown(peer.fd, SHUT_RDWR) == 0);
    expect(N(LINK_DOWN));
    assert(dlk_client_attached(user.client) == 0);
    expect_none();
    leave_silent(&peer, &user);
}

static void give_notice(struct silent *peer)
{
    struct dlk_reply notice = {.op = DLK_OP_NOTICE,
                               .result = DLK_RESULT_BROKEN,
                               .session = 1001,
                               .epoch = 5,
                               .token = 77,
                               .entry = 3};
    give(peer, &notice);
}

/* Given up and acknowledged at once; with `asks`, while another call waits and so reads. */
static void test_broken_is_seen(bool asks)
{
    struct silent peer;
    struct user user = join_silent_quiet(&peer);
    struct dlk_call call = make_call(DLK_VERB_TRYLOCK, 4, 1, 0);
    struct dlk_call other = make_call(DLK_VERB_LOCK, 5, 1, DLK_WAIT_FOREVER);
    struct dlk_request request;
    get_lock(&user, 4, DLK_KIND_RW, 1);
    get_lock(&user, 5, DLK_KIND_RW, 1);
    assert(dlk_client_start(user.client, &call) == S(PENDING));
    take(&peer, &request);
    struct dlk_reply reply = answer_to(&request, DLK_RESULT_GRANTED);
    give(&peer, &reply);
    assert(finish_call(&user, &call, S(PENDING)) == S(SUCCESS));
    if (asks) {
        assert(dlk_client_start(user.client, &other) == S(PENDING));
        take(&peer, &request);
        reply = answer_to(&request, DLK_RESULT_QUEUED);
        give(&peer, &reply);
        assert(dlk_client_wait(user.client, &other) == S(PENDING));
    }
    give_notice(&peer);
    if (asks) {
        assert(dlk_client_wait(user.client, &other) == S(PENDING));
    }
    struct dlk_notice notice = expect(N(BROKEN));
    assert(notice.lock_id == 104 && notice.owner == 1 && notice.token == 77);
    take(&peer, &request);
    assert(request.op == DLK_OP_UNLOCK && request.token == 77 && request.lock_id == 104);
    assert(simple(&user, DLK_VERB_UNLOCK, 4, 1) == S(ALREADY_UNLOCKED));
    reply = answer_to(&request, DLK_RESULT_RELEASED);
    give(&peer, &reply);
    while (dlk_client_settle(user.client, 50) == S(PENDING)) {
    }
    assert(dlk_client_debts(user.client) == 0);
    expect_none();
    leave_silent(&peer, &user);
}

/* The whole way: an operator breaks it, its holder gives it up, the next one has it. */
static void test_break(struct world *world)
{
    struct user holder = join_quiet(world, 20);
    struct user next = join(world, 21);
    get_lock(&holder, 5, DLK_KIND_RW, 1);
    get_lock(&next, 5, DLK_KIND_RW, 1);
    uint64_t token = take_lock(&holder, 5, 0);
    assert(busy_for(&next, 5));
    struct dlk_command command = {.op = DLK_COMMAND_BREAK, .slot = 5, .id = 105};
    assert(world_command(world, command) == DLK_RESULT_DONE);
    assert(take_lock(&next, 5, 0) > token);
    assert(expect(N(BROKEN)).token == token);
    dlk_client_free(holder.client);
    dlk_client_free(next.client);
}

/* ---- A server that falls silent ---- */

static void test_silence(void)
{
    struct silent peer;
    struct user user = join_silent(&peer, 10 * WORLD_PATIENCE_MS);
    dlk_client_lock(user.client);
    user.client->book.session_ttl_ms = 400;
    user.client->book.session_until_ns = dlk_now_ns() + 400 * DLK_NS_PER_MS;
    dlk_client_unlock(user.client);
    set_number(&user);
    expect(N(SESSION_SUSPENDED));
    expect(N(LINK_DOWN)); /* not only after reply_timeout_ms */
    expect_none();
    leave_silent(&peer, &user);
}

/* ---- Who is left alone: the keeper's step by hand, while no keeper runs ---- */

static uint64_t since_ns(const struct user *user)
{
    return dlk_now_ns() - user->client->book.renewed_ns;
}

static void *wait_long(void *argument)
{
    struct dlk_call call = make_call(DLK_VERB_LOCK, 4, 1, DLK_WAIT_FOREVER);
    assert(run_call(argument, &call) == S(SUCCESS));
    return NULL;
}

static bool has_leader(struct dlk_client *client)
{
    dlk_client_lock(client);
    bool leader = client->leader;
    dlk_client_unlock(client);
    return leader;
}

static void test_who_is_watched(struct world *world)
{
    const uint64_t soon_ns = 200 * DLK_NS_PER_MS;
    struct user user = join_quiet(world, 30);
    struct user other = join(world, 31);
    pthread_t thread;
    struct dlk_kept kept = dlk_client_keep(user.client, false);
    assert(kept.watch_fd == -1 || since_ns(&user) >= 50 * DLK_NS_PER_MS);
    assert(kept.watch_fd >= 0 || kept.again_ns < dlk_now_ns() + soon_ns); /* busy just now */
    usleep(60000);
    kept = dlk_client_keep(user.client, false);
    assert(kept.watch_fd == user.client->connection->fd && kept.again_ns > dlk_now_ns() + soon_ns);
    kept = dlk_client_keep(other.client, false); /* without a number */
    assert(kept.watch_fd == -1 && kept.again_ns > dlk_now_ns() + soon_ns);
    /* A leader reads. */
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    get_lock(&other, 4, DLK_KIND_ATOMIC, 1);
    take_lock(&other, 4, 0);
    assert(pthread_create(&thread, NULL, wait_long, &user) == 0);
    while (!has_leader(user.client)) {
        usleep(1000);
    }
    usleep(60000);
    do { /* between two slices nobody leads for a moment */
        kept = dlk_client_keep(user.client, false);
    } while (kept.watch_fd != -1);
    assert(kept.again_ns < dlk_now_ns() + soon_ns);
    assert(simple(&other, DLK_VERB_UNLOCK, 4, 1) == S(SUCCESS));
    assert(pthread_join(thread, NULL) == 0);
    /* A collector watches. */
    assert(dlk_client_collect_fd(user.client) >= 0);
    usleep(60000);
    kept = dlk_client_keep(user.client, false);
    assert(kept.watch_fd == -1 && kept.again_ns > dlk_now_ns() + soon_ns);
    assert(simple(&user, DLK_VERB_UNLOCK, 4, 1) == S(SUCCESS));
    dlk_client_free(user.client);
    dlk_client_free(other.client);
}

/* A program that takes the keeper's turns itself sees when there is one to be taken. */
static void test_when_it_is_wanted(struct world *world)
{
    struct user user = join_quiet(world, 32);
    assert(dlk_client_keep_at_ns(user.client) == 0); /* there is a connection */
    struct dlk_kept kept = dlk_client_keep(user.client, false);
    assert(kept.again_ns > dlk_now_ns() && dlk_client_keep_at_ns(user.client) == kept.again_ns);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    take_lock(&user, 4, MANY_LEASE_MS);
    uint64_t lease_end_ns = dlk_now_ns() + (uint64_t)MANY_LEASE_MS * DLK_NS_PER_MS;
    assert(dlk_client_keep_at_ns(user.client) < lease_end_ns); /* it is to be renewed */
    usleep(60000);
    kept = dlk_client_keep(user.client, false);
    assert(kept.watch_fd == user.client->connection->fd);
    assert(kept.again_ns < lease_end_ns);
    dlk_client_verify(user.client);
    assert(dlk_client_keep_at_ns(user.client) == 0);
    assert(simple(&user, DLK_VERB_UNLOCK, 4, 1) == S(SUCCESS));
    dlk_client_free(user.client);
}

static void *keep(void *argument)
{
    *(int *)argument = dlk_keeper_run();
    return NULL;
}

int main(void)
{
    struct dlk_plane_config config = world_config();
    struct world world;
    pthread_t keeper;
    int result = -1;
    world_start(&world, &config);
    world_open_lock(&world, 4, 104, DLK_KIND_ATOMIC);
    world_open_lock(&world, 5, 105, DLK_KIND_RW);
    world_open_lock(&world, 6, 106, DLK_KIND_ATOMIC);
    world_open_lock(&world, 8, 108, DLK_KIND_ATOMIC);
    test_who_is_watched(&world);
    test_when_it_is_wanted(&world);
    assert(pthread_create(&keeper, NULL, keep, &result) == 0);
    test_renewed_while_nobody_calls(&world, 1, false);
    test_renewed_while_nobody_calls(&world, 15, true);
    test_many_renewals(&world);
    test_renewals_among_threads(&world);
    test_unanswered(DLK_RESULT_EXTENDED, N(CONFIRMED));
    test_unanswered(DLK_RESULT_NOT_HELD, N(LOST));
    test_link_down_over_the_end(&world, 11, false);
    test_link_down_over_the_end(&world, 13, true);
    test_link_down_is_seen();
    test_broken_is_seen(false);
    test_broken_is_seen(true);
    test_break(&world);
    test_silence();
    dlk_keeper_stop();
    assert(pthread_join(keeper, NULL) == 0 && result == 0);
    world_stop(&world);
    printf("done\n");
    return 0;
}
