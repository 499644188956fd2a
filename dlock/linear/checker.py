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
- A step that may never take effect is forgotten when all worlds have taken it.

There is no recursion. The search is exact; when it would keep more than `worlds_max` worlds, it
gives up and says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from dlock.linear.history import Operation, by_name, describe
from dlock.linear.models import Model, State, model_of

WORLDS_MAX: Final = 100_000
SHOWN_MAX: Final = 12  # operations before the failing one, in words
REASONS_MAX: Final = 3

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
        zero_ns = self.shown[0].begin_ns if self.shown else self.operation.begin_ns
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
    """Which steps are under way and have not taken effect in the world that is looked at."""

    __slots__ = ("done", "running")

    def __init__(self) -> None:
        self.running: dict[int, None] = {}
        self.done: frozenset[int] = frozenset()

    def __contains__(self, step: object) -> bool:
        return step in self.running and step not in self.done


class Search:
    """The search through the history of one name."""

    def __init__(
        self, name: str, kind: str, operations: Sequence[Operation], worlds_max: int
    ) -> None:
        self._name = name
        self._kind = kind
        self._model: Model = model_of(kind, operations)
        self._worlds_max = worlds_max
        self._pending = _Pending()
        self._running = self._pending.running
        self._looks: dict[int, None] = {}  # of those that run
        self._acts: dict[int, None] = {}
        self._alike: dict[object, list[int]] = {}
        self._worlds: set[World] = {(self._model.initial, frozenset())}
        self._ended = 0
        self._last: deque[Operation] = deque(maxlen=SHOWN_MAX)

    def run(self) -> Fault | None:
        """None: it is explained."""
        steps = self._model.steps
        # Of one moment begins come first: what touches may be in either order.
        events = [(step.begin_ns, 0, index) for index, step in enumerate(steps)]
        events += [(step.end_ns, 1, index) for index, step in enumerate(steps)
                   if step.end_ns is not None]
        events.sort()
        for _, ends, index in events:
            if not ends:
                self._begin(index)
                continue
            before = self._worlds
            if not self._end(index):
                return self._fault(index, before, undecided=bool(self._worlds))
            self._ended += 1
            self._last.append(steps[index].operation)
        return None

    # ---- In the order of time --------------------------------------------------------------------

    def _begin(self, index: int) -> None:
        step = self._model.steps[index]
        self._running[index] = None
        if step.looks:
            self._looks[index] = None
        if step.acts:
            self._acts[index] = None
        if step.alike is not None:
            self._alike.setdefault(step.alike, []).append(index)
        # One that stands in somebody's way from now on may allow a look, too.
        if self._looks:
            self._worlds = {self._look(state, done) for state, done in self._worlds}

    def _end(self, index: int) -> bool:
        """False: no world is left, or there are too many."""
        kept, late = set(), []
        for world in self._worlds:
            if index in world[1]:
                kept.add((world[0], world[1] - {index}))
            else:
                late.append(world)
        endless = self._carry_on(late, index, kept) if late else False
        if not kept:
            self._worlds = set()
            return False
        self._worlds = kept
        if len(kept) > self._worlds_max:
            return False
        del self._running[index]
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
        while stack and len(seen) <= self._worlds_max:
            state, done = stack.pop()
            pending.done = done
            after = advance(state, target, pending)
            if after is not None:
                world = self._look(after, done | {target})
                kept.add((world[0], world[1] - {target}))
            for index in self._acts:
                if index == target or index in done:
                    continue
                step = steps[index]
                if step.alike is not None and self._is_later(index, step.alike, done):
                    continue
                pending.done = done
                after = advance(state, index, pending)
                if after is None or (step.end_ns is None and after == state):
                    continue
                endless = endless or step.end_ns is None
                world = self._look(after, done | {index})
                if world not in seen:
                    seen.add(world)
                    stack.append(world)
        if stack:
            kept.update(seen)  # more than there may be: it is given up
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

    def _is_later(self, index: int, alike: object, done: frozenset[int]) -> bool:
        """Is there one that is alike, has begun before, and was not taken?"""
        return any(other not in done for other in self._alike[alike]
                   [: self._alike[alike].index(index)])

    def _forget(self) -> None:
        """Steps without end that were taken in every world."""
        steps = self._model.steps
        common = frozenset.intersection(*(done for _, done in self._worlds))
        over = {index for index in common if steps[index].end_ns is None}
        if not over:
            return
        self._worlds = {(state, done - over) for state, done in self._worlds}
        for index in over:
            del self._running[index]
            self._acts.pop(index, None)
            self._looks.pop(index, None)
            if steps[index].alike is not None:
                self._alike[steps[index].alike].remove(index)

    # ---- In words --------------------------------------------------------------------------------

    def _fault(self, index: int, worlds: set[World], undecided: bool) -> Fault:
        model, reasons = self._model, dict[str, None]()
        for state, done in worlds:
            self._pending.done = done
            if index not in done and len(reasons) < REASONS_MAX and not undecided:
                reasons[model.why(state, index, self._pending)] = None
        running = [model.steps[other].operation for other in self._running if other != index]
        shown = sorted({*self._last, *running}, key=lambda one: one.begin_ns)[-2 * SHOWN_MAX:]
        return Fault(self._name, self._kind, model.steps[index].operation, self._ended,
                     tuple(sorted(reasons)), tuple(shown), undecided)
