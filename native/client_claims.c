/*
 * A new primary: what the client claims there, and what comes of it. The order of the steps is in
 * client_book_claims.c. It may not decide what an answer means (the book does).
 */
#include "client.h"

/* The former server may be alive yet. What it grants after the claims were made would be in none of
 * them, so that a client that makes them before it attaches gives its connection up first. */
size_t dlk_client_claims(struct dlk_client *client, struct dlk_claim *out, size_t room)
{
    if (dlk_client_forked(client)) {
        return 0;
    }
    dlk_client_lock(client);
    if (client->book.keep_waits) {
        dlk_link_drop(client, false);
        dlk_book_begin_claims(&client->book, dlk_now_ns());
    }
    size_t count = dlk_book_claims(&client->book, out, room, dlk_now_ns());
    dlk_client_unlock(client);
    return count;
}

void dlk_client_claimed(struct dlk_client *client, const struct dlk_claim *claims,
                        const int32_t *statuses, size_t count)
{
    if (dlk_client_forked(client)) {
        return;
    }
    dlk_client_lock(client);
    for (size_t i = 0; i < count; i++) {
        dlk_book_claimed(&client->book, &claims[i], statuses[i]);
    }
    dlk_client_unlock(client);
}

void dlk_client_seal(struct dlk_client *client)
{
    if (dlk_client_forked(client)) {
        return;
    }
    dlk_client_lock(client);
    uint64_t now_ns = dlk_now_ns();
    dlk_book_seal(&client->book);
    for (uint32_t index = 0; index < client->book.pending_high; index++) {
        struct dlk_call *ended = dlk_book_seal_wait(&client->book, index, now_ns);
        if (ended != NULL) {
            dlk_client_complete(client, ended);
        }
    }
    dlk_go_on(client, now_ns);
    dlk_wire_flush(client);
    dlk_client_unlock(client);
}

void dlk_client_verify(struct dlk_client *client)
{
    if (dlk_client_forked(client)) {
        return;
    }
    dlk_client_lock(client);
    uint64_t now_ns = dlk_now_ns();
    dlk_book_verify(&client->book);
    dlk_wire_put_debts(client, now_ns);
    dlk_wire_put_renewals(client, now_ns);
    dlk_wire_flush(client);
    client->keep_at_ns = 0;
    dlk_client_unlock(client);
    dlk_keeper_poke(); /* it sees to the answers */
}
