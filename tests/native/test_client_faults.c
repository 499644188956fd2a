/*
 * What goes wrong between a client and its server: servers that do not answer, connections that
 * break, debts that are paid after a re-initialisation, sessions that only heartbeats keep alive,
 * and processes that fork. A real plane where it can be one; a silent peer where it can not.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "silent_peer.h"

#define TRY DLK_VERB_TRYLOCK
#define WAIT DLK_VERB_LOCK
#define UNLOCK DLK_VERB_UNLOCK
#define S(name) DLK_STATUS_##name

/* ---- No answer ---- */

static void test_no_answer(void)
{
    struct silent peer;
    struct user user = join_silent(&peer, 100);
    struct dlk_request lock;
    struct dlk_request cancel;
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    assert(simple(&user, WAIT, 4, 1) == S(BAD_RESPONSE));
    take(&peer, &lock);
    take(&peer, &cancel);
    assert(lock.op == DLK_OP_LOCK && cancel.op == DLK_OP_CANCEL);
    assert(cancel.value == lock.request_id && dlk_client_debts(user.client) == 1);
    /* A grant that comes too late is not believed, and the debt is struck by its own answer. */
    struct dlk_reply late = answer_to(&lock, DLK_RESULT_GRANTED);
    struct dlk_reply undone = answer_to(&cancel, DLK_RESULT_CANCELLED);
    give(&peer, &late);
    give(&peer, &undone);
    while (dlk_client_settle(user.client, 50) == S(PENDING)) {
    }
    assert(dlk_client_debts(user.client) == 0 && dlk_client_ignored(user.client) == 1);
    assert(simple(&user, UNLOCK, 4, 1) == S(ALREADY_UNLOCKED));
    /* Cell operations are not repeated, and leave no debt. */
    assert(dlk_client_add_object(user.client, 9, 0) == S(SUCCESS));
    struct dlk_call add = {.verb = DLK_VERB_FETCH_ADD, .lock_id = 9, .operand = 1};
    assert(run_call(&user, &add) == S(BAD_RESPONSE) && dlk_client_debts(user.client) == 0);
    assert(add.sent == 1); /* it may have been carried out */
    /* Who polls keeps the time. */
    assert(dlk_client_start(user.client, &add) == S(PENDING));
    usleep(120000);
    assert(dlk_client_poll(user.client, &add) == S(PENDING));
    dlk_client_cancel(user.client, &add);
    assert(dlk_client_debts(user.client) == 0);
    leave_silent(&peer, &user);
}

/* A queued waiter is not given up while its own wait runs, however long ago the server spoke. */
static void test_queued_is_an_answer(void)
{
    struct silent peer;
    struct user user = join_silent(&peer, 60);
    struct dlk_request lock;
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    struct dlk_call call = make_call(WAIT, 4, 1, WAIT_LONG_MS);
    assert(dlk_client_start(user.client, &call) == S(PENDING));
    take(&peer, &lock);
    assert(lock.wait_ms == WAIT_LONG_MS);
    struct dlk_reply reply = answer_to(&lock, DLK_RESULT_QUEUED);
    give(&peer, &reply);
    for (int i = 0; i < 4; i++) {
        assert(dlk_client_wait(user.client, &call) == S(PENDING)); /* a slice of 50 ms each */
    }
    reply = answer_to(&lock, DLK_RESULT_GRANTED);
    give(&peer, &reply);
    assert(finish_call(&user, &call, S(PENDING)) == S(SUCCESS) && call.token == 77);
    leave_silent(&peer, &user);
}

static struct dlk_call reads[DLK_INFLIGHT_MAX];

/* Every request slot in use: further calls are put off, and go when there is room. */
static void test_no_room(void)
{
    struct silent peer;
    struct user user = join_silent(&peer, 20000);
    struct dlk_request request;
    uint64_t served = 0;
    assert(dlk_client_add_object(user.client, 9, 0) == S(SUCCESS));
    for (uint32_t i = 0; i < DLK_INFLIGHT_MAX; i++) {
        reads[i] = (struct dlk_call){.verb = DLK_VERB_READ, .lock_id = 9};
        assert(dlk_client_start(user.client, &reads[i]) == S(PENDING));
    }
    for (uint32_t i = 0; i < DLK_INFLIGHT_MAX; i++) {
        while (dlk_client_poll(user.client, &reads[i]) == S(PENDING)) {
            struct pollfd readable = {.fd = peer.fd, .events = POLLIN};
            if (poll(&readable, 1, 0) == 1) {
                take(&peer, &request);
                struct dlk_reply reply = answer_to(&request, DLK_RESULT_DONE);
                reply.value = served++;
                give(&peer, &reply);
            }
        }
        assert(reads[i].status == S(SUCCESS) && reads[i].value == i);
    }
    assert(served == DLK_INFLIGHT_MAX);
    leave_silent(&peer, &user);
}

static void test_no_server(void)
{
    struct silent peer = listen_silently();
    struct user user = {.client = new_client(DLK_WAIT_BLOCK, 1000),
                        .link = link_to(peer.port, 1, WORLD_TTL_MS)};
    user.link.timeout_ms = 2000;
    assert(dlk_client_attached(user.client) == 0);
    assert(dlk_client_attach(user.client, &user.link) == S(PENDING)); /* connected, unanswered */
    assert(attach(&user) == S(BAD_RESPONSE));
    close(peer.listener);
    assert(attach(&user) == S(BAD_RESPONSE));
    snprintf(user.link.host, sizeof(user.link.host), "no.such.name");
    assert(attach(&user) == S(BAD_RESPONSE));
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    assert(simple(&user, TRY, 4, 1) == S(BAD_RESPONSE) && dlk_client_debts(user.client) == 0);
    assert(simple(&user, UNLOCK, 4, 1) == S(ALREADY_UNLOCKED));
    assert(dlk_client_add_object(user.client, 9, 0) == S(SUCCESS));
    struct dlk_call add = {.verb = DLK_VERB_FETCH_ADD, .lock_id = 9, .operand = 1};
    assert(run_call(&user, &add) == S(BAD_RESPONSE) && add.sent == 0);
    dlk_client_free(user.client);
}

/* ---- A connection that breaks ---- */

static void test_unlock_is_sent_again(struct world *world)
{
    struct user user = join(world, 1);
    struct user other = join(world, 2);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    get_lock(&other, 4, DLK_KIND_ATOMIC, 1);
    assert(simple(&user, TRY, 4, 1) == S(SUCCESS));
    dlk_client_detach(user.client);
    struct dlk_call unlock = make_call(UNLOCK, 4, 1, 0);
    assert(run_call(&user, &unlock) == S(BAD_RESPONSE));
    assert(unlock.value > 0 && unlock.value <= WORLD_TTL_MS); /* it was held until this moment */
    assert(run_call(&user, &unlock) == S(ALREADY_UNLOCKED) && unlock.value == 0);
    assert(simple(&other, TRY, 4, 1) == S(FAIL));
    assert(dlk_client_settle(user.client, 50) == S(BAD_RESPONSE));
    reattach(world, &user);
    while (dlk_client_settle(user.client, 50) == S(PENDING)) {
    }
    assert(dlk_client_debts(user.client) == 0);
    assert(simple(&other, TRY, 4, 1) == S(SUCCESS));
    assert(simple(&other, UNLOCK, 4, 1) == S(SUCCESS));
    dlk_client_free(user.client);
    dlk_client_free(other.client);
}

/* The next request pays the debts first, also when nobody settles. */
static void test_debts_go_first(struct world *world)
{
    struct user user = join(world, 3);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    assert(simple(&user, TRY, 4, 1) == S(SUCCESS));
    dlk_client_detach(user.client);
    assert(simple(&user, UNLOCK, 4, 1) == S(BAD_RESPONSE));
    reattach(world, &user);
    assert(simple(&user, TRY, 4, 1) == S(SUCCESS));
    assert(dlk_client_debts(user.client) == 0);
    assert(simple(&user, UNLOCK, 4, 1) == S(SUCCESS));
    dlk_client_free(user.client);
}

static void *wait_and_fail(void *argument)
{
    assert(simple(argument, WAIT, 4, 2) == S(BAD_RESPONSE));
    return NULL;
}

/* A waiter whose connection is closed by the server is granted the lock meanwhile: that grant is
 * given back. What its client holds and its counts are as before. */
static void test_unheard_grant(struct world *world)
{
    struct user holder = join(world, 4);
    struct user user = join(world, 5);
    pthread_t threads[2];
    uint64_t waits = world_count(world, DLK_COUNT_WAITS);
    uint64_t grants;
    get_lock(&holder, 4, DLK_KIND_ATOMIC, 1);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 2);
    get_lock(&user, 5, DLK_KIND_ATOMIC, 1);
    assert(simple(&user, TRY, 5, 1) == S(SUCCESS));
    assert(simple(&user, TRY, 5, 1) == S(ALREADY_LOCKED));
    assert(simple(&holder, TRY, 4, 1) == S(SUCCESS));
    assert(pthread_create(&threads[0], NULL, wait_and_fail, &user) == 0);
    assert(pthread_create(&threads[1], NULL, wait_and_fail, &user) == 0);
    world_await_count(world, DLK_COUNT_WAITS, waits + 1);
    user.link.attach++;
    assert(world_supersede(world, 5, 1005, user.link.attach) == DLK_RESULT_DONE);
    assert(pthread_join(threads[0], NULL) == 0 && pthread_join(threads[1], NULL) == 0);
    assert(dlk_client_attached(user.client) == 0);
    assert(simple(&user, TRY, 5, 1) == S(BAD_RESPONSE));
    grants = world_count(world, DLK_COUNT_GRANTS);
    assert(simple(&holder, UNLOCK, 4, 1) == S(SUCCESS));
    world_await_count(world, DLK_COUNT_GRANTS, grants + 1);
    assert(simple(&holder, TRY, 4, 1) == S(FAIL));
    assert(attach(&user) == S(SUCCESS));
    while (dlk_client_settle(user.client, 50) == S(PENDING)) {
    }
    assert(simple(&holder, TRY, 4, 1) == S(SUCCESS));
    assert(simple(&holder, UNLOCK, 4, 1) == S(SUCCESS));
    struct dlk_call look = make_call(DLK_VERB_LOOK, 5, 1, 0);
    assert(run_call(&user, &look) == S(SUCCESS) && look.count == 2);
    assert(simple(&user, UNLOCK, 5, 1) == S(ALREADY_LOCKED));
    assert(simple(&user, UNLOCK, 5, 1) == S(SUCCESS));
    dlk_client_free(holder.client);
    dlk_client_free(user.client);
}

/* An older attach number can never speak for the session again. */
static void test_refused(struct world *world)
{
    struct user user = join(world, 6);
    assert(world_supersede(world, 6, 1006, 2) == DLK_RESULT_DONE);
    assert(attach(&user) == S(BAD_RESPONSE));
    user.link.attach = 2;
    assert(attach(&user) == S(SUCCESS) && dlk_client_attached(user.client) == 1);
    dlk_client_free(user.client);
}

/* ---- Not ready ---- */

static void test_not_ready(struct world *world)
{
    struct user user = join(world, 7);
    struct dlk_command ready = {.op = DLK_COMMAND_READY, .value = 0};
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    assert(simple(&user, TRY, 4, 1) == S(SUCCESS));
    assert(world_command(world, ready) == DLK_RESULT_DONE);
    assert(simple(&user, UNLOCK, 4, 1) == S(NOT_READY));
    struct dlk_call look = make_call(DLK_VERB_LOOK, 4, 1, 0);
    assert(run_call(&user, &look) == S(SUCCESS) && look.count == 1 && look.token != 0);
    dlk_client_detach(user.client);
    assert(simple(&user, UNLOCK, 4, 1) == S(BAD_RESPONSE));
    reattach(world, &user);
    int status;
    while ((status = dlk_client_settle(user.client, 50)) == S(PENDING)) {
    }
    assert(status == S(NOT_READY) && dlk_client_debts(user.client) == 1);
    ready.value = 1;
    assert(world_command(world, ready) == DLK_RESULT_DONE);
    while ((status = dlk_client_settle(user.client, 50)) == S(PENDING)) {
    }
    assert(status == S(SUCCESS) && dlk_client_debts(user.client) == 0);
    assert(simple(&user, TRY, 4, 1) == S(SUCCESS));
    assert(simple(&user, UNLOCK, 4, 1) == S(SUCCESS));
    dlk_client_free(user.client);
}

/* ---- Heartbeats ---- */

static void *keep(void *argument)
{
    *(int *)argument = dlk_keeper_run();
    return NULL;
}

static void test_keeper(struct world *world)
{
    pthread_t thread;
    int result = -1;
    struct user idle = join_as(world, 8, DLK_WAIT_BLOCK, 2000, REPLY_TIMEOUT_MS);
    struct silent peer;
    struct user deaf = join_silent(&peer, REPLY_TIMEOUT_MS); /* its server delays nobody */
    dlk_keeper_stop();
    assert(dlk_keeper_run() == 0); /* ended by the stop that came before it, and only this one */
    assert(pthread_create(&thread, NULL, keep, &result) == 0);
    struct user late = join_as(world, 9, DLK_WAIT_BLOCK, 2000, REPLY_TIMEOUT_MS);
    /* Nobody calls, and requests come; the sessions are still there after several of their
     * lives. */
    world_await_count(world, DLK_COUNT_REQUESTS, world_count(world, DLK_COUNT_REQUESTS) + 12);
    assert(dlk_client_session_left_ms(idle.client) > 0);
    assert(dlk_client_session_left_ms(late.client) > 0);
    get_lock(&idle, 4, DLK_KIND_ATOMIC, 1);
    assert(simple(&idle, TRY, 4, 1) == S(SUCCESS));
    assert(simple(&idle, UNLOCK, 4, 1) == S(SUCCESS));
    assert(dlk_keeper_run() == S(ERROR)); /* one runs already */
    dlk_keeper_stop();
    assert(pthread_join(thread, NULL) == 0 && result == 0);
    dlk_client_free(idle.client);
    dlk_client_free(late.client);
    leave_silent(&peer, &deaf);
}

static void *wait_for_ever(void *argument)
{
    struct dlk_call call = make_call(WAIT, 4, 1, DLK_WAIT_FOREVER);
    assert(run_call(argument, &call) == S(BAD_RESPONSE));
    return NULL;
}

/* A server that is silent for longer than a session lives is given up, also by who would wait for
 * ever in its queue. */
static void test_dead_server(void)
{
    struct silent peer;
    struct user user = join_silent_as(&peer, DLK_WAIT_BLOCK, 50);
    pthread_t keeper;
    pthread_t waiter;
    int result = -1;
    struct dlk_request lock;
    dlk_client_detach(user.client);
    close(peer.fd);
    user.link.session_ttl_ms = 200;
    pthread_t acceptor;
    assert(pthread_create(&acceptor, NULL, accept_one, &peer) == 0);
    assert(attach(&user) == S(SUCCESS) && pthread_join(acceptor, NULL) == 0);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    assert(pthread_create(&waiter, NULL, wait_for_ever, &user) == 0);
    take(&peer, &lock);
    struct dlk_reply reply = answer_to(&lock, DLK_RESULT_QUEUED);
    give(&peer, &reply);
    assert(pthread_create(&keeper, NULL, keep, &result) == 0);
    assert(pthread_join(waiter, NULL) == 0);
    assert(dlk_client_attached(user.client) == 0 && dlk_client_debts(user.client) == 1);
    dlk_keeper_stop();
    assert(pthread_join(keeper, NULL) == 0 && result == 0);
    leave_silent(&peer, &user);
}

/* ---- Fork ---- */

static void test_fork(struct world *world)
{
    struct user user = join(world, 10);
    struct dlk_call call = make_call(TRY, 4, 1, 0);
    struct dlk_claim claim;
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    pid_t child = fork();
    if (child == 0) {
        bool refused = dlk_client_call(user.client, &call) == S(FORKED)
                       && dlk_client_start(user.client, &call) == S(FORKED)
                       && dlk_client_attach(user.client, &user.link) == S(FORKED)
                       && dlk_client_batch(user.client, &call, 1) == S(FORKED)
                       && dlk_client_add_lock(user.client, 1, 1, 0, 0) == S(FORKED)
                       && dlk_client_claims(user.client, &claim, 1) == 0
                       && dlk_client_attached(user.client) == 0;
        dlk_client_cancel(user.client, &call);
        dlk_client_detach(user.client);
        dlk_client_free(user.client);
        struct dlk_client *own = new_client(DLK_WAIT_BLOCK, 100);
        refused = refused && dlk_client_call(own, &call) == S(LOCK_NOT_GET);
        dlk_client_free(own);
        _exit(refused ? 0 : 1);
    }
    int status = -1;
    assert(waitpid(child, &status, 0) == child && status == 0);
    assert(run_call(&user, &call) == S(SUCCESS));
    assert(simple(&user, UNLOCK, 4, 1) == S(SUCCESS));
    dlk_client_free(user.client);
}

int main(void)
{
    struct dlk_plane_config config = world_config();
    struct world world;
    test_no_answer();
    test_queued_is_an_answer();
    test_no_room();
    test_no_server();
    test_dead_server();
    world_start(&world, &config);
    for (uint32_t lock = 4; lock < 8; lock++) {
        world_open_lock(&world, lock, 100 + lock, DLK_KIND_ATOMIC);
    }
    test_unlock_is_sent_again(&world);
    test_debts_go_first(&world);
    test_unheard_grant(&world);
    test_refused(&world);
    test_not_ready(&world);
    test_keeper(&world);
    test_fork(&world);
    world_stop(&world);
    printf("done\n");
    return 0;
}
