/* Sizes and offsets that other machines and other compilers rely on. */
#include "abi_client.h"

#include <assert.h>
#include <string.h>

static_assert(sizeof(struct dlk_request) == DLK_FRAME_BYTES, "request frame");
static_assert(sizeof(struct dlk_attach) == DLK_FRAME_BYTES, "attach frame");
static_assert(sizeof(struct dlk_reply) == DLK_FRAME_BYTES, "reply frame");
static_assert(sizeof(struct dlk_command) == 64, "command");
static_assert(sizeof(struct dlk_event) == 32, "event");
static_assert(sizeof(struct dlk_claim) == 80, "claim");
static_assert(sizeof(struct dlk_kept) == 16, "kept");
static_assert(offsetof(struct dlk_request, owner) == 24, "request layout");
static_assert(offsetof(struct dlk_request, reserved) == 56, "request layout");
static_assert(offsetof(struct dlk_reply, token) == 16, "reply layout");
static_assert(offsetof(struct dlk_reply, reserved) == 60, "reply layout");
static_assert(offsetof(struct dlk_attach, secret) == 24, "attach layout");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are copied as they lie");

uint32_t dlk_abi_version(void) { return DLK_ABI_VERSION; }
