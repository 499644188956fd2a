/*
 * The load generator of the doors: on each connection a conversation of requests that were written
 * beforehand, one under way, pieces of the answers put into later requests, every answer looked at.
 * One thread for all. It is the cheapest client that can be written, so that the server is what is
 * measured.
 */
#include "bench.h"
#include "bench_wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 256 };

struct talk {
    int fd;
    uint32_t ask;     /* under way, or the next one */
    bool under_way;
    bool held_back;   /* HTTP/2: the server takes no bytes now */
    bool spoilt;      /* an answer of this round was wrong */
    uint64_t sent_ns;
    unsigned char *bytes;
    unsigned char kept[DLK_BENCH_KEPT_MAX][DLK_BENCH_PIECE_BYTES_MAX];
    size_t inbox_bytes;
    unsigned char inbox[DLK_BENCH_INBOX_BYTES];
    struct dlk_bench_outbox outbox;
    struct dlk_bench_http2 http2;
};

struct generator {
    const struct dlk_bench_wire *wire;
    struct dlk_bench_result *result;
    struct talk *talks;
    int poll_set;
    uint32_t unsent;  /* talks with something left in the outbox */
    uint32_t busy;    /* with a request under way, or held back */
    uint32_t behind;  /* with fewer rounds than rounds_min */
    uint64_t now_ns;  /* as of the last receive */
    bool draining;    /* a round that has begun is finished, none is begun */
    int failed;
};

/* ---- What goes out ---- */

static void flush(struct generator *generator, struct talk *talk)
{
    struct dlk_bench_outbox *outbox = &talk->outbox;
    size_t sent = 0;
    while (sent < outbox->bytes) {
        ssize_t now = send(talk->fd, outbox->data + sent, outbox->bytes - sent,
                           MSG_DONTWAIT | MSG_NOSIGNAL);
        if (now < 0 && errno != EINTR) {
            generator->failed = errno == EAGAIN ? 0 : errno;
            break;
        }
        sent += now > 0 ? (size_t)now : 0;
    }
    outbox->bytes -= sent;
    if (outbox->bytes > 0) {
        memmove(outbox->data, outbox->data + sent, outbox->bytes);
        generator->unsent++; /* tried again in the next turn */
    }
}

/* The next request of this talk into its outbox; held back if HTTP/2 lets none through now. */
static void put(struct generator *generator, struct talk *talk)
{
    const struct dlk_bench_ask *ask = &generator->wire->ask[talk->ask];
    unsigned char *request = talk->bytes + ask->begin;
    talk->held_back = generator->wire->framing == DLK_BENCH_HTTP2
                      && !dlk_bench_http2_ask(&talk->http2, request, ask->length);
    if (talk->held_back) {
        return;
    }
    for (uint32_t i = 0; i < ask->patches; i++) {
        const struct dlk_bench_patch *patch = &ask->patch[i];
        memcpy(request + patch->offset, talk->kept[patch->kept], patch->bytes);
    }
    talk->under_way = true;
    talk->sent_ns = generator->now_ns;
    if (!dlk_bench_put(&talk->outbox, request, ask->length)) {
        generator->failed = ENOBUFS;
    }
}

/* ---- What comes in ---- */

static void sample(struct generator *generator, const struct talk *talk)
{
    const struct dlk_bench_wire *wire = generator->wire;
    struct dlk_bench_result *result = generator->result;
    if (wire->samples_ns != NULL && !generator->draining
        && result->samples < wire->samples_room) {
        uint64_t took_ns = generator->now_ns - talk->sent_ns;
        wire->samples_ns[result->samples++] =
            took_ns < UINT32_MAX ? (uint32_t)took_ns : UINT32_MAX;
    }
}

/* Is the answer what was expected? Keeps its piece. */
static bool good(const struct dlk_bench_ask *ask, struct talk *talk, struct dlk_bench_seen seen)
{
    const unsigned char *end = seen.answer + seen.answer_bytes;
    if (seen.wrong
        || memmem(seen.answer, seen.answer_bytes, ask->expect, ask->expect_bytes) == NULL) {
        return false;
    }
    if (ask->piece_bytes == 0) {
        return true;
    }
    const unsigned char *marker =
        memmem(seen.answer, seen.answer_bytes, ask->marker, ask->marker_bytes);
    if (marker == NULL || (size_t)(end - marker) < ask->marker_bytes + ask->piece_bytes) {
        return false;
    }
    memcpy(talk->kept[ask->kept], marker + ask->marker_bytes, ask->piece_bytes);
    return true;
}

static void round_over(struct generator *generator, struct talk *talk)
{
    uint64_t *count = &generator->wire->counts[talk - generator->talks];
    if (!talk->spoilt) {
        generator->behind -= ++*count == generator->wire->rounds_min;
        generator->result->count += !generator->draining;
    }
    talk->spoilt = false;
}

static void answered(struct generator *generator, struct talk *talk, struct dlk_bench_seen seen)
{
    const struct dlk_bench_wire *wire = generator->wire;
    if (!talk->under_way) {
        generator->result->errors++; /* it was not asked */
        return;
    }
    talk->under_way = false;
    sample(generator, talk);
    if (!good(&wire->ask[talk->ask], talk, seen)) {
        generator->result->errors++;
        talk->spoilt = true;
    }
    if (++talk->ask == wire->asks) {
        talk->ask = wire->repeat_from;
        round_over(generator, talk);
    }
    if (generator->draining && talk->ask == wire->repeat_from) {
        generator->busy--;
    } else {
        put(generator, talk);
    }
}

static struct dlk_bench_seen look(struct generator *generator, struct talk *talk, size_t at)
{
    const unsigned char *bytes = talk->inbox + at;
    size_t length = talk->inbox_bytes - at;
    switch (generator->wire->framing) {
    case DLK_BENCH_LINES:
        return dlk_bench_line(bytes, length);
    case DLK_BENCH_HTTP:
        return dlk_bench_http(bytes, length);
    default:
        return dlk_bench_http2_take(&talk->http2, bytes, length, &talk->outbox);
    }
}

/* All that lies in the inbox. */
static void read_inbox(struct generator *generator, struct talk *talk)
{
    size_t at = 0;
    while (at < talk->inbox_bytes && generator->failed == 0) {
        struct dlk_bench_seen seen = look(generator, talk, at);
        if (seen.broken || (seen.taken == 0 && talk->inbox_bytes - at == sizeof(talk->inbox))) {
            generator->failed = seen.broken ? EPROTO : EMSGSIZE;
        }
        if (seen.taken == 0) {
            break;
        }
        at += seen.taken;
        if (seen.answered) {
            answered(generator, talk, seen);
        } else if (talk->held_back) {
            put(generator, talk);
        }
    }
    talk->inbox_bytes -= at;
    memmove(talk->inbox, talk->inbox + at, talk->inbox_bytes);
}

static void take(struct generator *generator, struct talk *talk, int flags)
{
    ssize_t received = recv(talk->fd, talk->inbox + talk->inbox_bytes,
                            sizeof(talk->inbox) - talk->inbox_bytes, flags);
    if (received <= 0) {
        if (received == 0 || (errno != EAGAIN && errno != EINTR)) {
            generator->failed = received == 0 ? ECONNRESET : errno;
        }
        return;
    }
    generator->now_ns = dlk_now_ns();
    talk->inbox_bytes += (size_t)received;
    read_inbox(generator, talk);
    if (talk->outbox.bytes > 0) {
        flush(generator, talk);
    }
}

/* ---- Its turns ---- */

static void take_all(struct generator *generator, int timeout_ms)
{
    struct epoll_event events[EVENTS];
    if (generator->unsent > 0) {
        generator->unsent = 0;
        for (uint32_t i = 0; i < generator->wire->connections; i++) {
            flush(generator, &generator->talks[i]);
        }
        timeout_ms = 1;
    }
    int count = epoll_wait(generator->poll_set, events, EVENTS, timeout_ms);
    for (int i = 0; i < count && generator->failed == 0; i++) {
        take(generator, &generator->talks[events[i].data.u32], MSG_DONTWAIT);
    }
}

static void turn(struct generator *generator)
{
    const struct dlk_bench_wire *wire = generator->wire;
    bool blocks = wire->wait_mode == DLK_WAIT_BLOCK;
    if (wire->connections == 1 && generator->unsent == 0 && generator->busy > 0) {
        take(generator, generator->talks, blocks ? 0 : MSG_DONTWAIT); /* one system call less */
    } else {
        take_all(generator, blocks ? DLK_WAIT_SLICE_MS : 0);
    }
}

static bool over(const struct generator *generator, uint64_t end_ns)
{
    uint64_t patience_ns = (uint64_t)generator->wire->patience_ms * DLK_NS_PER_MS;
    bool enough = generator->behind == 0
                  && (generator->result->count > 0 || generator->result->errors > 0);
    return dlk_now_ns() >= end_ns + (enough ? 0 : patience_ns);
}

static void run(struct generator *generator)
{
    const struct dlk_bench_wire *wire = generator->wire;
    dlk_bench_begin(generator->result);
    uint64_t end_ns =
        generator->result->elapsed_ns + (uint64_t)wire->duration_ms * DLK_NS_PER_MS;
    for (uint32_t i = 0; i < wire->connections && generator->failed == 0; i++) {
        generator->now_ns = dlk_now_ns();
        (void)dlk_bench_put(&generator->talks[i].outbox, generator->talks[i].bytes,
                            wire->opening_bytes);
        generator->busy++;
        put(generator, &generator->talks[i]);
        flush(generator, &generator->talks[i]);
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

static bool sound_ask(const struct dlk_bench_wire *wire, const struct dlk_bench_ask *ask)
{
    bool sound = ask->length > 0 && ask->begin >= wire->opening_bytes
                 && ask->begin <= wire->bytes_each
                 && ask->length <= wire->bytes_each - ask->begin
                 && ask->length + wire->opening_bytes <= DLK_BENCH_OUTBOX_BYTES / 2
                 && ask->expect != NULL && ask->piece_bytes <= DLK_BENCH_PIECE_BYTES_MAX
                 && ask->kept < DLK_BENCH_KEPT_MAX && ask->patches <= DLK_BENCH_PATCHES_MAX
                 && (ask->piece_bytes == 0 || ask->marker != NULL);
    for (uint32_t i = 0; sound && i < ask->patches; i++) {
        const struct dlk_bench_patch *patch = &ask->patch[i];
        sound = patch->kept < DLK_BENCH_KEPT_MAX && patch->bytes <= DLK_BENCH_PIECE_BYTES_MAX
                && patch->offset <= ask->length && patch->bytes <= ask->length - patch->offset;
    }
    return sound;
}

static bool sound(const struct dlk_bench_wire *wire)
{
    bool sound = wire->connections > 0 && wire->connections <= DLK_MAX_CLIENTS_LIMIT
                 && wire->framing <= DLK_BENCH_HTTP2 && wire->wait_mode != DLK_WAIT_ADAPTIVE
                 && wire->asks > 0 && wire->asks <= DLK_BENCH_ASKS_MAX
                 && wire->repeat_from < wire->asks && wire->fds != NULL && wire->ask != NULL
                 && wire->bytes != NULL && wire->counts != NULL;
    for (uint32_t i = 0; sound && i < wire->asks; i++) {
        sound = sound_ask(wire, &wire->ask[i]);
    }
    return sound;
}

static int generator_init(struct generator *generator)
{
    const struct dlk_bench_wire *wire = generator->wire;
    generator->talks = calloc(wire->connections, sizeof(struct talk));
    generator->poll_set = epoll_create1(EPOLL_CLOEXEC);
    if (generator->talks == NULL || generator->poll_set < 0) {
        return generator->talks == NULL ? ENOMEM : errno;
    }
    generator->behind = wire->rounds_min > 0 ? wire->connections : 0;
    for (uint32_t i = 0; i < wire->connections; i++) {
        struct talk *talk = &generator->talks[i];
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        talk->fd = wire->fds[i];
        talk->bytes = wire->bytes + (size_t)i * wire->bytes_each;
        dlk_bench_http2_init(&talk->http2);
        wire->counts[i] = 0;
        if (epoll_ctl(generator->poll_set, EPOLL_CTL_ADD, talk->fd, &event) != 0) {
            return errno;
        }
    }
    return 0;
}

int dlk_bench_wire(const struct dlk_bench_wire *wire, struct dlk_bench_result *result)
{
    struct generator generator = {.wire = wire, .result = result, .poll_set = -1};
    if (!sound(wire)) {
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
    free(generator.talks);
    return failed;
}
