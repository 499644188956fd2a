/*
 * What the keeper does for one client: heartbeats, renewals, what is to be told in time, and
 * reading the connection when nobody else does. It never waits. It may not decide what a reply
 * means.
 *
 * Who waits for an answer reads the connection itself, and so does a collector. The keeper leaves
 * it to them, and watches only what is quiet: a client that has not asked anything for a while (so
 * that it learns of a broken hold and of a lost link at once), and one whose answer the keeper
 * awaits.
 */
#include "client.h"

enum {
    LOOKS_MAX = 8, /* of 1024 answers each; what is left is readable still */
    QUIET_NS = 50 * DLK_NS_PER_MS,  /* since its last request: nobody reads it any more */
    LATER_NS = 100 * DLK_NS_PER_MS, /* then it is seen whether it has become quiet */
    ROOM_NS = 2 * DLK_NS_PER_MS     /* then there may be room for more renewals */
};

static uint64_t sooner(uint64_t one_ns, uint64_t other_ns)
{
    return one_ns < other_ns ? one_ns : other_ns;
}

/* ---- Heartbeats ---- */

/* After this time without an answer to the PING, a session that is over is given up. Who has a
 * number gets a new connection by itself, and the sooner the better. */
static uint64_t patience_ns(const struct dlk_client *client)
{
    uint64_t timeout_ns = (uint64_t)client->config.reply_timeout_ms * DLK_NS_PER_MS;
    uint64_t quarter_ns = (uint64_t)client->book.session_ttl_ms * DLK_NS_PER_MS / 4;
    return client->book.number != 0 ? sooner(quarter_ns, timeout_ns) : timeout_ns;
}

/* When an unanswered PING has to be looked at again. */
static uint64_t ping_over_ns(const struct dlk_client *client)
{
    uint64_t given_up_ns = client->ping_sent_ns + patience_ns(client);
    if (given_up_ns < client->book.session_until_ns) {
        given_up_ns = client->book.session_until_ns;
    }
    return sooner(given_up_ns, client->ping.deadline_ns);
}

/* A server that gave no answer in time, nor any other before the session ended, is given up: a call
 * that waits for ever would otherwise wait for a dead one. */
static void await_ping(struct dlk_client *client, uint64_t now_ns)
{
    bool late = now_ns >= client->ping_sent_ns + patience_ns(client);
    dlk_expire(client, &client->ping, 1, now_ns);
    bool unanswered = client->ping.phase == DLK_PHASE_SENT
                      || client->ping.status == DLK_STATUS_BAD_RESPONSE;
    if (client->up && late && unanswered
        && dlk_book_session_left_ms(&client->book, now_ns) == 0) {
        dlk_wire_break(client, now_ns);
    }
}

static void send_ping(struct dlk_client *client, uint64_t now_ns)
{
    client->ping.verb = DLK_VERB_PING;
    dlk_book_prepare(&client->ping);
    dlk_client_submit(client, &client->ping, now_ns);
    dlk_wire_flush(client);
    client->ping_sent_ns = now_ns;
}

/* When the next PING is due: a quarter of the session's life after it was renewed last, and after
 * the last PING, answered or not. */
static uint64_t ping_due_ns(const struct dlk_client *client)
{
    const struct dlk_book *book = &client->book;
    uint64_t last_ns =
        book->renewed_ns > client->ping_sent_ns ? book->renewed_ns : client->ping_sent_ns;
    return last_ns + (uint64_t)book->session_ttl_ms * DLK_NS_PER_MS / 4;
}

static void keep_ping(struct dlk_client *client, uint64_t now_ns)
{
    if (client->ping.phase == DLK_PHASE_SENT) {
        await_ping(client, now_ns);
    } else if (ping_due_ns(client) <= now_ns) {
        send_ping(client, now_ns);
    }
}

/* ---- What the server was not ready for ---- */

static uint64_t retry_due_ns(const struct dlk_client *client)
{
    return client->retried_ns + (uint64_t)client->book.session_ttl_ms * DLK_NS_PER_MS / 4;
}

/* Not with the PINGs: a client that renews leases has none to send. */
static void keep_retrying(struct dlk_client *client, uint64_t now_ns)
{
    if (dlk_book_has_kept(&client->book) && retry_due_ns(client) <= now_ns) {
        client->retried_ns = now_ns;
        dlk_book_retry_kept(&client->book);
        dlk_wire_put_debts(client, now_ns);
        dlk_wire_flush(client);
    }
}

/* ---- Renewals ---- */

static void keep_renewals(struct dlk_client *client, uint64_t now_ns)
{
    if (dlk_wire_put_renewals(client, now_ns)) {
        dlk_wire_flush(client);
    }
}

/* ---- Reading ---- */

static bool awaits(const struct dlk_client *client)
{
    return client->ping.phase == DLK_PHASE_SENT || client->book.renewals_under_way != 0;
}

static void look(struct dlk_client *client, bool readable)
{
    bool more = readable || awaits(client);
    for (int looks = 0; more && looks < LOOKS_MAX; looks++) {
        more = dlk_look(client, dlk_now_ns());
    }
}

/* Is the connection the keeper's to watch? If it could be later, it comes again to see. A
 * collector watches for as long as it lives, but may be slow: what the keeper awaits is looked
 * for. */
static void watch(const struct dlk_client *client, uint64_t now_ns, struct dlk_kept *kept)
{
    bool collected = client->collect.link_events != 0;
    const struct dlk_book *book = &client->book;
    uint64_t used_ns = book->renewed_ns > book->operated_ns ? book->renewed_ns : book->operated_ns;
    bool quiet = now_ns >= used_ns + QUIET_NS;
    bool wanted = book->number != 0 && !collected;
    if (!client->up || !(wanted || awaits(client))) {
        return;
    }
    if (!client->leader && !collected && (quiet || awaits(client))) {
        kept->watch_fd = client->connection->fd;
    } else {
        kept->again_ns = sooner(kept->again_ns, now_ns + LATER_NS);
    }
}

static struct dlk_kept next_time(struct dlk_client *client, uint64_t now_ns)
{
    struct dlk_kept kept = {.again_ns = dlk_book_due_ns(&client->book, client->up),
                            .watch_fd = -1};
    if (kept.again_ns <= now_ns) {
        kept.again_ns = now_ns + ROOM_NS;
    }
    if (client->up) {
        bool asked = client->ping.phase == DLK_PHASE_SENT;
        kept.again_ns =
            sooner(kept.again_ns, asked ? ping_over_ns(client) : ping_due_ns(client));
        if (dlk_book_has_kept(&client->book)) {
            kept.again_ns = sooner(kept.again_ns, retry_due_ns(client));
        }
    }
    watch(client, now_ns, &kept);
    client->keep_at_ns = kept.again_ns;
    return kept;
}

struct dlk_kept dlk_client_keep(struct dlk_client *client, int readable)
{
    if (dlk_client_forked(client)) {
        return (struct dlk_kept){.again_ns = DLK_NEVER_NS, .watch_fd = -1};
    }
    dlk_client_lock(client);
    look(client, readable != 0);
    client->keeper_watches = false;
    uint64_t now_ns = dlk_now_ns();
    dlk_book_pass(&client->book, now_ns);
    if (client->up) {
        keep_ping(client, now_ns);
    }
    if (client->up) {
        keep_retrying(client, now_ns);
    }
    if (client->up) {
        keep_renewals(client, now_ns);
    }
    struct dlk_kept kept = next_time(client, now_ns);
    client->keeper_watches = kept.watch_fd >= 0;
    if (kept.watch_fd >= 0) {
        dlk_pass_lead(client);
        if (!client->up) { /* as it has found out */
            kept = next_time(client, now_ns);
        }
    }
    dlk_client_unlock(client);
    return kept;
}

uint64_t dlk_client_keep_at_ns(struct dlk_client *client)
{
    if (dlk_client_forked(client)) {
        return DLK_NEVER_NS;
    }
    dlk_client_lock(client);
    uint64_t at_ns = client->keep_at_ns;
    dlk_client_unlock(client);
    return at_ns;
}
