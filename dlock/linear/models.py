"""What one lock, or one number, answers when it is asked one thing after the other: the laws that a
history is held against. Each class states its law. docs/lock-kinds.md is where they come from.

Pure. A model is made for the operations of one name. It turns them into steps, each of which takes
effect at one moment of an interval, and says with `advance` what state a step leads to, or that it
cannot be. Which orders of steps there are to try is for `dlock/linear/checker.py`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

from dlock.linear.history import (
    ACQUIRE,
    ADD,
    CELL,
    END,
    FAIR,
    GET,
    GONE,
    HELD,
    MUTEX,
    REENTRANT,
    REFUSED,
    RELEASE,
    RW,
    SEMAPHORE,
    SWAP,
    UNKNOWN,
    Operation,
)

State = Any  # of a model: a value that can be hashed

_WORD: Final = 2**64
_HALF: Final = 2**63


class Step(NamedTuple):
    """An operation as the search sees it. It is under way from `begin_ns` on, and may take effect
    from `ready_ns` on; `end_ns` None: it may never do so. `looks`: where
    it changes nothing it may be taken at the first moment that allows it; `acts`: it may change
    something, or stand in somebody's way until it is taken. `alike`: of steps that are alike, and
    may never take effect, the first is taken first."""

    begin_ns: int
    ready_ns: int
    end_ns: int | None
    operation: Operation
    looks: bool = False
    acts: bool = True
    alike: Any = None


class Pending(Protocol):
    """The steps that have begun and not taken effect yet. Iterated: those that have an end."""

    def __contains__(self, step: object) -> bool: ...
    def __iter__(self) -> Iterator[int]: ...


class Model:
    """What the checker knows of a model. `pending`: what else is under way, where a law looks at
    that."""

    def __init__(self, steps: Iterable[Step], initial: State) -> None:
        self.steps = tuple(steps)
        self.initial = initial

    def advance(self, state: State, step: int, pending: Pending) -> State | None:
        """The state after the step; None: it cannot be."""
        raise NotImplementedError

    def why(self, state: State, step: int, pending: Pending) -> str:
        """Why it cannot be, in words."""
        raise NotImplementedError

    def tell(self, state: State) -> str:
        """The state in words."""
        raise NotImplementedError


# ---- Locks ---------------------------------------------------------------------------------------


class LockState(NamedTuple):
    """`newest`: the last token that was granted. `holders`: (hold, token, entries) each."""

    newest: int = 0
    exclusive: bool = False
    holders: tuple[tuple[str, int, int], ...] = ()


class LockModel(Model):
    """The law of all locks.

    - A grant needs room: see each kind. Its token is above that of every grant of this name before
      it, over all primaries.
    - A hold lasts until it is given back or ends by itself. Whenever its client calls it HELD, and
      whenever an extension succeeds, it lasts; if it was SUSPENDED in between, nobody had it. That
      its client does not call it HELD proves nothing.
    - A hold ends by itself (lease, session, operator) at some moment after its client called it
      HELD for the last time.
    - A release takes effect while it is made. One that nobody confirmed takes effect some time
      after it was begun, or never.
    - An acquire that is refused, by a try or at the end of its wait, has met a lock without room.
    - First come, first served: who certainly stood in line when another one asked is granted the
      lock, or has left, before that one is. Nothing is promised to those who only try.
    - An acquire with an unknown outcome can have held the lock unheard of, between its begin and
      its end, and more than once. So can one that was asked again over a lost link, while it
      lasted. Nobody believes in such a hold, so it makes nobody wrong; but it explains any refusal.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        known = [one for one in operations
                 if not (one.action == ACQUIRE and one.outcome == UNKNOWN)]
        self._rivals = self._find_rivals(known)
        rivals = {rival for some in self._rivals.values() for rival in some}
        super().__init__(
            (_lock_step(one, index in rivals) for index, one in enumerate(known)), LockState())
        self._excused = _excused(operations, known)
        self._lower = _lower(known)
        self._ahead = _ahead(known)

    def advance(self, state: State, step: int, pending: Pending) -> State | None:
        one = self.steps[step].operation
        if one.action == ACQUIRE:
            if one.outcome == REFUSED:
                return state if self._refuses(state, step, pending) else None
            return self._grant(state, step, pending)
        held = _find(state, one)
        if held is None:
            return None
        if one.action == HELD:
            return state
        rest = tuple(hold for hold in state.holders if hold is not held)
        if one.action == RELEASE and held[2] > 1:
            rest = tuple(sorted((*rest, (held[0], held[1], held[2] - 1))))
        return LockState(state.newest, state.exclusive and bool(rest), rest)

    def _grant(self, state: LockState, step: int, pending: Pending) -> LockState | None:
        one = self.steps[step].operation
        held = _find(state, one)
        if held is not None:
            if not self._enters_again(one) or held[1] != one.token:
                return None
            rest = (hold for hold in state.holders if hold is not held)
            return state._replace(
                holders=tuple(sorted((*rest, (held[0], held[1], held[2] + 1)))))
        if (one.token and one.token <= state.newest) or not self._room(state, one):
            return None
        if any(other in pending for other in self._ahead.get(step, ())):
            return None
        if any(other in pending for other in self._lower.get(step, ())):
            return None  # they could not be granted any more
        holders = tuple(sorted((*state.holders, (one.key, one.token, 1))))
        return LockState(one.token or state.newest, self._excludes(one), holders)

    def _refuses(self, state: LockState, step: int, pending: Pending) -> bool:
        if step in self._excused or not self._room(state, self.steps[step].operation):
            return True
        # There is room, but one who stands in line behind those who hold it keeps it.
        return bool(state.holders) and any(
            other in pending for other in self._rivals.get(step, ()))

    # ---- What the kinds say ----

    def _room(self, state: LockState, one: Operation) -> bool:
        """Could it be granted now, if nobody stood in line?"""
        return not state.holders

    def _find_rivals(self, operations: Sequence[Operation]) -> dict[int, tuple[int, ...]]:
        """Of each refused acquire: who may have stood in line, and so have kept it from a lock in
        which there was room."""
        return {}

    def _excludes(self, one: Operation) -> bool:
        return True

    def _enters_again(self, one: Operation) -> bool:
        return False

    # ---- In words ----

    def why(self, state: State, step: int, pending: Pending) -> str:
        one = self.steps[step].operation
        held = _find(state, one)
        if one.action in (RELEASE, HELD, END):
            return f"this hold was over, or not yet granted: {self.tell(state)}"
        if one.outcome == REFUSED:
            return f"nothing stood in its way: {self.tell(state)}"
        if held is not None and held[1] == one.token and not self._enters_again(one):
            return "the same hold was granted twice"
        ahead = [other for other in self._ahead.get(step, ()) if other in pending]
        if ahead and held is None and self._room(state, one):
            first = self.steps[ahead[0]].operation
            return f"{first.who} stood in line when it asked, and was neither granted nor gone"
        if held is None and one.token and one.token <= state.newest:
            return (f"its token is not above {state.newest}, which had been granted; "
                    f"{self.tell(state)}")
        return self.tell(state)

    def tell(self, state: State) -> str:
        if not state.holders:
            return "it is free"
        shared = "" if state.exclusive or type(self) is Semaphore else " (shared)"
        return "it is held by " + ", ".join(
            f"{hold}{f' with token {token}' if token else ''}"
            f"{f' {count} times' if count > 1 else ''}"
            for hold, token, count in state.holders) + shared


class Mutex(LockModel):
    """A mutex has one holder. There is room while nobody holds it: not even its holder gets it
    once more, since each acquisition is an owner of its own."""


class Reentrant(Mutex):
    """A mutex that its holder, and nobody else, may enter again while it holds it: the hold and its
    token stay the same, and it is over after as many releases as there were entries."""

    def _enters_again(self, one: Operation) -> bool:
        return True


class ReadWrite(LockModel):
    """Readers and one writer: there is room for a writer while nobody holds it, and for a reader
    while no writer does. A reader is refused, too, while readers hold it and a writer stands in
    line. Who reads does not become a writer, nor the other way round: the other mode is another
    hold, which needs room like any. Each mode may be entered again under the same hold."""

    def _room(self, state: LockState, one: Operation) -> bool:
        return not state.holders or (one.shared and not state.exclusive)

    def _find_rivals(self, operations: Sequence[Operation]) -> dict[int, tuple[int, ...]]:
        acquires = [(one, (one.begin_ns, one.end_ns, index))
                    for index, one in enumerate(operations) if one.action == ACQUIRE]
        readers = [span for one, span in acquires if one.shared and one.outcome == REFUSED]
        return _overlapping(
            readers, [span for one, span in acquires if not one.shared and one.waits])

    def _excludes(self, one: Operation) -> bool:
        return not one.shared

    def _enters_again(self, one: Operation) -> bool:
        return bool(one.hold)  # who named it says that it is the same


class Fair(ReadWrite):
    """As readers and one writer, served in order of arrival over both modes. (That a try takes a
    ticket is the mirror's; the Python API leaves none behind.)"""


class Semaphore(LockModel):
    """At most `size` holds at a time; each takes a slot, also of those who have one."""

    def _room(self, state: LockState, one: Operation) -> bool:
        return len(state.holders) < (one.size or 0)

    def _excludes(self, one: Operation) -> bool:
        return False


def _lock_step(one: Operation, rivals: bool) -> Step:
    """`rivals`: while it waits it can be why others are refused."""
    looks = one.action == HELD or (
        one.action == ACQUIRE and one.outcome == REFUSED and not rivals)
    # Who was seen in line was neither granted the lock nor gone yet.
    ready_ns = one.begin_ns if one.waiting_ns is None else max(one.begin_ns, one.waiting_ns)
    return Step(one.begin_ns, ready_ns, one.end_ns, one, looks, not looks)


def _find(state: LockState, one: Operation) -> tuple[str, int, int] | None:
    for hold in state.holders:
        if hold[0] == one.key:
            return hold
    return None


def _excused(operations: Sequence[Operation], known: Sequence[Operation]) -> Container[int]:
    """Of those known: the refusals that a hold which nobody heard of can explain."""
    ghosts: list[Span] = [(one.begin_ns, one.end_ns, -1 - index)
                          for index, one in enumerate(operations)
                          if one.action == ACQUIRE and one.outcome == UNKNOWN]
    ghosts += [(one.begin_ns, one.end_ns, index) for index, one in enumerate(known)
               if one.action == ACQUIRE and one.again]
    refused = [(one.begin_ns, one.end_ns, index) for index, one in enumerate(known)
               if one.action == ACQUIRE and one.outcome == REFUSED]
    return _overlapping(refused, ghosts)


def _ahead(operations: Sequence[Operation]) -> dict[int, tuple[int, ...]]:
    """Of each grant: who certainly stood in line when it was asked for."""
    acquires = [(one, index) for index, one in enumerate(operations) if one.action == ACQUIRE]
    in_line = [(one.queued_ns, one.end_ns, index) for one, index in acquires
               if one.queued_ns is not None]
    asking = [(one.begin_ns - 1, one.begin_ns - 1, index) for one, index in acquires
              if one.outcome != REFUSED]
    return _overlapping(asking, in_line)


def _lower(operations: Sequence[Operation]) -> dict[int, tuple[int, ...]]:
    """Of each grant: those with a lower token that may be under way at the same time."""
    grants = [(one.begin_ns, one.end_ns, index) for index, one in enumerate(operations)
              if one.action == ACQUIRE and one.token]
    met = _overlapping(grants, grants)
    return {index: lower for index, others in met.items() if (lower := tuple(
        other for other in others if operations[other].token < operations[index].token))}


Span = tuple[int, "int | None", int]


def _overlapping(those: Sequence[Span], others: Sequence[Span]) -> dict[int, tuple[int, ...]]:
    """Of each of `those`, by number, the others whose time has a moment in common with its own;
    who has none is left out. (None: without end.)"""
    found: dict[int, tuple[int, ...]] = {}
    coming = sorted(others, key=lambda span: span[0])
    running: dict[int, int | None] = {}
    ends: list[tuple[int, int]] = []
    at = 0
    # In order of their ends, so that what has begun by then is known; what had ended before their
    # begin is sorted out one by one, and dropped when it had ended before every begin to come.
    latest = sorted(those, key=lambda span: _FOREVER if span[1] is None else span[1])
    least = _least_begins(latest)
    for position, (begin, end, number) in enumerate(latest):
        while at < len(coming) and (end is None or coming[at][0] <= end):
            running[coming[at][2]] = coming[at][1]
            if coming[at][1] is not None:
                heapq.heappush(ends, (coming[at][1] or 0, coming[at][2]))
            at += 1
        while ends and ends[0][0] < least[position]:
            running.pop(heapq.heappop(ends)[1], None)
        met = tuple(sorted(other for other, ended in running.items()
                           if other != number and (ended is None or ended >= begin)))
        if met:
            found[number] = met
    return found


_FOREVER: Final = 2**63


def _least_begins(spans: Sequence[Span]) -> list[int]:
    """Of each of them, the least begin of it and of all that follow."""
    least = _FOREVER
    found = []
    for begin, _, _ in reversed(spans):
        least = min(least, begin)
        found.append(least)
    return found[::-1]


# ---- Numbers -------------------------------------------------------------------------------------


class Cell(Model):
    """A signed number of 64 bits; additions wrap around.

    - Each operation finds what the ones before it have left, and changes it in one step.
    - A change whose answer was lost was made once, at some moment after it was begun, or never.
    - A number ends with its primary. What is done belongs to one life of it, named by the epoch;
      lives follow one another, and each begins with `size`, or where that is None with any number.
      Who is told that the number is gone (ObjectLost) has seen that an earlier life is over.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        kept = [one for one in operations if one.outcome != REFUSED]
        super().__init__([_cell_step(one) for one in kept], (0, _start(kept)))
        lost = [one.argument for one in kept if one.action == ADD and one.end_ns is None]
        self._only_grows = all(argument > 0 for argument in lost)
        self._lost_in_all = sum(lost)
        # What the number has to be, so that a step can be; a swap whose answer was lost waits, too.
        self._wanted = {index: one.result if one.result is not None else one.argument
                        for index, one in enumerate(kept)
                        if one.result is not None or one.action == SWAP}
        self._lost_swaps = [index for index, one in enumerate(kept)
                            if one.action == SWAP and one.end_ns is None]

    def advance(self, state: State, step: int, pending: Pending) -> State | None:
        one = self.steps[step].operation
        life, value = state
        if one.life and one.life != life:
            if one.life < life:
                return None
            life, value = one.life, one.size if life else value
        if one.action == GONE:
            return life, value
        found = one.result
        if found is not None and value is not None and found != value:
            return None
        value = found if found is not None else value
        if one.action == ADD and value is not None:
            value = _wrap(value + one.argument)
            lost = one.end_ns is None and self._only_grows
            if lost and not self._leads_on(value, pending):
                return None  # it may be taken later, if it was made at all
            return life, value
        if one.action == SWAP and (value is None or value == one.argument):
            # Of a number that nobody knows: made or not, and then it is not known what it is.
            return (life, one.desired) if value is not None else (life, None)
        return life, value

    def _leads_on(self, value: int, pending: Pending) -> bool:
        """After an addition, of which nobody heard, the number is this: could more of them make it
        what one of the steps under way wants it to be?"""
        most = value + self._lost_in_all
        if value < -_HALF // 2 or most > _HALF // 2:
            return True  # it may wrap around
        wanted = self._wanted
        return any(value <= wanted.get(index, value) <= most for index in pending) or any(
            index in pending and value <= wanted[index] <= most for index in self._lost_swaps)

    def why(self, state: State, step: int, pending: Pending) -> str:
        one = self.steps[step].operation
        if one.life and one.life < state[0]:
            return (f"it was done to the number of epoch {one.life}, when that of epoch {state[0]} "
                    f"was in use")
        return self.tell(state)

    def tell(self, state: State) -> str:
        life, value = state
        epoch = f" (epoch {life})" if life else ""
        return f"the number is {'not known' if value is None else value}{epoch}"


def _cell_step(one: Operation) -> Step:
    missed = one.action == SWAP and one.result not in (None, one.argument)
    alike = None
    if one.end_ns is None:
        desired = one.desired if one.action == SWAP else 0
        alike = (one.action, one.argument, desired, one.life)
    return Step(
        one.begin_ns, one.begin_ns, one.end_ns, one, one.action == GET or missed, True, alike)


def _start(operations: Sequence[Operation]) -> int | None:
    return operations[0].size if operations else None


def _wrap(value: int) -> int:
    return (value + _HALF) % _WORD - _HALF


# ---- By kind -------------------------------------------------------------------------------------

MODELS: Final[dict[str, Callable[[Sequence[Operation]], Model]]] = {
    MUTEX: Mutex, REENTRANT: Reentrant, RW: ReadWrite, FAIR: Fair, SEMAPHORE: Semaphore, CELL: Cell,
}


def model_of(kind: str, operations: Sequence[Operation]) -> Model:
    """The model of this kind for the operations of one name. ValueError: no such kind."""
    if kind not in MODELS:
        raise ValueError(f"there is no model of a {kind!r}; there are {', '.join(MODELS)}")
    return MODELS[kind](operations)
