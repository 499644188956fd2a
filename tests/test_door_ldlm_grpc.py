"""LDLM over gRPC, through LDLM's own generated stubs: what each call does, what it answers."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("h2", reason="the extra doors is not installed")
pytest.importorskip("grpc", reason="grpcio is not installed")
pytest.importorskip("ldlm", reason="py-ldlm is not installed")

import grpc
from door_tools import Door, beside
from failover_tools import PATIENCE_S, until
from ldlm_tools import Stub, ldlm_door, refused, stub

Code = grpc.StatusCode
NO_TIMER = (5, "lock does not exist or invalid key")


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with beside(tmp_path_factory.mktemp("door")) as place:
        yield ldlm_door(place)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


@pytest.fixture
def one(door: Door) -> Iterator[Stub]:
    with stub(door) as made:
        made.unlock("", "")  # it is connected now: calls go out in the order in which they are made
        yield made


@pytest.fixture
def two(door: Door) -> Iterator[Stub]:
    with stub(door) as made:
        made.unlock("", "")
        yield made


def error(answer: Any) -> tuple[int, str] | None:
    return (answer.error.code, answer.error.message) if answer.HasField("error") else None


def is_fresh(key: str) -> bool:
    return len(key) == 36 and str(uuid.UUID(key)) == key


def test_lock_blocks_until_the_other_unlocks(one: Stub, two: Stub, name: str) -> None:
    held = one.lock(name)
    assert (held.locked, held.name, error(held)) == (True, name, None)
    assert is_fresh(held.key)
    waiting = two.lock_soon(name)
    assert not one.try_lock(name).locked
    assert not waiting.done()
    assert one.unlock(name, held.key).unlocked
    assert waiting.result().locked
    assert waiting.result().key != held.key


def test_a_wait_ends_with_its_timeout(one: Stub, two: Stub, name: str) -> None:
    assert one.lock(name).locked
    answer = two.lock(name, wait_timeout_seconds=1)
    assert (answer.locked, answer.name) == (False, name)
    assert error(answer) == (3, "timeout waiting to acquire lock")


def test_waiters_are_served_in_their_order(one: Stub, two: Stub, name: str) -> None:
    held = one.lock(name)
    waiting = []
    for _ in range(5):
        waiting.append(two.lock_soon(name))
        two.try_lock("a round trip later")
    key = held.key
    for current in waiting:
        assert one.unlock(name, key).unlocked
        key = current.result().key
        assert [other.done() for other in waiting].count(True) == waiting.index(current) + 1


def test_try_lock_says_no_without_an_error_to_oneself_too(
    one: Stub, two: Stub, name: str
) -> None:
    assert one.try_lock(name).locked
    for asker in (one, two):
        answer = asker.try_lock(name)
        assert (answer.locked, answer.name, error(answer)) == (False, name, None)


def test_whoever_has_the_key_unlocks(one: Stub, two: Stub, name: str) -> None:
    held = one.lock(name)
    wrong = two.unlock(name, str(uuid.uuid4()))
    assert (wrong.unlocked, wrong.name, error(wrong)) == (False, name, (2, "invalid lock key"))
    freed = two.unlock(name, held.key)
    assert (freed.unlocked, freed.name, error(freed)) == (True, name, None)
    assert error(two.unlock(name, held.key)) == (2, "invalid lock key")
    assert one.try_lock(name).locked


@pytest.mark.parametrize("unknown", ["never locked by anybody", ""])
def test_a_name_that_nobody_has_locked_cannot_be_unlocked(one: Stub, unknown: str) -> None:
    assert error(one.unlock(unknown, "k")) == (1, "a lock by that name does not exist")


@pytest.mark.parametrize(
    ("fields", "problem", "has_key"),
    [
        ({"name": ""}, (0, "lock name cannot be empty"), True),
        ({"size": 0}, (7, "lock size must be greater than 0"), True),
        ({"size": -1}, (7, "lock size must be greater than 0"), True),
        ({"lock_timeout_seconds": -1}, (0, "lock timeout must be greater than 0"), False),
        ({"name": "", "size": 0}, (0, "lock name cannot be empty"), True),
        ({"name": "", "lock_timeout_seconds": -1},
         (0, "lock timeout must be greater than 0"), False),
    ])
def test_what_cannot_be_locked(
    one: Stub, name: str, fields: dict[str, Any], problem: tuple[int, str], has_key: bool
) -> None:
    fields = {"name": name, **fields}
    for call in (one.lock, one.try_lock):
        answer = call(**fields)
        assert (answer.locked, answer.name, error(answer)) == (False, fields["name"], problem)
        assert is_fresh(answer.key) if has_key else answer.key == ""


def test_a_wait_shorter_than_none(one: Stub, name: str) -> None:
    answer = one.lock(name, wait_timeout_seconds=-1)
    assert (answer.key, error(answer)) == ("", (0, "wait timeout must be greater than 0"))
    both = one.lock(name, wait_timeout_seconds=-1, lock_timeout_seconds=-1)
    assert error(both) == (0, "lock timeout must be greater than 0")
    assert one.lock(name, wait_timeout_seconds=0, lock_timeout_seconds=0).locked


def test_a_lock_of_size_three_is_held_three_times(one: Stub, two: Stub, name: str) -> None:
    keys = {asker.lock(name, size=3).key for asker in (one, two, two)}
    assert len(keys) == 3
    assert not one.try_lock(name, size=3).locked
    for asked in ({"size": 2}, {}):
        answer = one.try_lock(name, **asked)
        assert (answer.locked, error(answer)) == (False, (6, "lock size mismatch"))
    assert two.unlock(name, keys.pop()).unlocked
    assert one.try_lock(name, size=3).locked


def test_a_lock_timeout_frees_and_the_next_one_has_it(one: Stub, two: Stub, name: str) -> None:
    held = one.lock(name, lock_timeout_seconds=1)
    assert two.lock(name).locked
    assert error(one.unlock(name, held.key)) == (2, "invalid lock key")
    assert error(one.renew(name, held.key, 5)) == NO_TIMER


def test_renew_sets_another_timeout_from_any_connection(
    one: Stub, two: Stub, name: str
) -> None:
    held = one.lock(name, lock_timeout_seconds=600)
    assert not two.lock(name, wait_timeout_seconds=1).locked
    renewed = two.renew(name, held.key, 1)
    assert (renewed.locked, renewed.name, renewed.key) == (True, name, held.key)
    assert two.lock(name).locked


def test_what_cannot_be_renewed(one: Stub, name: str) -> None:
    held = one.lock(name)
    for key in (held.key, "another"):
        answer = one.renew(name, key, 5)
        assert (answer.locked, error(answer)) == (False, NO_TIMER)
    for none in (0, -1):
        answer = one.renew(name, held.key, none)
        assert error(answer) == (0, "lock timeout must be greater than 0")


# ---- Ends of calls and connections ---------------------------------------------------------------


def test_the_end_of_a_connection_frees_all_that_it_locked(
    door: Door, one: Stub, name: str
) -> None:
    leaving = Stub(door)
    held = [leaving.lock(f"{name} {number}") for number in range(5)]
    assert all(answer.locked for answer in held)
    waiting = [one.lock_soon(f"{name} {number}") for number in range(5)]
    leaving.close()
    assert all(answer.result().locked for answer in waiting)
    assert error(one.unlock(f"{name} 0", held[0].key)) == (2, "invalid lock key")


def test_a_cancelled_wait_never_gets_the_lock(one: Stub, two: Stub, name: str) -> None:
    held = one.lock(name)
    given_up = two.lock_soon(name)
    two.try_lock("a round trip later")
    patient = one.lock_soon(name)
    one.try_lock("a round trip later")
    given_up.cancel()
    two.try_lock("a round trip later")
    assert one.unlock(name, held.key).unlocked
    assert patient.result().locked


def test_a_wait_ends_with_the_clients_own_deadline(one: Stub, two: Stub, name: str) -> None:
    held = one.lock(name)
    waiting = two.lock_soon(name, timeout=1.0)
    assert refused(waiting.result)[0] is Code.DEADLINE_EXCEEDED
    assert one.unlock(name, held.key).unlocked
    until(lambda: one.try_lock(name).locked)


def test_a_connection_that_ends_while_it_waits_never_gets_the_lock(
    door: Door, one: Stub, name: str
) -> None:
    held = one.lock(name)
    leaving = Stub(door)
    waiting = [leaving.lock_soon(name) for _ in range(10)]
    leaving.try_lock("a round trip later")
    patient = one.lock_soon(name)
    one.try_lock("a round trip later")
    leaving.close()
    assert all(refused(each.result)[0] is Code.CANCELLED for each in waiting)
    assert one.unlock(name, held.key).unlocked
    assert patient.result().locked


def test_three_hundred_that_wait_do_not_delay_the_others(
    one: Stub, two: Stub, name: str
) -> None:
    held = one.lock(name)
    waiting = [two.lock_soon(name) for _ in range(300)]
    for number in range(50):
        other = two.lock(f"{name} {number}")
        assert two.unlock(f"{name} {number}", other.key).unlocked
    assert not any(each.done() for each in waiting)
    granted: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for each in waiting:
        each.add_done_callback(granted.put)
    key = held.key
    for _ in waiting:
        assert two.unlock(name, key).unlocked
        key = granted.get(timeout=PATIENCE_S).result().key


# ---- What is no call of LDLM's -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text"),
    [("/ldlm.LDLM/Foo", "unknown method Foo for service ldlm.LDLM"),
     ("/a.b.C/Foo", "unknown service a.b.C"),
     ("/grpc.health.v1.Health/Check", "unknown service grpc.health.v1.Health")])
def test_what_is_not_there_is_unimplemented(one: Stub, path: str, text: str) -> None:
    call = one.channel.unary_unary(path)
    assert refused(call, b"", timeout=60.0) == (Code.UNIMPLEMENTED, text)


def test_a_message_that_is_none(one: Stub, door: Door) -> None:
    call = one.channel.unary_unary("/ldlm.LDLM/Lock")
    status, text = refused(call, b"\x0a\x02\xff\xfe", timeout=60.0)
    assert status is Code.INTERNAL
    assert text.startswith("grpc: error unmarshalling request: ")
    assert one.try_lock("and goes on").name == "and goes on"


def test_a_compressed_message_is_unimplemented(one: Stub, name: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        one.calls.Lock(one_request("x" * 10_000), compression=grpc.Compression.Gzip, timeout=60.0)
    assert caught.value.code() is Code.UNIMPLEMENTED
    assert caught.value.details() == (
        'grpc: Decompressor is not installed for grpc-encoding "gzip"')


def one_request(name: str) -> Any:
    from ldlm.protos import ldlm_pb2

    return ldlm_pb2.LockRequest(name=name)


@pytest.mark.parametrize("length", [1, 511, 513, 100_000, 4_000_000])
def test_names_of_any_length_are_kept_whole(one: Stub, two: Stub, length: int) -> None:
    name = "ä" * (length // 2) + "n" * (length % 2)
    held = one.lock(name)
    assert (held.locked, held.name == name) == (True, True)
    assert not two.try_lock(name).locked
    assert two.try_lock(name[:-1] + "m" + "o").locked, "another name"
    assert two.unlock(name, held.key).unlocked


def test_a_request_above_four_mebibytes_is_refused(one: Stub, name: str) -> None:
    size = one_request("x" * 4_194_304).ByteSize()
    assert refused(one.lock, "x" * 4_194_304) == (
        Code.RESOURCE_EXHAUSTED,
        f"grpc: received message larger than max ({size} vs. 4194304)")
    assert one.try_lock(name).locked


# ---- Doors with flags ----------------------------------------------------------------------------


def test_the_password(tmp_path: Path) -> None:
    with beside(tmp_path) as place:
        door = ldlm_door(place, "--password", "sesame")
        with stub(door) as none, stub(door, password="Sesame") as wrong, \
                stub(door, password="sesame") as right:
            for _ in range(3):
                assert refused(none.lock, "x") == (Code.UNAUTHENTICATED, "missing credentials")
                assert refused(wrong.try_lock, "x") == (
                    Code.UNAUTHENTICATED, "invalid credentials")
                assert refused(wrong.unlock, "x", "k")[0] is Code.UNAUTHENTICATED
                assert refused(wrong.renew, "x", "k", 1)[0] is Code.UNAUTHENTICATED
            assert right.try_lock("x").locked
            call = none.channel.unary_unary("/ldlm.LDLM/Foo")
            assert refused(call, b"", timeout=60.0)[0] is Code.UNIMPLEMENTED
        assert door.counters()["grpc_bad_credentials"] == 12


def test_locks_may_outlive_their_connection(tmp_path: Path) -> None:
    with beside(tmp_path) as place:
        door = ldlm_door(place, "-n")
        with stub(door) as leaving:
            held = leaving.lock("stays")
            assert leaving.lock("goes", lock_timeout_seconds=1).locked
        until(lambda: door.counters()["connections_open"] == 0)
        with stub(door) as other:
            assert not other.try_lock("stays").locked
            assert other.lock("goes").locked
            assert other.unlock("stays", held.key).unlocked


def test_a_door_that_stops_tells_those_who_wait(tmp_path: Path) -> None:
    with beside(tmp_path) as place:
        door = ldlm_door(place)
        with stub(door) as one:
            assert one.lock("x").locked
            waiting = [one.lock_soon("x") for _ in range(3)]
            one.try_lock("a round trip later")
            assert door.stop() == 0
            assert {refused(each.result)[0] for each in waiting} == {Code.UNAVAILABLE}
