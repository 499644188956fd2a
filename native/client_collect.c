/*
 * Calls that no thread waits for (futures, asyncio): they are posted, end when some thread has read
 * their answer, and are collected in bulk. Who ends one, a leader, the keeper or the collector
 * itself, also begins what had been put off. It may not decide what a reply means (the book does).
 *
 * The descriptor for event loops is an epoll set: the connection, so that the loop reads its
 * answers with no thread in between, and a bell (an eventfd) for what another thread has read. It
 * is rung when the first call has ended with nobody there to collect it. `rung` is true from then
 * until its value has been read, and the ring may still be under way: who clears it too early
 * leaves `rung` as it is, and comes again.
 */
#include "client.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { ANSWERS_A_LOOK = DLK_INBOX_BYTES / DLK_FRAME_BYTES };

/* ---- The bell and the set ---- */

void dlk_collect_init(struct dlk_collect *collect)
{
    *collect = (struct dlk_collect){.set_fd = -1, .bell_fd = -1};
}

void dlk_collect_free(struct dlk_collect *collect)
{
    if (collect->set_fd >= 0) {
        close(collect->set_fd);
        close(collect->bell_fd);
    }
}

int dlk_collect_take_ring(struct dlk_collect *collect)
{
    bool ring = collect->ring;
    collect->ring = false;
    return ring ? collect->bell_fd : -1;
}

void dlk_collect_ring(int bell_fd)
{
    const uint64_t once = 1;
    while (write(bell_fd, &once, sizeof(once)) < 0 && errno == EINTR) {
    }
}

static void clear_bell(struct dlk_collect *collect)
{
    uint64_t count;
    if (collect->rung && read(collect->bell_fd, &count, sizeof(count)) == sizeof(count)) {
        collect->rung = false;
    }
}

/* Somebody is to collect: a thread that waits for it, one that is about to leave, or the loop. */
static void call_collector(struct dlk_client *client)
{
    struct dlk_collect *collect = &client->collect;
    struct dlk_waiter *waiter = collect->waiting;
    if (waiter != NULL) {
        collect->waiting = waiter->next_collecting;
        waiter->remaining = 0;
        dlk_waiter_wake(client, waiter);
    } else if (collect->active == 0 && !collect->rung && collect->set_fd >= 0) {
        collect->rung = true;
        collect->ring = true;
    }
}

static bool change_set(struct dlk_client *client, int operation, uint32_t events)
{
    struct dlk_collect *collect = &client->collect;
    struct epoll_event event = {.events = events};
    if (collect->set_fd < 0) {
        return true;
    }
    if (epoll_ctl(collect->set_fd, operation, client->connection->fd, &event) != 0) {
        return false;
    }
    collect->link_events = events;
    return true;
}

bool dlk_collect_link_up(struct dlk_client *client)
{
    return change_set(client, EPOLL_CTL_ADD, EPOLLIN);
}

/* Before the descriptor is closed: a forked child may have it too, and then it would stay. */
void dlk_collect_link_down(struct dlk_client *client)
{
    if (client->collect.link_events != 0) {
        change_set(client, EPOLL_CTL_DEL, 0);
        client->collect.link_events = 0;
    }
}

void dlk_collect_want_room(struct dlk_client *client, bool wanted)
{
    uint32_t events = EPOLLIN | (wanted ? (uint32_t)EPOLLOUT : 0u);
    uint32_t present = client->collect.link_events;
    if (present != 0 && present != events) {
        change_set(client, EPOLL_CTL_MOD, events);
    }
}

static bool make_set(struct dlk_client *client)
{
    struct dlk_collect *collect = &client->collect;
    struct epoll_event event = {.events = EPOLLIN};
    collect->bell_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    collect->set_fd = collect->bell_fd >= 0 ? epoll_create1(EPOLL_CLOEXEC) : -1;
    if (collect->set_fd >= 0
        && epoll_ctl(collect->set_fd, EPOLL_CTL_ADD, collect->bell_fd, &event) == 0
        && (!client->up || dlk_collect_link_up(client))) {
        return true;
    }
    int problem = errno;
    if (collect->set_fd >= 0) {
        close(collect->set_fd);
    }
    if (collect->bell_fd >= 0) {
        close(collect->bell_fd);
    }
    collect->set_fd = -1;
    collect->bell_fd = -1;
    errno = problem;
    return false;
}

int dlk_client_collect_fd(struct dlk_client *client)
{
    if (dlk_client_forked(client)) {
        errno = ECHILD;
        return -1;
    }
    dlk_client_lock(client);
    int problem = 0;
    if (client->collect.set_fd < 0) {
        problem = make_set(client) ? 0 : errno;
        dlk_pass_lead(client);
        if (problem == 0 && client->book.posted.ended.first != NULL) {
            call_collector(client);
        }
    }
    int fd = client->collect.set_fd;
    dlk_client_unlock(client);
    errno = problem;
    return fd;
}

/* ---- A posted call's way ---- */

void dlk_posted_complete(struct dlk_client *client, struct dlk_call *call)
{
    dlk_posted_end(&client->book, call);
    call_collector(client);
}

/* Begun, or put off. Without a connection nothing is put off, since only answers could make room,
 * but what stands behind a wait that is sent again with the next one. */
static void place(struct dlk_client *client, struct dlk_call *call, uint64_t now_ns)
{
    if (call->phase == DLK_PHASE_BLOCKED && !client->up
        && !dlk_posted_behind_parked(&client->book, call)) {
        dlk_book_lose_blocked(&client->book, call, now_ns);
        dlk_client_complete(client, call);
    }
    if (call->phase != DLK_PHASE_ENDED) {
        dlk_posted_place(&client->book, call);
    }
}

void dlk_posted_go_on(struct dlk_client *client, uint64_t now_ns)
{
    struct dlk_book *book = &client->book;
    while (!client->up || dlk_wire_backlog(client) <= DLK_BACKLOG_BYTES_MAX) {
        struct dlk_call *call = dlk_posted_next(book, client->up);
        if (call == NULL) {
            return;
        }
        dlk_client_submit(client, call, now_ns);
        place(client, call, now_ns);
        dlk_posted_begun(book, call);
        if (call->phase == DLK_PHASE_BLOCKED && call->place != DLK_PLACE_BEHIND
            && dlk_posted_has_room(book, call)) {
            return; /* no memory, or too much is unsent already */
        }
    }
}

static void post(struct dlk_client *client, struct dlk_call *call, uint64_t now_ns)
{
    dlk_book_prepare(call);
    if (!dlk_posted_must_queue(&client->book, call)) {
        dlk_client_submit(client, call, now_ns);
        place(client, call, now_ns);
        return;
    }
    dlk_book_put_off(&client->book, call, now_ns);
    place(client, call, now_ns);
    dlk_posted_go_on(client, now_ns);
}

int dlk_client_post(struct dlk_client *client, struct dlk_call *call)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_client_lock(client);
    int status = DLK_STATUS_EASYNC;
    if (call->place == DLK_PLACE_NONE) {
        uint64_t now_ns = dlk_now_ns();
        dlk_client_sample_unix_time(client, now_ns);
        post(client, call, now_ns);
        status = call->place == DLK_PLACE_NONE ? dlk_client_tell(call) : DLK_STATUS_PENDING;
    }
    dlk_client_unlock(client);
    return status;
}

int dlk_client_flush(struct dlk_client *client)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_client_lock(client);
    dlk_wire_flush(client);
    bool left = client->up && dlk_wire_backlog(client) != 0;
    if (left && client->connection->polled) { /* there, room comes with what is received */
        dlk_look(client, dlk_now_ns());
        left = client->up && dlk_wire_backlog(client) != 0;
    }
    dlk_client_unlock(client);
    return left ? DLK_STATUS_PENDING : DLK_STATUS_SUCCESS;
}

/* ---- Collecting ---- */

static void expire(struct dlk_client *client, uint64_t now_ns)
{
    struct dlk_call *call;
    bool any = false;
    while ((call = dlk_posted_due(&client->book, now_ns)) != NULL) {
        if (call->phase == DLK_PHASE_SENT) {
            dlk_book_lose(&client->book, call->slot, client->up, now_ns);
        } else {
            dlk_book_expire_blocked(&client->book, call, now_ns);
        }
        dlk_client_complete(client, call);
        any = true;
    }
    if (any) {
        dlk_wire_put_debts(client, now_ns);
        dlk_go_on(client, now_ns);
    }
}

static void begin_collecting(struct dlk_client *client)
{
    dlk_client_lock(client);
    client->collect.active++;
    clear_bell(&client->collect);
}

/* What nobody took stays ended: then somebody is called for it, last of all. */
static size_t end_collecting(struct dlk_client *client, struct dlk_ended *out, size_t room)
{
    size_t count = 0;
    struct dlk_call *call;
    while (count < room && (call = dlk_posted_take(&client->book)) != NULL) {
        out[count++] = (struct dlk_ended){
            .cookie = call->cookie, .status = call->status, .result = call->result};
    }
    client->collect.active--;
    if (client->book.posted.ended.first != NULL) {
        call_collector(client);
    }
    dlk_client_unlock(client);
    return count;
}

/* As many looks as can fill `room`. A deadline counts only when all that is there was read: after a
 * stall the answers may have been waiting for this process. */
size_t dlk_client_collect(struct dlk_client *client, struct dlk_ended *out, size_t room)
{
    if (dlk_client_forked(client)) {
        return 0;
    }
    begin_collecting(client);
    uint64_t now_ns = dlk_now_ns();
    size_t looks = room / ANSWERS_A_LOOK;
    bool more;
    do {
        more = dlk_look(client, now_ns);
    } while (more && looks-- > 1);
    if (!more) {
        expire(client, now_ns);
    }
    dlk_posted_go_on(client, now_ns);
    dlk_wire_flush(client);
    return end_collecting(client, out, room);
}

size_t dlk_client_collect_wait(struct dlk_client *client, struct dlk_ended *out, size_t room,
                               uint32_t timeout_ms)
{
    if (dlk_client_forked(client)) {
        return 0;
    }
    uint32_t slice_ms = timeout_ms < DLK_WAIT_SLICE_MS ? timeout_ms : DLK_WAIT_SLICE_MS;
    begin_collecting(client);
    uint64_t now_ns = dlk_now_ns();
    dlk_posted_go_on(client, now_ns);
    dlk_wire_flush(client);
    if (client->book.posted.ended.first == NULL) {
        dlk_wait_posted(client, now_ns, now_ns + (uint64_t)slice_ms * DLK_NS_PER_MS);
    }
    expire(client, dlk_now_ns());
    dlk_wire_flush(client);
    return end_collecting(client, out, room);
}
