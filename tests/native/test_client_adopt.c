/*
 * Attaching and settling without waiting, as an event loop does it: over a socket that was opened
 * elsewhere, also one that is not TCP's. Whatever becomes of the attempt, the socket is closed.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>

#include "client.h"
#include "silent_peer.h"

#define S(name) DLK_STATUS_##name

enum { ADOPT_NOWAIT = DLK_LINK_ADOPT | DLK_LINK_NOWAIT };

/* A user that has not attached, and a peer at the other end of a pair of sockets; the user's end
 * waits to be adopted. */
static struct user begin(struct silent *peer)
{
    int ends[2];
    assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    *peer = (struct silent){.listener = -1, .fd = ends[1]};
    struct user user = {.client = new_client(DLK_WAIT_BLOCK, 1000),
                        .link = link_to(0, 1, WORLD_TTL_MS)};
    user.link.fd = ends[0];
    user.link.flags = ADOPT_NOWAIT;
    return user;
}

static int go_on(struct user *user)
{
    user->link.fd = -1;
    return dlk_client_attach(user->client, &user->link);
}

static void prove(struct silent *peer, uint32_t result)
{
    struct dlk_attach frame;
    take(peer, &frame);
    assert(frame.op == DLK_OP_ATTACH && frame.client_id == 1001);
    struct dlk_reply reply = {.op = DLK_OP_ATTACH,
                              .session = frame.client_id,
                              .epoch = 5,
                              .result = (uint16_t)result};
    give(peer, &reply);
}

static struct user joined(struct silent *peer)
{
    struct user user = begin(peer);
    assert(dlk_client_attach(user.client, &user.link) == S(PENDING));
    prove(peer, DLK_RESULT_DONE);
    assert(go_on(&user) == S(SUCCESS));
    return user;
}

/* The other end is closed, once what came before has been read. */
static void expect_closed(struct silent *peer)
{
    char rest[DLK_FRAME_BYTES];
    ssize_t count;
    while ((count = recv(peer->fd, rest, sizeof(rest), 0)) > 0) {
    }
    assert(count == 0 || errno == ECONNRESET);
    close(peer->fd);
}

static void expect_nothing_attaching(const struct user *user)
{
    int for_room = 7;
    assert(dlk_client_attach_fd(user->client, &for_room) == -1 && for_room == 0);
}

static void leave(struct silent *peer, struct user *user)
{
    dlk_client_free(user->client);
    expect_closed(peer);
}

static void test_adopted(void)
{
    struct silent peer;
    struct user user = begin(&peer);
    int for_room = 1;
    expect_nothing_attaching(&user);
    int fd = user.link.fd;
    assert(dlk_client_attach(user.client, &user.link) == S(PENDING));
    assert(dlk_client_attach_fd(user.client, &for_room) == fd && for_room == 0);
    assert(go_on(&user) == S(PENDING));
    prove(&peer, DLK_RESULT_DONE);
    assert(go_on(&user) == S(SUCCESS) && dlk_client_attached(user.client) == 1);
    expect_nothing_attaching(&user);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    struct dlk_call call = make_call(DLK_VERB_TRYLOCK, 4, 1, 0);
    struct dlk_request request;
    assert(dlk_client_start(user.client, &call) == S(PENDING));
    take(&peer, &request);
    struct dlk_reply reply = answer_to(&request, DLK_RESULT_GRANTED);
    give(&peer, &reply);
    assert(finish_call(&user, &call, S(PENDING)) == S(SUCCESS) && call.token == 77);
    leave(&peer, &user);
}

/* Requests with a key go only to who has said that it carries them out; its answer is one. */
static void test_adopted_by_one_that_operates(void)
{
    for (uint32_t operates = 0; operates < 2; operates++) {
        struct silent peer;
        struct user user = begin(&peer);
        user.link.flags |= operates ? DLK_LINK_OPERATES : 0;
        assert(dlk_client_attach(user.client, &user.link) == S(PENDING));
        prove(&peer, DLK_RESULT_DONE);
        assert(go_on(&user) == S(SUCCESS));
        assert(dlk_client_add_object(user.client, 109, 3) == S(SUCCESS));
        assert(dlk_client_object_key(user.client, 109, 0xfedcba98) == S(SUCCESS));
        struct dlk_call call = make_call(DLK_VERB_FETCH_ADD, 9, 0, 0);
        call.operand = 5;
        struct dlk_request request;
        assert(dlk_client_start(user.client, &call) == S(PENDING));
        take(&peer, &request);
        assert(request.reserved == (operates ? 0x1fedcba98 : 0) && request.value == 5);
        struct dlk_reply reply = answer_to(&request, DLK_RESULT_DONE);
        reply.value = 37;
        reply.reserved = operates ? DLK_REPLY_ONE_SIDED : 0;
        give(&peer, &reply);
        assert(finish_call(&user, &call, S(PENDING)) == S(SUCCESS) && call.value == 37);
        leave(&peer, &user);
    }
}

/* Without NOWAIT it waits, as for a connection of its own. */
static void *prove_later(void *argument)
{
    usleep(70000);
    prove(argument, DLK_RESULT_DONE);
    return NULL;
}

static void test_adopted_and_waited_for(void)
{
    struct silent peer;
    pthread_t thread;
    struct user user = begin(&peer);
    user.link.flags = DLK_LINK_ADOPT;
    assert(pthread_create(&thread, NULL, prove_later, &peer) == 0);
    int status = dlk_client_attach(user.client, &user.link);
    while (status == S(PENDING)) {
        status = go_on(&user);
    }
    assert(status == S(SUCCESS) && pthread_join(thread, NULL) == 0);
    leave(&peer, &user);
}

/* A connection of its own, without waiting. */
static void test_connected_without_waiting(struct world *world)
{
    struct user user = {.client = new_client(DLK_WAIT_BLOCK, REPLY_TIMEOUT_MS),
                        .link = link_to(dlk_plane_port(world->plane), 2, WORLD_TTL_MS)};
    user.link.flags = DLK_LINK_NOWAIT;
    world_open_session(world, 2, 1002, 1, WORLD_TTL_MS);
    int status;
    while ((status = dlk_client_attach(user.client, &user.link)) == S(PENDING)) {
        int for_room;
        struct pollfd ready = {.fd = dlk_client_attach_fd(user.client, &for_room)};
        ready.events = for_room ? POLLOUT : POLLIN;
        assert(ready.fd >= 0 && poll(&ready, 1, WORLD_PATIENCE_MS) == 1);
    }
    assert(status == S(SUCCESS));
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    assert(simple(&user, DLK_VERB_LOCK, 4, 1) == S(SUCCESS));
    dlk_client_free(user.client);
}

/* A socket that takes no byte yet is waited for until it does. */
static void test_no_room_for_the_proof(void)
{
    struct silent peer;
    struct user user = begin(&peer);
    static const char filler[DLK_FRAME_BYTES];
    char drained[DLK_FRAME_BYTES];
    size_t filled = 0;
    ssize_t count;
    int for_room = 0;
    while ((count = send(user.link.fd, filler, sizeof(filler), MSG_DONTWAIT)) > 0) {
        filled += (size_t)count;
    }
    assert(dlk_client_attach(user.client, &user.link) == S(PENDING));
    assert(dlk_client_attach_fd(user.client, &for_room) >= 0 && for_room == 1);
    while (filled > 0) {
        count = recv(peer.fd, drained, filled < sizeof(drained) ? filled : sizeof(drained), 0);
        assert(count > 0);
        filled -= (size_t)count;
    }
    assert(go_on(&user) == S(PENDING));
    assert(dlk_client_attach_fd(user.client, &for_room) >= 0 && for_room == 0);
    prove(&peer, DLK_RESULT_DONE);
    assert(go_on(&user) == S(SUCCESS));
    leave(&peer, &user);
}

/* ---- It is closed, whatever happens ---- */

static void test_refused(void)
{
    struct silent peer;
    struct user user = begin(&peer);
    assert(dlk_client_attach(user.client, &user.link) == S(PENDING));
    prove(&peer, DLK_RESULT_INVALID);
    assert(go_on(&user) == S(BAD_RESPONSE) && dlk_client_attached(user.client) == 0);
    expect_closed(&peer);
    assert(go_on(&user) == S(BAD_RESPONSE)); /* there is nothing to go on with */
    expect_nothing_attaching(&user);
    dlk_client_free(user.client);
}

static void test_unanswered(void)
{
    struct silent peer;
    struct user user = begin(&peer);
    user.link.timeout_ms = 30;
    assert(dlk_client_attach(user.client, &user.link) == S(PENDING));
    usleep(40000);
    assert(go_on(&user) == S(BAD_RESPONSE));
    leave(&peer, &user);
}

static void test_given_up(bool for_good)
{
    struct silent peer;
    struct user user = begin(&peer);
    assert(dlk_client_attach(user.client, &user.link) == S(PENDING));
    if (for_good) {
        dlk_client_detach(user.client);
    } else {
        dlk_client_drop_link(user.client);
    }
    expect_closed(&peer);
    expect_nothing_attaching(&user);
    assert(go_on(&user) == S(BAD_RESPONSE));
    dlk_client_free(user.client);
}

static void test_another_one_is_adopted(void)
{
    struct silent former;
    struct silent peer;
    struct user user = begin(&former);
    assert(dlk_client_attach(user.client, &user.link) == S(PENDING));
    struct user other = begin(&peer);
    user.link.fd = other.link.fd;
    assert(dlk_client_attach(user.client, &user.link) == S(PENDING));
    expect_closed(&former);
    prove(&peer, DLK_RESULT_DONE);
    assert(go_on(&user) == S(SUCCESS));
    dlk_client_free(other.client);
    leave(&peer, &user);
}

/* While a thread is in an attach, another gets EASYNC. */
static void set_busy(struct user *user, bool busy)
{
    dlk_client_lock(user->client);
    user->client->attaching.busy = busy;
    dlk_client_unlock(user->client);
}

static void test_busy(void)
{
    struct silent peer;
    struct silent refused;
    struct user user = begin(&peer);
    struct user other = begin(&refused);
    assert(dlk_client_attach(user.client, &user.link) == S(PENDING));
    set_busy(&user, true);
    assert(dlk_client_attach(user.client, &other.link) == S(EASYNC));
    expect_closed(&refused);
    expect_nothing_attaching(&user);
    dlk_client_drop_link(user.client); /* leaves the attempt to the thread */
    set_busy(&user, false);
    prove(&peer, DLK_RESULT_DONE);
    assert(go_on(&user) == S(SUCCESS));
    dlk_client_free(other.client);
    leave(&peer, &user);
}

static void test_fork(void)
{
    struct silent peer;
    struct user user = begin(&peer);
    pid_t child = fork();
    if (child == 0) {
        bool closed = dlk_client_attach(user.client, &user.link) == S(FORKED)
                      && fcntl(user.link.fd, F_GETFD) < 0;
        int for_room;
        dlk_client_drop_link(user.client);
        bool nothing = dlk_client_attach_fd(user.client, &for_room) == -1
                       && dlk_client_settle_start(user.client) == S(FORKED)
                       && dlk_client_settle_poll(user.client) == S(FORKED);
        _exit(closed && nothing ? 0 : 1);
    }
    int ended = -1;
    assert(waitpid(child, &ended, 0) == child && ended == 0);
    assert(dlk_client_attach(user.client, &user.link) == S(PENDING)); /* the parent's is open */
    leave(&peer, &user);
}

/* ---- A connection makes room for the next ---- */

static void test_dropped(void)
{
    struct silent peer;
    struct dlk_notice notice;
    struct dlk_call call = make_call(DLK_VERB_TRYLOCK, 4, 1, 0);
    struct user user = joined(&peer);
    dlk_client_lock(user.client);
    user.client->book.number = 7;
    dlk_client_unlock(user.client);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    assert(dlk_client_start(user.client, &call) == S(PENDING));
    dlk_client_drop_link(user.client);
    assert(dlk_client_attached(user.client) == 0);
    assert(dlk_client_poll(user.client, &call) == S(BAD_RESPONSE));
    expect_closed(&peer);
    assert(dlk_notices_wait(&notice, 1, 0) == 0); /* nobody needs to be told */
    dlk_client_free(user.client);
}

/* ---- Debts ---- */

static void owe(struct user *user, struct silent *peer)
{
    struct dlk_request request;
    struct dlk_call call = make_call(DLK_VERB_TRYLOCK, 4, 1, 0);
    get_lock(user, 4, DLK_KIND_ATOMIC, 1);
    assert(dlk_client_start(user->client, &call) == S(PENDING));
    take(peer, &request);
    dlk_client_cancel(user->client, &call);
}

static void test_settled_without_waiting(void)
{
    struct silent peer;
    struct dlk_request request;
    struct user user = joined(&peer);
    assert(dlk_client_settle_start(user.client) == S(SUCCESS)); /* nothing is owed */
    assert(dlk_client_settle_poll(user.client) == S(SUCCESS));
    owe(&user, &peer);
    assert(dlk_client_settle_start(user.client) == S(PENDING));
    assert(dlk_client_settle_poll(user.client) == S(PENDING));
    take(&peer, &request);
    assert(request.op == DLK_OP_CANCEL);
    struct dlk_reply reply = answer_to(&request, DLK_RESULT_NOT_READY);
    give(&peer, &reply);
    assert(dlk_client_settle_poll(user.client) == S(NOT_READY));
    assert(dlk_client_settle_poll(user.client) == S(NOT_READY)); /* and does not ask again */
    assert(recv(peer.fd, &request, sizeof(request), MSG_DONTWAIT) < 0 && errno == EAGAIN);
    assert(dlk_client_settle_start(user.client) == S(PENDING));
    take(&peer, &request);
    reply = answer_to(&request, DLK_RESULT_DONE);
    give(&peer, &reply);
    assert(dlk_client_settle_poll(user.client) == S(SUCCESS));
    assert(dlk_client_debts(user.client) == 0);
    owe(&user, &peer);
    close(peer.fd);
    assert(dlk_client_settle_start(user.client) == S(PENDING)
           || dlk_client_attached(user.client) == 0);
    assert(dlk_client_settle_poll(user.client) == S(BAD_RESPONSE));
    dlk_client_free(user.client);
}

int main(void)
{
    struct dlk_plane_config config = world_config();
    struct world world;
    world_start(&world, &config);
    world_open_lock(&world, 4, 104, DLK_KIND_ATOMIC);
    test_connected_without_waiting(&world);
    world_stop(&world);
    test_adopted();
    test_adopted_by_one_that_operates();
    test_adopted_and_waited_for();
    test_no_room_for_the_proof();
    test_refused();
    test_unanswered();
    test_given_up(false);
    test_given_up(true);
    test_another_one_is_adopted();
    test_busy();
    test_fork();
    test_dropped();
    test_settled_without_waiting();
    printf("done\n");
    return 0;
}
