"""`dlock.admin` against real servers: who holds and waits, long lists, and what breaking does to a
client that lives, one that is stopped, and one whose lease runs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from control_client import Client
from mirror_tools import (
    ATOMIC,
    FAIR,
    RW,
    S,
    Service,
    ex,
    extend_ex,
    free_port,
    get,
    line_of,
    run_python,
    sh,
    until,
)

import dlock
from dlock import _core, _mirror_data, dclient
from dlock.admin import Admin, Holder, LockDetails
from dlock.control import messages as m
from dlock.errors import Broken, ConnectError, DlockError, ForkedError
from dlock.server import Server, ServerConfig
from dlock.types import LockDesc

Background = Callable[..., Future[Any]]
SEMAPHORE = 3

HOLDER_PROGRAM = """
import sys
from dlock import dclient
from dlock.types import ClientCfg, DlockStatus, DlockType, LockDesc, LockOp, LockRequest

port, kind, lease_s = map(int, sys.argv[1:])
dclient.dclient_lib_init(ClientCfg(primary_port=port))
status, client = dclient.client_init("127.0.0.1")
status, lock = dclient.get_lock(client, LockDesc(b"n", DlockType(kind)))
status, state = dclient.trylock(client, LockRequest(lock, LockOp.LOCK_EXCLUSIVE, lease_s))
assert status is DlockStatus.SUCCESS
print("held", flush=True)
for line in sys.stdin:
    print(dclient.unlock(client, lock)[0].name, flush=True)
"""


def admin_of(service: Service) -> Admin:
    return Admin(f"127.0.0.1:{service.port}")


def named(client: int, name: bytes, kind: Any = ATOMIC) -> int:
    return get(client, LockDesc(name, kind))


def seen(admin: Admin, name: str | bytes) -> LockDetails:
    details = admin.show(name)
    assert details is not None
    return details


def the_holder(admin: Admin, name: str = "n") -> Holder:
    (holder,) = seen(admin, name).holders
    return holder


@pytest.fixture
def stopped() -> Iterator[Callable[..., Any]]:
    """A client in a process of its own that holds a lock and is then stopped in its tracks."""
    processes = []

    def start(service: Service, kind: Any, lease_s: int) -> Any:
        process = run_python(HOLDER_PROGRAM, service.port, int(kind), lease_s)
        processes.append(process)
        assert line_of(process) == "held"
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()


# ---- Looking -------------------------------------------------------------------------------------


def test_holders_and_waiters_of_an_atomic_lock(
    service: Service, background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("USER", "ada")
    one, other = service.client(), service.client()
    lock = named(one, "n/ä".encode())
    named(other, "n/ä".encode())
    with admin_of(service) as admin:
        assert admin.show("n/ä") == LockDetails("n/ä".encode(), "atomic", 1, lock, (), (), 0)
        state = dclient.trylock(one, ex(lock, 30))[1]
        assert state is not None
        waiting = background(dclient.lock, other, ex(lock, 30))
        until(lambda: bool(seen(admin, "n/ä").waiters))
        details = seen(admin, "n/ä")
        (holder,), (waiter,) = details.holders, details.waiters
        assert details.name == "n/ä"
        assert (holder.client_id, holder.token, holder.mode) == (one, state.token, "exclusive")
        assert (holder.pid, holder.user, holder.job) == (os.getpid(), "ada", "4711")
        assert holder.host == os.uname().nodename
        assert holder.lease_left_s is not None
        assert 0 < holder.lease_left_s <= 30
        assert holder.since_s >= waiter.since_s >= 0
        assert holder.session_left_s > 0
        assert not holder.breaking
        assert (waiter.client_id, waiter.ticket, waiter.pid) == (other, False, os.getpid())
        assert waiter.stamp > holder.token
        assert dclient.unlock(one, lock)[0] is S.SUCCESS
        assert waiting.result()[0] is S.SUCCESS
        assert [one.client_id for one in seen(admin, "n/ä").holders] == [other]


def test_a_rw_lock_shows_every_reader_and_the_writer_that_waits(
    service: Service, background: Background
) -> None:
    clients = [service.client() for _ in range(3)]
    locks = [named(one, b"n", RW) for one in clients]
    for one in clients[:2]:
        assert dclient.trylock(one, sh(locks[0]))[0] is S.SUCCESS
    waiting = background(dclient.lock, clients[2], ex(locks[0]))
    admin = admin_of(service)
    until(lambda: bool(seen(admin, "n").waiters))
    details = seen(admin, "n")
    assert details.kind == "rw"
    assert {(one.client_id, one.mode) for one in details.holders} == {
        (clients[0], "shared"), (clients[1], "shared")}
    assert all(one.lease_left_s is None for one in details.holders)
    assert [(one.client_id, one.mode) for one in details.waiters] == [(clients[2], "exclusive")]
    for one in clients[:2]:
        dclient.unlock(one, locks[0])
    assert waiting.result()[0] is S.SUCCESS
    admin.close()


def test_a_fair_lock_shows_its_tickets_in_order(service: Service) -> None:
    clients = [service.client() for _ in range(3)]
    locks = [named(one, b"n", FAIR) for one in clients]
    assert dclient.trylock(clients[0], ex(locks[0]))[0] is S.SUCCESS
    for one in clients[1:]:
        assert dclient.trylock(one, ex(locks[0]))[0] is S.EAGAIN
    details = seen(admin_of(service), b"n")
    assert details.kind == "fair"
    assert [(one.client_id, one.ticket) for one in details.waiters] == [
        (clients[1], True), (clients[2], True)]
    assert details.waiters[0].stamp < details.waiters[1].stamp


def test_a_semaphore_shows_its_slots(service: Service) -> None:
    with Client("127.0.0.1", service.port) as client:
        client.ask(m.GetLocks((m.LockSpec(b"n", SEMAPHORE, 3),)))
        details = seen(admin_of(service), "n")
        assert (details.kind, details.size, details.holders) == ("semaphore", 3, ())


def test_5000_locks_are_listed_in_pieces(service: Service) -> None:
    names = [b"%05d/" % number + b"x" * (number % 500) for number in range(5000)]
    holder = service.client()
    busy = named(holder, b"busy")
    assert dclient.trylock(holder, ex(busy))[0] is S.SUCCESS
    with Client("127.0.0.1", service.port) as client, admin_of(service) as admin:
        for at in range(0, len(names), m.BATCH_MAX):
            client.get(*names[at:at + m.BATCH_MAX])
        listed = list(admin.locks())
        assert sorted(one.key for one in listed) == sorted([b"busy", *names])
        assert sum(one.holders for one in listed) == 1
        assert sorted(one.key for one in admin.locks("0123")) == names[1230:1240]
        assert list(admin.locks("04999/", busy_only=True)) == []
        (only,) = admin.locks(busy_only=True)
        assert (only.name, only.lock_id, only.holders, only.waiters) == ("busy", busy, 1, 0)


def test_what_does_not_fit_an_answer_is_counted(service: Service) -> None:
    """Readers who say of themselves all that they may."""
    info = {f"{number:032}": "x" * 256 for number in range(16)}
    readers = [Client("127.0.0.1", service.port, init=False) for _ in range(20)]
    client = service.client()
    lock = named(client, b"n", RW)
    assert dclient.trylock(client, sh(lock))[0] is S.SUCCESS
    admin = admin_of(service)
    for one in readers:
        one.welcome = one.ask(m.ClientInit(1, 1, info))
        (got,) = one.get(b"n", kind=1)
        hold_shared(service, one, got)
    details = seen(admin, "n")
    assert details.more > 0
    assert len(details.holders) + details.more == 21
    assert len(details.holders) > 10
    assert len(list(admin.clients())) == 21
    for one in readers:
        one.link.close()


def hold_shared(service: Service, client: Client, lock: m.LockResult) -> None:
    """A hold for a session of the control plane alone, over its data plane."""
    data = _mirror_data.new_client(_core.DLK_WAIT_BLOCK, 5000)
    assert _mirror_data.attach(data, "127.0.0.1", 5000, client.welcome) == S.SUCCESS
    _core.lib.dlk_client_add_lock(data, lock.lock_id, lock.slot, 1, 0)
    call: Any = _core.ffi.new("struct dlk_call *")
    call.verb, call.lock_id, call.mode = _core.DLK_VERB_TRYLOCK, lock.lock_id, _core.DLK_MODE_SHARED
    assert _mirror_data.run(data, call) == S.SUCCESS


def test_names_that_no_lock_can_have(service: Service) -> None:
    with admin_of(service) as admin:
        for ask in (admin.show, admin.break_lock):
            with pytest.raises(ValueError, match="1 to 512 bytes, not 0"):
                ask("")
            with pytest.raises(ValueError, match="not 514"):
                ask("ä" * 257)
        with pytest.raises(ValueError, match="0 to 512 bytes, not 513"):
            list(admin.locks("x" * 513))


def test_clients(service: Service) -> None:
    one, other = service.client(), service.client()
    named(one, b"a")
    named(one, b"b")
    clients = {line.client_id: line for line in admin_of(service).clients()}
    assert set(clients) == {one, other}
    assert (clients[one].locks, clients[other].locks) == (2, 0)
    assert clients[one].connected
    assert not clients[one].ended
    assert clients[one].pid == os.getpid()
    assert clients[one].since_s >= clients[other].since_s >= 0


# ---- Breaking ------------------------------------------------------------------------------------


def test_a_client_that_lives_gives_the_hold_up(service: Service, background: Background) -> None:
    one, other = service.client(), service.client()
    lock = named(one, b"n")
    named(other, b"n")
    assert dclient.trylock(one, ex(lock))[0] is S.SUCCESS
    waiting = background(dclient.lock, other, ex(lock))
    with admin_of(service) as admin:
        until(lambda: bool(seen(admin, "n").waiters))
        token = the_holder(admin).token
        assert admin.break_lock("n", token=token + 1) == ()
        assert not waiting.done()
        assert admin.break_lock("n", token=token) == (token,)
        assert waiting.result()[0] is S.SUCCESS
        assert the_holder(admin).client_id == other
        assert admin.stats()["HOLDS_BROKEN"] == 1
    assert dclient.unlock(one, lock)[0] is S.ALREADY_UNLOCKED
    assert dclient.unlock(other, lock)[0] is S.SUCCESS


def test_a_client_of_the_python_api_is_told(service: Service) -> None:
    with dlock.connect(f"127.0.0.1:{service.port}", name="nightly") as client:
        lock = client.lock("n")
        lock.acquire()
        assert the_holder(client.admin).program == "nightly"
        assert client.admin.break_lock("n") == (lock.token,)
        assert lock.lost.wait(30)
        assert not lock.held
        with pytest.raises(Broken):
            lock.release()
        until(lambda: not seen(client.admin, "n").holders)
        with client.lock("n"):
            assert the_holder(client.admin).client_id


def test_a_stopped_client_keeps_the_hold_until_its_session_ends(
    start_service: Callable[..., Service], background: Background, stopped: Callable[..., Any]
) -> None:
    """It can be continued at any moment, and would believe until then."""
    service = start_service(session_ttl=4)
    client = service.client()
    lock = named(client, b"n", RW)
    process = stopped(service, RW, 1)
    waiting = background(dclient.lock, client, ex(lock, 30))
    with admin_of(service) as admin:
        asked = time.monotonic()
        left_s = the_holder(admin).session_left_s
        assert len(admin.break_lock("n")) == 1
        assert the_holder(admin).breaking
        assert waiting.result()[0] is S.SUCCESS
        assert time.monotonic() - asked >= left_s
        assert the_holder(admin).client_id == client
    process.send_signal(signal.SIGCONT)
    process.stdin.write("\n")
    assert line_of(process) != "SUCCESS"


def test_a_stopped_client_keeps_a_leased_hold_until_the_lease_ends(
    service: Service, background: Background, stopped: Callable[..., Any]
) -> None:
    client = service.client()
    lock = named(client, b"n")
    stopped(service, ATOMIC, 2)
    waiting = background(dclient.lock, client, ex(lock, 30))
    with admin_of(service) as admin:
        asked = time.monotonic()
        left_s = the_holder(admin).lease_left_s
        assert left_s is not None
        assert len(admin.break_lock("n")) == 1
        assert waiting.result()[0] is S.SUCCESS
        assert time.monotonic() - asked >= left_s


def test_now_does_not_wait(
    service: Service, background: Background, stopped: Callable[..., Any]
) -> None:
    client = service.client()
    lock = named(client, b"n")
    process = stopped(service, ATOMIC, 60)
    waiting = background(dclient.lock, client, ex(lock, 60))
    with admin_of(service) as admin:
        until(lambda: bool(seen(admin, "n").waiters))
        old = the_holder(admin)
        assert admin.break_lock("n", now=True) == (old.token,)
        assert waiting.result()[0] is S.SUCCESS
        new = the_holder(admin)
        assert new.client_id == client
        assert new.token > old.token
        assert old.lease_left_s is not None
        assert old.lease_left_s > 30
        assert admin.break_lock("n", token=old.token, now=True) == ()
    process.send_signal(signal.SIGCONT)
    process.stdin.write("\n")
    assert line_of(process) != "SUCCESS"


def test_a_broken_hold_cannot_be_extended(service: Service) -> None:
    client = service.client()
    lock = named(client, b"n")
    assert dclient.trylock(client, ex(lock, 5))[0] is S.SUCCESS
    with admin_of(service) as admin:
        admin.break_lock("n")
        until(lambda: not seen(admin, "n").holders)
    status, _state = dclient.lock_extend(client, extend_ex(lock, 50))
    assert status is not S.SUCCESS
    assert dclient.trylock(client, ex(lock, 5))[0] is S.SUCCESS


def test_nothing_to_break(service: Service) -> None:
    with admin_of(service) as admin:
        assert admin.break_lock("n") == ()
        named(service.client(), b"n")
        assert admin.break_lock("n", now=True) == ()
        with pytest.raises(ValueError, match="no token"):
            admin.break_lock("n", token=0)


# ---- Servers that do not answer ------------------------------------------------------------------


def test_no_server() -> None:
    with pytest.raises(ConnectError, match="no server answers"):
        Admin(f"127.0.0.1:{free_port()}").stats()


def test_a_server_that_settles_says_so() -> None:
    server = Server(ServerConfig(port=0, settle_blindly=True))
    try:
        with Admin(server.address) as admin:
            assert admin.stats()["ready"] == 0
            with pytest.raises(DlockError, match="the server recovers"):
                admin.show("n")
    finally:
        server.stop()


def test_another_server_at_the_address_is_asked_anew() -> None:
    server = Server(ServerConfig(port=0))
    with Admin(server.address) as admin:
        assert list(admin.locks()) == []
        server.stop()
        server = Server(ServerConfig(port=server.port))
        try:
            assert list(admin.locks()) == []
            assert admin.break_lock("n") == ()
        finally:
            server.stop()
        with pytest.raises(ConnectError):
            list(admin.clients())


def test_a_child_has_to_make_its_own(service: Service) -> None:
    admin = admin_of(service)
    admin.stats()
    child = os.fork()
    if child == 0:
        try:
            admin.stats()
        except ForkedError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert admin.stats()["ready"] == 1
