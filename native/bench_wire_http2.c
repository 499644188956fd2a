/*
 * HTTP/2 (RFC 9113) as a client with one request under way has to know it, so that a real server
 * goes on talking: its settings and pings are acknowledged, its windows kept. Headers are not
 * decoded: an answer without DATA, or a stream that is reset, is a wrong one, and the rest is said
 * in the DATA.
 */
#include "bench_wire.h"

#include <string.h>

enum frame_type {
    FRAME_DATA = 0, FRAME_HEADERS = 1, FRAME_RST_STREAM = 3, FRAME_SETTINGS = 4, FRAME_PING = 6,
    FRAME_GOAWAY = 7, FRAME_WINDOW_UPDATE = 8
};

enum {
    HEAD_BYTES = 9, TYPE_AT = 3, FLAGS_AT = 4, STREAM_AT = 5, PING_BYTES = 8,
    FLAG_END_STREAM = 1, FLAG_ACK = 1, FLAG_PADDED = 8, WINDOW_BYTES = 65535,
    STREAM_MASK = 0x7fffffff
};

static uint32_t number(const unsigned char *bytes, size_t count)
{
    uint32_t value = 0;
    for (size_t i = 0; i < count; i++) {
        value = value << 8 | bytes[i];
    }
    return value;
}

static void put_stream(unsigned char *frame, uint32_t stream)
{
    for (uint32_t i = 0; i < 4; i++) {
        frame[STREAM_AT + i] = (unsigned char)(stream >> (24 - 8 * i));
    }
}

void dlk_bench_http2_init(struct dlk_bench_http2 *http2)
{
    http2->next_stream = 1;
    http2->stream = 0;
    http2->window_bytes = WINDOW_BYTES;
    http2->refused = false;
    http2->data_bytes = 0;
}

bool dlk_bench_http2_ask(struct dlk_bench_http2 *http2, unsigned char *frames, size_t length)
{
    uint32_t data_bytes = 0;
    for (size_t at = 0; at + HEAD_BYTES <= length; at += HEAD_BYTES + number(frames + at, 3)) {
        data_bytes += frames[at + TYPE_AT] == FRAME_DATA ? number(frames + at, 3) : 0;
        put_stream(frames + at, http2->next_stream);
    }
    if (http2->window_bytes < data_bytes || http2->next_stream > STREAM_MASK) {
        return false;
    }
    http2->window_bytes -= data_bytes;
    http2->stream = http2->next_stream;
    http2->next_stream += 2;
    http2->data_bytes = 0;
    http2->refused = false;
    return true;
}

static bool keep_data(struct dlk_bench_http2 *http2, const unsigned char *payload, size_t length,
                      uint32_t flags)
{
    if ((flags & FLAG_PADDED) != 0) {
        if (length == 0 || (size_t)payload[0] + 1 > length) {
            return false;
        }
        length -= (size_t)payload[0] + 1;
        payload++;
    }
    if (length > sizeof(http2->data) - http2->data_bytes) {
        return false;
    }
    memcpy(http2->data + http2->data_bytes, payload, length);
    http2->data_bytes += length;
    return true;
}

/* A frame of the connection itself; false if it cannot go on. */
static bool of_connection(struct dlk_bench_http2 *http2, const unsigned char *frame,
                          size_t payload_bytes, struct dlk_bench_outbox *outbox)
{
    static const unsigned char acknowledged[HEAD_BYTES] = {0, 0, 0, FRAME_SETTINGS, FLAG_ACK};
    unsigned char pong[HEAD_BYTES + PING_BYTES] = {0, 0, PING_BYTES, FRAME_PING, FLAG_ACK};
    uint32_t type = frame[TYPE_AT];
    bool answer = (frame[FLAGS_AT] & FLAG_ACK) == 0;
    if (type == FRAME_SETTINGS && answer) {
        return dlk_bench_put(outbox, acknowledged, sizeof(acknowledged));
    }
    if (type == FRAME_PING && answer) {
        memcpy(pong + HEAD_BYTES, frame + HEAD_BYTES, PING_BYTES);
        return payload_bytes == PING_BYTES && dlk_bench_put(outbox, pong, sizeof(pong));
    }
    if (type == FRAME_WINDOW_UPDATE && payload_bytes == 4) {
        http2->window_bytes += number(frame + HEAD_BYTES, 4) & STREAM_MASK;
    }
    return type != FRAME_GOAWAY;
}

struct dlk_bench_seen dlk_bench_http2_take(struct dlk_bench_http2 *http2,
                                           const unsigned char *bytes, size_t length,
                                           struct dlk_bench_outbox *outbox)
{
    struct dlk_bench_seen seen = {.answer = http2->data};
    if (length < HEAD_BYTES || length - HEAD_BYTES < number(bytes, 3)) {
        return seen;
    }
    size_t payload_bytes = number(bytes, 3);
    uint32_t type = bytes[TYPE_AT];
    uint32_t flags = bytes[FLAGS_AT];
    uint32_t stream = number(bytes + STREAM_AT, 4) & STREAM_MASK;
    seen.taken = HEAD_BYTES + payload_bytes;
    if (stream == 0) {
        seen.broken = !of_connection(http2, bytes, payload_bytes, outbox);
    } else if (stream == http2->stream) {
        bool data = type == FRAME_DATA;
        bool reset = type == FRAME_RST_STREAM;
        if (reset || (data && !keep_data(http2, bytes + HEAD_BYTES, payload_bytes, flags))) {
            http2->refused = true;
        }
        if (reset || ((data || type == FRAME_HEADERS) && (flags & FLAG_END_STREAM) != 0)) {
            http2->stream = 0;
            seen.answered = true;
            seen.wrong = http2->refused;
            seen.answer_bytes = http2->data_bytes;
        }
    } else {
        /* What still comes of a stream that is over: a server may say its window, or reset it. */
        seen.broken = type == FRAME_DATA || type == FRAME_HEADERS;
    }
    return seen;
}
