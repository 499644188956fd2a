/*
 * Where an answer ends that is a line, or one of HTTP/1.1 with a Content-Length. Chunked bodies are
 * not read: no door sends them.
 */
#include "bench_wire.h"

#include <string.h>
#include <strings.h>

enum { STATUS_AT = 9, STATUS_LINE_BYTES_MIN = 12 }; /* "HTTP/1.1 200" */

bool dlk_bench_put(struct dlk_bench_outbox *outbox, const unsigned char *bytes, size_t length)
{
    if (length > sizeof(outbox->data) - outbox->bytes) {
        return false;
    }
    memcpy(outbox->data + outbox->bytes, bytes, length);
    outbox->bytes += length;
    return true;
}

struct dlk_bench_seen dlk_bench_line(const unsigned char *bytes, size_t length)
{
    struct dlk_bench_seen seen = {.answer = bytes};
    const unsigned char *end = memchr(bytes, '\n', length);
    if (end != NULL) {
        seen.answered = true;
        seen.answer_bytes = seen.taken = (size_t)(end - bytes) + 1;
    }
    return seen;
}

/* The number behind "Content-Length:" in the head; false without one. */
static bool body_bytes(const unsigned char *head, size_t length, size_t *bytes)
{
    static const char name[] = "\ncontent-length:";
    const unsigned char *end = head + length;
    const unsigned char *line = memchr(head, '\n', length);
    *bytes = 0;
    while (line != NULL && (size_t)(end - line) > sizeof(name)) {
        if (strncasecmp((const char *)line, name, sizeof(name) - 1) == 0) {
            const unsigned char *digit = line + sizeof(name) - 1;
            while (digit < end && *digit == ' ') {
                digit++;
            }
            bool any = false;
            for (; digit < end && *digit >= '0' && *digit <= '9' && *bytes < SIZE_MAX / 16;
                 digit++) {
                *bytes = *bytes * 10 + (size_t)(*digit - '0');
                any = true;
            }
            return any;
        }
        line = memchr(line + 1, '\n', (size_t)(end - line) - 1);
    }
    return false;
}

struct dlk_bench_seen dlk_bench_http(const unsigned char *bytes, size_t length)
{
    struct dlk_bench_seen seen = {.answer = bytes};
    const unsigned char *end = memmem(bytes, length, "\r\n\r\n", 4);
    if (end == NULL) {
        return seen;
    }
    size_t head = (size_t)(end - bytes) + 4;
    size_t body = 0;
    if (head < STATUS_LINE_BYTES_MIN || memcmp(bytes, "HTTP/1.1 ", STATUS_AT) != 0
        || !body_bytes(bytes, head, &body)) {
        seen.broken = true;
    } else if (body <= length - head) {
        seen.answered = true;
        seen.wrong = bytes[STATUS_AT] != '2';
        seen.answer_bytes = seen.taken = head + body;
    }
    return seen;
}
