"""`client.records`: bytes under keys that are on the primary's disk before a call returns, whole or
not there, over a restart and over lost links."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aio_tools import run

import dlock.aio
from dlock.aio.records import Records
from dlock.control.messages_durable import PIECE_BYTES as PIECE
from dlock.errors import ConnectionLost, StoreError
from dlock.server import Server, ServerConfig

LIMIT_S = 20.0


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    started: list[Server] = []
    yield started
    for one in started:
        one.stop()


def start(servers: list[Server], folder: Path | None, **config: Any) -> Server:
    servers.append(Server(ServerConfig(**{"port": 0, "state_dir": folder, **config})))
    return servers[-1]


def value(size: int) -> bytes:
    return os.urandom(size)


def test_a_record_is_there_after_a_restart(tmp_path: Path, servers: list[Server]) -> None:
    server = start(servers, tmp_path)

    async def story() -> None:
        async with dlock.aio.connect(server.address) as client:
            records = client.records("door")
            await records.put(b"key", b"first")
            await records.put(b"key", b"second")
            await records.put(b"", b"")
            await records.put(b"gone", b"x")
            await records.delete(b"gone")
            await records.delete(b"never there")
            server.stop()
            start(servers, tmp_path, port=server.port)
            assert await records.all(timeout=LIMIT_S) == {b"key": b"second", b"": b""}

    run(story())


def test_spaces_do_not_see_each_other(tmp_path: Path, servers: list[Server]) -> None:
    server = start(servers, tmp_path)

    async def story() -> None:
        async with dlock.aio.connect(server.address) as client:
            await client.records("a").put(b"key", b"of a")
            await client.records("b").put(b"key", b"of b")
            await client.records("b").delete(b"key")
            assert await client.records("a").all() == {b"key": b"of a"}
            assert await client.records("b").all() == {}

    run(story())


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 8 << 20])
def test_values_of_every_length_travel_whole(
    tmp_path: Path, servers: list[Server], size: int
) -> None:
    server = start(servers, tmp_path)
    wanted = {b"small": b"s", b"big": value(size), b"k" * 1024: value(7)}

    async def story() -> None:
        async with dlock.aio.connect(server.address) as client:
            records = client.records("door")
            for key, bytes_ in wanted.items():
                await records.put(key, bytes_)
            assert await records.all() == wanted

    run(story())


def test_many_records_come_in_many_answers(tmp_path: Path, servers: list[Server]) -> None:
    server = start(servers, tmp_path)
    wanted = {b"%05d" % number: value(number % 300) for number in range(1500)}

    async def story() -> None:
        async with dlock.aio.connect(server.address) as client:
            records = client.records("door")
            await asyncio.gather(*(records.put(*one) for one in wanted.items()))
            assert await records.all() == wanted

    run(story())


def test_calls_on_one_key_are_carried_out_in_their_order(
    tmp_path: Path, servers: list[Server]
) -> None:
    server = start(servers, tmp_path)

    async def story() -> None:
        async with dlock.aio.connect(server.address) as client:
            records = client.records("door")
            calls = [records.put(b"key", b"%d" % number) for number in range(100)]
            waiting = [asyncio.ensure_future(one) for one in calls]
            await asyncio.sleep(0)
            for number in range(1, 100, 7):
                waiting[number].cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert await records.all() == {b"key": b"98"}  # 99 was cancelled
            await asyncio.gather(records.put(b"key", b"x"), records.delete(b"key"))
            assert await records.all() == {}

    run(story())


def test_what_cannot_be_a_record_is_refused(tmp_path: Path, servers: list[Server]) -> None:
    server = start(servers, tmp_path)

    async def story() -> None:
        async with dlock.aio.connect(server.address) as client:
            for space in ("", "x" * 65):
                with pytest.raises(ValueError, match=r"1\.\.64 bytes"):
                    client.records(space)
            records = client.records("door")
            with pytest.raises(ValueError, match="at most 1024 bytes"):
                await records.put(b"k" * 1025, b"")
            with pytest.raises(ValueError, match="at most 8388608 bytes"):
                await records.put(b"k", bytes((8 << 20) + 1))
            with pytest.raises(TypeError, match="a key is bytes"):
                await records.put("k", b"")  # type: ignore[arg-type]

    run(story())


def test_without_a_state_directory_it_says_so(servers: list[Server]) -> None:
    server = start(servers, None)

    async def story(records: Records) -> None:
        with pytest.raises(StoreError) as caught:
            await records.put(b"key", b"value")
        assert caught.value.errno == errno.ECOMM

    async def whole() -> None:
        async with dlock.aio.connect(server.address) as client:
            await story(client.records("door"))
            assert (await client.stats())["DURABLE_REFUSED"] == 1

    run(whole())


def test_a_primary_that_does_not_come_back_is_said_in_time(
    tmp_path: Path, servers: list[Server]
) -> None:
    server = start(servers, tmp_path)

    async def story() -> None:
        async with dlock.aio.connect(server.address) as client:
            server.stop()
            with pytest.raises(ConnectionLost):
                await client.records("door").put(b"key", b"value", timeout=0.3)

    run(story())


PRIMARY = """
import sys, time
from pathlib import Path
from dlock.server import Server, ServerConfig
server = Server(ServerConfig(port=int(sys.argv[2]), state_dir=Path(sys.argv[1])))
print(server.port, flush=True)
time.sleep(120)
"""


def primary(folder: Path, port: int = 0) -> tuple[subprocess.Popen[str], int]:
    child = subprocess.Popen([sys.executable, "-c", PRIMARY, str(folder), str(port)],
                             stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    return child, int(child.stdout.readline())


def test_a_kill_in_the_middle_leaves_the_old_value_or_the_new(tmp_path: Path) -> None:
    """A record of many pieces is whole, and every record whose put has returned is there."""
    child, port = primary(tmp_path)
    written: dict[bytes, bytes] = {}

    async def write(records: Records) -> None:
        for number in range(200):
            content = bytes([number]) * (5 * PIECE + number)
            await records.put(b"%03d" % (number % 7), content)
            written[b"%03d" % (number % 7)] = content

    async def story() -> None:
        nonlocal child
        async with dlock.aio.connect(f"127.0.0.1:{port}") as client:
            records = client.records("door")
            for _ in range(3):
                writing = asyncio.ensure_future(write(records))
                await asyncio.sleep(0.15)
                child.send_signal(signal.SIGKILL)
                child.wait()
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
                child, _port = await asyncio.to_thread(primary, tmp_path, port)
                found = await records.all(timeout=LIMIT_S)
                assert found.keys() >= written.keys()
                different = [key for key in written if found[key] != written[key]]
                assert len(different) <= 1  # the one that was under way
                for content in found.values():
                    assert content == content[:1] * len(content)
                    assert len(content) == 5 * PIECE + content[0]

    try:
        asyncio.run(story())
    finally:
        child.kill()
        child.wait()
