/* What every data-plane frame must look like. Pure; docs/protocol.md has the same in tables. */
#include "codec.h"

#include <string.h>

uint32_t dlk_codec_attach(const void *frame, struct dlk_attach *attach)
{
    memcpy(attach, frame, sizeof(*attach));
    if (attach->op != DLK_OP_ATTACH || attach->magic != DLK_ATTACH_MAGIC) {
        return DLK_FAULT_MAGIC;
    }
    if (attach->version < DLK_PROTOCOL_VERSION_MIN || attach->version > DLK_PROTOCOL_VERSION_MAX) {
        return DLK_FAULT_VERSION;
    }
    if ((attach->pad | attach->reserved[0] | attach->reserved[1] | attach->reserved[2]) != 0) {
        return DLK_FAULT_RESERVED;
    }
    return DLK_FAULT_NONE;
}

uint32_t dlk_codec_request(struct dlk_request *request, uint32_t client_id, uint32_t session_slot)
{
    if (request->session != client_id) {
        return DLK_FAULT_CLIENT_ID;
    }
    if (request->op < DLK_OP_PING || request->op >= DLK_OP_COUNT) {
        return DLK_FAULT_OP;
    }
    if (request->mode >= DLK_MODE_COUNT) {
        return DLK_FAULT_MODE;
    }
    if ((request->flags & ~DLK_FLAG_ALL) != 0) {
        return DLK_FAULT_FLAGS;
    }
    if (request->reserved != 0) {
        return DLK_FAULT_RESERVED;
    }
    request->session = session_slot;
    return DLK_FAULT_NONE;
}

void dlk_codec_reply(struct dlk_reply *reply, uint32_t client_id)
{
    reply->session = client_id;
    reply->reserved = 0;
}
