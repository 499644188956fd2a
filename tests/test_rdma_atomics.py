"""RDMA: numbers that clients operate on by themselves, beside those who use TCP; what a key that is
not valid any more does not reach."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from failover_tools import Primary
from mirror_tools import HOST, S, Service, until
from rdma_tools import connect, serving

from dlock import dclient
from dlock.types import AtomicDesc

pytestmark = pytest.mark.rdma

TIMES = 400

# Counts in a process of its own: by additions, by exchanges, and by reading what it has got.
COUNTER = """
import json, sys
import dlock

address, transport, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
with dlock.connect(address, transport=transport, timeout=60) as client:
    assert client.transport.kind == transport, client.transport.why
    added, exchanged = client.atomic("added"), client.atomic("exchanged")
    print(json.dumps("ready"), flush=True)
    sys.stdin.readline()
    got = [added.fetch_add(1) for _ in range(times)]
    for _ in range(times // 4):
        exchanged.update(lambda number: number + 3)
    last = added.get()
print(json.dumps({"got": got, "last": last}), flush=True)
"""


@contextlib.contextmanager
def counting(address: str, transport: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", COUNTER, address, transport, str(TIMES)], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert json.loads(process.stdout.readline()) == "ready"
            yield process
        finally:
            process.kill()


def test_the_sum_is_exact_with_tcp_and_rdma_on_one_number() -> None:
    """A device's atomic operations and the processor's are not atomic to each other: whoever uses
    which, there is one place where they meet."""
    with serving() as server, contextlib.ExitStack() as stack:
        address = f"{server.host}:{server.port}"
        programs = [stack.enter_context(counting(address, transport))
                    for transport in ("verbs", "tcp", "verbs", "tcp")]
        with ThreadPoolExecutor(len(programs)) as pool:
            ends = [json.loads(out.splitlines()[-1]) for out, _ in
                    pool.map(lambda one: one.communicate("go\n"), programs)]
        with connect(server) as client, connect(server, transport="tcp") as other:
            for one in (client, other):
                assert one.atomic("added").get() == TIMES * len(programs)
                assert one.atomic("exchanged").get() == 3 * (TIMES // 4) * len(programs)
    every = [number for end in ends for number in end["got"]]
    assert sorted(every) == list(range(TIMES * len(programs))), "two got the same number"
    assert all(end["got"] == sorted(end["got"]) for end in ends)
    assert all(end["last"] > end["got"][-1] for end in ends)


def test_a_device_adds_while_the_servers_process_is_stopped(tmp_path: Path) -> None:
    """10,000 additions that no instruction of the server has a part in."""
    primary = Primary(tmp_path, ttl_s=3600.0, flags=("--transport", "verbs"))
    try:
        with connect(primary.address) as client:
            number = client.atomic("number", 5)
            assert number.get() == 5  # it has got it, and the key
            primary.stop()
            for expected in range(5, 10_005):
                assert number.fetch_add(1) == expected
            assert number.compare_exchange(10_005, -1) == (True, 10_005)
            assert number.get() == -1
            primary.go_on()
            with connect(primary.address, transport="tcp") as other:
                assert other.atomic("number").get() == -1
                assert other.atomic("number").add(2) == 1
            assert number.get() == 1
    finally:
        primary.kill()


def test_numbers_wrap_over_either() -> None:
    with serving() as server, connect(server) as one, connect(server, transport="tcp") as two:
        over, same = one.atomic("number", 2**63 - 1), two.atomic("number")
        assert over.add(1) == -(2**63)
        assert same.add(-1) == 2**63 - 1
        assert over.compare_exchange(0, 1) == (False, 2**63 - 1)
        assert over.get() == same.get() == 2**63 - 1


# ---- Keys ----------------------------------------------------------------------------------------


@pytest.fixture
def over_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mirror takes RDMA, at both ends."""
    monkeypatch.setenv("DLOCK_TRANSPORT", "verbs")


def create(client: int, name: bytes, value: int, lease_s: int) -> int:
    status, number = dclient.umo_atomic64_create(client, AtomicDesc(name, lease_s), value)
    assert status is S.SUCCESS
    assert number is not None
    return number


def get(client: int, name: bytes) -> int:
    status, number = dclient.umo_atomic64_get(client, AtomicDesc(name, 0))
    assert status is S.SUCCESS
    assert number is not None
    return number


def snapshot(client: int, name: bytes) -> int | None:
    """The value, for one who gets it, looks and releases it."""
    number = get(client, name)
    status, value = dclient.umo_atomic64_get_snapshot(client, number)
    assert status is S.SUCCESS
    assert dclient.umo_atomic64_release(client, number) is S.SUCCESS
    return value


@pytest.mark.usefixtures("over_verbs")
def test_the_key_of_a_destroyed_number_reaches_nothing(start_service) -> None:
    """It is destroyed under one who has got it; many others come, in whatever place it had. The old
    key changes none of them, costs its client the connection, and the client is told."""
    service: Service = start_service()
    owner, late = service.client(), service.client()
    number = create(owner, b"first", 7, 1)
    assert get(late, b"first") == number
    assert dclient.umo_atomic64_faa(late, number, 1) == (S.SUCCESS, 7)
    assert dclient.umo_atomic64_destroy(owner, number) is S.SUCCESS
    until(lambda: dclient.umo_atomic64_create(owner, AtomicDesc(b"first", 60), 100)[0]
          is S.SUCCESS)
    for one in range(40):
        create(owner, b"other %d" % one, 1000 + one, 60)
    status, _ = dclient.umo_atomic64_faa(late, number, 1)
    assert status in (S.OBJECT_NOT_GET, S.BAD_RESPONSE)
    assert dclient.client_reinit(late, HOST) is S.SUCCESS
    assert dclient.client_reinit_done(late) is S.SUCCESS
    assert dclient.umo_atomic64_faa(late, number, 1) == (S.OBJECT_NOT_GET, None)
    for client in (late, owner):
        assert snapshot(client, b"first") == 100
        assert [snapshot(client, b"other %d" % one) for one in range(40)] == [
            1000 + one for one in range(40)]


@pytest.mark.usefixtures("over_verbs")
def test_who_has_released_a_number_comes_back_to_it_with_a_key_that_is_valid(
    start_service
) -> None:
    service: Service = start_service()
    one, two = service.client(), service.client()
    number = create(one, b"number", 7, 60)
    for before in (7, 8, 9):
        assert get(two, b"number") == number
        assert dclient.umo_atomic64_faa(two, number, 1) == (S.SUCCESS, before)
        assert dclient.umo_atomic64_release(two, number) is S.SUCCESS
        assert dclient.umo_atomic64_faa(two, number, 1) == (S.OBJECT_NOT_GET, None)
    assert snapshot(one, b"number") == 10
