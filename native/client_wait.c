/*
 * Waiting. Among the threads that wait on one client, one is the leader: it reads the socket for
 * all. The others sleep on a word of their own until their calls have ended or the lead is theirs.
 * No thread of the library stands between a caller and its reply.
 */
#include "client.h"

#include <errno.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { OPERATED_LOOK_NS = 1000000 };

enum waiter_word { WORD_AWAKE = 0, WORD_ASLEEP, WORD_WOKEN };

static long futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *timeout)
{
    return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, timeout, NULL, 0);
}

/* ---- The mutex, and those to wake when it is free ---- */

void dlk_client_lock(struct dlk_client *client)
{
    pthread_mutex_lock(&client->mutex);
}

/* What the book has to tell goes to the queue. True: the keeper is to know of a deadline. */
static bool take_news(struct dlk_client *client, bool *told)
{
    if (!client->book.news.any) {
        return false;
    }
    *told = dlk_notices_put(&client->book);
    uint64_t due_ns = dlk_book_due_ns(&client->book, client->up);
    if (due_ns >= client->keep_at_ns) {
        return false;
    }
    client->keep_at_ns = due_ns;
    return true;
}

/* A woken thread wants the mutex at once, so it is woken after the mutex is free. Its word may be
 * gone by then; to wake a word that nobody sleeps on does nothing. */
void dlk_client_unlock(struct dlk_client *client)
{
    _Atomic uint32_t *words[DLK_WAKES_MAX];
    uint32_t count = client->wakes;
    int bell_fd = dlk_collect_take_ring(&client->collect);
    struct dlk_connection *former = client->former;
    bool told = false;
    bool sooner = take_news(client, &told);
    if (count == 0 && bell_fd < 0 && former == NULL && !told && !sooner) {
        pthread_mutex_unlock(&client->mutex);
        return;
    }
    memcpy(words, client->wake, count * sizeof(words[0]));
    client->wakes = 0;
    client->former = NULL;
    pthread_mutex_unlock(&client->mutex);
    for (uint32_t i = 0; i < count; i++) {
        futex(words[i], FUTEX_WAKE, 1, NULL);
    }
    if (bell_fd >= 0) {
        dlk_collect_ring(bell_fd);
    }
    if (told) {
        dlk_notices_ring();
    }
    if (sooner) {
        dlk_keeper_poke();
    }
    if (former != NULL) {
        former->calls->free(former);
    }
}

void dlk_waiter_wake(struct dlk_client *client, struct dlk_waiter *waiter)
{
    uint32_t was = atomic_exchange_explicit(&waiter->word, WORD_WOKEN, memory_order_acq_rel);
    if (was != WORD_ASLEEP) {
        return;
    }
    if (client->wakes == DLK_WAKES_MAX) {
        futex(&waiter->word, FUTEX_WAKE, 1, NULL);
    } else {
        client->wake[client->wakes++] = &waiter->word;
    }
}

void dlk_waiters_wake_blocked(struct dlk_client *client)
{
    if (client->waiters_blocked == 0) {
        return;
    }
    for (struct dlk_waiter *waiter = client->waiters; waiter != NULL; waiter = waiter->next) {
        if (waiter->blocked) {
            dlk_waiter_wake(client, waiter);
        }
    }
}

void dlk_waiters_wake_settled(struct dlk_client *client)
{
    bool settled = client->book.debts_unsent + client->book.debts_under_way == 0;
    if (client->waiters_settling == 0 || (client->up && !settled)) {
        return;
    }
    for (struct dlk_waiter *waiter = client->waiters; waiter != NULL; waiter = waiter->next) {
        if (waiter->settling) {
            waiter->remaining = 0;
            dlk_waiter_wake(client, waiter);
        }
    }
}

static void set_blocked(struct dlk_client *client, struct dlk_waiter *waiter, bool blocked)
{
    client->waiters_blocked += (uint32_t)blocked - (uint32_t)waiter->blocked;
    waiter->blocked = blocked;
}

static void enlist(struct dlk_client *client, struct dlk_waiter *waiter)
{
    waiter->next = NULL;
    waiter->previous = client->waiters_last;
    if (client->waiters_last != NULL) {
        client->waiters_last->next = waiter;
    } else {
        client->waiters = waiter;
    }
    client->waiters_last = waiter;
    client->waiters_settling += waiter->settling;
}

/* ---- Reading for all, sleeping while another reads ---- */

static uint64_t spin_budget_ns(const struct dlk_client *client, uint64_t now_ns)
{
    bool adaptive = client->config.wait_mode == DLK_WAIT_ADAPTIVE;
    return dlk_adaptive_budget_ns(&client->adaptive, adaptive && dlk_overloaded(now_ns));
}

/* Takes one look, or sleeps for one. What dlk_wire_receive has returned. */
static ssize_t read_once(struct dlk_client *client, uint64_t spin_ns, uint64_t *now_ns,
                      uint64_t until_ns)
{
    bool slept = false;
    uint64_t started_ns = *now_ns;
    bool push = dlk_wire_backlog(client) != 0 && !client->sender;
    client->leader = true;
    dlk_client_unlock(client);
    ssize_t received = dlk_wire_receive(client, spin_ns, *now_ns, until_ns, push, &slept);
    dlk_client_lock(client);
    *now_ns = dlk_now_ns();
    if (received > 0 || slept) {
        dlk_adaptive_learn(&client->adaptive, *now_ns - started_ns, slept);
    }
    dlk_wire_take(client, received, *now_ns);
    client->leader = false;
    if (!client->up) {
        dlk_wire_role_free(client);
    } else if (dlk_wire_backlog(client) != 0 || client->connection->polled) {
        dlk_wire_flush(client);
    }
    return received;
}

/* Nobody reads and nobody waits, but somebody watches, and would not be told. */
static bool must_arm(const struct dlk_client *client)
{
    return client->up && client->connection->polled && !client->connection->armed
           && dlk_client_watched(client);
}

/* What came before it was armed is read here: nobody will be told of that. */
void dlk_pass_lead(struct dlk_client *client)
{
    while (!client->leader) {
        struct dlk_waiter *waiter = client->waiters;
        while (waiter != NULL && waiter->remaining == 0) {
            waiter = waiter->next;
        }
        if (waiter != NULL) {
            dlk_waiter_wake(client, waiter);
            return;
        }
        if (!must_arm(client)) {
            return;
        }
        client->connection->calls->arm(client->connection);
        uint64_t now_ns = dlk_now_ns();
        read_once(client, 1, &now_ns, now_ns);
    }
}

static void delist(struct dlk_client *client, struct dlk_waiter *waiter)
{
    set_blocked(client, waiter, false);
    client->waiters_settling -= waiter->settling;
    if (waiter->previous != NULL) {
        waiter->previous->next = waiter->next;
    } else {
        client->waiters = waiter->next;
    }
    if (waiter->next != NULL) {
        waiter->next->previous = waiter->previous;
    } else {
        client->waiters_last = waiter->previous;
    }
    dlk_pass_lead(client);
}

/* Until something has come for this thread, or until_ns. False: interrupted by a signal. */
static bool follow(struct dlk_client *client, struct dlk_waiter *waiter, uint64_t *now_ns,
                   uint64_t until_ns)
{
    uint64_t started_ns = *now_ns;
    uint64_t spin_ns = spin_budget_ns(client, started_ns);
    bool interrupted = false;
    atomic_store_explicit(&waiter->word, WORD_AWAKE, memory_order_relaxed);
    dlk_client_unlock(client);
    while (*now_ns < until_ns && *now_ns - started_ns < spin_ns
           && atomic_load_explicit(&waiter->word, memory_order_acquire) == WORD_AWAKE) {
        dlk_cpu_relax();
        *now_ns = dlk_now_ns();
    }
    uint32_t awake = WORD_AWAKE;
    if (*now_ns < until_ns
        && atomic_compare_exchange_strong(&waiter->word, &awake, WORD_ASLEEP)) {
        uint64_t left_ns = until_ns - *now_ns;
        struct timespec timeout = {.tv_sec = (time_t)(left_ns / DLK_NS_PER_S),
                                   .tv_nsec = (long)(left_ns % DLK_NS_PER_S)};
        interrupted = futex(&waiter->word, FUTEX_WAIT, WORD_ASLEEP, &timeout) != 0
                      && errno == EINTR;
    }
    dlk_client_lock(client);
    *now_ns = dlk_now_ns();
    return !interrupted;
}

static bool wait_once(struct dlk_client *client, struct dlk_waiter *waiter, uint64_t *now_ns,
                      uint64_t until_ns)
{
    if (client->leader || !client->up) {
        return follow(client, waiter, now_ns, until_ns);
    }
    return read_once(client, spin_budget_ns(client, *now_ns), now_ns, until_ns) != -EINTR;
}

bool dlk_look(struct dlk_client *client, uint64_t now_ns)
{
    dlk_wire_flush(client);
    if (!client->up || client->leader) {
        return false;
    }
    if (client->connection->polled && dlk_client_watched(client)) {
        client->connection->calls->clear(client->connection);
    }
    ssize_t received = read_once(client, 1, &now_ns, now_ns);
    dlk_pass_lead(client);
    return received > DLK_INBOX_BYTES - DLK_FRAME_BYTES; /* as much as there was room for */
}

/* ---- Calls ---- */

bool dlk_submit_more(struct dlk_client *client, struct dlk_call *calls, size_t count,
                     uint64_t now_ns)
{
    size_t low = 0;
    size_t high = count; /* the first that is not submitted lies in low..high */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        uint32_t phase = calls[middle].phase;
        if (phase == DLK_PHASE_NEW || phase == DLK_PHASE_BLOCKED) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    for (; low < count; low++) {
        dlk_client_submit(client, &calls[low], now_ns);
        if (calls[low].phase == DLK_PHASE_BLOCKED) {
            return false;
        }
    }
    return true;
}

static bool runs(const struct dlk_call *call)
{
    return call->phase == DLK_PHASE_SENT || call->phase == DLK_PHASE_BLOCKED;
}

static uint64_t earliest_deadline_ns(const struct dlk_call *calls, size_t count)
{
    uint64_t earliest_ns = DLK_NEVER_NS;
    for (size_t i = 0; i < count; i++) {
        if (runs(&calls[i]) && calls[i].deadline_ns < earliest_ns) {
            earliest_ns = calls[i].deadline_ns;
        }
    }
    return earliest_ns;
}

static void expire_blocked(struct dlk_client *client, struct dlk_call *call, uint64_t now_ns)
{
    if (call->phase == DLK_PHASE_BLOCKED && call->deadline_ns <= now_ns) {
        dlk_book_expire_blocked(&client->book, call, now_ns);
        dlk_client_complete(client, call);
    }
}

void dlk_expire_blocked(struct dlk_client *client, struct dlk_call *calls, size_t count,
                        uint64_t now_ns)
{
    for (size_t i = 0; i < count; i++) {
        expire_blocked(client, &calls[i], now_ns);
    }
}

void dlk_expire(struct dlk_client *client, struct dlk_call *calls, size_t count, uint64_t now_ns)
{
    for (size_t i = 0; i < count; i++) {
        struct dlk_call *call = &calls[i];
        expire_blocked(client, call, now_ns);
        if (call->phase == DLK_PHASE_SENT && call->deadline_ns <= now_ns) {
            dlk_book_lose(&client->book, call->slot, client->up, now_ns);
            dlk_client_complete(client, call);
            dlk_go_on(client, now_ns);
        }
    }
    dlk_wire_put_debts(client, now_ns);
    dlk_wire_flush(client);
}

static void take_calls(struct dlk_waiter *waiter, struct dlk_call *calls, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (calls[i].phase != DLK_PHASE_ENDED && calls[i].phase != DLK_PHASE_SEEN) {
            calls[i].waiter = waiter;
            waiter->remaining++;
        }
    }
}

bool dlk_wait_calls(struct dlk_client *client, struct dlk_call *calls, size_t count,
                    uint64_t now_ns)
{
    const uint64_t slice_end_ns = now_ns + (uint64_t)client->slice_ms * DLK_NS_PER_MS;
    struct dlk_waiter waiter = {.remaining = 0};
    take_calls(&waiter, calls, count);
    enlist(client, &waiter);
    bool on_time = true;
    uint64_t earliest_ns = DLK_NEVER_NS;
    bool known = false; /* earliest_ns is; it may be early, since an answer can put one off */
    while (waiter.remaining != 0) {
        set_blocked(client, &waiter, !dlk_submit_more(client, calls, count, now_ns));
        dlk_wire_flush(client);
        if (waiter.remaining == 0 || !on_time) {
            break;
        }
        if (!known || waiter.blocked) {
            earliest_ns = earliest_deadline_ns(calls, count);
            known = true;
        }
        uint64_t until_ns = earliest_ns < slice_end_ns ? earliest_ns : slice_end_ns;
        on_time = wait_once(client, &waiter, &now_ns, until_ns) && now_ns < slice_end_ns;
        if (waiter.remaining != 0 && now_ns >= earliest_ns) {
            dlk_expire(client, calls, count, now_ns);
            known = false;
        }
    }
    for (size_t i = 0; i < count && waiter.remaining != 0; i++) {
        calls[i].waiter = NULL;
    }
    delist(client, &waiter);
    return waiter.remaining == 0;
}

void dlk_wait_settled(struct dlk_client *client, uint64_t now_ns, uint64_t until_ns)
{
    struct dlk_waiter waiter = {.remaining = 1, .settling = true};
    enlist(client, &waiter);
    dlk_wire_flush(client);
    dlk_waiters_wake_settled(client);
    while (waiter.remaining != 0 && now_ns < until_ns) {
        if (!wait_once(client, &waiter, &now_ns, until_ns)) {
            break;
        }
    }
    delist(client, &waiter);
}

bool dlk_wait_operated(struct dlk_client *client, uint32_t object_id, uint64_t now_ns,
                       uint64_t until_ns)
{
    struct dlk_waiter waiter = {.remaining = 1};
    enlist(client, &waiter);
    bool under_way = true;
    while (under_way) {
        dlk_wire_flush(client);
        under_way = client->up && client->connection->polled
                    && (dlk_book_operates(&client->book, object_id)
                        || client->connection->calls->operates(client->connection, object_id));
        uint64_t look_ns = now_ns + OPERATED_LOOK_NS; /* nobody wakes it */
        if (now_ns >= until_ns
            || (under_way && !wait_once(client, &waiter, &now_ns,
                                        look_ns < until_ns ? look_ns : until_ns))) {
            break;
        }
    }
    delist(client, &waiter);
    return !under_way;
}

void dlk_wait_posted(struct dlk_client *client, uint64_t now_ns, uint64_t until_ns)
{
    struct dlk_waiter waiter = {.remaining = 1, .next_collecting = client->collect.waiting};
    client->collect.waiting = &waiter;
    enlist(client, &waiter);
    while (waiter.remaining != 0 && now_ns < until_ns) {
        if (!wait_once(client, &waiter, &now_ns, until_ns)) {
            break;
        }
    }
    struct dlk_waiter **from = &client->collect.waiting;
    while (*from != NULL && *from != &waiter) {
        from = &(*from)->next_collecting;
    }
    if (*from != NULL) {
        *from = waiter.next_collecting;
    }
    delist(client, &waiter);
}
