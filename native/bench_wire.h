/*
 * How the load generator of the doors tells answers from each other: bytes in, answers out. Each
 * protocol is read just well enough to know where an answer ends and whether it is one; what it
 * must say is the caller's. Nothing here does I/O.
 */
#ifndef DLOCK_BENCH_WIRE_H
#define DLOCK_BENCH_WIRE_H

#include <stdbool.h>

#include "abi_bench.h"

enum dlk_bench_wire_size {
    DLK_BENCH_INBOX_BYTES = 4096,  /* an answer has to fit */
    DLK_BENCH_OUTBOX_BYTES = 1024, /* a request, and what HTTP/2 wants to be told besides */
    DLK_BENCH_HTTP2_DATA_BYTES = 512
};

/* What has been looked at: so many bytes are done with, and an answer was among them or not. */
struct dlk_bench_seen {
    size_t taken;
    bool answered;
    bool wrong; /* an answer, but not a good one */
    bool broken; /* this is not the protocol */
    const unsigned char *answer;
    size_t answer_bytes;
};

/* What is to be sent. */
struct dlk_bench_outbox {
    size_t bytes;
    unsigned char data[DLK_BENCH_OUTBOX_BYTES];
};

/* One connection of HTTP/2, as far as a client with one request under way has to know it. */
struct dlk_bench_http2 {
    uint32_t next_stream;
    uint32_t stream;      /* under way; 0: none */
    int64_t window_bytes; /* that the server still takes */
    bool refused;         /* this answer came in a form that is none */
    size_t data_bytes;
    unsigned char data[DLK_BENCH_HTTP2_DATA_BYTES];
};

struct dlk_bench_seen dlk_bench_line(const unsigned char *bytes, size_t length);
struct dlk_bench_seen dlk_bench_http(const unsigned char *bytes, size_t length);

void dlk_bench_http2_init(struct dlk_bench_http2 *http2);
/* Numbers the stream of a request of whole frames; false if the server takes no more bytes now. */
bool dlk_bench_http2_ask(struct dlk_bench_http2 *http2, unsigned char *frames, size_t length);
/* At most one frame. Answers to SETTINGS and PING go to the outbox. */
struct dlk_bench_seen dlk_bench_http2_take(struct dlk_bench_http2 *http2,
                                           const unsigned char *bytes, size_t length,
                                           struct dlk_bench_outbox *outbox);
/* Room for all the bytes, or nothing is done and false. */
bool dlk_bench_put(struct dlk_bench_outbox *outbox, const unsigned char *bytes, size_t length);

#endif
