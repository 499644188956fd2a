/*
 * The load generator: raw frames on connections that are already attached, a window of requests
 * under way on each, every answer checked. It is the cheapest client that can be written, so that
 * the server is what is measured. Against dlk_bench_echo it measures the floor in the same way.
 */
#include "bench.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 256, INBOX_BYTES_MAX = 65536 };

enum item_state { ITEM_IDLE = 0, ITEM_LOCKING, ITEM_UNLOCKING, ITEM_ECHOED };

/* One request of a window. It is under way at most once, so its number is its request id. */
struct item {
    uint64_t token;
    uint64_t sent_ns;
    uint32_t entry;
    uint8_t state; /* enum item_state */
};

struct connection {
    int fd;
    uint32_t busy; /* items under way */
    struct item *items;
    unsigned char *inbox;
    size_t inbox_bytes;
    unsigned char *outbox; /* room for a frame of every item */
    size_t outbox_bytes;
};

struct generator {
    const struct dlk_bench_load *load;
    struct dlk_bench_result *result;
    struct connection *connections;
    struct item *items;
    unsigned char *boxes;
    size_t inbox_room;
    int poll_set;
    uint32_t unsent; /* connections with something in the outbox */
    uint64_t busy;
    uint64_t now_ns;       /* as of the last receive, when samples are taken */
    uint64_t released_ns;  /* when the last UNLOCK was put out; 0: somebody holds */
    bool draining;
    int failed;
};

/* ---- What goes out ---- */

static void put(struct generator *generator, uint32_t number, uint32_t k, uint32_t op)
{
    const struct dlk_bench_load *load = generator->load;
    struct connection *connection = &generator->connections[number];
    struct item *item = &connection->items[k];
    struct dlk_request request = {
        .request_id = k,
        .op = (uint8_t)op,
        .mode = (uint8_t)load->mode,
        .entry = DLK_NONE,
        .owner = k,
    };
    if (load->work == DLK_BENCH_PAIRS) {
        size_t lock = (size_t)number * load->window + k;
        request.session = load->client_ids[number];
        request.lock_id = load->lock_ids[lock];
        request.slot = load->slots[lock];
        if (op == DLK_OP_LOCK) {
            request.lease_ms = load->lease_ms;
            request.wait_ms = load->wait_ms;
        } else {
            request.entry = item->entry;
            request.token = item->token;
        }
    }
    item->state = op == DLK_OP_LOCK     ? ITEM_LOCKING
                  : op == DLK_OP_UNLOCK ? ITEM_UNLOCKING
                                        : ITEM_ECHOED;
    item->sent_ns = generator->now_ns;
    memcpy(connection->outbox + connection->outbox_bytes, &request, sizeof(request));
    connection->outbox_bytes += sizeof(request);
    connection->busy++;
    generator->busy++;
}

static void begin(struct generator *generator, uint32_t number, uint32_t k)
{
    bool pairs = generator->load->work == DLK_BENCH_PAIRS;
    generator->connections[number].items[k].state = ITEM_IDLE;
    if (!generator->draining) {
        put(generator, number, k, pairs ? DLK_OP_LOCK : DLK_OP_PING);
    }
}

static void flush(struct generator *generator, struct connection *connection)
{
    size_t sent = 0;
    while (sent < connection->outbox_bytes) {
        ssize_t now = send(connection->fd, connection->outbox + sent,
                           connection->outbox_bytes - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (now < 0 && errno != EINTR) {
            generator->failed = errno == EAGAIN ? 0 : errno;
            break;
        }
        sent += now > 0 ? (size_t)now : 0;
    }
    connection->outbox_bytes -= sent;
    if (connection->outbox_bytes > 0) {
        memmove(connection->outbox, connection->outbox + sent, connection->outbox_bytes);
        generator->unsent++; /* tried again in the next turn */
    }
}

/* ---- What comes in ---- */

static void sample(struct generator *generator, uint64_t since_ns)
{
    const struct dlk_bench_load *load = generator->load;
    struct dlk_bench_result *result = generator->result;
    if (load->samples_ns != NULL && !generator->draining
        && result->samples < load->samples_room) {
        uint64_t took_ns = generator->now_ns - since_ns;
        load->samples_ns[result->samples++] =
            took_ns < UINT32_MAX ? (uint32_t)took_ns : UINT32_MAX;
    }
}

static void counted(struct generator *generator, uint32_t number, uint32_t k)
{
    if (!generator->draining) {
        generator->result->count++;
        generator->load->counts[number]++;
    }
    begin(generator, number, k);
}

static void granted(struct generator *generator, uint32_t number, const struct dlk_reply *reply)
{
    struct item *item = &generator->connections[number].items[reply->request_id];
    item->token = reply->token;
    item->entry = reply->entry;
    if (generator->load->hand_over && generator->released_ns != 0) {
        sample(generator, generator->released_ns);
    } else if (!generator->load->hand_over) {
        sample(generator, item->sent_ns);
    }
    put(generator, number, reply->request_id, DLK_OP_UNLOCK);
    generator->released_ns = generator->now_ns;
}

/* An answer to something that is under way, or an error. */
static void answered(struct generator *generator, uint32_t number, const struct dlk_reply *reply)
{
    struct connection *connection = &generator->connections[number];
    uint32_t k = reply->request_id;
    if (k >= generator->load->window || connection->items[k].state == ITEM_IDLE) {
        generator->result->errors++;
        return;
    }
    struct item *item = &connection->items[k];
    if (item->state == ITEM_LOCKING && reply->result == DLK_RESULT_QUEUED) {
        return; /* its final answer follows */
    }
    connection->busy--;
    generator->busy--;
    if (item->state == ITEM_ECHOED) {
        sample(generator, item->sent_ns);
        counted(generator, number, k);
    } else if (item->state == ITEM_LOCKING && reply->result == DLK_RESULT_GRANTED) {
        granted(generator, number, reply);
    } else if (item->state == ITEM_UNLOCKING && reply->result == DLK_RESULT_RELEASED) {
        if (!generator->load->hand_over) {
            sample(generator, item->sent_ns);
        }
        counted(generator, number, k);
    } else {
        bool refused = item->state == ITEM_LOCKING
                       && (reply->result == DLK_RESULT_BUSY
                           || reply->result == DLK_RESULT_TIMED_OUT);
        generator->result->refused += refused;
        generator->result->errors += !refused;
        begin(generator, number, k);
    }
}

/* Takes what lies there and answers it with the next requests. */
static void take(struct generator *generator, uint32_t number, int flags)
{
    struct connection *connection = &generator->connections[number];
    ssize_t received = recv(connection->fd, connection->inbox + connection->inbox_bytes,
                            generator->inbox_room - connection->inbox_bytes, flags);
    if (received <= 0) {
        if (received == 0 || (errno != EAGAIN && errno != EINTR)) {
            generator->failed = received == 0 ? ECONNRESET : errno;
        }
        return;
    }
    if (generator->load->samples_ns != NULL) {
        generator->now_ns = dlk_now_ns();
    }
    connection->inbox_bytes += (size_t)received;
    size_t at = 0;
    for (; at + DLK_FRAME_BYTES <= connection->inbox_bytes; at += DLK_FRAME_BYTES) {
        struct dlk_reply reply;
        memcpy(&reply, connection->inbox + at, sizeof(reply));
        answered(generator, number, &reply);
    }
    connection->inbox_bytes -= at;
    memmove(connection->inbox, connection->inbox + at, connection->inbox_bytes);
    flush(generator, connection);
}

static void take_all(struct generator *generator, int timeout_ms)
{
    struct epoll_event events[EVENTS];
    if (generator->unsent > 0) {
        generator->unsent = 0;
        for (uint32_t i = 0; i < generator->load->connections; i++) {
            flush(generator, &generator->connections[i]);
        }
        timeout_ms = 0;
    }
    int count = epoll_wait(generator->poll_set, events, EVENTS, timeout_ms);
    for (int i = 0; i < count && generator->failed == 0; i++) {
        take(generator, events[i].data.u32, MSG_DONTWAIT);
    }
}

static void turn(struct generator *generator)
{
    const struct dlk_bench_load *load = generator->load;
    bool blocks = load->wait_mode == DLK_WAIT_BLOCK;
    if (load->connections == 1 && generator->unsent == 0 && (!blocks || !generator->draining)) {
        take(generator, 0, blocks ? 0 : MSG_DONTWAIT); /* one system call less */
    } else {
        take_all(generator, blocks ? DLK_WAIT_SLICE_MS : 0);
    }
}

static bool over(const struct generator *generator, uint64_t end_ns)
{
    uint64_t now_ns = dlk_now_ns();
    uint64_t duration_ns = (uint64_t)generator->load->duration_ms * DLK_NS_PER_MS;
    bool sampled = generator->load->samples_ns == NULL || generator->result->samples > 0;
    bool happened = generator->result->count > 0 && sampled;
    return now_ns >= end_ns + (happened ? 0 : DLK_BENCH_PATIENCE * duration_ns);
}

static void run(struct generator *generator)
{
    const struct dlk_bench_load *load = generator->load;
    uint64_t duration_ns = (uint64_t)load->duration_ms * DLK_NS_PER_MS;
    dlk_bench_begin(generator->result);
    uint64_t end_ns = generator->result->elapsed_ns + duration_ns;
    generator->now_ns = generator->result->elapsed_ns;
    for (uint32_t number = 0; number < load->connections; number++) {
        for (uint32_t k = 0; k < load->window; k++) {
            begin(generator, number, k);
        }
        flush(generator, &generator->connections[number]);
    }
    while (generator->failed == 0 && !over(generator, end_ns)) {
        turn(generator);
    }
    dlk_bench_end(generator->result);
    generator->draining = true;
    end_ns = dlk_now_ns() + (uint64_t)DLK_BENCH_DRAIN_MS * DLK_NS_PER_MS;
    while (generator->failed == 0 && generator->busy > 0 && dlk_now_ns() < end_ns) {
        turn(generator);
    }
    generator->result->errors += generator->busy; /* never answered */
}

/* ---- Its life ---- */

static bool sound(const struct dlk_bench_load *load)
{
    return load->connections > 0 && load->connections <= DLK_MAX_CLIENTS_LIMIT && load->window > 0
           && load->window <= DLK_INFLIGHT_MAX && load->wait_mode != DLK_WAIT_ADAPTIVE
           && load->fds != NULL && load->counts != NULL
           && (load->work == DLK_BENCH_ECHO
               || (load->client_ids != NULL && load->lock_ids != NULL && load->slots != NULL));
}

static int generator_init(struct generator *generator)
{
    const struct dlk_bench_load *load = generator->load;
    size_t outbox_room = (size_t)load->window * DLK_FRAME_BYTES;
    /* A waiting request is answered twice. */
    generator->inbox_room =
        2 * outbox_room < INBOX_BYTES_MAX ? 2 * outbox_room : INBOX_BYTES_MAX;
    generator->connections = calloc(load->connections, sizeof(struct connection));
    generator->items = calloc((size_t)load->connections * load->window, sizeof(struct item));
    generator->boxes = calloc(load->connections, outbox_room + generator->inbox_room);
    generator->poll_set = epoll_create1(EPOLL_CLOEXEC);
    if (generator->connections == NULL || generator->items == NULL || generator->boxes == NULL) {
        return ENOMEM;
    }
    for (uint32_t i = 0; i < load->connections; i++) {
        struct connection *connection = &generator->connections[i];
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        connection->fd = load->fds[i];
        connection->items = generator->items + (size_t)i * load->window;
        connection->inbox = generator->boxes + i * (outbox_room + generator->inbox_room);
        connection->outbox = connection->inbox + generator->inbox_room;
        load->counts[i] = 0;
        if (epoll_ctl(generator->poll_set, EPOLL_CTL_ADD, connection->fd, &event) != 0) {
            return errno;
        }
    }
    return 0;
}

int dlk_bench_load(const struct dlk_bench_load *load, struct dlk_bench_result *result)
{
    struct generator generator = {.load = load, .result = result, .poll_set = -1};
    if (!sound(load)) {
        return EINVAL;
    }
    int failed = generator_init(&generator);
    if (failed == 0) {
        run(&generator);
        failed = generator.failed;
    }
    if (generator.poll_set >= 0) {
        close(generator.poll_set);
    }
    free(generator.connections);
    free(generator.items);
    free(generator.boxes);
    return failed;
}
