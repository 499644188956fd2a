/*
 * The client's entry points that only tell the book something or ask it. Nothing here waits, but
 * for operations on an object whose key is taken away. It may not decide anything.
 */
#include "client.h"

uint32_t dlk_client_debts(struct dlk_client *client)
{
    if (dlk_client_forked(client)) {
        return 0;
    }
    dlk_client_lock(client);
    uint32_t debts = client->book.debts;
    dlk_client_unlock(client);
    return debts;
}

int dlk_client_add_lock(struct dlk_client *client, uint32_t lock_id, uint32_t slot, uint32_t kind,
                        uint64_t owner)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_client_lock(client);
    int status = dlk_book_add_lock(&client->book, lock_id, slot, kind, owner);
    dlk_client_unlock(client);
    return status;
}

int dlk_client_may_drop_lock(struct dlk_client *client, uint32_t lock_id, uint64_t owner)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_client_lock(client);
    int status = dlk_book_may_drop_lock(&client->book, lock_id, owner);
    dlk_client_unlock(client);
    return status;
}

int dlk_client_drop_lock(struct dlk_client *client, uint32_t lock_id, uint64_t owner, int force)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_client_lock(client);
    int status = dlk_book_drop_lock(&client->book, lock_id, owner, force != 0);
    dlk_go_on(client, dlk_now_ns());
    dlk_wire_flush(client);
    dlk_client_unlock(client);
    return status;
}

int dlk_client_set_lock_aside(struct dlk_client *client, uint32_t lock_id, uint64_t owner)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_client_lock(client);
    int status = dlk_book_set_lock_aside(&client->book, lock_id, owner);
    dlk_client_unlock(client);
    return status;
}

int dlk_client_add_object(struct dlk_client *client, uint32_t object_id, uint32_t slot)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_client_lock(client);
    int status = dlk_book_add_object(&client->book, object_id, slot);
    dlk_client_unlock(client);
    return status;
}

int dlk_client_object_key(struct dlk_client *client, uint32_t object_id, uint32_t key)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_client_lock(client);
    int status = dlk_book_object_key(&client->book, object_id, key);
    uint64_t now_ns = dlk_now_ns();
    if (status == DLK_STATUS_SUCCESS && key == 0 && client->up
        && !dlk_wait_operated(client, object_id, now_ns,
                              now_ns + (uint64_t)client->slice_ms * DLK_NS_PER_MS)) {
        status = DLK_STATUS_PENDING;
    }
    dlk_client_unlock(client);
    return status;
}

int dlk_client_drop_object(struct dlk_client *client, uint32_t object_id)
{
    if (dlk_client_forked(client)) {
        return DLK_STATUS_FORKED;
    }
    dlk_client_lock(client);
    int status = dlk_book_drop_object(&client->book, object_id);
    dlk_client_unlock(client);
    return status;
}

void dlk_client_unverify(struct dlk_client *client)
{
    if (dlk_client_forked(client)) {
        return;
    }
    dlk_client_lock(client);
    dlk_book_unverify(&client->book);
    dlk_client_unlock(client);
}

uint64_t dlk_client_session_left_ms(struct dlk_client *client)
{
    if (dlk_client_forked(client)) {
        return 0;
    }
    dlk_client_lock(client);
    uint64_t left_ms = dlk_book_session_left_ms(&client->book, dlk_now_ns());
    dlk_client_unlock(client);
    return left_ms;
}

void dlk_client_heard(struct dlk_client *client, uint32_t epoch, uint64_t sent_ns)
{
    if (dlk_client_forked(client)) {
        return;
    }
    dlk_client_lock(client);
    if (epoch == client->book.epoch && !client->book.removed) {
        dlk_book_renew(&client->book, sent_ns, DLK_RESULT_DONE, dlk_now_ns());
    }
    dlk_client_unlock(client);
}

uint64_t dlk_client_ignored(struct dlk_client *client)
{
    if (dlk_client_forked(client)) {
        return 0;
    }
    dlk_client_lock(client);
    uint64_t ignored = client->book.ignored;
    dlk_client_unlock(client);
    return ignored;
}
