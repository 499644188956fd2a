/*
 * Posted calls when something goes wrong: no answer, a full socket, a connection that breaks and is
 * replaced, a fork.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "client.h"
#include "collect_world.h"
#include "silent_peer.h"

enum { ROOM = 64, SHORT_MS = 120, WAITS = 500 };

/* ---- No answer ---- */

static size_t collect_late(const struct user *user, struct dlk_ended *ended)
{
    uint64_t end_ns = dlk_now_ns() + (uint64_t)WORLD_PATIENCE_MS * DLK_NS_PER_MS;
    size_t count;
    while ((count = dlk_client_collect(user->client, ended, ROOM)) == 0) {
        assert(dlk_now_ns() < end_ns);
        usleep(2000);
    }
    return count;
}

/* A wait that the server has queued has its own time; one that it never answered has not, and is
 * undone; what stood behind that one goes on. */
static void test_no_answer(void)
{
    struct silent peer;
    struct user user = join_silent(&peer, SHORT_MS);
    struct dlk_request request;
    struct dlk_ended ended[ROOM];
    struct dlk_call queued = make_call(WAIT, 4, 1, 3 * SHORT_MS);
    struct dlk_call lost = make_call(WAIT, 4, 2, WAIT_LONG_MS);
    struct dlk_call behind = make_call(WAIT, 4, 2, WAIT_LONG_MS);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 2);
    uint64_t begun_ns = dlk_now_ns();
    assert(post(&user, &queued) == S(PENDING) && post(&user, &lost) == S(PENDING));
    assert(post(&user, &behind) == S(PENDING));
    assert(dlk_client_flush(user.client) == S(SUCCESS));
    take(&peer, &request);
    struct dlk_reply reply = answer_to(&request, DLK_RESULT_QUEUED);
    give(&peer, &reply);
    take(&peer, &request);
    assert(collect_late(&user, ended) == 1 && call_of(&ended[0]) == &lost);
    assert(ended[0].status == S(BAD_RESPONSE));
    assert(dlk_now_ns() - begun_ns >= SHORT_MS * DLK_NS_PER_MS);
    take(&peer, &request);
    assert(request.op == DLK_OP_CANCEL);
    take(&peer, &request);
    assert(request.op == DLK_OP_LOCK);
    reply = answer_to(&request, DLK_RESULT_GRANTED);
    give(&peer, &reply);
    assert(collect_late(&user, ended) == 1 && call_of(&ended[0]) == &behind);
    assert(ended[0].status == S(SUCCESS));
    assert(collect_late(&user, ended) == 1 && call_of(&ended[0]) == &queued);
    assert(dlk_now_ns() - begun_ns >= 4 * SHORT_MS * DLK_NS_PER_MS);
    leave_silent(&peer, &user);
}

/* One that is put off has the time that it wants to wait, and no more. */
static void test_put_off_too_long(void)
{
    struct silent peer;
    struct user user = join_silent(&peer, REPLY_TIMEOUT_MS);
    struct dlk_ended ended[ROOM];
    struct dlk_call first = make_call(WAIT, 4, 1, WAIT_LONG_MS);
    struct dlk_call second = make_call(WAIT, 4, 1, 30);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    assert(post(&user, &first) == S(PENDING) && post(&user, &second) == S(PENDING));
    assert(collect_late(&user, ended) == 1);
    assert(call_of(&ended[0]) == &second && ended[0].status == S(FAIL));
    leave_silent(&peer, &user);
}

/* ---- A full socket ---- */

static struct dlk_call reads[DLK_INFLIGHT_MAX];

/* What does not fit into the socket goes out when the peer reads on; the descriptor says when. */
static void test_unsent(void)
{
    struct silent peer;
    struct user user = join_silent(&peer, REPLY_TIMEOUT_MS);
    struct dlk_request request;
    struct dlk_ended ended[ROOM];
    uint32_t posted = 0;
    const int small = 4096;
    assert(setsockopt(peer.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)) == 0);
    int fd = user.client->connection->fd;
    assert(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)) == 0);
    assert(dlk_client_add_object(user.client, 9, 0) == S(SUCCESS));
    assert(dlk_client_collect_fd(user.client) >= 0);
    do {
        reads[posted] = (struct dlk_call){.verb = DLK_VERB_READ, .lock_id = 9};
        assert(post(&user, &reads[posted++]) == S(PENDING));
    } while (dlk_client_flush(user.client) == S(SUCCESS));
    for (int i = 0; i < 1000; i++) {
        reads[posted] = (struct dlk_call){.verb = DLK_VERB_READ, .lock_id = 9};
        assert(post(&user, &reads[posted++]) == S(PENDING));
    }
    while (readable(&user, 20)) { /* until the peer's buffer is full too */
        assert(dlk_client_collect(user.client, ended, ROOM) == 0);
    }
    assert(dlk_client_flush(user.client) == S(PENDING));
    for (uint32_t taken = 0; taken < posted;) {
        struct pollfd either[2] = {{.fd = peer.fd, .events = POLLIN},
                                   {.fd = dlk_client_collect_fd(user.client), .events = POLLIN}};
        assert(poll(either, 2, WORLD_PATIENCE_MS) >= 1);
        if (either[0].revents != 0) {
            take(&peer, &request);
            taken++;
        } else {
            assert(dlk_client_collect(user.client, ended, ROOM) == 0);
        }
    }
    assert(dlk_client_flush(user.client) == S(SUCCESS) && !readable(&user, 0));
    leave_silent(&peer, &user);
}

/* ---- Connections that end ---- */

static struct dlk_call waits[WAITS];

/* Whatever was posted ends and is collected, what is posted then ends at once; and the same
 * descriptor serves the next connection. */
static void test_broken(struct world *world)
{
    struct user user = join(world, 1);
    struct user holder = join(world, 2);
    struct dlk_call call = make_call(TRY, 5, 1, 0);
    int fd = dlk_client_collect_fd(user.client);
    get_lock(&holder, 4, DLK_KIND_ATOMIC, 0);
    get_lock(&user, 5, DLK_KIND_ATOMIC, 1);
    assert(simple(&holder, TRY, 4, 0) == S(SUCCESS));
    for (uint64_t i = 0; i < WAITS; i++) {
        get_lock(&user, 4, DLK_KIND_ATOMIC, 1 + i / 2); /* two an owner: one is put off */
        waits[i] = make_call(WAIT, 4, 1 + i / 2, WAIT_LONG_MS);
        assert(post(&user, &waits[i]) == S(PENDING));
    }
    dlk_client_flush(user.client);
    assert(world_supersede(world, 1, user.link.client_id, 2) == DLK_RESULT_DONE);
    user.link.attach = 2;
    collect_all(&user, WAITS, S(BAD_RESPONSE));
    assert(!dlk_client_attached(user.client) && !readable(&user, 0));
    assert(post(&user, &call) == S(BAD_RESPONSE) && dlk_client_debts(user.client) == WAITS / 2);
    assert(attach(&user) == S(SUCCESS) && dlk_client_collect_fd(user.client) == fd);
    for (int i = 0; i < 4; i++) {
        call.verb = i % 2 == 0 ? TRY : UNLOCK;
        assert(post(&user, &call) == S(PENDING));
        collect_all(&user, 1, S(SUCCESS));
    }
    while (dlk_client_settle(user.client, 50) == S(PENDING)) {
    }
    assert(dlk_client_debts(user.client) == 0);
    dlk_client_free(user.client);
    dlk_client_free(holder.client);
}

/* Given up on purpose, with more posted than there are request slots. */
static void test_detached(void)
{
    struct silent peer;
    struct user user = join_silent(&peer, REPLY_TIMEOUT_MS);
    for (uint32_t i = 0; i < DLK_INFLIGHT_MAX; i++) {
        get_lock(&user, 4, DLK_KIND_ATOMIC, i);
        reads[i] = make_call(WAIT, 4, i, WAIT_LONG_MS);
        assert(post(&user, &reads[i]) == S(PENDING));
    }
    assert(dlk_client_collect_fd(user.client) >= 0);
    dlk_client_detach(user.client);
    collect_all(&user, DLK_INFLIGHT_MAX, S(BAD_RESPONSE));
    assert(!readable(&user, 0) && dlk_client_debts(user.client) > DLK_INFLIGHT_MAX / 2);
    leave_silent(&peer, &user);
}

/* The same with more unsent than may be, so that the last ones were never begun. */
static void test_detached_with_much_unsent(void)
{
    struct silent peer;
    struct user user = join_silent(&peer, REPLY_TIMEOUT_MS);
    const int small = 4096;
    assert(setsockopt(peer.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)) == 0);
    int fd = user.client->connection->fd;
    assert(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)) == 0);
    for (uint32_t i = 0; i < 14000; i++) { /* a LOCK and a CANCEL each, until it is too much */
        get_lock(&user, 4, DLK_KIND_ATOMIC, i);
        reads[i] = make_call(WAIT, 4, i, WAIT_LONG_MS);
        assert(post(&user, &reads[i]) == S(PENDING));
        dlk_client_cancel(user.client, &reads[i]);
    }
    for (uint32_t i = 0; i < 10; i++) {
        assert(post(&user, &reads[i]) == S(PENDING) && reads[i].phase == DLK_PHASE_BLOCKED);
    }
    dlk_client_detach(user.client);
    collect_all(&user, 10, S(BAD_RESPONSE));
    assert(dlk_client_debts(user.client) > 8000); /* the CANCELs of all that were begun */
    leave_silent(&peer, &user);
}

/* ---- Fork ---- */

static void in_the_child(const struct user *user, int until_fd)
{
    struct dlk_call call = make_call(TRY, 4, 1, 0);
    struct dlk_ended ended[ROOM];
    char byte;
    assert(dlk_client_post(user->client, &call) == S(FORKED));
    assert(dlk_client_flush(user->client) == S(FORKED));
    assert(dlk_client_collect(user->client, ended, ROOM) == 0);
    assert(dlk_client_collect_wait(user->client, ended, ROOM, 5) == 0);
    errno = 0;
    assert(dlk_client_collect_fd(user->client) == -1 && errno == ECHILD);
    dlk_client_cancel(user->client, &call);
    dlk_client_free(user->client);
    assert(read(until_fd, &byte, 1) == 0);
    _exit(0);
}

/* The child has the parent's old connection as long as it lives: it must not show in the set. */
static void test_fork(struct world *world)
{
    struct user user = join(world, 3);
    struct dlk_call call = make_call(TRY, 6, 1, 0);
    int until[2];
    int status;
    get_lock(&user, 6, DLK_KIND_ATOMIC, 1);
    assert(dlk_client_collect_fd(user.client) >= 0 && pipe(until) == 0);
    pid_t child = fork();
    assert(child >= 0);
    if (child == 0) {
        close(until[1]);
        in_the_child(&user, until[0]);
    }
    close(until[0]);
    assert(post(&user, &call) == S(PENDING));
    collect_all(&user, 1, S(SUCCESS));
    reattach(world, &user);
    assert(!readable(&user, 50));
    call.verb = UNLOCK;
    assert(post(&user, &call) == S(PENDING));
    collect_all(&user, 1, S(SUCCESS));
    close(until[1]);
    assert(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    dlk_client_free(user.client);
}

int main(void)
{
    static struct world world;
    struct dlk_plane_config config = world_config();
    world_start(&world, &config);
    for (uint32_t slot = 4; slot < 8; slot++) {
        world_open_lock(&world, slot, 100 + slot, DLK_KIND_ATOMIC);
    }
    test_no_answer();
    test_put_off_too_long();
    test_unsent();
    test_broken(&world);
    test_detached();
    test_detached_with_much_unsent();
    test_fork(&world);
    world_stop(&world);
    puts("client_collect_faults: ok");
    return 0;
}
