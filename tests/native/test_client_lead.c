/*
 * Who reads the socket: the lead goes from the thread that has its answer to one that waits, and a
 * thread that was put off goes on as soon as it can. A wake-up that is missed costs the rest of a
 * slice, which is made long here, so that no machine is as slow as that.
 */
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>

#include "client.h"
#include "silent_peer.h"

#define S(name) DLK_STATUS_##name

enum { ROUNDS = 20, SLICE_MS = 20000, SMOOTH_MS = 10000 };

static struct user join_patiently(struct silent *peer, uint32_t wait_mode)
{
    struct user user = join_silent_as(peer, wait_mode, WORLD_PATIENCE_MS);
    user.client->slice_ms = SLICE_MS;
    return user;
}

struct asker {
    pthread_t thread;
    struct user *user;
    struct dlk_call call;
    bool smooth;
    _Atomic bool ended;
};

/* Did it end well before its slice? */
static bool was_smooth(uint64_t started_ns)
{
    return dlk_now_ns() - started_ns < (uint64_t)SMOOTH_MS * DLK_NS_PER_MS;
}

static void *ask(void *argument)
{
    struct asker *asker = argument;
    uint64_t started_ns = dlk_now_ns();
    run_call(asker->user, &asker->call);
    asker->smooth = was_smooth(started_ns);
    return NULL;
}

static struct asker begin_asking(struct user *user, struct dlk_call call)
{
    return (struct asker){.user = user, .call = call};
}

static void start_asking(struct asker *asker)
{
    assert(pthread_create(&asker->thread, NULL, ask, asker) == 0);
}

static void end_asking(struct asker *asker)
{
    assert(pthread_join(asker->thread, NULL) == 0);
}

/* Until so many threads wait, of which so many were put off and so many settle. */
static void await_waiters(struct dlk_client *client, uint32_t all, uint32_t blocked,
                          uint32_t settling)
{
    uint64_t end_ns = dlk_now_ns() + (uint64_t)WORLD_PATIENCE_MS * DLK_NS_PER_MS;
    bool there = false;
    while (!there) {
        uint32_t count = 0;
        assert(dlk_now_ns() < end_ns);
        usleep(100);
        dlk_client_lock(client);
        for (struct dlk_waiter *waiter = client->waiters; waiter != NULL;
             waiter = waiter->next) {
            count++;
        }
        there = count == all && client->waiters_blocked == blocked
                && client->waiters_settling == settling;
        dlk_client_unlock(client);
    }
}

static void give_result(struct silent *peer, const struct dlk_request *request, uint32_t result)
{
    struct dlk_reply reply = answer_to(request, result);
    give(peer, &reply);
}

static const struct dlk_call read_call = {.verb = DLK_VERB_READ, .lock_id = 9};

/* Two threads ask. `reads_first`: the one that reads is answered first and hands the lead on; else
 * it reads the other's answer and wakes it. */
static void test_two_ask(uint32_t wait_mode, bool reads_first)
{
    struct silent peer;
    struct user user = join_patiently(&peer, wait_mode);
    int smooth = 0;
    assert(dlk_client_add_object(user.client, 9, 0) == S(SUCCESS));
    for (int i = 0; i < ROUNDS; i++) {
        struct asker leader = begin_asking(&user, read_call);
        struct asker follower = begin_asking(&user, read_call);
        struct asker *askers[2] = {&leader, &follower};
        struct dlk_request requests[2];
        for (uint32_t k = 0; k < 2; k++) {
            start_asking(askers[k]);
            take(&peer, &requests[k]);
            await_waiters(user.client, k + 1, 0, 0);
        }
        for (int k = 0; k < 2; k++) {
            int whose = reads_first ? k : 1 - k;
            give_result(&peer, &requests[whose], DLK_RESULT_DONE);
            end_asking(askers[whose]);
            assert(askers[whose]->call.status == S(SUCCESS));
        }
        smooth += follower.smooth;
    }
    assert(smooth == ROUNDS);
    leave_silent(&peer, &user);
}

/* The same hold: the second operation goes out when the first is answered, or queued. */
static void test_put_off_goes_on(uint32_t first_result)
{
    struct silent peer;
    struct user user = join_patiently(&peer, DLK_WAIT_BLOCK);
    int smooth = 0;
    for (int i = 0; i < ROUNDS; i++) {
        uint32_t lock = 10 + (uint32_t)i;
        struct dlk_call try_lock = make_call(DLK_VERB_TRYLOCK, lock, 1, 0);
        struct asker first =
            begin_asking(&user, make_call(DLK_VERB_LOCK, lock, 1, WAIT_LONG_MS));
        struct asker second = begin_asking(&user, try_lock);
        struct dlk_request request;
        get_lock(&user, lock, DLK_KIND_ATOMIC, 1);
        start_asking(&first);
        take(&peer, &request);
        start_asking(&second);
        await_waiters(user.client, 2, 1, 0);
        give_result(&peer, &request, first_result);
        if (first_result == DLK_RESULT_QUEUED) {
            end_asking(&second);
            assert(second.call.status == S(FAIL));
            give_result(&peer, &request, DLK_RESULT_GRANTED);
        } else {
            struct dlk_request extend;
            take(&peer, &extend);
            assert(extend.op == DLK_OP_EXTEND);
            give_result(&peer, &extend, DLK_RESULT_EXTENDED);
            end_asking(&second);
            assert(second.call.status == S(ALREADY_LOCKED));
        }
        end_asking(&first);
        assert(first.call.status == S(SUCCESS));
        smooth += second.smooth;
    }
    assert(smooth == ROUNDS);
    leave_silent(&peer, &user);
}

struct settler {
    pthread_t thread;
    struct user *user;
    bool smooth;
};

static void *settle(void *argument)
{
    struct settler *settler = argument;
    uint64_t started_ns = dlk_now_ns();
    while (dlk_client_settle(settler->user->client, SLICE_MS) == S(PENDING)) {
    }
    settler->smooth = was_smooth(started_ns);
    return NULL;
}

/* A thread that settles is told when the last debt is struck, also when another thread reads. */
static void test_settler_is_woken(void)
{
    struct silent peer;
    struct user user = join_patiently(&peer, DLK_WAIT_BLOCK);
    int smooth = 0;
    assert(dlk_client_add_object(user.client, 9, 0) == S(SUCCESS));
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    for (int i = 0; i < ROUNDS; i++) {
        struct dlk_call lock = make_call(DLK_VERB_TRYLOCK, 4, 1, 0);
        struct asker leader = begin_asking(&user, read_call);
        struct settler settler = {.user = &user};
        struct dlk_request request;
        struct dlk_request cancel;
        assert(dlk_client_start(user.client, &lock) == S(PENDING));
        take(&peer, &request);
        dlk_client_cancel(user.client, &lock);
        take(&peer, &cancel);
        start_asking(&leader);
        take(&peer, &request);
        await_waiters(user.client, 1, 0, 0);
        assert(pthread_create(&settler.thread, NULL, settle, &settler) == 0);
        await_waiters(user.client, 2, 0, 1);
        give_result(&peer, &cancel, DLK_RESULT_CANCELLED);
        assert(pthread_join(settler.thread, NULL) == 0);
        smooth += settler.smooth;
        give_result(&peer, &request, DLK_RESULT_DONE);
        end_asking(&leader);
    }
    assert(smooth == ROUNDS && dlk_client_debts(user.client) == 0);
    leave_silent(&peer, &user);
}

static void on_signal(int number)
{
    (void)number;
}

static void *wait_one_slice(void *argument)
{
    struct asker *asker = argument;
    uint64_t started_ns = dlk_now_ns();
    assert(dlk_client_wait(asker->user->client, &asker->call) == S(PENDING));
    asker->smooth = was_smooth(started_ns);
    atomic_store(&asker->ended, true);
    return NULL;
}

/* A signal brings a waiting thread back at once, whether it reads or follows. */
static void test_signal_interrupts(void)
{
    struct silent peer;
    struct user user = join_patiently(&peer, DLK_WAIT_BLOCK);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    int smooth[2] = {0, 0};
    assert(sigaction(SIGUSR1, &action, NULL) == 0);
    assert(dlk_client_add_object(user.client, 9, 0) == S(SUCCESS));
    for (int i = 0; i < ROUNDS; i++) {
        struct asker askers[2] = {begin_asking(&user, read_call), begin_asking(&user, read_call)};
        for (int j = 0; j < 2; j++) {
            assert(dlk_client_start(user.client, &askers[j].call) == S(PENDING));
            assert(pthread_create(&askers[j].thread, NULL, wait_one_slice, &askers[j]) == 0);
            await_waiters(user.client, (uint32_t)j + 1, 0, 0);
        }
        for (int j = 1; j >= 0; j--) {
            /* One that comes before it sleeps in the kernel is not noticed. */
            while (!atomic_load(&askers[j].ended)) {
                assert(pthread_kill(askers[j].thread, SIGUSR1) == 0);
                usleep(2000);
            }
            end_asking(&askers[j]);
            dlk_client_cancel(user.client, &askers[j].call);
            smooth[j] += askers[j].smooth;
        }
    }
    assert(smooth[0] == ROUNDS && smooth[1] == ROUNDS);
    leave_silent(&peer, &user);
}

int main(void)
{
    test_two_ask(DLK_WAIT_BLOCK, true);
    test_two_ask(DLK_WAIT_ADAPTIVE, true);
    test_two_ask(DLK_WAIT_POLL, true);
    test_two_ask(DLK_WAIT_BLOCK, false);
    test_two_ask(DLK_WAIT_POLL, false);
    test_put_off_goes_on(DLK_RESULT_GRANTED);
    test_put_off_goes_on(DLK_RESULT_QUEUED);
    test_settler_is_woken();
    test_signal_interrupts();
    printf("done\n");
    return 0;
}
