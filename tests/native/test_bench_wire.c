/*
 * The load generator of the doors: where an answer ends in each framing, byte by byte; and against
 * servers in a thread that answer rightly, wrongly, not at all, or leave.
 */
#undef NDEBUG
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench_wire.h"

enum { TALKS = 3, KEY_BYTES = 8, DURATION_MS = 20, SAMPLES = 1024 };

static const unsigned char *bytes_of(const char *text)
{
    return (const unsigned char *)text;
}

/* ---- Framings ---- */

static void test_lines(void)
{
    const char *text = "1 yes\n0 no";
    struct dlk_bench_seen seen = dlk_bench_line(bytes_of(text), strlen(text));
    assert(seen.answered && !seen.wrong && seen.taken == 6 && seen.answer_bytes == 6);
    assert(!dlk_bench_line(bytes_of(text), 5).answered);
}

static void test_http(void)
{
    const char *whole = "HTTP/1.1 200 OK\r\nServer: x\r\nCONTENT-length:  5\r\n\r\nhelloHTTP";
    size_t length = strlen(whole) - 4;
    for (size_t known = 0; known < length; known++) {
        struct dlk_bench_seen part = dlk_bench_http(bytes_of(whole), known);
        assert(!part.answered && !part.broken && part.taken == 0);
    }
    struct dlk_bench_seen seen = dlk_bench_http(bytes_of(whole), length + 4);
    assert(seen.answered && !seen.wrong && seen.taken == length);
    const char *refused = "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n";
    seen = dlk_bench_http(bytes_of(refused), strlen(refused));
    assert(seen.answered && seen.wrong);
    const char *not_ours[] = {
        "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    };
    for (size_t i = 0; i < sizeof(not_ours) / sizeof(not_ours[0]); i++) {
        assert(dlk_bench_http(bytes_of(not_ours[i]), strlen(not_ours[i])).broken);
    }
}

static size_t frame(unsigned char *at, unsigned type, unsigned flags, unsigned stream,
                    const char *payload, size_t length)
{
    unsigned char head[9] = {0, (unsigned char)(length >> 8), (unsigned char)length,
                             (unsigned char)type, (unsigned char)flags, 0, 0,
                             (unsigned char)(stream >> 8), (unsigned char)stream};
    memcpy(at, head, sizeof(head));
    memcpy(at + sizeof(head), payload, length);
    return sizeof(head) + length;
}

static void test_http2(void)
{
    struct dlk_bench_http2 http2;
    struct dlk_bench_outbox outbox = {0};
    unsigned char request[64];
    unsigned char answer[256];
    size_t length = frame(request, 1, 4, 0, "head", 4);
    length += frame(request + length, 0, 1, 0, "data", 4);
    dlk_bench_http2_init(&http2);
    assert(dlk_bench_http2_ask(&http2, request, length));
    assert(request[8] == 1 && request[13 + 8] == 1 && http2.window_bytes == 65531);

    size_t whole = frame(answer, 4, 0, 0, "", 0);            /* SETTINGS */
    whole += frame(answer + whole, 6, 0, 0, "12345678", 8);  /* PING */
    whole += frame(answer + whole, 8, 0, 0, "\0\0\1\0", 4);  /* 256 bytes more */
    whole += frame(answer + whole, 1, 4, 1, "status", 6);
    whole += frame(answer + whole, 0, 8, 1, "\2good..", 7);  /* DATA, padded */
    whole += frame(answer + whole, 1, 5, 1, "trailers", 8);
    struct dlk_bench_seen seen = {0};
    size_t at = 0;
    for (size_t known = 0; known <= whole; known++) { /* byte by byte */
        seen = dlk_bench_http2_take(&http2, answer + at, known - at, &outbox);
        at += seen.taken;
        assert(!seen.broken && seen.answered == (known == whole));
    }
    assert(at == whole && !seen.wrong && seen.answer_bytes == 4);
    assert(memcmp(seen.answer, "good", 4) == 0 && http2.window_bytes == 65531 + 256);
    assert(outbox.bytes == 9 + 17 && outbox.data[3] == 4 && outbox.data[4] == 1);
    assert(outbox.data[12] == 6 && memcmp(outbox.data + 18, "12345678", 8) == 0);

    assert(dlk_bench_http2_ask(&http2, request, length) && request[8] == 3);
    whole = frame(answer, 3, 0, 3, "\0\0\0\1", 4); /* reset */
    seen = dlk_bench_http2_take(&http2, answer, whole, &outbox);
    assert(seen.answered && seen.wrong);
    whole = frame(answer, 0, 0, 3, "late", 4); /* DATA of a stream that is over */
    assert(dlk_bench_http2_take(&http2, answer, whole, &outbox).broken);
    whole = frame(answer, 7, 0, 0, "12345678", 8); /* GOAWAY */
    assert(dlk_bench_http2_take(&http2, answer, whole, &outbox).broken);
    http2.window_bytes = 3; /* less than the request has */
    assert(!dlk_bench_http2_ask(&http2, request, length));
}

/* ---- Against servers ---- */

enum manner { RIGHT, WRONG, WITHOUT_KEY, SILENT, LEAVING };

struct server {
    int fd;
    enum manner manner;
    uint32_t number;
    uint32_t pairs;
    uint32_t strange; /* requests that were none */
};

/* One request; what is answered. */
static void answer(struct server *server, const char *line, char *reply, size_t room)
{
    char key[KEY_BYTES + 1];
    (void)snprintf(key, sizeof(key), "%02u%06u", server->number, server->pairs);
    char give[32];
    char take[32];
    (void)snprintf(take, sizeof(take), "take %u\n", server->number);
    (void)snprintf(give, sizeof(give), "give %s %u\n", key, server->number);
    if (strcmp(line, take) == 0) {
        (void)snprintf(reply, room, server->manner == WITHOUT_KEY ? "yes\n" : "yes key=%s\n", key);
    } else if (strcmp(line, give) == 0) {
        server->pairs++;
        (void)snprintf(reply, room, server->manner == WRONG ? "no\n" : "yes\n");
    } else {
        server->strange++;
        (void)snprintf(reply, room, "what?\n");
    }
}

static void *serve(void *argument)
{
    struct server *server = argument;
    char line[64] = "";
    char reply[64];
    size_t length = 0;
    while (server->manner != LEAVING && recv(server->fd, line + length, 1, 0) == 1) {
        if (line[length++] != '\n' || server->manner == SILENT) {
            length = server->manner == SILENT ? 0 : length;
            continue;
        }
        line[length] = '\0';
        length = 0;
        answer(server, line, reply, sizeof(reply));
        /* In two pieces, as a network may. */
        assert(send(server->fd, reply, 2, MSG_NOSIGNAL) == 2);
        assert(send(server->fd, reply + 2, strlen(reply) - 2, MSG_NOSIGNAL) > 0);
    }
    close(server->fd);
    return NULL;
}

/* Talks to so many servers of this manner; what the generator returned. */
static int talk(enum manner manner, uint32_t talks, uint32_t rounds_min, struct server *servers,
                struct dlk_bench_result *result)
{
    static const char shape[] = "take 0\ngive ######## 0\n";
    unsigned char text[TALKS * (sizeof(shape) - 1)];
    struct dlk_bench_ask asks[] = {
        {.begin = 0, .length = 7, .expect = bytes_of("yes"), .expect_bytes = 3,
         .marker = bytes_of("key="), .marker_bytes = 4, .piece_bytes = KEY_BYTES, .kept = 1},
        {.begin = 7, .length = 16, .expect = bytes_of("yes"), .expect_bytes = 3, .patches = 1,
         .patch = {{.offset = 5, .bytes = KEY_BYTES, .kept = 1}}},
    };
    int32_t fds[TALKS];
    uint64_t counts[TALKS];
    uint32_t samples[SAMPLES];
    pthread_t threads[TALKS];
    for (uint32_t i = 0; i < talks; i++) {
        int ends[2];
        assert(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
        servers[i] = (struct server){.fd = ends[1], .manner = manner, .number = i};
        fds[i] = ends[0];
        memcpy(text + i * (sizeof(shape) - 1), shape, sizeof(shape) - 1);
        text[i * (sizeof(shape) - 1) + 5] += (unsigned char)i;
        text[i * (sizeof(shape) - 1) + 21] += (unsigned char)i;
        assert(pthread_create(&threads[i], NULL, serve, &servers[i]) == 0);
    }
    struct dlk_bench_wire wire = {.framing = DLK_BENCH_LINES, .wait_mode = DLK_WAIT_BLOCK,
                                  .connections = talks, .asks = 2,
                                  .bytes_each = sizeof(shape) - 1, .duration_ms = DURATION_MS,
                                  .rounds_min = rounds_min,
                                  .patience_ms = manner == SILENT ? 100 : 30000,
                                  .samples_room = SAMPLES, .fds = fds, .ask = asks,
                                  .bytes = text, .counts = counts, .samples_ns = samples};
    int failed = dlk_bench_wire(&wire, result);
    uint64_t total = 0;
    for (uint32_t i = 0; i < talks; i++) {
        close(fds[i]);
        pthread_join(threads[i], NULL);
        assert(failed != 0 || manner != RIGHT || counts[i] == servers[i].pairs);
        assert(failed != 0 || manner != RIGHT || counts[i] >= rounds_min);
        total += counts[i];
    }
    assert(failed != 0 || (total >= result->count && total <= result->count + talks));
    wire.asks = 0;
    assert(dlk_bench_wire(&wire, result) == EINVAL);
    return failed;
}

static void test_talks(void)
{
    struct server servers[TALKS];
    struct dlk_bench_result result;
    for (uint32_t talks = 1; talks <= TALKS; talks++) {
        assert(talk(RIGHT, talks, 5, servers, &result) == 0);
        assert(result.errors == 0 && result.count > 0 && result.samples > 0);
        for (uint32_t i = 0; i < talks; i++) {
            assert(servers[i].strange == 0 && servers[i].pairs >= 5);
        }
    }
    assert(talk(WRONG, TALKS, 0, servers, &result) == 0);
    assert(result.errors > 0 && result.count == 0);
    assert(talk(WITHOUT_KEY, 1, 0, servers, &result) == 0);
    assert(result.errors > 0 && result.count == 0 && servers[0].strange > 0);
    int left = talk(LEAVING, TALKS, 0, servers, &result);
    assert(left == ECONNRESET || left == EPIPE);
    assert(talk(SILENT, 2, 0, servers, &result) == 0);
    assert(result.errors == 2 && result.count == 0);
}

int main(void)
{
    test_lines();
    test_http();
    test_http2();
    test_talks();
    printf("done\n");
    return 0;
}
