/* The enums of the ABI in words. */
#include "dlock_abi.h"

const char *dlk_result_text(uint32_t result)
{
    static const char *const texts[DLK_RESULT_COUNT] = {
        [DLK_RESULT_DONE] = "done",
        [DLK_RESULT_GRANTED] = "granted",
        [DLK_RESULT_QUEUED] = "queued",
        [DLK_RESULT_TICKETED] = "busy, a ticket was taken",
        [DLK_RESULT_BUSY] = "busy",
        [DLK_RESULT_PASSED] = "the ticket was passed",
        [DLK_RESULT_TIMED_OUT] = "the wait is over",
        [DLK_RESULT_CANCELLED] = "cancelled",
        [DLK_RESULT_RELEASED] = "released",
        [DLK_RESULT_EXTENDED] = "extended",
        [DLK_RESULT_NOT_HELD] = "not held any more",
        [DLK_RESULT_NO_LOCK] = "no such lock",
        [DLK_RESULT_NO_OBJECT] = "no such object",
        [DLK_RESULT_CAS_FAILED] = "the object has another value",
        [DLK_RESULT_NOT_READY] = "the server does not grant yet",
        [DLK_RESULT_NO_RESOURCE] = "a table of the server is full",
        [DLK_RESULT_INVALID] = "a field is out of range",
        [DLK_RESULT_REMOVED] = "the session has ended",
        [DLK_RESULT_STOPPING] = "the server stops",
        [DLK_RESULT_REFUSED] = "the connection was refused",
        [DLK_RESULT_DEADLOCK] = "waiting would close a cycle",
        [DLK_RESULT_BROKEN] = "an operator takes the hold away",
        [DLK_RESULT_ACTION] = "to be carried out",
    };
    return result < DLK_RESULT_COUNT ? texts[result] : "unknown result";
}

const char *dlk_fault_text(uint32_t fault)
{
    static const char *const texts[DLK_FAULT_COUNT] = {
        [DLK_FAULT_NONE] = "nothing wrong",
        [DLK_FAULT_MAGIC] = "the first frame is no attach frame",
        [DLK_FAULT_VERSION] = "protocol version not spoken here",
        [DLK_FAULT_RESERVED] = "a field that must be 0 is not",
        [DLK_FAULT_REFUSED] = "unknown session, wrong secret, or an attach number used before",
        [DLK_FAULT_ATTACH_LATE] = "no attach frame in time",
        [DLK_FAULT_CLIENT_ID] = "a frame in the name of another client",
        [DLK_FAULT_OP] = "unknown operation",
        [DLK_FAULT_MODE] = "unknown mode",
        [DLK_FAULT_FLAGS] = "unknown flags",
        [DLK_FAULT_OUTPUT] = "too many answers unread",
    };
    return fault < DLK_FAULT_COUNT ? texts[fault] : "unknown fault";
}

struct status_text {
    int32_t status;
    const char *text;
};

const char *dlk_status_text(int32_t status)
{
    static const struct status_text texts[] = {
        {DLK_STATUS_ERROR, "error"},
        {DLK_STATUS_SUCCESS, "success"},
        {DLK_STATUS_DONE, "done"},
        {DLK_STATUS_EAGAIN, "try again"},
        {DLK_STATUS_ENOMEM, "out of memory"},
        {DLK_STATUS_ETIMEOUT, "timed out"},
        {DLK_STATUS_EINVAL, "invalid argument"},
        {DLK_STATUS_ETICKET, "a ticket of the other mode is held"},
        {DLK_STATUS_EASYNC, "an asynchronous operation runs"},
        {DLK_STATUS_CLIENT_NOT_INIT, "no such client"},
        {DLK_STATUS_LOCK_NOT_GET, "the client has not got this lock"},
        {DLK_STATUS_ALREADY_LOCKED, "already locked by this client"},
        {DLK_STATUS_ALREADY_UNLOCKED, "not locked by this client"},
        {DLK_STATUS_TICKET_TO_UNLOCK, "a ticket is held: unlock first"},
        {DLK_STATUS_BAD_RESPONSE, "no answer, or not a usable one, from the server"},
        {DLK_STATUS_FAIL, "taken by another, or lost"},
        {DLK_STATUS_CLIENTMGR_NOT_INIT, "the client library is not initialised"},
        {DLK_STATUS_NOT_READY, "the server does not serve yet"},
        {DLK_STATUS_NO_ASYNC, "no asynchronous operation runs"},
        {DLK_STATUS_ASYNC_AGAIN, "the answer is not there yet"},
        {DLK_STATUS_REPLICA_INIT_FAIL, "replica initialisation failed"},
        {DLK_STATUS_SERVER_NOT_INIT, "no such server"},
        {DLK_STATUS_CLIENT_REMOVED_BY_SERVER, "the server has ended this client's session"},
        {DLK_STATUS_PROTO_VERSION_NEGOTIATION_FAIL, "no common protocol version"},
        {DLK_STATUS_SERVER_NO_RESOURCE, "a table of the server is full"},
        {DLK_STATUS_OBJECT_ALREADY_EXISTED, "another client has created this object"},
        {DLK_STATUS_OBJECT_ALREADY_CREATED, "this client has created this object"},
        {DLK_STATUS_OBJECT_NOT_CREATE, "no such object"},
        {DLK_STATUS_OBJECT_INVALID_OWNER, "another client owns this object"},
        {DLK_STATUS_OBJECT_NOT_GET, "the client has not got this object"},
        {DLK_STATUS_OBJECT_ALREADY_DESTROYED, "the object is destroyed"},
        {DLK_STATUS_OBJECT_TOO_MANY, "the server has no room for another object"},
        {DLK_STATUS_OBJECT_CAS_FAILED, "the object has another value"},
        {DLK_STATUS_PENDING, "not finished"},
        {DLK_STATUS_DEADLOCK, "waiting would close a cycle of waits"},
        {DLK_STATUS_FORKED, "this client belongs to the parent process"},
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (texts[i].status == status) {
            return texts[i].text;
        }
    }
    return "unknown status";
}
