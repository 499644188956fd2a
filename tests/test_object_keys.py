"""Keys of objects: when the C client is told of one, and that it has none any more before the
server lets the object go. The steps are driven by hand; the server is the test's part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from mirror_tools import HOST, S

import dlock
from dlock import _mirror_objects, _objects, dclient
from dlock._core import lib as core
from dlock._session import Pause, Session
from dlock.control.messages import ObjectCreate, ObjectDestroy, ObjectGet, ObjectId, Status
from dlock.server import Server, ServerConfig
from dlock.types import AtomicDesc

PENDING = core.DLK_STATUS_PENDING


class Telling:
    """The C core, of which it is written down what it is told of keys: (object, key). `busy`: so
    often operations with a key are under way still."""

    def __init__(self) -> None:
        self.keys: list[tuple[int, int]] = []
        self.busy = 0

    def dlk_client_object_key(self, client: Any, object_id: int, key: int) -> int:
        self.keys.append((object_id, key))
        if key == 0 and self.busy:
            self.busy -= 1
            return PENDING
        return int(core.dlk_client_object_key(client, object_id, key))

    def __getattr__(self, name: str) -> Any:
        return getattr(core, name)


@pytest.fixture
def told(monkeypatch) -> Telling:
    from dlock import _mirror_client

    one = Telling()
    for module in (_objects, _mirror_objects, _mirror_client):
        monkeypatch.setattr(module, "lib", one)
    return one


@pytest.fixture
def session() -> Iterator[Session]:
    one = Session(core.DLK_WAIT_BLOCK)
    yield one
    one.end()


def test_the_key_comes_with_the_object(told: Telling, session: Session) -> None:
    steps = _objects.getting(session, b"n", 5)
    created, got = next(steps)
    assert (type(created), type(got)) == (ObjectCreate, ObjectGet)
    with pytest.raises(StopIteration):
        steps.send([ObjectId(S.SUCCESS, 9), ObjectId(S.SUCCESS, 9, 3, 77)])
    assert told.keys == [(9, 77)]
    assert core.dlk_client_drop_object(session.client, 9) == S.SUCCESS  # it was added before


def test_an_object_that_is_to_be_destroyed_has_no_key_any_more(
    told: Telling, session: Session
) -> None:
    steps = _objects.getting(session, b"n", None)
    next(steps)
    with pytest.raises(StopIteration):
        steps.send([ObjectId(S.SUCCESS, 9, 3, 77)])
    told.busy = 2
    steps = _objects.destroying(session, b"n")
    for _ in range(2):  # until nothing is under way with it
        assert isinstance(next(steps), Pause)
    (asked,) = next(steps)
    assert asked == ObjectDestroy(9)
    assert told.keys == [(9, 77), (9, 0), (9, 0), (9, 0)]
    with pytest.raises(StopIteration) as end:
        steps.send([Status(S.SUCCESS)])
    assert end.value.value is S.SUCCESS


def test_operations_that_do_not_end_delay_it_only_so_long(told: Telling, session: Session) -> None:
    told.busy = 10**9
    session.objects[b"n"] = (0, 9)
    waited_s = 0.0
    for step in _objects.destroying(session, b"n"):
        if not isinstance(step, Pause):
            break
        waited_s += step.seconds
    assert _objects.TIMEOUT_S <= waited_s < _objects.TIMEOUT_S + 1


def test_a_blocking_client_waits_for_them(told: Telling) -> None:
    server = Server(ServerConfig(port=0, wait_mode="block"))
    with dlock.connect(server.address) as client:
        number = client.atomic("n", 5)
        assert number.add(2) == 7
        told.busy = 2
        number.destroy()
        assert [key for _, key in told.keys[-3:]] == [0, 0, 0]
    server.stop()


def test_the_mirror_tells_keys_and_takes_them_back(start_service, told: Telling) -> None:
    start_service()
    status, first = dclient.client_init(HOST)
    assert status is S.SUCCESS
    status, object_id = dclient.umo_atomic64_create(first, AtomicDesc(b"n", 60), 5)
    assert status is S.SUCCESS
    assert told.keys == []  # to create is not to get
    assert dclient.umo_atomic64_get(first, AtomicDesc(b"n", 60)) == (S.SUCCESS, object_id)
    key = told.keys[0][1]
    assert told.keys == [(object_id, key)]
    told.busy = 2
    assert dclient.umo_atomic64_release(first, object_id) is S.SUCCESS
    assert told.keys[1:] == [(object_id, 0)] * 3
    told.keys.clear()
    status, second = dclient.client_init(HOST)
    assert dclient.umo_atomic64_get(second, AtomicDesc(b"n", 60)) == (S.SUCCESS, object_id)
    # It is not the second one's: the key is given back with the refusal.
    assert dclient.umo_atomic64_destroy(second, object_id) is S.OBJECT_INVALID_OWNER
    assert told.keys == [(object_id, key), (object_id, 0), (object_id, key)]
    assert dclient.umo_atomic64_faa(second, object_id, 1) == (S.SUCCESS, 5)
