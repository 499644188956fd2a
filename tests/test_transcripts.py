"""Stories of locks that a person can read, played on the C engine and the oracle at once.

tests/transcripts/*.txt: commands in plain words, a line of dashes, what was answered, an empty
line. DLOCK_REWRITE=1 writes the answers anew: read the difference before it is committed.

    NAME joins [early]                          opens a session of 10 s, leases up to 60 s; early:
                                                it can make use of a server that recovers
    LOCK is atomic | rw | fair | semaphore of N
    NAME locks LOCK [shared] [lease 5s] [wait 3s | wait forever] [ticket] [final]
    NAME redeems LOCK [lease 5s] [wait 3s]      its ticket
    NAME unlocks LOCK | extends LOCK [lease 5s] | gives up LOCK | cancels LOCK | repeats LOCK
    NAME pings | leaves | heartbeats
    NAME is struck                              off the state directory, after its session ended
    time 5s                                     passes, and what is due ends
    LOCK closes | LOCK opens
    server ready | server not ready
    server dies                                 another one starts, of the next epoch, and recovers
    NAME claims LOCK [lease 5s] [wait 3s] [lapsed [believed]]
                                                what it had there: by the last that it was told
    server serves                               all have claimed; leases last at least 10 s
    show LOCK
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import engine_driver
import pytest
from oracle_state import MS, Claim, Command, Entry, Event, Lock, Output, Reply, Request

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))
REWRITE = os.environ.get("DLOCK_REWRITE") == "1"
RULER = "----"
NOTHING = "(nothing)"
TTL_MS = 10_000
MAX_LEASE_MS = 60_000
FLAGS = ("shared", "ticket", "final")
STATES = {"GRANTED": "HELD", "EXTENDED": "HELD", "QUEUED": "QUEUED", "TICKETED": "TICKET"}


def seconds(ns: int) -> str:
    return f"{ns / 1e9:g} s"


def milliseconds(words: str) -> int:
    number, unit = re.fullmatch(r"([0-9.]+)(ms|s)", words).groups()  # type: ignore[union-attr]
    return round(float(number) * {"ms": 1, "s": 1000}[unit])


@dataclass
class Place:
    """What somebody was last given on a lock, and the request that got it."""

    request: Request
    token: int = 0
    entry: int | None = None
    state: str = "GOT"


class Story:
    """Carries commands out and puts what comes of them into words."""

    def __init__(self) -> None:
        self.pair = engine_driver.Pair(max_entries=16)
        self.people: list[str] = []
        self.locks: dict[str, Command] = {}
        self.places: dict[tuple[str, str], Place] = {}
        self.asked: dict[int, tuple[str, str]] = {}
        self.numbers: dict[int, int] = {}
        self.pair.command(Command("READY", value=1))

    def play(self, line: str) -> list[str]:
        words = line.split()
        if words[0] == "time":
            self.pair.now += milliseconds(words[1]) * MS
            return self.tell(self.pair.tick())
        if words[0] == "server" and words[1] in ("dies", "serves"):
            return self.recovery(words[1])
        if words[0] == "server":
            return self.tell(self.pair.command(Command("READY", value=int(words[1] == "ready"))))
        if words[0] == "show":
            return self.show(words[1])
        name, verb = words[0], words[1]
        if verb == "is" and name in self.people:
            return self.tell(self.pair.command(self.session_command(name, "is")))
        if verb in ("is", "closes", "opens"):
            return self.tell(self.pair.command(self.lock_command(name, verb, words[2:])))
        if verb in ("joins", "leaves", "heartbeats"):
            order = self.session_command(name, verb)
            return self.tell(self.pair.command(replace(order, early="early" in words)))
        if verb == "claims":
            return self.claim(name, words[2], words[3:])
        return self.tell(self.pair.step([self.request(name, verb, words[2:])])[0])

    # ---- Commands ----

    def lock_command(self, name: str, verb: str, words: list[str]) -> Command:
        if verb == "is":
            slot, size = len(self.locks), int(words[2]) if len(words) > 1 else 1
            order = Command("LOCK_OPEN", slot, 100 + slot, words[0].upper(), size)
            self.locks[name] = order
            return order
        if verb == "closes":
            return replace(self.locks[name], op="LOCK_CLOSE", size=0)
        return self.locks[name]

    def session_command(self, name: str, verb: str) -> Command:
        if name not in self.people:
            self.people.append(name)
        slot = self.people.index(name)
        op = {"joins": "OPEN", "leaves": "CLOSE", "heartbeats": "RENEW", "is": "END"}[verb]
        return Command(f"SESSION_{op}", slot, 1000 + slot, ttl_ms=TTL_MS, lease_ms=MAX_LEASE_MS)

    def recovery(self, verb: str) -> list[str]:
        if verb == "serves":
            return self.tell(self.pair.command(Command("READY", value=1, ttl_ms=TTL_MS)))
        self.pair.stop()
        epoch, now = self.pair.world.epoch + 1, self.pair.now
        self.pair = engine_driver.Pair(max_entries=16, epoch=epoch)
        self.pair.now = now
        return self.tell(self.pair.command(Command("READY", value=2)))

    def claim(self, name: str, lock: str, words: list[str]) -> list[str]:
        order, place = self.locks[lock], self.places.get((name, lock))
        marks = {word for word in ("lapsed", "believed") if word in words}
        words = [word for word in words if word not in marks]
        times = dict(zip(words[::2], map(milliseconds, words[1::2]), strict=True))
        claim = Claim(
            place.state if place else "GOT", order.slot, order.id, order.kind, order.size or 1,
            lapsed="lapsed" in marks, leased="lease" in times,
            lease_ms=times.get("lease", 0), wait_ms=times.get("wait", 0))
        if place is not None and place.state != "GOT":
            claim = replace(
                claim, mode=place.request.mode, number=place.token,
                request_id=place.request.request_id, ticket=place.request.ticket)
        slot = self.people.index(name)
        (result,) = self.pair.claim(slot, [claim], believed="believed" in marks)
        if place is not None:
            place.entry = None
        number = f" #{self.number(place.token)}" if place and place.state != "GOT" else ""
        own = f"{name}: {result.lower().replace('_', ' ')}{number}"
        return [own, *self.tell(self.pair.told)]

    def request(self, name: str, verb: str, words: list[str]) -> Request:
        op = {"gives": "GIVE_UP"}.get(verb, verb.removesuffix("s").upper())
        words = [word for word in words if word != "up"]
        if verb == "repeats":
            return replace(self.places[name, words[0]].request, resend=True)
        request = Request(op, self.people.index(name), request_id=len(self.asked) + 1, owner=1)
        self.asked[request.request_id] = (name, words[0] if words else "")
        if verb == "pings":
            return request
        lock, options = self.locks[words[0]], words[1:]
        request.slot, request.lock_id = lock.slot, lock.id
        for flag in FLAGS:
            if flag in options:
                options.remove(flag)
                self.set_flag(request, flag)
        for option, value in zip(options[::2], options[1::2], strict=True):
            length = None if value == "forever" else milliseconds(value)
            setattr(request, f"{option}_ms", length)
        place = self.places.get((name, words[0]))
        if verb == "locks":
            self.places[name, words[0]] = Place(request)
        elif place is not None:
            request.mode, request.token, request.entry = (
                place.request.mode,
                place.token,
                place.entry,
            )
            request.value = place.request.request_id
            request.ticket = verb == "redeems" and request.wait_ms != 0
            if verb == "redeems":
                place.request = request
        return request

    @staticmethod
    def set_flag(request: Request, flag: str) -> None:
        if flag == "shared":
            request.mode = "shared"
        elif flag == "ticket":
            request.ticket = True
        else:
            request.final_expiry = True

    # ---- Words ----

    def tell(self, output: Output) -> list[str]:
        replies = ([output.own] if output.own else []) + output.others
        return [self.words_of(reply) for reply in replies] + [
            words for event in output.events if (words := self.event_words(event))
        ]

    def words_of(self, reply: Reply) -> str:
        if not reply.request_id:
            return f"{self.people[reply.session]} is told: #{self.number(reply.token)} is lost"
        name, lock = self.asked[reply.request_id]
        if reply.result == "RELEASED":
            self.places[name, lock].state = "GOT"
        words = f"{name}: {reply.result.lower().replace('_', ' ')}"
        if reply.entry is not None:
            place = self.places[name, lock]
            place.token, place.entry = reply.token, reply.entry
            place.state = STATES[reply.result]
            words += f" #{self.number(reply.token)}"
        if reply.lease_ms:
            words += f", lease {seconds(reply.lease_ms * MS)}"
        if reply.held_us:
            words += f", waited {seconds(reply.held_us * 1000)}"
        return words

    def number(self, token: int) -> int:
        """Tokens and stamps by the order of their appearance."""
        return self.numbers.setdefault(token, len(self.numbers) + 1)

    def event_words(self, event: Event) -> str:
        if event.op == "DONE":
            closed = event.value and event.id in {order.id for order in self.locks.values()}
            done = "closed, nobody holds it" if closed else ""
            return done if event.result == "DONE" else "refused"
        kind, what = event.op.lower().split("_")
        names = self.people if kind == "session" else list(self.locks)
        return (
            f"{kind} of {names[event.slot]} {what}"
            if kind == "session"
            else (f"{names[event.slot]} is {what}")
        )

    def show(self, name: str) -> list[str]:
        lock = self.pair.world.locks.get(self.locks[name].slot)
        entries = lock.entries() if lock else []
        return [self.entry_words(lock, entry) for entry in entries if lock] or [f"{name} is free"]

    def entry_words(self, lock: Lock, entry: Entry) -> str:
        verb = {"HELD": "holds", "QUEUED": "waits", "TICKET": "has a ticket"}[entry.state]
        words = f"{self.people[entry.session]} {verb} #{self.number(entry.number)}"
        if lock.kind in ("RW", "FAIR"):
            words += f" {entry.mode}"
        if entry.end is not None:
            over = entry.end <= self.pair.now
            words += " lapsed" if over else f", {seconds(entry.end - self.pair.now)} left"
        if entry.claim_end is not None:
            late = entry.claim_end <= self.pair.now
            words += (
                ", overdue"
                if late
                else (f", its turn for {seconds(entry.claim_end - self.pair.now)}")
            )
        return words


def played(text: str) -> str:
    """The transcript with the answers that there are now."""
    story = Story()
    written: list[str] = []
    answers: list[str] = []
    old = False  # within the answers that were written down
    for line in [*text.splitlines(), ""]:
        if line == RULER:
            written += [RULER, *(answers or [NOTHING])]
            old, answers = True, []
        elif not line or line.startswith("#"):
            assert not answers, f"no line of dashes after {written[-1]!r}"
            old = False
            written.append(line)
        elif not old:
            written.append(line)
            answers += story.play(line)
    story.pair.stop()
    return "\n".join(written).rstrip("\n") + "\n"


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    now = played(text)
    if REWRITE:
        path.write_text(now, encoding="utf-8")
    else:
        assert now == text


def test_there_are_transcripts() -> None:
    stories = {"atomic", "rw", "fair", "semaphore", "sessions", "recovery"}
    assert stories <= {path.stem for path in TRANSCRIPTS}
