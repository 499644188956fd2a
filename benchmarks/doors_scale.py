"""Many at once at a door: 10,000 connections that all lock and unlock, 300 blocked locks on one
connection, 1000 waiting requests; and whether the others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from benchmarks import doors, wire
from benchmarks.machine import cpu_seconds
from benchmarks.plan import Plan
from benchmarks.processes import Address, dlock_server
from benchmarks.report import Figures, at_least, at_most
from benchmarks.task import WrongAnswerError, expect, quantile

CONNECTIONS: Final = 10_000
OF_ONE_SOURCE: Final = 5_000  # a source address has 28,000 ports, some of them in use
SPARE_FILES: Final = 200
BLOCKED: Final = 300
WAITING: Final = 1_000
STATUS_MS: Final = 50.0
ASKED_MEANWHILE: Final = 200
PATIENCE_S: Final = 60.0
REST_S: Final = 0.2  # after the last one has asked to wait
TIMEOUT_S: Final = 600  # of a wait at the door


def measure(plan: Plan, figures: Figures) -> None:
    """Each in every run, with a server and a door of its own."""
    for _ in range(plan.runs):
        many = 100 if plan.quick else CONNECTIONS
        blocked, waiting = (20, 20) if plan.quick else (BLOCKED, WAITING)
        with dlock_server("adaptive", max_locks=4 * many) as primary:
            with doors.door("glockd", primary) as address:
                connections(figures, address, many, plan.seconds)
            with doors.door("LDLM gRPC", primary) as address:
                asyncio.run(asyncio.wait_for(ldlm(figures, address, blocked), 2 * PATIENCE_S))
            with doors.door("DoubleDutch", primary) as address:
                asyncio.run(asyncio.wait_for(
                    doubledutch(figures, address, waiting), 2 * PATIENCE_S))


def percentiles(figures: Figures, name: str, seconds: Sequence[float],
                greatest_ms: float | None = None) -> None:
    """Three rows; `greatest_ms`: what none of them may exceed."""
    ordered = sorted(round(one * 1e6) for one in seconds)
    for what, share in (("median", 0.5), ("99th percentile", 0.99)):
        figures.row(f"{name}, {what}", "ms").add(quantile(ordered, share) / 1e3)
    figures.row(f"{name}, the longest", "ms",
                None if greatest_ms is None else at_most(greatest_ms)).add(ordered[-1] / 1e3)


# ---- glockd --------------------------------------------------------------------------------------


def more_files(count: int) -> None:
    """Lets this process have so many more open files; OSError where the system forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + SPARE_FILES
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        except ValueError:
            raise OSError(f"{wanted} open files are needed, {hard} allowed: ulimit -Hn") from None


def open_many(address: Address, count: int) -> list[socket.socket]:
    """So many connections, from as many source addresses as that takes."""
    opened = []
    for number in range(count):
        source = f"127.0.0.{2 + number // OF_ONE_SOURCE}"
        one = socket.socket()
        opened.append(one)
        one.setsockopt(socket.SOL_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        one.bind((source, 0))
        one.settimeout(PATIENCE_S)
        one.connect((address.host, address.port))
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.setblocking(True)
    return opened


def connections(figures: Figures, address: Address, count: int, seconds: float) -> None:
    """All are open, and all lock and unlock, one request under way on each: first by names that
    the door has never seen, then by the same ones."""
    more_files(count)
    began = time.monotonic()
    opened = open_many(address, count)
    took = time.monotonic() - began
    try:
        first = wire.talk(opened, "lines", doors.glockd, seconds, rounds_min=1)
        before = cpu_seconds(address.pid)
        result = wire.talk(opened, "lines", doors.glockd, seconds, rounds_min=1)
        spent = cpu_seconds(address.pid) - before
    finally:
        for one in opened:
            one.close()
    name = f"glockd, {count:,} connections"
    served = sum(1 for one in first.counts if one)
    figures.row(f"{name}: opened", "s").add(took)
    figures.row(f"{name}: that locked and unlocked", "", at_least(count)).add(served)
    figures.row(f"{name}: each with a new name, after", "s").add(first.elapsed_s)
    figures.row(name, "pairs/s").add(result.rate, spent / result.elapsed_s, result.cores)
    percentiles(figures, f"{name}: a request", [one / 1e9 for one in result.samples_ns])


# ---- LDLM ----------------------------------------------------------------------------------------


class Calls:
    """gRPC's unary calls on one connection, any number under way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._stream = -1
        self._open: dict[int, tuple[asyncio.Future[bytes], bytearray]] = {}
        writer.write(wire.HTTP2_OPENING)
        self._task = asyncio.ensure_future(self._read())

    async def call(self, method: bytes, message: bytes) -> bytes:
        """The answer, without gRPC's prefix."""
        self._stream += 2
        done = asyncio.get_running_loop().create_future()
        self._open[self._stream] = (done, bytearray())
        self._writer.write(wire.grpc_call(self._stream, b"ldlm.LDLM", method, message))
        return bytes((await done)[5:])

    async def _read(self) -> None:
        while True:
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            if stream == 0:
                self._writer.write(wire.http2_acknowledged(kind, flags, payload))
            elif stream in self._open:
                done, data = self._open[stream]
                if kind == 0:
                    data += payload
                if flags & 1 and kind in (0, 1):
                    del self._open[stream]
                    done.set_result(bytes(data))

    async def close(self) -> None:
        """Leaves."""
        self._task.cancel()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def _text(field: int, value: bytes) -> bytes:
    return bytes([field << 3 | 2, len(value)]) + value


def _key(answer: bytes) -> bytes:
    """Of a LockResponse that says that it is locked."""
    expect(answer[:2], b"\x08\x01")
    at = answer.index(bytes([3 << 3 | 2, doors.UUID_BYTES])) + 2
    return answer[at:at + doors.UUID_BYTES]


async def ldlm(figures: Figures, address: Address, blocked: int) -> None:
    """Locks of one name that all wait on one connection, and pairs of another on the same; then
    the waiting ones are served, one after the other."""
    calls = Calls(*await asyncio.open_connection(address.host, address.port))
    busy, other = _text(1, b"busy"), _text(1, b"other")

    async def unlock(name: bytes, key: bytes) -> None:
        expect((await calls.call(b"Unlock", name + _text(2, key)))[:2], b"\x08\x01")

    async def serve() -> float:
        await unlock(busy, _key(await calls.call(b"Lock", busy)))
        return time.monotonic()

    async def pair() -> None:
        await unlock(other, _key(await calls.call(b"TryLock", other)))

    held = _key(await calls.call(b"TryLock", busy))
    waiting = [asyncio.ensure_future(serve()) for _ in range(blocked)]
    await asyncio.sleep(REST_S)
    took = await repeat(pair)
    if any(one.done() for one in waiting):
        raise WrongAnswerError("a lock was granted while another held it")
    began = time.monotonic()
    await unlock(busy, held)
    served = await asyncio.gather(*waiting)
    await calls.close()
    name = f"LDLM gRPC, {blocked} blocked locks on one connection"
    percentiles(figures, f"{name}: a pair meanwhile", took)
    figures.row(f"{name}: served", "", at_least(blocked)).add(len(served))
    figures.row(f"{name}: all served, after", "ms").add((max(served) - began) * 1e3)


async def repeat(once: Callable[[], Awaitable[None]]) -> list[float]:
    """How long each of them took, in seconds."""
    took = []
    for _ in range(ASKED_MEANWHILE):
        began = time.monotonic()
        await once()
        took.append(time.monotonic() - began)
    return took


# ---- DoubleDutch ---------------------------------------------------------------------------------


async def ask(address: Address, method: str, target: str) -> bytes:
    """One request on a connection of its own; the body."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(wire.http(method, target, b"", b"Connection: close"))
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.partition(b":")[2]) for line in head.split(b"\r\n")
                      if line.lower().startswith(b"content-length:"))
        return await reader.readexactly(length)
    finally:
        writer.close()


def _token(body: bytes) -> str:
    marker = b'"sessiontoken":"'
    at = body.find(marker) + len(marker)
    token = body[at:at + doors.TOKEN_BYTES]
    expect(len(token) if token.isalnum() else body, doors.TOKEN_BYTES)
    return token.decode()


async def doubledutch(figures: Figures, address: Address, waiting: int) -> None:
    """Requests that wait for one lock, a connection each; /status meanwhile; then all are served,
    one after the other."""
    get = f"/getlock?lockname=busy&auth={doors.KEY}&lifetime={TIMEOUT_S}"

    async def release(token: str) -> None:
        body = await ask(address, "DELETE",
                         f"/releaselock?lockname=busy&auth={doors.KEY}&token={token}")
        expect(b'"lockreleased":true' in body, True)

    async def serve() -> float:
        await release(_token(await ask(address, "GET", f"{get}&timeout={TIMEOUT_S}")))
        return time.monotonic()

    async def status() -> None:
        body = await ask(address, "GET", f"/status?auth={doors.KEY}")
        expect(body.count(b'"sessiontoken"'), 1)

    held = _token(await ask(address, "GET", get))
    tasks = [asyncio.ensure_future(serve()) for _ in range(waiting)]
    await asyncio.sleep(REST_S + waiting / 2000)
    took = await repeat(status)
    if any(one.done() for one in tasks):
        raise WrongAnswerError("a lock was granted while another held it")
    began = time.monotonic()
    await release(held)
    served = await asyncio.gather(*tasks)
    name = f"DoubleDutch, {waiting} waiting requests"
    percentiles(figures, f"{name}: /status meanwhile", took, STATUS_MS)
    figures.row(f"{name}: served", "", at_least(waiting)).add(len(served))
    figures.row(f"{name}: all served, after", "ms").add((max(served) - began) * 1e3)
