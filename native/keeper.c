/*
 * Heartbeats: one thread a process sends a PING for every attached client that has been idle for a
 * quarter of its session's life, and sends again the debts that a server was not ready for. It
 * submits for all and then looks for the answers, so that one slow server delays nobody. It may
 * not call Python. Lock order: the list, then a client.
 */
#include "client.h"

#include <signal.h>
#include <time.h>

static pthread_mutex_t list_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t list_changed = PTHREAD_COND_INITIALIZER;
static struct dlk_client *list;
static bool running;
static bool stop_wanted;
static bool look_again; /* a client has been attached */

void dlk_keeper_add(struct dlk_client *client)
{
    pthread_mutex_lock(&list_mutex);
    client->keeper_previous = NULL;
    client->keeper_next = list;
    if (list != NULL) {
        list->keeper_previous = client;
    }
    list = client;
    pthread_mutex_unlock(&list_mutex);
}

void dlk_keeper_remove(struct dlk_client *client)
{
    pthread_mutex_lock(&list_mutex);
    if (client->keeper_previous != NULL) {
        client->keeper_previous->keeper_next = client->keeper_next;
    } else {
        list = client->keeper_next;
    }
    if (client->keeper_next != NULL) {
        client->keeper_next->keeper_previous = client->keeper_previous;
    }
    pthread_mutex_unlock(&list_mutex);
}

void dlk_keeper_poke(void)
{
    pthread_mutex_lock(&list_mutex);
    look_again = true;
    pthread_cond_signal(&list_changed);
    pthread_mutex_unlock(&list_mutex);
}

/* The child has one thread, no keeper, and none of the parent's clients. The mutex may have been
 * held by a thread that does not exist here. */
void dlk_keeper_after_fork(void)
{
    list_mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    list_changed = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    list = NULL;
    running = false;
    stop_wanted = false;
    look_again = false;
}

/* Sleeps with the list's mutex free, for as long as nothing is due. */
static void sleep_until(uint64_t due_ns)
{
    struct timespec end;
    uint64_t now_ns = dlk_now_ns();
    if (due_ns == DLK_NEVER_NS) {
        pthread_cond_wait(&list_changed, &list_mutex);
        return;
    }
    uint64_t left_ns = due_ns > now_ns ? due_ns - now_ns : 0;
    clock_gettime(CLOCK_MONOTONIC, &end);
    left_ns += (uint64_t)end.tv_nsec;
    end.tv_sec += (time_t)(left_ns / DLK_NS_PER_S);
    end.tv_nsec = (long)(left_ns % DLK_NS_PER_S);
    pthread_cond_clockwait(&list_changed, &list_mutex, CLOCK_MONOTONIC, &end);
}

static void keep_all(void)
{
    while (!stop_wanted) {
        uint64_t due_ns = DLK_NEVER_NS;
        look_again = false;
        for (struct dlk_client *client = list; client != NULL; client = client->keeper_next) {
            uint64_t again_ns = dlk_client_keep(client, dlk_now_ns());
            due_ns = again_ns < due_ns ? again_ns : due_ns;
        }
        if (!stop_wanted && !look_again) {
            sleep_until(due_ns);
        }
    }
}

int dlk_keeper_run(void)
{
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_mutex_lock(&list_mutex);
    bool may_run = !running;
    if (may_run) {
        running = true;
        keep_all();
        running = false;
        stop_wanted = false;
    }
    pthread_mutex_unlock(&list_mutex);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return may_run ? DLK_STATUS_SUCCESS : DLK_STATUS_ERROR;
}

void dlk_keeper_stop(void)
{
    pthread_mutex_lock(&list_mutex);
    stop_wanted = true;
    pthread_cond_signal(&list_changed);
    pthread_mutex_unlock(&list_mutex);
}
