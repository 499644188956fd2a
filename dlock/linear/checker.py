"""Is there an order of these operations, each at a moment of its own interval, in which one lock
that is asked one thing after the other would have answered what was seen?

The search is that of Wing and Gong, with Lowe's memory: whatever leads to the same state with the
same steps taken is looked at once. It goes through the history in the order of time and keeps all
*worlds* that explain it so far: a state, and which of the steps under way have taken effect in it.
A step is taken just in time: when it ends, every world in which it has not taken effect is carried
on by steps under way, in any order, until it has. When no world is left, the prefix up to here is
the shortest that nothing explains.

- Names do not touch each other, so each is searched by itself. Where nothing is under way all that
  is left of the past is a state, so long histories cost what their busiest moment costs.
- A step that only looks is taken at the first moment that allows it: that hinders nothing.
- Steps that are alike and may never take effect are taken in the order of their begin.
- A step that may never take effect is forgotten when all worlds have taken it; and of two worlds
  that differ in such steps only, the one that has taken less of them is kept: it can do more.

There is no recursion. The search is exact; when it would keep more than `worlds_max` worlds, or
look at LOOKED_MAX times as many, it gives up and says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from dlock.linear.history import HELD, Operation, by_name, describe
from dlock.linear.models import Model, State, model_of

WORLDS_MAX: Final = 20_000
LOOKED_MAX: Final = 100  # times as many: in the search through one name
SHOWN_MAX: Final = 12  # operations before the failing one, in words
REASONS_MAX: Final = 3

_BEGINS, _READY, _ENDS = range(3)

World = tuple[State, frozenset[int]]


class Fault(NamedTuple):
    """A name whose history nothing explains, or (`undecided`) that was too much. `before`: how many
    of its operations had ended when this one, `operation`, did; `reasons`: what every world that
    explains them has against it."""

    name: str
    kind: str
    operation: Operation
    before: int
    reasons: tuple[str, ...]
    shown: tuple[Operation, ...]
    undecided: bool = False

    def __str__(self) -> str:
        zero_ns = min(one.begin_ns for one in (*self.shown, self.operation))
        head = f"{self.name!r} ({self.kind}): "
        if self.undecided:
            head += f"too many orders explain its first {self.before} operations; given up at"
        else:
            head += (f"no order of operations explains it; its first {self.before} can be "
                     f"explained, not with")
        lines = [head, f"  {describe(self.operation, zero_ns)}"]
        lines += [f"  because {reason}" for reason in self.reasons]
        lines += ["  What came before (seconds):"]
        return "\n".join(lines + [f"    {describe(one, zero_ns)}" for one in self.shown])


class Verdict(NamedTuple):
    """`faults`: a name each, at most. `operations`, `names`: how many were looked at."""

    operations: int
    names: int
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        """Is everything explained?"""
        return not self.faults

    @property
    def violated(self) -> bool:
        """Is there something that nothing explains? (If it is neither, the search gave up.)"""
        return any(not fault.undecided for fault in self.faults)

    def __str__(self) -> str:
        count = f"{self.operations} operations on {self.names} names"
        if self.ok:
            return f"linearizable: {count}"
        word = "NOT linearizable" if self.violated else "undecided"
        return "\n".join([f"{word}: {count}", *map(str, self.faults)])


def check(operations: Iterable[Operation], worlds_max: int = WORLDS_MAX) -> Verdict:
    """Looks at all names. ValueError: a name is used as two kinds, or as one that is not known."""
    names = by_name(operations)
    found = []
    for name, some in names.items():
        kinds = {one.kind for one in some}
        if len(kinds) > 1:
            raise ValueError(f"{name!r} is of several kinds: {', '.join(sorted(kinds))}")
        fault = Search(name, some[0].kind, some, worlds_max).run()
        if fault is not None:
            found.append(fault)
    return Verdict(sum(map(len, names.values())), len(names), tuple(found))


class _Pending:
    """Which steps are under way and have not taken effect in the world that is looked at. Iterated:
    those of them that have an end."""

    __slots__ = ("awaited", "done", "running")

    def __init__(self) -> None:
        self.running: dict[int, None] = {}
        self.awaited: dict[int, None] = {}
        self.done: frozenset[int] = frozenset()

    def __contains__(self, step: object) -> bool:
        return step in self.running and step not in self.done

    def __iter__(self) -> Iterator[int]:
        return (step for step in self.awaited if step not in self.done)


class _TooMuch(Exception):  # noqa: N818 - an outcome, not an error
    """There are more worlds than may be kept or looked at."""


class Search:
    """The search through the history of one name."""

    def __init__(
        self, name: str, kind: str, operations: Sequence[Operation], worlds_max: int
    ) -> None:
        self._name = name
        self._kind = kind
        self._model: Model = model_of(kind, operations)
        self._worlds_max = worlds_max
        self._looked_max = LOOKED_MAX * worlds_max
        self._pending = _Pending()
        self._running = self._pending.running
        self._awaited = self._pending.awaited
        self._looks: dict[int, None] = {}  # of those that run
        self._acts: dict[int, None] = {}
        self._alike: dict[object, dict[int, None]] = {}
        self._worlds: set[World] = {(self._model.initial, frozenset())}
        self._ended = 0
        self._looked = 0
        self._last: deque[Operation] = deque(maxlen=SHOWN_MAX)

    def run(self) -> Fault | None:
        """None: it is explained."""
        steps = self._model.steps
        # Of one moment begins come first: what touches may be in either order.
        events = [(step.begin_ns, _BEGINS, index) for index, step in enumerate(steps)]
        events += [(step.ready_ns, _READY, index) for index, step in enumerate(steps)]
        events += [(step.end_ns, _ENDS, index) for index, step in enumerate(steps)
                   if step.end_ns is not None]
        events.sort()
        for _, what, index in events:
            if what == _BEGINS:
                self._running[index] = None
                if steps[index].end_ns is not None:
                    self._awaited[index] = None
                self._look_anew()  # it may be why one is refused
                continue
            if what == _READY:
                self._ready(index)
                continue
            before = self._worlds
            try:
                explained = self._end(index)
            except _TooMuch:
                return self._fault(index, set())
            if not explained:
                return self._fault(index, before)
            self._ended += 1
            self._remember(steps[index].operation)
        return None

    # ---- In the order of time --------------------------------------------------------------------

    def _ready(self, index: int) -> None:
        """From now on it may be taken."""
        step = self._model.steps[index]
        if step.looks:
            self._looks[index] = None
        if step.alike is not None:
            self._alike.setdefault(step.alike, {})[index] = None
        elif step.acts:
            self._acts[index] = None
        self._look_anew()

    def _look_anew(self) -> None:
        if self._looks:
            self._worlds = {self._look(state, done) for state, done in self._worlds}

    def _end(self, index: int) -> bool:
        """False: no world is left."""
        kept, late = set(), []
        for world in self._worlds:
            if index in world[1]:
                kept.add((world[0], world[1] - {index}))
            else:
                late.append(world)
        endless = self._carry_on(late, index, kept) if late else False
        if not kept:
            return False
        self._worlds = kept
        del self._running[index], self._awaited[index]
        self._looks.pop(index, None)
        self._acts.pop(index, None)
        if endless:
            self._forget()
        return True

    def _carry_on(self, late: list[World], target: int, kept: set[World]) -> bool:
        """Puts into `kept` every world that comes of these by steps under way, the last of which is
        the target. Whether one of them may never have taken effect."""
        steps, advance, pending = self._model.steps, self._model.advance, self._pending
        seen, stack, endless = set(late), list(late), False
        while stack and len(seen) <= self._worlds_max and self._looked <= self._looked_max:
            self._looked += 1
            state, done = stack.pop()
            pending.done = done
            after = advance(state, target, pending)
            if after is not None:
                world = self._look(after, done | {target})
                kept.add((world[0], world[1] - {target}))
            for index in self._next(target, done):
                pending.done = done
                after = advance(state, index, pending)
                without_end = steps[index].end_ns is None
                if after is None or (without_end and after == state):
                    continue
                endless = endless or without_end
                world = self._look(after, done | {index})
                if world not in seen:
                    seen.add(world)
                    stack.append(world)
        if stack:
            raise _TooMuch
        return endless

    def _look(self, state: State, done: frozenset[int]) -> World:
        """Takes the looks under way that this state allows."""
        if self._looks:
            advance, pending = self._model.advance, self._pending
            pending.done = done
            seen = [index for index in self._looks
                    if index not in done and advance(state, index, pending) == state]
            if seen:
                done = done.union(seen)
        return state, done

    def _next(self, target: int, done: frozenset[int]) -> list[int]:
        """What may be taken before the target. Of those that are alike only the first."""
        found = [index for index in self._acts if index != target and index not in done]
        for alike in self._alike.values():
            for index in alike:
                if index not in done:
                    found.append(index)
                    break
        return found

    def _forget(self) -> None:
        """Steps without end: those that were taken in every world, and worlds that have taken more
        of them than another one."""
        steps = self._model.steps
        alike: dict[World, list[frozenset[int]]] = {}
        for state, done in self._worlds:
            endless = frozenset(index for index in done if steps[index].end_ns is None)
            alike.setdefault((state, done - endless), []).append(endless)
        common = frozenset.intersection(*(taken for some in alike.values() for taken in some))
        self._worlds = {
            (state, done | (taken - common))
            for (state, done), some in alike.items() for taken in some
            if not any(less < taken for less in some)}
        for index in common:
            del self._running[index]
            self._acts.pop(index, None)
            self._looks.pop(index, None)
            alike_to = steps[index].alike
            if alike_to is not None:
                del self._alike[alike_to][index]
                if not self._alike[alike_to]:
                    del self._alike[alike_to]

    # ---- In words --------------------------------------------------------------------------------

    def _remember(self, operation: Operation) -> None:
        """Of several looks at one hold only the last is worth telling."""
        if operation.action == HELD:
            for one in self._last:
                if one.action == HELD and one.key == operation.key:
                    self._last.remove(one)
                    break
        self._last.append(operation)

    def _fault(self, index: int, worlds: set[World]) -> Fault:
        """No worlds: it was too much."""
        model, reasons = self._model, dict[str, None]()
        for state, done in worlds:
            self._pending.done = done
            if index not in done and len(reasons) < REASONS_MAX:
                reasons[model.why(state, index, self._pending)] = None
        running = [model.steps[other].operation for other in self._running if other != index]
        shown = sorted({*self._last, *running}, key=lambda one: one.begin_ns)[-2 * SHOWN_MAX:]
        return Fault(self._name, self._kind, model.steps[index].operation, self._ended,
                     tuple(sorted(reasons)), tuple(shown), undecided=not worlds)
