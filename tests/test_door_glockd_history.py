"""Random histories of many clients beside a model of glockd: every reply to the byte, d, sd, dump
and q included; and random bytes, which must end nothing but their own connection."""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from failover_tools import until
from glockd_tools import Glockd, Wire, glockd
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dlock.doors.glockd.websocket import Websocket

VERBS = ("g", "r", "i", "sg", "sr", "si", "d", "sd", "dump", "me", "iam", "who", "q")
ALWAYS = ("g", "r", "i", "sg", "sr", "si", "d", "sd", "dump", "q")
NAMES = (b"a", b"b", b"c d", b"", b"\xff\x00", b"shared")
SEEDS = range(6)


class Model:
    """glockd, said as plainly as it goes: one step after the other, no connections."""

    def __init__(self) -> None:
        self.locks: dict[bytes, bytes] = {}
        self.shared: dict[bytes, list[bytes]] = {}
        self.clients: dict[bytes, bytes] = {}  # address -> name, empty: none
        self.named: list[bytes] = []
        self.counts = Counter(dict.fromkeys(
            [*(f"command_{verb}" for verb in ALWAYS), "invalid_commands", "orphans",
             "shared_orphans"], 0))

    def called(self, address: bytes) -> bytes:
        return self.clients[address] or address

    def enter(self, address: bytes) -> None:
        self.clients[address] = b""

    def leave(self, address: bytes) -> None:
        for name in [name for name, holder in self.locks.items() if holder == address]:
            del self.locks[name]
            self.counts["orphans"] += 1
        for name in [name for name, holders in self.shared.items() if address in holders]:
            self._unshare(name, address)
            self.counts["shared_orphans"] += 1
        del self.clients[address]
        self.named = [one for one in self.named if one != address]

    def _unshare(self, name: bytes, address: bytes) -> None:
        self.shared[name].remove(address)
        if not self.shared[name]:
            del self.shared[name]

    def command(self, address: bytes, line: bytes) -> bytes:
        verb, _, rest = line.strip().partition(b" ")
        text = verb.decode("latin-1")
        if text not in VERBS:
            self.counts["invalid_commands"] += 1
            return b""
        self.counts[f"command_{text}"] += 1
        name = b" ".join(rest.split())
        reply: bytes = getattr(self, f"on_{text}")(address, name)
        return reply

    def on_g(self, me: bytes, name: bytes) -> bytes:
        holder = self.locks.setdefault(name, b"")
        if not holder:
            self.locks[name] = me
        won = self.locks[name] == me
        end = b"\n" if holder == me else b"\r\n"
        return b"%d Lock Get %b: %b%b" % (won, b"Success" if won else b"Failure", name, end)

    def on_r(self, me: bytes, name: bytes) -> bytes:
        if self.locks.get(name) != me:
            return b"0 Lock Release Failure: %b\n" % name
        del self.locks[name]
        return b"1 Lock Release Success: %b\n" % name

    def on_i(self, me: bytes, name: bytes) -> bytes:
        holder = self.locks.get(name)
        if holder is None:
            return b"0 Lock Not Locked: %b\r\n" % name
        return b"1 Lock Is Locked: %b%b" % (name, b"\n" if holder == me else b"\r\n")

    def on_sg(self, me: bytes, name: bytes) -> bytes:
        holders = self.shared.setdefault(name, [])
        if me not in holders:
            holders.append(me)
        return b"%d Shared Lock Get Success: %b\r\n" % (len(holders), name)

    def on_sr(self, me: bytes, name: bytes) -> bytes:
        if me not in self.shared.get(name, []):
            return b"0 Shared Lock Release Failure: %b\r\n" % name
        self._unshare(name, me)
        return b"1 Shared Lock Release Success: %b\r\n" % name

    def on_si(self, me: bytes, name: bytes) -> bytes:
        count = len(self.shared.get(name, []))
        words = b"Is Locked" if count else b"Not Locked"
        return b"%d Shared Lock %b: %b\r\n" % (count, words, name)

    def on_d(self, me: bytes, name: bytes) -> bytes:
        return b"".join(b"%b: %b\n" % (lock, self.called(holder))
                        for lock, holder in self.locks.items() if name in (b"", lock))

    def on_sd(self, me: bytes, name: bytes) -> bytes:
        return b"".join(b"%b: %b\n" % (lock, self.called(holder))
                        for lock, holders in self.shared.items() if name in (b"", lock)
                        for holder in holders)

    def on_dump(self, me: bytes, name: bytes) -> bytes:
        rows = ([b"%b:[%b]" % (lock, b" ".join(by)) for lock, by in sorted(self.shared.items())]
                if name == b"shared" else
                [b"%b:%b" % row for row in sorted(self.locks.items())])
        return b"map[%b]\n" % b" ".join(rows)

    def on_me(self, me: bytes, name: bytes) -> bytes:
        return b"1 %b %b\n" % (me, self.called(me))

    def on_iam(self, me: bytes, name: bytes) -> bytes:
        if name and not self.clients[me]:
            self.named.append(me)
        if not name and self.clients[me]:
            self.named.remove(me)
        self.clients[me] = name
        return b"1 ok\n"

    def on_who(self, me: bytes, name: bytes) -> bytes:
        return b"".join(b"%b: %b\n" % (one, self.clients[one]) for one in self.named
                        if name in (b"", self.clients[one]))

    def on_q(self, me: bytes, name: bytes) -> bytes:
        shown = {**self.counts, "connections": len(self.clients), "locks": len(self.locks),
                 "shared_locks": len(self.shared)}
        return b"".join(b"%b: %d\n" % (key.encode(), shown[key]) for key in sorted(shown))


class Story:
    """The same steps, taken by the door and by the model."""

    def __init__(self, door: Glockd, seed: int) -> None:
        self.door = door
        self.random = random.Random(seed)
        self.model = Model()
        self.wires: dict[bytes, Wire] = {}

    def line(self) -> bytes:
        if self.random.random() < 0.05:
            return self.random.choice([b"", b"stats", b"G a", b"get a", b"\xff", b"g\ta"])
        verb = self.random.choices(VERBS, (6, 4, 2, 6, 4, 2, 1, 1, 1, 1, 1, 1, 1))[0].encode()
        blanks = [b" ", b"  ", b" \t "]
        name = self.random.choice(NAMES).replace(b" ", self.random.choice(blanks))
        before, between, after = (self.random.choice([b"", *blanks]) for _ in range(3))
        return before + verb + b" " + between + name + after + self.random.choice([b"", b"\r"])

    def enter(self) -> None:
        before = len(self.model.clients)
        wire = self.random.choice([self.door.tcp, self.door.unix])()
        address = wire.ask(b"me").split()[1]
        self.model.enter(address)
        self.model.command(address, b"me")
        self.wires[address] = wire
        assert len(self.model.clients) == before + 1

    def leave(self) -> None:
        address = self.random.choice(list(self.wires))
        self.wires.pop(address).close()
        self.model.leave(address)
        watch = next(iter(self.wires), None)
        if watch is None:
            self.enter()
            watch = next(iter(self.wires))

        def gone() -> bool:
            return self.both(watch, [b"q"], b"connections: %d\n" % len(self.model.clients))

        until(gone)

    def both(self, address: bytes, lines: list[bytes], awaited: bytes = b"") -> bool:
        """Sends these lines in one packet, and compares every byte that comes. `awaited`: must be
        in it, and nothing is compared where it is not yet."""
        wire = self.wires[address]
        lines = [*lines, b"me"]  # so that something tells that all of them were carried out
        expected = b"".join(self.model.command(address, line) for line in lines)
        wire.send(b"".join(line + b"\n" for line in lines))
        if awaited:  # the numbers may not be there yet, and so may have other lengths
            rows = [wire.line() for _ in expected.splitlines()]
            if awaited not in rows:
                return False
            assert b"".join(rows) == expected
            return True
        got = wire.read(len(expected))
        assert got == expected, lines
        return True

    def step(self) -> None:
        chance = self.random.random()
        if not self.wires or (chance < 0.05 and len(self.wires) < 8):
            self.enter()
        elif chance < 0.09:
            self.leave()
        else:
            lines = [self.line() for _ in range(self.random.choice([1, 1, 1, 2, 7]))]
            self.both(self.random.choice(list(self.wires)), lines)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_history_is_glockds(tmp_path: Path, seed: int) -> None:
    with glockd(tmp_path) as door:
        story = Story(door, seed)
        for _ in range(400):
            story.step()
        assert story.model.counts["orphans"] > 0
        assert story.model.counts["shared_orphans"] > 0


# ---- Random bytes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glockd]:
    with glockd(tmp_path_factory.mktemp("fuzz")) as made:
        yield made


COMMANDS = st.one_of(
    st.sampled_from([b"g a", b"r a", b"sg a", b"sr a", b"si a", b"i a", b"d", b"sd", b"q", b""]),
    st.binary(max_size=30),
)


def pieces(sent: bytes, cuts: random.Random) -> Iterator[bytes]:
    """The bytes in random pieces."""
    while sent:
        size = cuts.randint(1, len(sent))
        yield sent[:size]
        sent = sent[size:]


def alone(door: Glockd) -> Wire:
    """A new client, when all others are gone."""
    door.close()
    wire = door.tcp()
    until(lambda: wire.statistics()["connections"] == 1)
    assert wire.statistics()["locks"] == wire.statistics()["shared_locks"] == 0
    return wire


@given(st.lists(COMMANDS, min_size=1, max_size=12), st.integers(0, 1 << 32))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow],
          phases=[Phase.explicit, Phase.reuse, Phase.generate])  # to shrink would take minutes
def test_the_split_of_a_stream_does_not_matter(
    door: Glockd, commands: list[bytes], seed: int
) -> None:
    """The same bytes in one piece, and in random ones, get the same bytes."""
    sent = b"\n".join(commands)
    answers = []
    for split in ([sent], pieces(sent, random.Random(seed))):
        wire = alone(door)
        for piece in split:
            wire.send(piece)
        wire.socket.shutdown(socket.SHUT_WR)
        answers.append(_without_counts(wire.rest().replace(wire.called, b"ME")))
    assert answers[0] == answers[1]


def _without_counts(answer: bytes) -> list[bytes]:
    """What q says grows from one run to the next."""
    return [row.split(b": ")[0] if row[:7] in (b"command", b"orphans", b"connect", b"invalid")
            or row.startswith(b"shared_o") else row for row in answer.splitlines(True)]


FRAMES: list[Callable[[bytes], bytes]] = [
    lambda payload: bytes([0x81, 0x80 | len(payload)]) + bytes(4) + payload,
    lambda payload: bytes([0x82, 0x80 | len(payload)]) + bytes(4) + payload,
    lambda payload: bytes([0x01, 0x80 | len(payload)]) + bytes(4) + payload,
    lambda payload: bytes([0x80, 0x80 | len(payload)]) + bytes(4) + payload,
    lambda payload: bytes([0x89, 0x80 | len(payload)]) + bytes(4) + payload,
    lambda payload: bytes([0x8A, 0x80 | len(payload)]) + bytes(4) + payload,
    lambda payload: bytes([0x88, 0x80 | len(payload)]) + bytes(4) + payload,
    lambda payload: payload,
]
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@given(
    st.booleans(),
    st.lists(st.tuples(st.sampled_from(FRAMES), st.binary(max_size=60)), max_size=8),
    st.integers(0, 1 << 32),
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_websocket_or_refused(
    opened: bool, frames: list[tuple[Callable[[bytes], bytes], bytes]], seed: int
) -> None:
    sent = (HANDSHAKE if opened else b"") + b"".join(make(payload) for make, payload in frames)
    heard = []
    for split in ([sent], pieces(sent, random.Random(seed))):
        sut, messages, farewells = Websocket(), [], []
        for piece in split:
            one = sut.feed(piece)
            messages += one.messages
            farewells += [one.farewell] if one.farewell is not None else []
        assert len(farewells) <= 1
        heard.append((messages, farewells))
    assert heard[0] == heard[1]
