"""What happens to locks when a process is killed, interrupted, forks or simply ends
(specification, section 5; issue: ends)."""

from __future__ import annotations

import signal
import time

import pytest
from mirror_tools import ATOMIC, FAIR, RW, S, Service, ex, get, line_of, run_python, sh, until

from dlock import dclient
from dlock.types import LockDesc

CLIENT = """
import os, signal, sys, threading, time
from dlock import dclient
from dlock.types import ClientCfg, LockDesc, LockOp, LockRequest

assert dclient.dclient_lib_init(ClientCfg(primary_port=int(sys.argv[1]), wait_mode="block")) == 0
status, me = dclient.client_init("127.0.0.1")
assert status == 0

def get(name, kind):
    status, lock_id = dclient.get_lock(me, LockDesc(name, kind))
    assert status == 0
    return lock_id

def ex(lock_id, seconds=60):
    return LockRequest(lock_id, LockOp.LOCK_EXCLUSIVE, seconds)

def say(*words):
    print(*words, flush=True)
"""


@pytest.mark.data_plane
def test_a_killed_client_frees_what_its_session_held(start_service, background) -> None:
    service = start_service(session_ttl=3, client={"lock_wait": 30})
    me, other = service.client(), service.client()
    names = {kind: LockDesc(b"%d" % kind, kind) for kind in (ATOMIC, RW, FAIR)}
    atomic, rw, fair = (get(me, desc) for desc in names.values())
    for client in (other,):
        get(client, names[RW])
        get(client, names[FAIR])
    dclient.trylock(other, ex(fair))
    process = run_python(
        CLIENT
        + """
atomic, rw, fair = get(b"0", 0), get(b"1", 1), get(b"2", 2)
say(dclient.trylock(me, ex(atomic, 9))[0].name, dclient.trylock(me, ex(rw))[0].name,
    dclient.trylock(me, ex(fair))[0].name)
time.sleep(60)
""",
        service.port,
    )
    assert line_of(process) == "SUCCESS SUCCESS EAGAIN"
    waiting = background(dclient.lock, me, ex(rw))
    process.kill()
    process.wait()
    assert dclient.trylock(me, ex(fair))[0] is S.EAGAIN  # behind the ticket
    assert waiting.result(timeout=30)[0] is S.SUCCESS  # the rw hold ended with the session
    assert dclient.trylock(me, ex(atomic))[0] is S.FAIL  # the lease did not
    dclient.unlock(other, fair)
    assert dclient.trylock(me, ex(fair))[0] is S.SUCCESS  # the ticket is gone
    assert dclient.lock(me, ex(atomic))[0] is S.SUCCESS  # when the lease has ended


@pytest.mark.data_plane
def test_ctrl_c_in_a_waiting_lock_leaves_nothing_behind(service: Service) -> None:
    me = service.client()
    atomic, fair = get(me, LockDesc(b"0", ATOMIC)), get(me, LockDesc(b"2", FAIR))
    dclient.trylock(me, ex(atomic))
    dclient.trylock(me, ex(fair))
    process = run_python(
        CLIENT
        + """
for lock_id in (get(b"0", 0), get(b"2", 2)):
    try:
        say("waits")
        say(dclient.lock(me, ex(lock_id)))
    except KeyboardInterrupt:
        say("interrupted", dclient.trylock(me, ex(lock_id, 0))[1].token)
sys.stdin.read()
""",
        service.port,
    )
    for _ in range(2):
        assert line_of(process) == "waits"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert line_of(process) == "interrupted 0"
    other = service.client()
    get(other, LockDesc(b"0", ATOMIC))
    get(other, LockDesc(b"2", FAIR))
    dclient.unlock(me, atomic)
    dclient.unlock(me, fair)
    assert dclient.trylock(other, ex(atomic))[0] is S.SUCCESS
    assert dclient.trylock(other, ex(fair))[0] is S.SUCCESS
    process.communicate("", timeout=60)


def test_signals_are_handled_while_a_lock_waits(service: Service) -> None:
    me = service.client()
    lock_id = get(me, LockDesc(b"0", ATOMIC))
    dclient.trylock(me, ex(lock_id))
    process = run_python(
        CLIENT
        + """
signal.signal(signal.SIGUSR1, lambda *_: say("handled"))
lock_id = get(b"0", 0)
say("waits")
say(dclient.lock(me, ex(lock_id))[0].name)
""",
        service.port,
    )
    assert line_of(process) == "waits"
    for _ in range(3):
        time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        assert line_of(process) == "handled"
    dclient.unlock(me, lock_id)
    assert line_of(process) == "SUCCESS"  # the wait went on
    process.communicate(timeout=60)


@pytest.mark.data_plane
def test_a_forked_child_may_not_use_its_parents_client(service: Service) -> None:
    process = run_python(
        CLIENT
        + """
lock_id = get(b"0", 0)
dclient.trylock(me, ex(lock_id))
child = os.fork()
if child == 0:
    refused = 0
    for call in (
        lambda: dclient.trylock(me, ex(lock_id)), lambda: dclient.unlock(me, lock_id),
        lambda: dclient.lock(me, ex(lock_id)), lambda: dclient.batch_unlock(me, [lock_id]),
        lambda: dclient.get_lock(me, LockDesc(b"1")), lambda: dclient.client_deinit(me),
        lambda: dclient.client_heartbeat(me, 1), lambda: dclient.client_reinit(me, "127.0.0.1"),
        lambda: dclient.get_client_debug_stats(me), lambda: dclient.lock_result_check(me),
        lambda: dclient.umo_atomic64_faa(me, 1, 1), lambda: dclient.update_all_locks(me),
    ):
        try:
            call()
        except RuntimeError as problem:
            assert "fork" in str(problem)
            refused += 1
    fresh = dclient.dclient_lib_init(ClientCfg(primary_port=int(sys.argv[1]))) == 0
    status, own = dclient.client_init("127.0.0.1")
    get_status, own_lock = dclient.get_lock(own, LockDesc(b"0", 0))
    say(refused, fresh, status.name, dclient.trylock(own, ex(own_lock))[0].name)
    sys.exit(0)
os.waitpid(child, 0)
say(dclient.trylock(me, ex(lock_id))[0].name, dclient.unlock(me, lock_id)[0].name,
    dclient.unlock(me, lock_id)[0].name)
""",
        service.port,
    )
    assert line_of(process) == "12 True SUCCESS FAIL"
    assert line_of(process) == "ALREADY_LOCKED ALREADY_LOCKED SUCCESS"
    process.communicate(timeout=60)


@pytest.mark.parametrize("how", ["pass", "raise SystemExit(0)"])
def test_a_program_that_forgets_deinit_still_ends(service: Service, how: str) -> None:
    me = service.client()
    lock_id = get(me, LockDesc(b"0", ATOMIC))
    dclient.trylock(me, ex(lock_id))
    process = run_python(
        CLIENT
        + f"""
lock_id = get(b"0", 0)
def wait():
    dclient.lock(me, ex(lock_id))
daemon = threading.Thread(target=wait, daemon=True)
daemon.start()
dclient.lock_request_async(me, ex(get(b"1", 0)))
say("ends")
{how}
""",
        service.port,
    )
    assert line_of(process) == "ends"
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_ticket_and_a_place_of_a_killed_waiter_are_freed(start_service) -> None:
    service = start_service(session_ttl=3)
    me, other = service.client(), service.client()
    desc = LockDesc(b"1", RW)
    lock_id = get(me, desc)
    get(other, desc)
    dclient.trylock(me, sh(lock_id))
    process = run_python(
        CLIENT
        + """
lock_id = get(b"1", 1)
say("waits")
dclient.lock(me, ex(lock_id))
""",
        service.port,
    )
    assert line_of(process) == "waits"

    def reader_is_refused() -> bool:
        status = dclient.trylock(other, sh(lock_id))[0]
        if status is S.SUCCESS:
            dclient.unlock(other, lock_id)
        return status is S.FAIL

    until(reader_is_refused)  # the waiting writer stops it
    process.kill()
    process.wait()
    until(lambda: dclient.trylock(other, sh(lock_id))[0] is S.SUCCESS)
