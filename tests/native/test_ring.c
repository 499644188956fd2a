/* The ring alone, and between two threads with the wake-up handshake: nothing is lost, doubled or
 * reordered, and nobody sleeps while something lies in the ring. */
#include "ring.h"

#include <assert.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { CAPACITY = 8, ITEMS = 100000, LOST_WAKE_UP_MS = 20000 };

struct item {
    uint64_t number;
    uint64_t check;
};

static void one_thread(void)
{
    struct dlk_ring ring;
    struct item item;

    assert(dlk_ring_init(&ring, sizeof(item), CAPACITY));
    for (uint64_t round = 0; round < 5; round++) {
        for (uint64_t i = 0; i < CAPACITY; i++) {
            item = (struct item){round * 100 + i, ~i};
            assert(dlk_ring_put(&ring, &item));
        }
        assert(!dlk_ring_put(&ring, &item));
        for (uint64_t i = 0; i < CAPACITY; i++) {
            assert(!dlk_ring_empty(&ring));
            assert(dlk_ring_take(&ring, &item));
            assert(item.number == round * 100 + i && item.check == ~i);
        }
        assert(dlk_ring_empty(&ring));
        assert(!dlk_ring_take(&ring, &item));
    }
    dlk_ring_free(&ring);
}

static void handshake(void)
{
    struct dlk_ring ring;
    struct item item = {0};

    assert(dlk_ring_init(&ring, sizeof(item), CAPACITY));
    assert(!dlk_ring_must_wake(&ring));
    assert(dlk_ring_may_sleep(&ring));
    assert(dlk_ring_put(&ring, &item));
    assert(dlk_ring_must_wake(&ring));
    assert(!dlk_ring_must_wake(&ring)); /* once for each sleep */
    assert(!dlk_ring_may_sleep(&ring));
    assert(!dlk_ring_must_wake(&ring));
    assert(dlk_ring_take(&ring, &item));
    assert(dlk_ring_may_sleep(&ring));
    dlk_ring_awake(&ring);
    assert(!dlk_ring_must_wake(&ring));
    dlk_ring_free(&ring);
}

struct pair {
    struct dlk_ring ring;
    int wake_fd;
};

static void *produce(void *argument)
{
    struct pair *pair = argument;
    uint64_t one = 1;

    for (uint64_t number = 0; number < ITEMS;) {
        struct item item = {number, ~number};
        if (!dlk_ring_put(&pair->ring, &item)) {
            continue;
        }
        number++;
        if (dlk_ring_must_wake(&pair->ring)) {
            assert(write(pair->wake_fd, &one, sizeof(one)) == sizeof(one));
        }
        if (number % 64 == 0) {
            usleep(1); /* so that the consumer really comes to sleep */
        }
    }
    return NULL;
}

static void two_threads(void)
{
    struct pair pair;
    pthread_t producer;
    uint64_t wake_ups;
    uint64_t sleeps = 0;

    assert(dlk_ring_init(&pair.ring, sizeof(struct item), CAPACITY));
    pair.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert(pair.wake_fd >= 0);
    assert(pthread_create(&producer, NULL, produce, &pair) == 0);
    for (uint64_t number = 0; number < ITEMS;) {
        struct item item;
        if (dlk_ring_take(&pair.ring, &item)) {
            assert(item.number == number && item.check == ~number);
            number++;
        } else if (dlk_ring_may_sleep(&pair.ring)) {
            struct pollfd polled = {.fd = pair.wake_fd, .events = POLLIN};
            assert(poll(&polled, 1, LOST_WAKE_UP_MS) == 1);
            assert(read(pair.wake_fd, &wake_ups, sizeof(wake_ups)) == sizeof(wake_ups));
            dlk_ring_awake(&pair.ring);
            sleeps++;
        }
    }
    assert(pthread_join(producer, NULL) == 0);
    assert(dlk_ring_empty(&pair.ring));
    assert(sleeps > 0);
    close(pair.wake_fd);
    dlk_ring_free(&pair.ring);
}

int main(void)
{
    one_thread();
    handshake();
    two_threads();
    return 0;
}
