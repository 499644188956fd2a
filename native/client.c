/*
 * The entry points of the client (dlock_abi.h, "Client"), and a call's way through book and wire.
 * It may not decide what a reply means (the book does).
 */
#include "client.h"

#include <stdlib.h>
#include <time.h>

enum {
    UNIX_SAMPLE_NS = DLK_NS_PER_S,
    UNIX_STEP_NS = 100 * DLK_NS_PER_MS
};

/* ---- The process: what a forked child must leave alone ---- */

static _Atomic uint32_t process_generation;
static pthread_once_t fork_handler = PTHREAD_ONCE_INIT;

static void in_child(void)
{
    atomic_fetch_add(&process_generation, 1);
    dlk_keeper_after_fork();
    dlk_notices_after_fork();
}

static void install_fork_handler(void)
{
    pthread_atfork(NULL, NULL, in_child);
}

bool dlk_client_forked(const struct dlk_client *client)
{
    return client->process != atomic_load_explicit(&process_generation, memory_order_relaxed);
}

/* ---- Life ---- */

struct dlk_client *dlk_client_new(const struct dlk_client_config *config)
{
    pthread_once(&fork_handler, install_fork_handler);
    struct dlk_client *client = calloc(1, sizeof(*client));
    unsigned char *inbox = malloc(DLK_INBOX_BYTES);
    if (client == NULL || inbox == NULL || config->wait_mode > DLK_WAIT_POLL) {
        free(client);
        free(inbox);
        return NULL;
    }
    pthread_mutex_init(&client->mutex, NULL);
    pthread_cond_init(&client->roles_free, NULL);
    client->process = atomic_load(&process_generation);
    client->config = *config;
    if (client->config.reply_timeout_ms == 0) {
        client->config.reply_timeout_ms = DLK_REPLY_TIMEOUT_MS_DEFAULT;
    }
    client->inbox = inbox;
    client->keep_at_ns = DLK_NEVER_NS;
    dlk_collect_init(&client->collect);
    dlk_book_init(&client->book, client->config.reply_timeout_ms);
    client->book.number = config->number;
    client->book.keep_waits = config->keep_waits != 0;
    client->slice_ms = DLK_WAIT_SLICE_MS;
    dlk_adaptive_init(&client->adaptive, config->wait_mode, config->spin_us);
    dlk_keeper_add(client);
    return client;
}

void dlk_client_free(struct dlk_client *client)
{
    if (client == NULL || dlk_client_forked(client)) {
        return;
    }
    dlk_keeper_remove(client);
    dlk_client_detach(client);
    dlk_collect_free(&client->collect);
    dlk_book_free(&client->book);
    pthread_mutex_destroy(&client->mutex);
    pthread_cond_destroy(&client->roles_free);
    free(client->filling.data);
    free(client->sending.data);
    free(client->inbox);
    free(client);
}

/* ---- A call's way ---- */

/* Unix time minus dlk_now_ns, for display. Taken anew only when it has stepped, so that the same
 * end is shown as the same second. */
void dlk_client_sample_unix_time(struct dlk_client *client, uint64_t now_ns)
{
    struct timespec unix_time;
    if (client->unix_sampled_ns != 0 && now_ns - client->unix_sampled_ns < UNIX_SAMPLE_NS) {
        return;
    }
    clock_gettime(CLOCK_REALTIME, &unix_time);
    uint64_t unix_ns = (uint64_t)unix_time.tv_sec * DLK_NS_PER_S + (uint64_t)unix_time.tv_nsec;
    uint64_t step_ns = unix_ns - now_ns - client->book.unix_offset_ns;
    if (step_ns + UNIX_STEP_NS > 2 * UNIX_STEP_NS) {
        client->book.unix_offset_ns = unix_ns - now_ns;
    }
    client->unix_sampled_ns = now_ns;
}

void dlk_client_complete(struct dlk_client *client, struct dlk_call *call)
{
    if (call->waiter != NULL && --call->waiter->remaining == 0) {
        dlk_waiter_wake(client, call->waiter);
    }
    if (call->place != DLK_PLACE_NONE) {
        dlk_posted_complete(client, call);
    }
}

void dlk_go_on(struct dlk_client *client, uint64_t now_ns)
{
    dlk_waiters_wake_blocked(client);
    dlk_posted_go_on(client, now_ns);
}

void dlk_client_submit(struct dlk_client *client, struct dlk_call *call, uint64_t now_ns)
{
    const struct dlk_request *request = NULL;
    if (client->up && dlk_wire_backlog(client) > DLK_BACKLOG_BYTES_MAX) {
        dlk_book_put_off(&client->book, call, now_ns);
        return;
    }
    switch (dlk_book_begin(&client->book, call, now_ns, &request)) {
    case DLK_TURN_LATER:
        return;
    case DLK_TURN_DONE:
        dlk_client_complete(client, call);
        return;
    case DLK_TURN_SEND:
        break;
    }
    dlk_wire_put_debts(client, now_ns); /* before anything that could meet what they undo */
    if (call->phase != DLK_PHASE_SENT) {
        return; /* sending the debts has broken the connection, and ended the call */
    }
    if (!client->up || !dlk_wire_put(client, request)) {
        dlk_book_unsent(&client->book, call, now_ns);
        dlk_client_complete(client, call);
        return;
    }
    call->sent = 1;
}

int dlk_client_tell(struct dlk_call *call)
{
    if (call->phase != DLK_PHASE_ENDED && call->phase != DLK_PHASE_SEEN) {
        return DLK_STATUS_PENDING;
    }
    call->phase = DLK_PHASE_SEEN;
    return call->status;
}

static int tell_all(struct dlk_call *calls, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (calls[i].phase != DLK_PHASE_ENDED && calls[i].phase != DLK_PHASE_SEEN) {
            return DLK_STATUS_PENDING;
        }
    }
    for (size_t i = 0; i < count; i++) {
        calls[i].phase = DLK_PHASE_SEEN;
    }
    return DLK_STATUS_SUCCESS;
}

int dlk_client_call(struct dlk_client *client, struct dlk_call *call)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_book_prepare(call);
    dlk_client_lock(client);
    uint64_t now_ns = dlk_now_ns();
    dlk_client_sample_unix_time(client, now_ns);
    dlk_client_submit(client, call, now_ns);
    if (call->phase != DLK_PHASE_ENDED) {
        dlk_wait_calls(client, call, 1, now_ns);
    }
    int status = dlk_client_tell(call);
    dlk_client_unlock(client);
    return status;
}

int dlk_client_wait(struct dlk_client *client, struct dlk_call *call)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_client_lock(client);
    dlk_wait_calls(client, call, 1, dlk_now_ns());
    int status = dlk_client_tell(call);
    dlk_client_unlock(client);
    return status;
}

int dlk_client_start(struct dlk_client *client, struct dlk_call *call)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_book_prepare(call);
    dlk_client_lock(client);
    uint64_t now_ns = dlk_now_ns();
    dlk_client_sample_unix_time(client, now_ns);
    dlk_client_submit(client, call, now_ns);
    dlk_wire_flush(client);
    int status = dlk_client_tell(call);
    dlk_client_unlock(client);
    return status;
}

/* Looks once at the connection, and for those whose turn has come. A missing answer ends nothing
 * here: whoever polls keeps the time. */
static void look_for(struct dlk_client *client, struct dlk_call *calls, size_t count)
{
    uint64_t now_ns = dlk_now_ns();
    dlk_look(client, now_ns);
    if (!dlk_submit_more(client, calls, count, now_ns)) {
        dlk_expire_blocked(client, calls, count, now_ns);
    }
    dlk_wire_flush(client);
}

int dlk_client_poll(struct dlk_client *client, struct dlk_call *call)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_client_lock(client);
    if (call->phase != DLK_PHASE_ENDED) {
        look_for(client, call, 1);
    }
    int status = dlk_client_tell(call);
    dlk_client_unlock(client);
    return status;
}

void dlk_client_cancel(struct dlk_client *client, struct dlk_call *call)
{
    if (dlk_client_forked(client)) {
        return;
    }
    dlk_client_lock(client);
    uint64_t now_ns = dlk_now_ns();
    dlk_book_cancel(&client->book, call, now_ns);
    dlk_wire_put_debts(client, now_ns);
    dlk_go_on(client, now_ns);
    dlk_wire_flush(client);
    dlk_client_unlock(client);
}

/* ---- Batches ---- */

static int batch(struct dlk_client *client, struct dlk_call *calls, size_t count, bool wait)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    if (count > DLK_INFLIGHT_MAX / 2) {
        return DLK_STATUS_EINVAL;
    }
    for (size_t i = 0; i < count; i++) {
        dlk_book_prepare(&calls[i]);
    }
    dlk_client_lock(client);
    uint64_t now_ns = dlk_now_ns();
    dlk_client_sample_unix_time(client, now_ns);
    if (wait) {
        dlk_wait_calls(client, calls, count, now_ns);
    } else {
        dlk_submit_more(client, calls, count, now_ns);
        dlk_wire_flush(client);
    }
    int status = tell_all(calls, count);
    dlk_client_unlock(client);
    return status;
}

int dlk_client_batch(struct dlk_client *client, struct dlk_call *calls, size_t count)
{
    return batch(client, calls, count, true);
}

int dlk_client_batch_start(struct dlk_client *client, struct dlk_call *calls, size_t count)
{
    return batch(client, calls, count, false);
}

int dlk_client_batch_wait(struct dlk_client *client, struct dlk_call *calls, size_t count)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_client_lock(client);
    dlk_wait_calls(client, calls, count, dlk_now_ns());
    int status = tell_all(calls, count);
    dlk_client_unlock(client);
    return status;
}

int dlk_client_batch_poll(struct dlk_client *client, struct dlk_call *calls, size_t count)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_client_lock(client);
    look_for(client, calls, count);
    int status = tell_all(calls, count);
    dlk_client_unlock(client);
    return status;
}

/* ---- Debts ---- */

static int settled_status(const struct dlk_client *client)
{
    const struct dlk_book *book = &client->book;
    if (book->debts == 0) {
        return DLK_STATUS_SUCCESS;
    }
    if (!client->up) {
        return DLK_STATUS_BAD_RESPONSE;
    }
    return book->debts_unsent + book->debts_under_way == 0 ? DLK_STATUS_NOT_READY
                                                           : DLK_STATUS_PENDING;
}

int dlk_client_settle_start(struct dlk_client *client)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_client_lock(client);
    if (client->up && client->book.debts != 0) {
        dlk_book_retry_kept(&client->book);
        dlk_wire_put_debts(client, dlk_now_ns());
        dlk_wire_flush(client);
    }
    int status = settled_status(client);
    dlk_client_unlock(client);
    return status;
}

int dlk_client_settle_poll(struct dlk_client *client)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_client_lock(client);
    if (client->book.debts != 0) {
        dlk_look(client, dlk_now_ns());
    }
    int status = settled_status(client);
    dlk_client_unlock(client);
    return status;
}

int dlk_client_settle(struct dlk_client *client, uint32_t timeout_ms)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    uint32_t slice_ms = timeout_ms < client->slice_ms ? timeout_ms : client->slice_ms;
    dlk_client_lock(client);
    uint64_t now_ns = dlk_now_ns();
    if (client->up && client->book.debts != 0) {
        dlk_book_retry_kept(&client->book);
        dlk_wire_put_debts(client, now_ns);
        dlk_wait_settled(client, now_ns, now_ns + (uint64_t)slice_ms * DLK_NS_PER_MS);
    }
    int status = settled_status(client);
    dlk_client_unlock(client);
    return status;
}
