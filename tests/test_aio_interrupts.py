"""KeyboardInterrupt at every bytecode of dlock.aio, in a loop that lets it through: afterwards the
object's word and the server's agree, and everybody else's waits go on.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from aio_tools import until

from dlock import aio
from dlock.server import Server, ServerConfig

FOLDER = str(Path(aio.__file__).parent)
# What runs while an acquisition or a release is under way.
FILES = ("locks.py", "_attempt.py", "_collect.py", "_connection.py", "kinds.py")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = Server(ServerConfig(port=0))
    yield one
    one.stop()


class Breaker:
    """Raises KeyboardInterrupt at the `at`-th bytecode of dlock.aio, once."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.where = ""

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Any:
        if event == "call":
            name = frame.f_code.co_filename
            if not name.startswith(FOLDER) or not name.endswith(FILES):
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        elif event == "opcode":
            self.left -= 1
            if self.left == 0:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self


def broken_run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], at: int) -> Breaker:
    """Runs until the work has ended or was broken into. The loop goes on as before."""
    breaker = Breaker(at)
    task = loop.create_task(work)
    sys.settrace(breaker)
    try:
        loop.run_until_complete(task)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    # Where it came between two tasks, the work itself was not struck: it goes on.
    loop.run_until_complete(asyncio.wait((task,)))
    return breaker


OPTIONS: dict[str, dict[str, Any]] = {
    "lock": {}, "reentrant": {"reentrant": True}, "watched": {"on_lost": print}}
CHUNK = 150  # CPython 3.11 counts its recursion wrongly after many exceptions of trace functions


@pytest.mark.parametrize("kind", OPTIONS)
def test_at_every_bytecode(server: Server, kind: str) -> None:
    text = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    text += "import test_aio_interrupts as t; t.break_into(*sys.argv[1:])"
    for first in range(1, 3000, CHUNK):
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", text, server.address, kind, str(first)],
            capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 0, ended.stderr
        if ended.stdout == "all\n":
            assert first > 2 * CHUNK, "there was less to break into than there is"
            return
        assert ended.stdout == "more\n"
    raise AssertionError("there is no end of it")


def break_into(address: str, kind: str, first: str) -> None:
    """The body of a process of its own: breaks into the bytecodes from `first` on."""
    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(_connect(address))
    other = loop.run_until_complete(_connect(address))
    lock = client.lock("broken", **OPTIONS[kind])
    where = "somewhere"
    for at in range(int(first), int(first) + CHUNK):
        where = broken_run(loop, use(lock), at).where
        loop.run_until_complete(check(client, other, lock, where))
        if not where:
            break
    loop.run_until_complete(client.close())
    loop.run_until_complete(other.close())
    loop.close()
    print("more" if where else "all")


async def _connect(address: str) -> aio.Client:
    return await aio.connect(address)


async def _outcomes(tasks: list[asyncio.Task[None]]) -> list[BaseException | None]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)


async def use(lock: aio.Lock) -> None:
    await lock.acquire()
    await lock.release()


async def check(client: aio.Client, other: aio.Client, lock: aio.Lock, where: str) -> None:
    """If the object says that it holds the lock, the server says so too, and it can be given back;
    else nobody holds it, as soon as the server has heard."""
    gc.collect()  # the trace makes frames that have ended live on in cycles, with what was in them
    rival = other.lock("broken")
    if lock._held:
        assert lock.held, where
        assert not await rival.acquire(blocking=False), where
        entered = getattr(lock, "_entries", None)
        if entered is not None:
            lock._held[0].actor = client._connection.enter()  # the task that took it is gone
        await lock.release()
    assert await rival.acquire(timeout=20), where
    await rival.release()
    collector = client._connection.collector
    await until(lambda: not collector.waits)
    assert not collector._releases, where


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_those_who_wait_beside_it_are_served(server: Server) -> None:
    """The interrupt strikes one task or none; the answers of the others are not lost with it."""
    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(_connect(server.address))
    try:
        for at in range(1, 400, 9):
            locks = [client.lock(f"beside {number}") for number in range(5)]
            others = [loop.create_task(use(lock)) for lock in locks]
            broken_run(loop, use(client.lock("broken into")), at)
            outcomes = loop.run_until_complete(
                _outcomes(others))
            struck = [one for one in outcomes if one is not None]
            assert all(isinstance(one, KeyboardInterrupt) for one in struck)
            assert len(struck) <= 1
    finally:
        loop.run_until_complete(client.close())
        loop.close()
