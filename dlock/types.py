"""The structures and constants of the mirrored DLock API (specification, sections 2 and 3).

Every structure is a dataclass whose fields stand in DLock's order, each with a default; what C
fixes at compile time follows as keyword fields. Values of enums come from the C header through
`_core`. Nothing here acts: the calls are in `dlock.dserver` and `dlock.dclient`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from enum import IntEnum

from dlock import _core

__all__ = [
    "AtomicDesc",
    "AtomicState",
    "ClientCfg",
    "DebugStats",
    "DlockStatus",
    "DlockType",
    "FairState",
    "LockDesc",
    "LockOp",
    "LockOpResult",
    "LockRequest",
    "PrimaryCfg",
    "RwState",
    "ServerCfg",
    "ServerType",
    "SslCfg",
    "State",
    "TransMode",
]


class DlockStatus(IntEnum):
    """What every call of the mirror returns (specification, section 2)."""

    ERROR = _core.DLK_STATUS_ERROR
    SUCCESS = _core.DLK_STATUS_SUCCESS
    DONE = _core.DLK_STATUS_DONE
    EAGAIN = _core.DLK_STATUS_EAGAIN
    ENOMEM = _core.DLK_STATUS_ENOMEM
    ETIMEOUT = _core.DLK_STATUS_ETIMEOUT
    EINVAL = _core.DLK_STATUS_EINVAL
    ETICKET = _core.DLK_STATUS_ETICKET
    EASYNC = _core.DLK_STATUS_EASYNC
    CLIENT_NOT_INIT = _core.DLK_STATUS_CLIENT_NOT_INIT
    LOCK_NOT_GET = _core.DLK_STATUS_LOCK_NOT_GET
    ALREADY_LOCKED = _core.DLK_STATUS_ALREADY_LOCKED
    ALREADY_UNLOCKED = _core.DLK_STATUS_ALREADY_UNLOCKED
    TICKET_TO_UNLOCK = _core.DLK_STATUS_TICKET_TO_UNLOCK
    BAD_RESPONSE = _core.DLK_STATUS_BAD_RESPONSE
    FAIL = _core.DLK_STATUS_FAIL
    CLIENTMGR_NOT_INIT = _core.DLK_STATUS_CLIENTMGR_NOT_INIT
    NOT_READY = _core.DLK_STATUS_NOT_READY
    NO_ASYNC = _core.DLK_STATUS_NO_ASYNC
    ASYNC_AGAIN = _core.DLK_STATUS_ASYNC_AGAIN
    REPLICA_INIT_FAIL = _core.DLK_STATUS_REPLICA_INIT_FAIL
    SERVER_NOT_INIT = _core.DLK_STATUS_SERVER_NOT_INIT
    CLIENT_REMOVED_BY_SERVER = _core.DLK_STATUS_CLIENT_REMOVED_BY_SERVER
    PROTO_VERSION_NEGOTIATION_FAIL = _core.DLK_STATUS_PROTO_VERSION_NEGOTIATION_FAIL
    SERVER_NO_RESOURCE = _core.DLK_STATUS_SERVER_NO_RESOURCE
    OBJECT_ALREADY_EXISTED = _core.DLK_STATUS_OBJECT_ALREADY_EXISTED
    OBJECT_ALREADY_CREATED = _core.DLK_STATUS_OBJECT_ALREADY_CREATED
    OBJECT_NOT_CREATE = _core.DLK_STATUS_OBJECT_NOT_CREATE
    OBJECT_INVALID_OWNER = _core.DLK_STATUS_OBJECT_INVALID_OWNER
    OBJECT_NOT_GET = _core.DLK_STATUS_OBJECT_NOT_GET
    OBJECT_ALREADY_DESTROYED = _core.DLK_STATUS_OBJECT_ALREADY_DESTROYED
    OBJECT_TOO_MANY = _core.DLK_STATUS_OBJECT_TOO_MANY
    OBJECT_CAS_FAILED = _core.DLK_STATUS_OBJECT_CAS_FAILED


class DlockType(IntEnum):
    """The kinds of lock that the mirror knows; docs/lock-kinds.md says what each guarantees."""

    ATOMIC = _core.DLK_KIND_ATOMIC
    RW = _core.DLK_KIND_RW
    FAIR = _core.DLK_KIND_FAIR


class LockOp(IntEnum):
    """What a `LockRequest` asks for; the first two are also the modes of a hold."""

    LOCK_EXCLUSIVE = _core.DLK_MODE_EXCLUSIVE
    LOCK_SHARED = _core.DLK_MODE_SHARED
    UNLOCK = 2
    EXTEND_LOCK_EXCLUSIVE = 3
    EXTEND_LOCK_SHARED = 4


class ServerType(IntEnum):
    """The role of a server; REPLICA is refused with ERROR."""

    PRIMARY = 0
    REPLICA = 1


class TransMode(IntEnum):
    """Accepted and reported; both behave alike."""

    SEPERATE_CONN = 0
    UNI_CONN = 1


@dataclass
class SslCfg:
    """TLS settings. Accepted from the start; `ssl_enable=True` is refused until TLS is there."""

    ssl_enable: bool = False
    ca_path: str | None = None
    crl_path: str | None = None
    cert_path: str | None = None
    prkey_path: str | None = None
    cert_verify_cb: Callable[..., object] | None = None
    prkey_pwd_cb: Callable[..., object] | None = None
    erase_prkey_cb: Callable[..., object] | None = None


@dataclass
class PrimaryCfg:
    """The primary's part of `ServerCfg`.

    `recovery_client_num`: how many clients, at most `max_clients`, must re-initialise before it
    serves; 0: serves at once. With a `state_dir` in which a former primary has written who its
    clients were, those are waited for instead.
    `ctrl_cpuset`, `cmd_cpuset`: CPUs of the control and the data-plane thread, as in "0-3,8".
    `server_port` <= 0: the default control port. `num_of_replica`, `replica_port` and
    `replica_enable` are accepted; there are no replicas.
    """

    num_of_replica: int = 0
    recovery_client_num: int = 0
    ctrl_cpuset: str | None = None
    cmd_cpuset: str | None = None
    server_ip_str: str | None = None
    server_port: int = 0
    replica_port: int = 0
    replica_enable: bool = False


@dataclass
class ServerCfg:
    """What `dserver.server_start` takes.

    `dev_name`, `eid`: the RDMA device to serve on, and its address (text, or 16 bytes). Both None:
    TCP only, unless DLOCK_TRANSPORT says otherwise.
    `sleep_mode_enable`: None waits adaptively, True sleeps, False polls. `session_ttl`, `max_lease`
    and `recovery_deadline` are seconds; `recovery_deadline` None: the longest that an absent client
    could still believe in its holds. `state_dir` None: nothing is kept over a restart.
    """

    type: int = ServerType.PRIMARY
    dev_name: str | None = None
    eid: str | bytes | None = None
    log_level: int = 0
    sleep_mode_enable: bool | None = None
    primary: PrimaryCfg = field(default_factory=PrimaryCfg)
    ssl: SslCfg = field(default_factory=SslCfg)
    tp_mode: int = TransMode.SEPERATE_CONN
    ub_token_disable: bool = False
    _: KW_ONLY
    max_locks: int = _core.DLK_MAX_LOCKS_DEFAULT
    max_clients: int = _core.DLK_MAX_CLIENTS_DEFAULT
    max_objects: int = _core.DLK_MAX_OBJECTS_DEFAULT
    session_ttl: float = _core.DLK_SESSION_TTL_MS_DEFAULT // 1000
    max_lease: float = _core.DLK_MAX_LEASE_MS_DEFAULT // 1000
    recovery_deadline: float | None = None
    state_dir: str | None = None


@dataclass
class ClientCfg:
    """What `dclient.dclient_lib_init` takes.

    `primary_port` <= 0: the default control port. `wait_mode`: "adaptive" (spin for a learned time,
    then sleep), "block" or "poll"; the environment variable DLOCK_WAIT takes the place of the
    default. `lock_wait`: seconds that `lock` waits at the server. `reply_timeout`: seconds without
    an answer until a call returns BAD_RESPONSE. `dev_name`, `eid`: an RDMA device and its address
    (IPv4 or IPv6, or a GID of 16 bytes); with either RDMA alone is used, with neither what the
    environment says, or TCP.
    """

    dev_name: str | None = None
    eid: str | bytes | None = None
    log_level: int = 0
    primary_port: int = 0
    ssl: SslCfg = field(default_factory=SslCfg)
    tp_mode: int = TransMode.SEPERATE_CONN
    ub_token_disable: bool = False
    _: KW_ONLY
    wait_mode: str = "adaptive"
    lock_wait: float = _core.DLK_LOCK_WAIT_MS_DEFAULT // 1000
    reply_timeout: float = _core.DLK_REPLY_TIMEOUT_MS_DEFAULT // 1000


@dataclass(slots=True)
class LockDesc:
    """Names a lock: 1..512 bytes, any; and its kind. `lease_time` is for display only."""

    p_desc: bytes | None = b""
    lock_type: int = DlockType.ATOMIC
    lease_time: int = 0


@dataclass(slots=True)
class LockRequest:
    """One lock operation. `lock_op`: a `LockOp`; `expire_time`: the lease in whole seconds."""

    lock_id: int = 0
    lock_op: int = LockOp.LOCK_EXCLUSIVE
    expire_time: int = 0


@dataclass(slots=True)
class AtomicDesc:
    """Names a 64-bit object: 1..512 bytes, any; `lease_time` in seconds, 0 is refused."""

    p_desc: bytes | None = b""
    lease_time: int = 0


@dataclass(slots=True)
class AtomicState:
    """An atomic lock as this client last saw it.

    `client_id`: this client while it holds the lock, else 0. `time_out`: the end of the lease, Unix
    time in seconds. `token`: the fencing token of the hold, 0 without one.
    """

    client_id: int = 0
    time_out: int = 0
    token: int = 0


@dataclass(slots=True)
class RwState:
    """A rw lock as this client last saw it.

    `time_out`: until when the client asked for it, Unix time in seconds, for display only.
    `client_id`: this client while it holds the lock, else 0. `rcount`: readers that the server
    counted in its last answer. `token`: the fencing token of the hold, 0 without one.
    """

    time_out: int = 0
    client_id: int = 0
    rcount: int = 0
    token: int = 0


@dataclass(slots=True)
class FairState:
    """A fair lock as this client last saw it.

    `n_*` and `m_*` count the tickets now served and handed out, by mode, modulo 65536. `time_out`:
    the end of the lease, Unix time in seconds. `rms`, `rflag`, `rcnt`: the mode of this client's
    hold (a `LockOp`), 1 while it holds the lock, and how often it entered. `token`: the fencing
    token of the hold, 0 without one.
    """

    n_exclusive: int = 0
    n_shared: int = 0
    m_exclusive: int = 0
    m_shared: int = 0
    time_out: int = 0
    rms: int = 0
    rflag: int = 0
    rcnt: int = 0
    token: int = 0


State = AtomicState | RwState | FairState


@dataclass(slots=True)
class LockOpResult:
    """One item of a lock batch: what a single call would have returned."""

    state: State | None = None
    op_ret: DlockStatus = DlockStatus.SUCCESS


@dataclass(slots=True)
class DebugStats:
    """Counters of one server or one client (specification, section 2)."""

    EAGAIN: int = 0
    NO_URMA_BUF: int = 0
    ENOMEM: int = 0
    ETIMEOUT: int = 0
    EINVAL_LOCK_OP: int = 0
    EINVAL_LOCK_TYPE: int = 0
    EINVAL_LOCK_OFFSET: int = 0
    EINVAL_LOCK_RET: int = 0
    ETICKET: int = 0
    EASYNC: int = 0
    CLIENT_NOT_INIT: int = 0
    LOCK_NOT_GET: int = 0
    ALREADY_LOCKED: int = 0
    ALREADY_UNLOCKED: int = 0
    ATOMIC_TRYLOCK_FAIL: int = 0
    ATOMIC_UNLOCK_FAIL: int = 0
    ATOMIC_EXTEND_FAIL: int = 0
    RW_TRYLOCK_EX_FAIL: int = 0
    RW_UNLOCK_EX_FAIL: int = 0
    RW_TRYLOCK_SH_FAIL: int = 0
    RW_UNLOCK_SH_FAIL: int = 0
    FAIR_QUEUE_LIMIT: int = 0
    FAIR_UNLOCK_EX_FAIL: int = 0
    FAIR_UNLOCK_SH_FAIL: int = 0
    FAIR_EX_TICKET_PASSED: int = 0
    FAIR_SH_TICKET_PASSED: int = 0
    INVALID_LOCK_STATE: int = 0
    TICKET_TO_UNLOCK: int = 0
    NETWORK_FAIL: int = 0
    SEND_FAIL: int = 0
    BAD_RESPONSE: int = 0
    CLIENT_DISCONNECT: int = 0
    FAIL: int = 0
    CLIENTMGR_NOT_INIT: int = 0
    NOT_READY: int = 0
    NO_ASYNC: int = 0
    ASYNC_AGAIN: int = 0
    REPLICA_INIT_FAIL: int = 0
    SERVER_NOT_INIT: int = 0
    ENCRYPT_FAIL: int = 0
    DECRYPT_FAIL: int = 0
    CLIENT_ID_VERIFY_FAIL: int = 0
    BAD_REQUEST: int = 0
    OBJECT_NOT_GET: int = 0
    OBJECT_CAS_FAILED: int = 0
