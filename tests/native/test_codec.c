/* Every field that the codec checks is rejected alone, and what it accepts comes out whole. */
#include "codec.h"

#include <assert.h>
#include <string.h>

enum { CLIENT_ID = 4711, SLOT = 12 };

static struct dlk_attach good_attach(void)
{
    return (struct dlk_attach){
        .request_id = 7,
        .op = DLK_OP_ATTACH,
        .version = DLK_PROTOCOL_VERSION_MAX,
        .client_id = CLIENT_ID,
        .session_slot = SLOT,
        .attach = 3,
        .magic = DLK_ATTACH_MAGIC,
        .secret = "fifteen letters",
    };
}

static uint32_t attach_fault(const struct dlk_attach *attach)
{
    unsigned char unaligned[DLK_FRAME_BYTES + 1];
    struct dlk_attach decoded;
    uint32_t fault;

    memcpy(unaligned + 1, attach, DLK_FRAME_BYTES);
    fault = dlk_codec_attach(unaligned + 1, &decoded);
    assert(memcmp(&decoded, attach, sizeof(decoded)) == 0);
    return fault;
}

static void attach_frames(void)
{
    struct dlk_attach frame = good_attach();

    assert(memcmp("dolk", &frame.magic, 4) == 0); /* as it reads in a packet dump */
    assert(attach_fault(&frame) == DLK_FAULT_NONE);
    for (unsigned op = 0; op < 256; op++) {
        frame.op = (uint8_t)op;
        assert((attach_fault(&frame) == DLK_FAULT_MAGIC) == (op != DLK_OP_ATTACH));
    }
    frame = good_attach();
    frame.magic ^= 1;
    assert(attach_fault(&frame) == DLK_FAULT_MAGIC);
    frame = good_attach();
    frame.version = DLK_PROTOCOL_VERSION_MAX + 1;
    assert(attach_fault(&frame) == DLK_FAULT_VERSION);
    frame.version = DLK_PROTOCOL_VERSION_MIN - 1;
    assert(attach_fault(&frame) == DLK_FAULT_VERSION);
    frame = good_attach();
    frame.pad = 1;
    assert(attach_fault(&frame) == DLK_FAULT_RESERVED);
    for (int i = 0; i < 3; i++) {
        frame = good_attach();
        frame.reserved[i] = (uint64_t)1 << 63;
        assert(attach_fault(&frame) == DLK_FAULT_RESERVED);
    }
}

static struct dlk_request good_request(void)
{
    return (struct dlk_request){
        .request_id = 9,
        .op = DLK_OP_LOCK,
        .mode = DLK_MODE_SHARED,
        .flags = DLK_FLAG_ALL,
        .session = CLIENT_ID,
        .lock_id = 0xffffffff,
        .slot = 0xffffffff,
        .entry = DLK_NONE,
        .owner = UINT64_MAX,
        .token = UINT64_MAX,
        .value = UINT64_MAX,
        .lease_ms = 0xffffffff,
        .wait_ms = DLK_WAIT_FOREVER,
    };
}

static uint32_t request_fault(struct dlk_request request)
{
    struct dlk_request before = request;
    uint32_t fault = dlk_codec_request(&request, CLIENT_ID, SLOT);

    if (fault == DLK_FAULT_NONE) {
        assert(request.session == SLOT);
        before.session = SLOT;
    }
    assert(memcmp(&request, &before, sizeof(request)) == 0); /* nothing else is touched */
    return fault;
}

static void requests(void)
{
    struct dlk_request request = good_request();

    for (unsigned op = 0; op < 256; op++) {
        request.op = (uint8_t)op;
        assert((request_fault(request) == DLK_FAULT_NONE)
               == (op >= DLK_OP_PING && op < DLK_OP_COUNT));
    }
    request = good_request();
    for (unsigned mode = 0; mode < 256; mode++) {
        request.mode = (uint8_t)mode;
        assert((request_fault(request) == DLK_FAULT_MODE) == (mode >= DLK_MODE_COUNT));
    }
    request = good_request();
    for (unsigned flags = 0; flags < 65536; flags++) {
        request.flags = (uint16_t)flags;
        assert((request_fault(request) == DLK_FAULT_FLAGS) == (flags > DLK_FLAG_ALL));
    }
    request = good_request();
    request.session = CLIENT_ID + 1;
    assert(request_fault(request) == DLK_FAULT_CLIENT_ID);
    request = good_request();
    for (int bit = 0; bit < 64; bit++) {
        request.reserved = (uint64_t)1 << bit;
        assert(request_fault(request) == DLK_FAULT_RESERVED);
    }
}

static void replies(void)
{
    struct dlk_reply reply = {
        .request_id = 1, .result = DLK_RESULT_GRANTED, .session = SLOT, .token = 5, .reserved = 9};
    struct dlk_reply expected = reply;

    dlk_codec_reply(&reply, CLIENT_ID);
    expected.session = CLIENT_ID;
    expected.reserved = 0;
    assert(memcmp(&reply, &expected, sizeof(reply)) == 0);
}

static void every_fault_has_words(void)
{
    for (uint32_t fault = 0; fault < DLK_FAULT_COUNT; fault++) {
        assert(strlen(dlk_fault_text(fault)) > 3);
        assert(strcmp(dlk_fault_text(fault), dlk_fault_text(DLK_FAULT_COUNT)) != 0);
    }
}

int main(void)
{
    attach_frames();
    requests();
    replies();
    every_fault_has_words();
    return 0;
}
