/*
 * Data-plane frames <-> requests and replies: what must hold for any frame is checked here, once,
 * and nowhere behind. Frames are little-endian and are copied as they lie in memory (abi_check.c
 * asserts both). Knows nothing of connections: whose frame it is, is an argument. Pure.
 */
#ifndef DLOCK_CODEC_H
#define DLOCK_CODEC_H

#include "dlock_abi.h"

/* All answer DLK_FAULT_NONE or what is wrong (enum dlk_fault). */

/* The first frame of a connection. `attach` is filled whatever the answer. */
uint32_t dlk_codec_attach(const void *frame, struct dlk_attach *attach);
/* A later one, in place: `session` is checked to be this client's id and becomes its slot. */
uint32_t dlk_codec_request(struct dlk_request *request, uint32_t client_id, uint32_t session_slot);
/* A reply on its way out, in place: `session` becomes the client id. */
void dlk_codec_reply(struct dlk_reply *reply, uint32_t client_id);

#endif
