/*
 * Notices, from what happens at a real plane or a silent peer to the thread that waits for them.
 */
#include <stdio.h>
#include <sys/wait.h>

#include "client.h"
#include "silent_peer.h"

#define S(name) DLK_STATUS_##name

enum { NUMBER = 7, PATIENCE_MS = 20000 };

static struct dlk_notice next_notice(void)
{
    struct dlk_notice notice;
    assert(dlk_notices_wait(&notice, 1, PATIENCE_MS) == 1);
    return notice;
}

static void expect_none(void)
{
    struct dlk_notice notice;
    assert(dlk_notices_wait(&notice, 1, 0) == 0);
}

static struct user join_numbered(struct silent *peer)
{
    struct user user = join_silent(peer, REPLY_TIMEOUT_MS);
    dlk_client_lock(user.client);
    user.client->book.number = NUMBER;
    dlk_client_unlock(user.client);
    return user;
}

/* Whoever reads the end of the connection makes it known, once. */
static void test_link_down(void)
{
    struct silent peer;
    struct user user = join_numbered(&peer);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    expect_none();
    assert(shutdown(peer.fd, SHUT_RDWR) == 0);
    assert(simple(&user, DLK_VERB_TRYLOCK, 4, 1) == S(BAD_RESPONSE));
    struct dlk_notice notice = next_notice();
    assert(notice.kind == DLK_NOTICE_LINK_DOWN && notice.client == NUMBER);
    assert(notice.lock_id == 0 && notice.owner == 0 && notice.token == 0);
    assert(simple(&user, DLK_VERB_TRYLOCK, 4, 1) == S(BAD_RESPONSE));
    expect_none();
    leave_silent(&peer, &user);
}

/* What its user ends is no news; nor is anything to a client without a number. */
static void test_no_news(void)
{
    struct silent peer;
    struct user user = join_numbered(&peer);
    dlk_client_detach(user.client);
    expect_none();
    leave_silent(&peer, &user);
    user = join_silent(&peer, REPLY_TIMEOUT_MS);
    get_lock(&user, 4, DLK_KIND_ATOMIC, 1);
    assert(shutdown(peer.fd, SHUT_RDWR) == 0);
    assert(simple(&user, DLK_VERB_TRYLOCK, 4, 1) == S(BAD_RESPONSE));
    expect_none();
    leave_silent(&peer, &user);
}

static void *wake(void *nothing)
{
    usleep(20000);
    dlk_notices_wake();
    return nothing;
}

static void test_wake(void)
{
    struct dlk_notice notice;
    pthread_t thread;
    uint64_t started_ns = dlk_now_ns();
    assert(pthread_create(&thread, NULL, wake, NULL) == 0);
    assert(dlk_notices_wait(&notice, 1, PATIENCE_MS) == 0);
    assert(pthread_join(thread, NULL) == 0);
    dlk_notices_wake(); /* the next, and only that */
    assert(dlk_notices_wait(&notice, 1, PATIENCE_MS) == 0);
    assert(dlk_now_ns() - started_ns < (uint64_t)PATIENCE_MS * DLK_NS_PER_MS);
    expect_none();
}

/* More than the queue takes: those that it took in order, then OVERFLOW, then new ones again. */
static void test_overflow(void)
{
    enum { MANY = 200000 };
    struct dlk_book book;
    struct dlk_notice out[1000];
    size_t total = 0;
    size_t count;
    dlk_book_init(&book, 1000);
    book.number = NUMBER;
    struct dlk_hold hold = {0};
    for (hold.lock_id = 1; hold.lock_id <= MANY; hold.lock_id++) {
        dlk_book_tell(&book, &hold, DLK_NOTICE_LOST);
    }
    dlk_notices_put(&book);
    assert(!book.news.any && book.news.count == 0);
    while ((count = dlk_notices_wait(out, 1000, 0)) == 1000) {
        for (size_t i = 0; i < count; i++) {
            assert(out[i].lock_id == ++total && out[i].kind == DLK_NOTICE_LOST);
        }
    }
    assert(count > 0 && out[count - 1].kind == DLK_NOTICE_OVERFLOW);
    assert(out[count - 1].client == 0 && total + count > 100000 && total + count < MANY);
    dlk_book_tell(&book, NULL, DLK_NOTICE_LINK_DOWN);
    dlk_notices_put(&book);
    assert(next_notice().kind == DLK_NOTICE_LINK_DOWN);
    expect_none();
    dlk_book_free(&book);
}

static void test_forked_child_has_none(void)
{
    struct dlk_book book;
    int status;
    dlk_book_init(&book, 1000);
    book.number = NUMBER;
    dlk_book_tell(&book, NULL, DLK_NOTICE_REMOVED);
    dlk_notices_put(&book);
    pid_t child = fork();
    if (child == 0) {
        struct dlk_notice notice;
        _exit(dlk_notices_wait(&notice, 1, 0) == 0 ? 0 : 1);
    }
    assert(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert(next_notice().kind == DLK_NOTICE_REMOVED);
    dlk_book_free(&book);
}

int main(void)
{
    test_link_down();
    test_no_news();
    test_wake();
    test_overflow();
    test_forked_child_has_none();
    printf("done\n");
    return 0;
}
