"""dlock.types against sections 2 and 3 of the specification: names, order, numbers, defaults."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dlock import _core, types
from dlock.types import (
    AtomicDesc,
    AtomicState,
    ClientCfg,
    DebugStats,
    DlockStatus,
    DlockType,
    FairState,
    LockDesc,
    LockOp,
    LockOpResult,
    LockRequest,
    PrimaryCfg,
    RwState,
    ServerCfg,
    ServerType,
    SslCfg,
    TransMode,
)

ABI_HEADER = Path(__file__).resolve().parent.parent / "native" / "dlock_abi.h"


def runs(base: int, names: str) -> dict[str, int]:
    return {name: base + at for at, name in enumerate(names.split())}


STATUSES = {
    "ERROR": -1,
    "SUCCESS": 0,
    "DONE": 1,
    **runs(0x1000, "EAGAIN ENOMEM ETIMEOUT EINVAL ETICKET EASYNC"),
    **runs(
        0x2000,
        """CLIENT_NOT_INIT LOCK_NOT_GET ALREADY_LOCKED ALREADY_UNLOCKED TICKET_TO_UNLOCK
        BAD_RESPONSE FAIL CLIENTMGR_NOT_INIT NOT_READY NO_ASYNC ASYNC_AGAIN REPLICA_INIT_FAIL
        SERVER_NOT_INIT CLIENT_REMOVED_BY_SERVER PROTO_VERSION_NEGOTIATION_FAIL
        SERVER_NO_RESOURCE""",
    ),
    **runs(
        0x3000,
        """OBJECT_ALREADY_EXISTED OBJECT_ALREADY_CREATED OBJECT_NOT_CREATE OBJECT_INVALID_OWNER
        OBJECT_NOT_GET OBJECT_ALREADY_DESTROYED OBJECT_TOO_MANY OBJECT_CAS_FAILED""",
    ),
}


@pytest.mark.parametrize(
    ("enum", "members"),
    [
        (DlockStatus, STATUSES),
        (DlockType, {"ATOMIC": 0, "RW": 1, "FAIR": 2}),
        (
            LockOp,
            runs(0, "LOCK_EXCLUSIVE LOCK_SHARED UNLOCK EXTEND_LOCK_EXCLUSIVE EXTEND_LOCK_SHARED"),
        ),
        (ServerType, {"PRIMARY": 0, "REPLICA": 1}),
        (TransMode, {"SEPERATE_CONN": 0, "UNI_CONN": 1}),
    ],
)
def test_numbers(enum: type[DlockStatus], members: dict[str, int]) -> None:
    assert {member.name: int(member) for member in enum} == members


@pytest.mark.parametrize(
    ("structure", "listed", "extra"),
    [
        (
            ServerCfg,
            """type dev_name eid log_level sleep_mode_enable primary ssl tp_mode
            ub_token_disable""",
            "max_locks max_clients max_objects session_ttl max_lease recovery_deadline state_dir",
        ),
        (
            PrimaryCfg,
            """num_of_replica recovery_client_num ctrl_cpuset cmd_cpuset server_ip_str
            server_port replica_port replica_enable""",
            "",
        ),
        (
            ClientCfg,
            "dev_name eid log_level primary_port ssl tp_mode ub_token_disable",
            "wait_mode lock_wait reply_timeout",
        ),
        (
            SslCfg,
            """ssl_enable ca_path crl_path cert_path prkey_path cert_verify_cb prkey_pwd_cb
            erase_prkey_cb""",
            "",
        ),
        (LockDesc, "p_desc lock_type lease_time", ""),
        (LockRequest, "lock_id lock_op expire_time", ""),
        (AtomicDesc, "p_desc lease_time", ""),
        (AtomicState, "client_id time_out token", ""),
        (RwState, "time_out client_id rcount token", ""),
        (
            FairState,
            "n_exclusive n_shared m_exclusive m_shared time_out rms rflag rcnt token",
            "",
        ),
        (LockOpResult, "state op_ret", ""),
    ],
)
def test_fields(structure: type[LockDesc], listed: str, extra: str) -> None:
    fields = dataclasses.fields(structure)
    assert [one.name for one in fields if not one.kw_only] == listed.split()
    assert [one.name for one in fields if one.kw_only] == extra.split()
    structure()  # every field has a default


def test_debug_stats_are_45_zeros() -> None:
    stats = DebugStats()
    names = [one.name for one in dataclasses.fields(stats)]
    assert len(names) == 45
    assert (names[0], names[-1]) == ("EAGAIN", "OBJECT_CAS_FAILED")
    assert not any(getattr(stats, name) for name in names)


def test_defaults_are_those_of_the_specification() -> None:
    server, client = ServerCfg(), ClientCfg()
    assert (server.max_clients, server.max_locks, server.max_objects) == (1000, 51200, 102400)
    assert (server.session_ttl, server.max_lease) == (10, 3600)
    assert (server.recovery_deadline, server.state_dir, server.sleep_mode_enable) == (None,) * 3
    assert (client.wait_mode, client.lock_wait, client.reply_timeout) == ("adaptive", 5, 5)
    assert _core.DLK_CONTROL_PORT_DEFAULT == 21616
    assert ServerCfg().primary is not server.primary


def test_structures_have_no_attributes_of_their_own() -> None:
    with pytest.raises(AttributeError):
        AtomicState().clientid = 1  # type: ignore[attr-defined]


def test_everything_is_exported() -> None:
    public = {
        name
        for name, value in vars(types).items()
        if isinstance(value, type) and value.__module__ == types.__name__
    }
    assert public <= set(types.__all__)


def test_the_core_is_the_one_of_this_header() -> None:
    version = re.search(r"DLK_ABI_VERSION = (\d+)", ABI_HEADER.read_text(encoding="utf-8"))
    assert version is not None
    assert int(version[1]) == _core.ABI_VERSION == _core.lib.dlk_abi_version()


def test_a_constant_that_the_core_lacks_names_the_remedy() -> None:
    with pytest.raises(ImportError, match=r"stale.*DLK_NO_SUCH.*make"):
        _ = _core.DLK_NO_SUCH
    with pytest.raises(AttributeError):
        _ = _core.no_such_thing


def test_statuses_have_texts() -> None:
    assert len({_core.status_text(status) for status in DlockStatus}) == len(DlockStatus)


def test_a_struct_is_packed_and_read_back_whole() -> None:
    names = _core.Reply._fields
    struct = _core.layout("dlk_reply", names)
    values = tuple(range(1, len(names) + 1))
    frame = _core.ffi.from_buffer("struct dlk_reply[]", struct.pack(*values))
    assert struct.size == _core.DLK_FRAME_BYTES
    assert tuple(getattr(frame[0], name) for name in names) == values


def test_the_document_has_the_36_calls() -> None:
    from dlock import dclient, dserver

    text = (ABI_HEADER.parent.parent / "docs" / "mirror.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(\w+)\(([^)]*)\)` \|", text, flags=re.M)
    assert len(documented) == 36
    assert {name for name, _ in documented} == {*dclient.__all__, *dserver.__all__}
    for name, parameters in documented:
        call = getattr(dclient, name, None) or getattr(dserver, name)
        code = call.__code__
        assert ", ".join(code.co_varnames[: code.co_argcount]) == parameters


@pytest.mark.parametrize(
    ("core", "complaint"),
    [
        ("None", "missing or does not load"),
        ("N(ffi=None, lib=N(dlk_abi_version=lambda: 0))", "stale: it has ABI version 0"),
    ],
)
def test_a_missing_or_stale_core_is_refused_with_the_remedy(core: str, complaint: str) -> None:
    program = f"""
import sys
from types import SimpleNamespace as N
sys.modules["dlock._native"] = {core}
try:
    import dlock.dclient
except ImportError as problem:
    print(problem)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert complaint in run.stdout
    assert "`make` in a source tree, `pip install .` elsewhere" in run.stdout
