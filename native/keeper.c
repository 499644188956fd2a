/*
 * The keeper: one thread a process that does for every client what must go on while nobody calls
 * (client_keep.c): heartbeats, renewals, and reading what is quiet. It sleeps until something is
 * due, until a connection that it watches is readable, or until it is poked, and then goes round
 * all clients, so that one slow server delays nobody. It may not call Python. Lock order: the list,
 * then a client. A poke takes neither.
 */
#include "client.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
    BELL = 0, /* what is watched in any case; 0 is no client's place */
    TIMER,
    FIRST_CLIENT,
    WATCHED_FIRST = 16,
    MAKESHIFT_NS = 100 * DLK_NS_PER_MS /* one sleep, when there was no descriptor or no memory */
};

static pthread_mutex_t list_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct dlk_client *list;
static bool running;
static bool stop_wanted;
static struct pollfd *watched; /* the keeper's own */
static size_t watched_room;
static size_t watched_count;
/* They stay for the life of the process: who pokes takes no mutex. */
static _Atomic int bell_fd = -1;
static int timer_fd = -1;

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
    const uint64_t once = 1;
    int fd = atomic_load(&bell_fd);
    while (fd >= 0 && write(fd, &once, sizeof(once)) < 0 && errno == EINTR) {
    }
}

/* The child has one thread, no keeper, and none of the parent's clients. The mutex may have been
 * held by a thread that does not exist here; the bell would wake the parent. */
void dlk_keeper_after_fork(void)
{
    list_mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    list = NULL;
    running = false;
    stop_wanted = false;
    watched = NULL; /* what the parent's keeper was doing with it is not known */
    watched_room = 0;
    int fd = atomic_exchange(&bell_fd, -1);
    if (fd >= 0) {
        close(fd);
    }
    if (timer_fd >= 0) {
        close(timer_fd);
        timer_fd = -1;
    }
}

/* ---- Sleeping ---- */

static void open_descriptors(void)
{
    if (atomic_load(&bell_fd) < 0) {
        atomic_store(&bell_fd, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    }
    if (timer_fd < 0) {
        timer_fd = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK | TFD_CLOEXEC);
    }
}

static void clear(int fd)
{
    uint64_t count;
    while (fd >= 0 && read(fd, &count, sizeof(count)) < 0 && errno == EINTR) {
    }
}

/* By the clock that goes on while the machine sleeps. False: there is no timer. */
static bool set_timer(uint64_t due_ns)
{
    struct itimerspec at = {0};
    if (due_ns != DLK_NEVER_NS) {
        due_ns = due_ns != 0 ? due_ns : 1; /* 0 would never ring */
        at.it_value = (struct timespec){.tv_sec = (time_t)(due_ns / DLK_NS_PER_S),
                                        .tv_nsec = (long)(due_ns % DLK_NS_PER_S)};
    }
    return timer_fd >= 0 && timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL) == 0;
}

/* With the list's mutex free. A watched descriptor may be closed, and even another's, meanwhile:
 * then this only goes round once in vain. */
static void sleep_until(uint64_t due_ns)
{
    struct pollfd *fds = watched;
    struct pollfd alone[FIRST_CLIENT];
    const struct timespec makeshift = {.tv_nsec = MAKESHIFT_NS};
    int bell = atomic_load(&bell_fd);
    bool timed = set_timer(due_ns) && bell >= 0;
    if (fds == NULL) {
        fds = alone; /* no client is watched */
    }
    fds[BELL] = (struct pollfd){.fd = bell, .events = POLLIN};
    fds[TIMER] = (struct pollfd){.fd = timer_fd, .events = POLLIN};
    pthread_mutex_unlock(&list_mutex);
    if (ppoll(fds, watched_count, timed ? NULL : &makeshift, NULL) < 0) {
        fds[BELL].revents = POLLIN; /* no memory: go round */
    }
    if (fds[BELL].revents != 0) {
        clear(bell);
    }
    if (fds[TIMER].revents != 0) {
        clear(timer_fd);
    }
    pthread_mutex_lock(&list_mutex);
}

/* ---- Going round ---- */

static bool make_room(void)
{
    if (watched_count < watched_room) {
        return true;
    }
    size_t room = watched_room == 0 ? WATCHED_FIRST : 2 * watched_room;
    struct pollfd *wider = realloc(watched, room * sizeof(*wider));
    if (wider == NULL) {
        return false;
    }
    watched = wider;
    watched_room = room;
    return true;
}

/* False: no memory to watch it. */
static bool watch(struct dlk_client *client, int fd)
{
    if (fd < 0) {
        return true;
    }
    if (!make_room()) {
        return false;
    }
    watched[watched_count] = (struct pollfd){.fd = fd, .events = POLLIN};
    client->keeper_place = watched_count++;
    return true;
}

/* What the sleep has found, before the places are given out anew. */
static void note_readable(void)
{
    for (struct dlk_client *client = list; client != NULL; client = client->keeper_next) {
        client->keeper_readable =
            client->keeper_place != 0 && watched[client->keeper_place].revents != 0;
        client->keeper_place = 0;
    }
}

static uint64_t go_round(void)
{
    uint64_t due_ns = DLK_NEVER_NS;
    note_readable();
    watched_count = FIRST_CLIENT;
    for (struct dlk_client *client = list; client != NULL; client = client->keeper_next) {
        struct dlk_kept kept = dlk_client_keep(client, client->keeper_readable);
        if (!watch(client, kept.watch_fd)) {
            uint64_t makeshift_ns = dlk_now_ns() + MAKESHIFT_NS;
            kept.again_ns = makeshift_ns < kept.again_ns ? makeshift_ns : kept.again_ns;
        }
        due_ns = kept.again_ns < due_ns ? kept.again_ns : due_ns;
    }
    return due_ns;
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
        open_descriptors();
        while (!stop_wanted) {
            sleep_until(go_round());
        }
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
    pthread_mutex_unlock(&list_mutex);
    dlk_keeper_poke();
}
