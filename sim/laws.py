"""The laws of a world: what must hold after each step, whatever befell it.

| law | where |
|---|---|
| nobody believes in a hold beside another that excludes it, nor after a newer grant | `Beliefs` |
| what is believed is so at the newest primary that is ready, and for longer | `EngineView` |
| queues are served in order, tokens only grow, a primary's tables fit together | `EngineView` |
| a hold ends by its user, or its user is told; it was SUSPENDED before it was LOST | `Beliefs` |
| but for a lease that its client gives up with the session: the server keeps it | `Beliefs` |
| a new primary waits for everybody who could believe | `primary_changed` |
| numbers: everybody gets another one, none is lost, none is made twice | `Numbers` |
| calls end in their time; in the end everybody is served | `Diary.waits`, sim/people.py |
| in the end nothing is left | `sim/laws_end.py` |

They cost little: a client's holds are looked at when it had a turn, a primary's tables when it had
one, and only what has changed is held against the rest.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from dlock._core import EntryView
from dlock._handle import Key
from dlock.aio.locks import BaseLock
from sim.diary import Diary, Hold
from sim.laws_belief import Beliefs, believed
from sim.laws_end import at_rest, left_behind
from sim.laws_engine import EngineView
from sim.numbers import Numbers
from sim.scene import ClientNode, LawBroken, Node, Scene, ServerNode

LOOK_AT_WAITS_EVERY: Final = 32  # turns of a client
LATE_TURNS: Final = 200
LATE_NS: Final = 8_000_000_000  # an answer may be awaited for 5 s, beyond the time of a call


class Laws:
    """See the file. `seen`: how often what was met, to know that a world was worth its time."""

    def __init__(self, world: Scene) -> None:
        self.world = world
        self.seen: Counter[str] = Counter()
        self.beliefs = Beliefs(believed)
        self.late_ns = LATE_NS
        self.dead_sessions: list[int] = []  # of clients that were killed
        self.numbers = Numbers()
        self._diaries: dict[str, Diary] = {}
        self._engines: dict[str, EngineView] = {}
        self._turns = self._epoch = 0
        self._problem: LawBroken | None = None

    def diary(self, node: ClientNode) -> Diary:
        """What its users write down."""
        diary = self._diaries.get(node.name)
        if diary is None:
            diary = self._diaries[node.name] = Diary(node, self.seen)
        return diary

    # ---- What people tell and ask ----------------------------------------------------------------

    def newest_against(self, hold: Hold) -> int:
        """See `Beliefs.newest_against`."""
        return self.beliefs.newest_against(hold)

    def breaks(self, name: bytes) -> None:
        """An operator begins to break the holds of this lock."""
        self.beliefs.breaks.add(name)

    def crosses_a_grant(self, diary: Diary, lock: BaseLock) -> bool:
        """Has the newest primary granted this lock to this client, of which no user knows yet?"""
        view, client = self.beliefs.newest, diary.node.client
        if view is None or client is None:
            return False
        known = {hold.token for hold in diary.holds.values()}
        return view.has_given(lock._key, client._connection.session.id, known)

    def broken_by(self, problem: BaseException) -> None:
        """People have met what must not be; the next step says so."""
        if self._problem is None:
            self._problem = problem if isinstance(problem, LawBroken) else LawBroken(
                f"a user met {problem!r}")
            self._problem.__cause__ = None if problem is self._problem else problem

    # ---- After each step -------------------------------------------------------------------------

    def after_step(self, node: Node) -> None:
        """This node has had a turn, and its clock is still the one that is read."""
        if self._problem is not None:
            raise self._problem
        diary = self._diaries.get(node.name)
        if diary is not None:
            self._turns += 1
            self._look_at_client(diary)
            return
        view = self._engines.get(node.name)
        if view is not None and node.alive:
            self._look_at_server(view)

    def _look_at_client(self, diary: Diary) -> None:
        if diary.holds or diary.fresh:
            self.beliefs.look(diary)
        if diary.given:
            for hold in diary.given:
                self.beliefs.let_go(hold)
            diary.given.clear()
        if diary.waits and self._turns % LOOK_AT_WAITS_EVERY == 0:
            self._look_at_waits(diary)

    def _look_at_waits(self, diary: Diary) -> None:
        """What promised to end in its time has ended, if its process could run."""
        own_ns = diary.node.now_ns()
        for wait in diary.waits.values():
            late_ns = own_ns - wait.begun_ns - (wait.limit_ns or 0) - self.late_ns
            if wait.limit_ns is not None and late_ns > 0:
                wait.late_turns += 1
                if wait.late_turns * LOOK_AT_WAITS_EVERY > LATE_TURNS:
                    raise LawBroken(f"{diary.node.name}: {wait.what} should have ended "
                                    f"{late_ns / 1e9:.3f} s ago")

    def _look_at_server(self, view: EngineView) -> None:
        changed = view.look()
        if view is not self.beliefs.newest:
            return
        if view.ready and not view.was_ready:
            view.was_ready = True
            self.seen["recoveries"] += view.recovering
            changed = list({hold.key: None for hold in self.beliefs.all()})
        for key in changed:
            self.beliefs.check_engine(key)

    # ---- What befalls nodes ----------------------------------------------------------------------

    def crashed(self, node: Node) -> None:
        """It was killed: nothing of it is believed any more, or served."""
        diary = self._diaries.pop(node.name, None)
        if diary is not None:
            for hold in [*diary.holds.values(), *diary.fresh, *diary.given]:
                self.beliefs.let_go(hold)
            client = diary.node.client
            if client is not None:
                self.dead_sessions.append(client._connection.session.id)
        view = self._engines.pop(node.name, None)
        if view is not None and not view.was_ready:
            self.seen["recoveries interrupted"] += 1
        if view is not None and view is self.beliefs.newest:
            self.beliefs.newest = None

    def primary_changed(self, old: ServerNode | None, new: ServerNode) -> None:
        """Another primary has started: nobody who believes in a hold is forgotten by it."""
        view = EngineView(new, self._granted)
        self._engines[new.name] = self.beliefs.newest = view
        if view.epoch <= self._epoch:
            raise LawBroken(f"{new.name} begins with epoch {view.epoch}, and there was "
                            f"{self._epoch} before")
        self._epoch = view.epoch
        if old is None:
            return
        self.seen["primaries replaced"] += 1
        plan = new.primary.recovery
        if plan is not None and (plan.reread or plan.anybody):
            return
        awaited = {entry.client_id for entry in plan.roster} if plan is not None else set()
        for hold in self.beliefs.all():
            session = hold.handle.name.table.session
            if self.beliefs.is_believed(hold) and session.id not in awaited:
                raise LawBroken(f"{hold} is believed, and {new.name} does not wait for its client "
                                f"{session.id}")

    def _granted(self, key: Key, one: EntryView) -> None:
        self.beliefs.granted(key, one.mode, one.token)

    # ---- The end ---------------------------------------------------------------------------------

    def at_rest(self) -> str | None:
        """Everybody has given back what he had: None, or what is left of it all the same."""
        view = self.beliefs.newest
        return at_rest(self._diaries.values(), view)

    def at_end(self) -> None:
        """Everybody has left or is dead, and was missed for long enough: nothing is left."""
        for diary in self._diaries.values():
            self._look_at_client(diary)
        left = left_behind(self._diaries.values(), self.beliefs.newest)
        if left is not None:
            raise LawBroken(f"everybody has left, and {left}")
