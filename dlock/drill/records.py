"""What the processes of a drill write down: the one declaration of it, for writers and readers.

Every process appends to a file of its own in the drill's folder (`*.jsonl`), one JSON object a
line. `what` names the record, `t_ns` says when, in ns of CLOCK_BOOTTIME, which all processes of a
machine share (processes that run in a time namespace write nothing; the drill writes for them). A
line is written with one system call, so a process that is killed leaves whole lines behind.

The names of things
- `client`: a client process, "c1", "c2", ...; a process that replaces one that was killed has the
  next number. `session`: which of its sessions, from 1. `actor`: the thread or task that works.
- `primary`: a primary process, "p1", "p2", ... in the order of their starts. A primary that the
  drill has joined and never restarted is "p1".
- `name`: of a lock. Locks of one name exclude each other by `kind`; different names do not.
- `round`: from 1; 0: outside of all rounds. Fault and round have the same number.

Only `read`, `Writer` and the classes are here: nothing is judged.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

SUFFIX: Final = ".jsonl"
EPOCH_SHIFT: Final = 43  # a token: 20 bits of epoch above 43 bits of counter


def now_ns() -> int:
    """The clock of all records."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def epoch_of(token: int) -> int:
    """The epoch of the primary that gave this token out: it grows with each start."""
    return token >> EPOCH_SHIFT


class RecordError(Exception):
    """A line that is no record; the text says where."""


@dataclass(frozen=True)
class Record:
    """What all have in common."""

    what: ClassVar[str] = ""
    t_ns: int


# ---- The drill -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DrillBegun(Record):
    """First of all. `command` repeats the drill. `session_ttl_s`: of the primaries. `faults`: those
    that will be drawn from; `rounds`: how many, 0: as many as fit `seconds`. `joined`: the address
    of a primary that was not started here, else empty. `version`: of dlock."""

    what: ClassVar[str] = "drill-begun"
    seed: int
    command: str
    version: str
    faults: list[str]
    rounds: int
    seconds: float
    clients: int
    sessions: int
    session_ttl_s: float
    joined: str


@dataclass(frozen=True)
class DrillEnded(Record):
    """Last of all. `interrupted`: by a signal, or because it could not go on; `why` says it."""

    what: ClassVar[str] = "drill-ended"
    interrupted: bool
    why: str


@dataclass(frozen=True)
class Skipped(Record):
    """A fault of the menu that this machine cannot carry out; `why` is a sentence."""

    what: ClassVar[str] = "skipped"
    fault: str
    why: str


@dataclass(frozen=True)
class RoundBegun(Record):
    """The load runs, everything is well, and this fault is next."""

    what: ClassVar[str] = "round-begun"
    round: int
    fault: str


@dataclass(frozen=True)
class RoundEnded(Record):
    """Everything is well again: every client process was granted something that it asked for after
    the fault had ended. `recovered` False: it was not, within `waited_s`; that is a violation (a
    wait that did not end), and the drill ends there."""

    what: ClassVar[str] = "round-ended"
    round: int
    fault: str
    recovered: bool
    waited_s: float


@dataclass(frozen=True)
class FaultBegun(Record):
    """It happens now: `t_ns` is the moment of the failure, taken immediately before it is caused.
    `fails`: "primary", "client", "network" or "clock". A round may have several: a primary that is
    killed in its recovery fails twice. `detail`: what exactly, for people."""

    what: ClassVar[str] = "fault-begun"
    round: int
    fault: str
    fails: str
    detail: str


@dataclass(frozen=True)
class FaultEnded(Record):
    """Nothing stands in the way any more: the next primary has been started, the link passes, who
    was stopped goes on. What is needed from here on is dlock's to do."""

    what: ClassVar[str] = "fault-ended"
    round: int
    fault: str
    detail: str


# ---- Primaries -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PrimaryStarted(Record):
    """Its process was started. `pid` 0: by a command of the operator, elsewhere."""

    what: ClassVar[str] = "primary-started"
    primary: str
    pid: int
    address: str


@dataclass(frozen=True)
class PrimaryListening(Record):
    """It has said that it serves, which may be long before it is ready. `epoch`: 0: not known."""

    what: ClassVar[str] = "primary-listening"
    primary: str
    epoch: int


@dataclass(frozen=True)
class PrimaryReady(Record):
    """Its recovery is over and it grants everything. Seen from outside, so a little late. Of the
    clients of its predecessor `expected` were waited for, `back` came, `evicted` did not."""

    what: ClassVar[str] = "primary-ready"
    primary: str
    expected: int
    back: int
    evicted: int


@dataclass(frozen=True)
class PrimaryStopped(Record):
    """SIGSTOP."""

    what: ClassVar[str] = "primary-stopped"
    primary: str


@dataclass(frozen=True)
class PrimaryContinued(Record):
    """SIGCONT."""

    what: ClassVar[str] = "primary-continued"
    primary: str


@dataclass(frozen=True)
class PrimaryKilled(Record):
    """SIGKILL, which was sent at `t_ns`."""

    what: ClassVar[str] = "primary-killed"
    primary: str


@dataclass(frozen=True)
class PrimaryExited(Record):
    """It ended by itself, or at the end of the drill. `status`: its exit status, negative: the
    signal. `expected`: it had to; False is a violation."""

    what: ClassVar[str] = "primary-exited"
    primary: str
    status: int
    expected: bool


# ---- Client processes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ClientStarted(Record):
    """`flavour`: "sync", "aio" or "mirror". `sessions`: how many it opens."""

    what: ClassVar[str] = "client-started"
    client: str
    pid: int
    flavour: str
    sessions: int


@dataclass(frozen=True)
class ClientWorking(Record):
    """All its sessions are open and it takes locks."""

    what: ClassVar[str] = "client-working"
    client: str


@dataclass(frozen=True)
class ClientStopped(Record):
    """SIGSTOP. Whatever it held, it goes on believing in when it is continued, until it looks at
    its clock."""

    what: ClassVar[str] = "client-stopped"
    client: str


@dataclass(frozen=True)
class ClientContinued(Record):
    """SIGCONT."""

    what: ClassVar[str] = "client-continued"
    client: str


@dataclass(frozen=True)
class ClientKilled(Record):
    """SIGKILL, which was sent at `t_ns`; it never comes back. Its holds that were not over have
    been written down by the drill (`Hold.ended` is "killed")."""

    what: ClassVar[str] = "client-killed"
    client: str


@dataclass(frozen=True)
class ClientEnded(Record):
    """It ended. `status`: its exit status. `expected`: it was told to, or killed; False is a
    violation: a client program died of what the drill did."""

    what: ClassVar[str] = "client-ended"
    client: str
    status: int
    expected: bool


# ---- What clients believe and are told -----------------------------------------------------------

RELEASED: Final = "released"  # given back; the server took it back, or will
LAPSED: Final = "lapsed"  # a lease that nobody renewed ended, as was agreed: nobody has to be told
LOST: Final = "lost"  # the client said so: on_lost, lock.lost, LockLost, a status of the mirror
UNTOLD: Final = "untold"  # not held any more, and nobody said so within a long time: a violation
KILLED: Final = "killed"  # its process was killed while it believed
ENDINGS: Final = (RELEASED, LAPSED, LOST, UNTOLD, KILLED)


@dataclass(frozen=True)
class Hold(Record):
    """One hold, written when it is over: `t_ns` is then, a little after `end_ns`.

    `begin_ns`: just after the grant, the first moment in which its client, by its own clock, called
    it HELD. `end_ns`: the last such moment. A grant that never was (its process was stopped for too
    long) is no hold. A hold that was SUSPENDED in between and
    then confirmed is one, since nobody had it meanwhile: `suspended` says how often. Holds of one
    name that exclude each other must not overlap in [begin_ns, end_ns].

    `asked_ns`: when the client asked for it. `kind`: "atomic", "rw", "fair", "semaphore". `slots`:
    of a semaphore, else 0. `exclusive`: False for readers and for slots. `lease_ms`: 0: none, the
    session speaks for it. `renewed`: its lease is renewed by the library. `ended`: see ENDINGS."""

    what: ClassVar[str] = "hold"
    client: str
    session: int
    actor: int
    name: str
    kind: str
    slots: int
    exclusive: bool
    token: int
    lease_ms: int
    renewed: bool
    asked_ns: int
    begin_ns: int
    end_ns: int
    suspended: int
    ended: str


TOLD_SUSPENDED: Final = "suspended"  # act as if it were gone
TOLD_CONFIRMED: Final = "confirmed"  # it is HELD again: nobody had it in between
TOLD_LOST: Final = "lost"
TOLD_BROKEN: Final = "broken"


@dataclass(frozen=True)
class Told(Record):
    """The client library said what became of a hold; `how`: by which way ("on_lost", "lost",
    "held", "LockLost", a status of the mirror). "confirmed" and "suspended" by way of "held" are
    what the worker saw when it asked."""

    what: ClassVar[str] = "told"
    client: str
    session: int
    actor: int
    name: str
    token: int
    said: str
    how: str


# ---- What storage accepted -----------------------------------------------------------------------


@dataclass(frozen=True)
class Write(Record):
    """An exclusive holder has written to a file that all share, through a `dlock.FenceGuard` whose
    token lies in the file, in one step under flock. `accepted` False: the guard refused: the writer
    was late, and was fenced. `sequence`: grows by one with each accepted write of this name, so it
    says the order in which the storage saw them; of a refused one, that of the last accepted. Along
    it tokens must not fall. `highest`: the highest token that the storage had seen before.

    `late`: the writer's own client did not call the lock HELD just before the write (it writes all
    the same, as a program does that was paused between its check and its act)."""

    what: ClassVar[str] = "write"
    client: str
    session: int
    actor: int
    name: str
    token: int
    accepted: bool
    sequence: int
    highest: int
    late: bool


# ---- What went wrong, and what is not known ------------------------------------------------------


@dataclass(frozen=True)
class Added(Record):
    """A fetch-and-add of 1 on the atomic object `name` that all share. `outcome`: "done" (`before`
    is what it answered), or "unknown": its answer was lost, and it was carried out once or not at
    all; "lost": the object went with its primary and begins anew. Between two ends of primaries no
    two "done" may have the same `before`."""

    what: ClassVar[str] = "added"
    client: str
    session: int
    actor: int
    name: str
    outcome: str
    before: int
    asked_ns: int


@dataclass(frozen=True)
class Failed(Record):
    """An operation ended with an error that a program has to expect under faults (no server in
    time, a lost link): counted, not judged. `error`: its class or status."""

    what: ClassVar[str] = "failed"
    client: str
    session: int
    actor: int
    operation: str
    name: str
    error: str
    asked_ns: int


@dataclass(frozen=True)
class Problem(Record):
    """Something that must not be, seen by the process itself: a violation. `text` is a sentence.
    `who`: a client, a primary or "drill"."""

    what: ClassVar[str] = "problem"
    who: str
    text: str


@dataclass(frozen=True)
class Storm(Record):
    """Of a reconnect storm: so many clients at once (sessions, in one process or several), all of
    which have come back after `back_s` seconds; `granted` of them had their locks still."""

    what: ClassVar[str] = "storm"
    round: int
    clients: int
    held_before: int
    held_after: int
    back_s: float


KINDS_OF_RECORD: Final[dict[str, type[Record]]] = {
    kind.what: kind
    for kind in (
        DrillBegun, DrillEnded, Skipped, RoundBegun, RoundEnded, FaultBegun, FaultEnded,
        PrimaryStarted, PrimaryListening, PrimaryReady, PrimaryStopped, PrimaryContinued,
        PrimaryKilled, PrimaryExited,
        ClientStarted, ClientWorking, ClientStopped, ClientContinued, ClientKilled, ClientEnded,
        Hold, Told, Write, Added, Failed, Problem, Storm)
}


# ---- Lines ---------------------------------------------------------------------------------------


def to_line(record: Record) -> str:
    """One line of JSON."""
    return json.dumps({"what": record.what, **vars(record)}, separators=(",", ":")) + "\n"


def from_line(line: str) -> Record:
    """The record of this line. RecordError: it is none."""
    try:
        values: dict[str, Any] = json.loads(line)
        kind = KINDS_OF_RECORD[values.pop("what")]
        return kind(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise RecordError(f"no record of a drill: {line.strip()[:120]!r} ({problem})") from None


class Writer:
    """Appends to one file; any thread may."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, record: Record) -> None:
        """One system call, so the line is whole or missing."""
        os.write(self._fd, to_line(record).encode())

    def close(self) -> None:
        """Ends it."""
        os.close(self._fd)


def read_file(path: Path) -> Iterator[Record]:
    """The records of one file, in the order of writing. A last line without its end, of a disk
    that was full, is left out."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield from_line(line)


def read(folder: Path) -> list[Record]:
    """All records of a drill, in order of `t_ns`. RecordError: a line is none."""
    records: Iterable[Record] = (
        record for path in sorted(folder.glob(f"*{SUFFIX}")) for record in read_file(path))
    return sorted(records, key=lambda record: record.t_ns)
