"""What glockd's commands mean: the locks of connections, held at a dlock server.

Each connection is an owner of its own, made when it first asks for a lock. An exclusive lock is one
that a single owner holds, a counted shared one is one that any number hold together. What the door
itself can answer costs the server nothing: a lock that another of its connections holds is refused
at once, and a release is answered when it is posted, since until then the hold was good.

A session answers one command after the other. `execute` returns the reply, or None when the reply
has to wait for the server; then it comes by `answered`, and nothing may be executed before.

The way of `g` and `r` is short on purpose: no task, no future, and a line that came before is not
parsed again. What happens seldom (a suspended hold, a look at the server) is done by a task.

It may not touch sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final

from dlock import aio
from dlock.admin import LockDetails
from dlock.aio import keys
from dlock.doors.glockd import protocol
from dlock.doors.glockd.protocol import DISABLED, OK
from dlock.doors.glockd.tables import Party, Tables
from dlock.doors.names import Named, Names
from dlock.errors import ClientClosed, ConnectionLost, DlockError, ServerFull

KNOWN_LINES_MAX: Final = 8192  # lines whose meaning is remembered
KNOWN_LINE_BYTES_MAX: Final = 256
LOOK_AGAIN_S: Final = 0.1  # after a server was lost while it was asked

Outcome = aio.Hold | DlockError | None
Run = Callable[["Session", "Command"], "bytes | None"]


class Command:
    """What one line asks for. `run`: carries it out; `usual`: the reply when it succeeds, where
    that is always the same; `key`: of the lock, if it is about one."""

    __slots__ = ("key", "name", "run", "usual", "verb")

    def __init__(self, verb: str, name: bytes, run: Run) -> None:
        self.verb = verb
        self.name = name
        self.run = run
        self.usual = b""
        self.key: keys.Key = _NO_KEY


_NO_KEY: Final = keys.exclusive(b"-")


class Service:
    """All that the connections of a door share."""

    def __init__(
        self, client: aio.Client, names: Names, counters: Counter[str], log: logging.Logger, *,
        dump: bool = True, registry: bool = True, say: Callable[[bytes], None] | None = None,
    ) -> None:
        """`dump`, `registry`: what may be asked for; `say`: prints a line on what a connection
        does, None: it is not wanted."""
        self.client = client
        self.names = names
        self.counters = counters
        self.log = log
        self.dump = dump
        self.registry = registry
        self.say = say
        self.tables = Tables()
        self.commands: dict[bytes, Command] = {}
        self._order: aio.Owner | None = None
        self._order_key = keys.shared(names.namespace.encode() + b"+order")

    def command(self, line: bytes) -> Command:
        """What a line asks for; remembered, so that the next time it is found in `commands`."""
        verb, name = protocol.parse(line)
        made = Command(verb or "", name if verb else line.strip(b"\0\r\n"),
                       _RUNS[verb] if verb else Session.invalid)
        if verb == "g":
            made.key, made.usual = self._wanted(self.names.exclusive(name)), protocol.got(name)
        elif verb == "r":
            made.usual = protocol.released(name)
        elif verb == "i":
            made.key = keys.exclusive(self.names.exclusive(name).descriptor)
        elif verb == "sg":
            made.key = self._wanted(self.names.shared(name), keys.shared)
        elif verb == "sr":
            made.usual = protocol.shared_released(name)
        if len(line) <= KNOWN_LINE_BYTES_MAX:
            if len(self.commands) >= KNOWN_LINES_MAX:
                self.commands.clear()
            self.commands[line] = made
        return made

    def _wanted(
        self, named: Named, kind: Callable[[bytes], keys.Key] = keys.exclusive
    ) -> keys.Key:
        """The key of a lock that is asked for; operators are told what a hash stands for."""
        key = kind(named.descriptor)
        if named.text:
            self.client.describe(key, named.text)
        return key

    async def somebody_holds(self, key: keys.Key) -> bool:
        """Does anybody at the server hold this lock? Waits for the server as long as it takes.

        The locks travel on another connection than this question. So it is asked when the answer to
        a lock is there that was posted after all that went before: then that was carried out."""
        if self._order is None:
            self._order = self.client.owner("order of questions")
        while True:
            with contextlib.suppress(ServerFull):  # then the question itself must do
                hold = await self._order.take(self._order_key, 0)
                if hold is not None:
                    hold.release()
            try:
                found: LockDetails | None = await self.client.show(key.descriptor)
            except ConnectionLost:
                await asyncio.sleep(LOOK_AGAIN_S)
                continue
            return found is not None and bool(found.holders)


class Session(Party):
    """One connection."""

    __slots__ = ("_answered", "_asked", "_counts", "_end_connection", "_exclusive",
                 "_label", "_locks", "_owner", "_service", "_shared", "_tables", "_task", "ended")

    def __init__(
        self, service: Service, address: bytes, answered: Callable[[bytes], None],
        end_connection: Callable[[], None], label: str = "",
    ) -> None:
        """`answered`: takes the reply to a command that had to wait; `end_connection`: called when
        a hold was lost; `label`: for operators, the address if it is empty."""
        super().__init__(address)
        self._service = service
        self._tables = tables = service.tables
        self._locks = tables.locks
        self._counts = tables.counts
        self._answered = answered
        self._end_connection = end_connection
        self._label = label
        self._owner: aio.Owner | None = None
        self._exclusive: dict[bytes, aio.Hold] = {}
        self._shared: dict[bytes, aio.Hold] = {}
        self._asked: Command | None = None
        self._task: asyncio.Task[None] | None = None
        self.ended = False
        tables.parties += 1
        if service.say is not None:
            self._say(b"connected")

    def execute(self, line: bytes) -> bytes | None:
        """The reply to one command, maybe empty; None: `answered` will bring it."""
        service = self._service
        command = service.commands.get(line)
        if command is None:
            command = service.command(line)
        return command.run(self, command)

    def end(self) -> None:
        """The connection is gone, or as good as gone: what it holds is free, what it asked for is
        not wanted any more."""
        if self.ended:
            return
        self.ended = True
        tables = self._tables
        tables.parties -= 1
        tables.named.pop(self, None)
        self._say(b"disconnected")
        for name in self._exclusive:
            del tables.locks[name]
            self._say(b"orphaned lock %b" % name)
        for name in self._shared:
            tables.unshare(name, self)
            self._say(b"orphaned shared lock %b" % name)
        tables.orphans += len(self._exclusive)
        tables.shared_orphans += len(self._shared)
        self._exclusive.clear()
        self._shared.clear()
        if self._task is not None:
            self._task.cancel()
        if self._owner is not None:
            self._owner.close()

    def _say(self, words: bytes) -> None:
        if self._service.say is not None:
            self._service.say(b"%b %b" % (self.address, words))

    # ---- Exclusive locks -------------------------------------------------------------------------

    def get(self, command: Command) -> bytes | None:
        """g"""
        self._counts["g"] += 1
        if command.name in self._locks:
            return self._get_taken(command)
        owner = self._owner
        if owner is None:
            owner = self._enter()
        self._asked = command
        owner.ask(command.key, self._got)
        return None

    def _enter(self) -> aio.Owner:
        label = self._label or self.address.decode("ascii", "replace")
        self._owner = owner = self._service.client.owner(label)
        return owner

    def _got(self, outcome: Outcome) -> None:
        command = self._asked
        assert command is not None
        if isinstance(outcome, aio.Hold):
            name = command.name
            self._locks[name] = self
            self._exclusive[name] = outcome
            outcome.on_lost = self._lost
            if self._service.say is not None:
                self._say(b"obtained lock for %b" % name)
            self._answered(command.usual)
        elif outcome is None or self._problem(outcome):
            self._answered(protocol.not_got(command.name))

    def _get_taken(self, command: Command) -> bytes | None:
        """Somebody here has it, for all we know."""
        holder = self._locks[command.name]
        assert isinstance(holder, Session)
        hold = holder._exclusive[command.name]
        if hold.held:
            before = protocol.got_before if holder is self else protocol.not_got
            return before(command.name)
        self._later(self._when_settled(hold, command))
        return None

    def release(self, command: Command) -> bytes | None:
        """r"""
        self._counts["r"] += 1
        name = command.name
        hold = self._exclusive.pop(name, None)
        if hold is None:
            return protocol.not_released(name)
        del self._locks[name]
        if hold.release():
            if self._service.say is not None:
                self._say(b"released lock for %b" % name)
            return command.usual
        self._later(self._released(hold, command, protocol.not_released))
        return None

    def inspect(self, command: Command) -> bytes | None:
        """i"""
        self._counts["i"] += 1
        holder = self._locks.get(command.name)
        if holder is not None:
            assert isinstance(holder, Session)
            if holder._exclusive[command.name].held:
                mine = holder is self
                return (protocol.locked_by_asker if mine else protocol.locked)(command.name)
        self._later(self._inspected(command))
        return None

    async def _inspected(self, command: Command) -> bytes:
        if await self._service.somebody_holds(command.key):
            mine = command.name in self._exclusive
            return (protocol.locked_by_asker if mine else protocol.locked)(command.name)
        return protocol.not_locked(command.name)

    # ---- Shared locks ----------------------------------------------------------------------------

    def share(self, command: Command) -> bytes | None:
        """sg"""
        self._counts["sg"] += 1
        name = command.name
        hold = self._shared.get(name)
        if hold is None:
            self._asked = command
            (self._owner or self._enter()).ask(command.key, self._got_shared)
            return None
        if hold.held:
            return protocol.shared_got(name, len(self._tables.shared[name]))
        self._later(self._when_settled(hold, command))
        return None

    def _got_shared(self, outcome: Outcome) -> None:
        command = self._asked
        assert command is not None
        name = command.name
        if isinstance(outcome, aio.Hold):
            count = self._tables.share(name, self)
            self._shared[name] = outcome
            outcome.on_lost = self._lost
            self._say(b"obtained shared lock for %b" % name)
            self._answered(protocol.shared_got(name, count))
        elif outcome is None or self._problem(outcome):
            self._answered(protocol.shared_not_got(name))

    def unshare(self, command: Command) -> bytes | None:
        """sr"""
        self._counts["sr"] += 1
        name = command.name
        hold = self._shared.pop(name, None)
        if hold is None:
            return protocol.shared_not_released(name)
        self._tables.unshare(name, self)
        if hold.release():
            self._say(b"released shared lock for %b" % name)
            return command.usual
        self._later(self._released(hold, command, protocol.shared_not_released))
        return None

    def inspect_shared(self, command: Command) -> bytes | None:
        """si"""
        self._counts["si"] += 1
        return self._count_shared(command)

    def _count_shared(self, command: Command) -> bytes | None:
        name = command.name
        holders = self._tables.shared.get(name, {})
        for holder in holders:
            assert isinstance(holder, Session)
            hold = holder._shared[name]
            if not hold.held:
                self._later(self._when_settled(hold, command))
                return None
        return protocol.shared_locked(name, len(holders))

    # ---- What has to wait for more than one answer -----------------------------------------------

    def _later(self, reply: Coroutine[Any, Any, bytes | None]) -> None:
        """The reply will be `answered` by a task."""
        self._task = asyncio.get_running_loop().create_task(self._answer_later(reply))

    async def _answer_later(self, waiting: Coroutine[Any, Any, bytes | None]) -> None:
        try:
            reply = await waiting
        except DlockError as problem:
            # Only an end of the client leaves a question without an answer.
            self._problem(problem)
            self._end_connection()
            return
        if reply is not None and not self.ended:
            self._task = None
            self._answered(reply)

    async def _when_settled(self, hold: aio.Hold, command: Command) -> bytes | None:
        """A hold that somebody here has could have ended: the answer waits until that is known.
        None: the answer comes another way."""
        await hold.settled()
        if self.ended:
            return None
        if command.verb == "si":
            return self._count_shared(command)
        self._counts[command.verb] -= 1  # it is one command, although it is tried again
        return command.run(self, command)

    async def _released(
        self, hold: aio.Hold, command: Command, failed: Callable[[bytes], bytes]
    ) -> bytes:
        if await hold.settled():
            return command.usual
        self._count_loss(hold)
        return failed(command.name)

    # ---- What goes wrong -------------------------------------------------------------------------

    def _lost(self, hold: aio.Hold) -> None:
        """The hold is not ours any more, and the client was not asked: it hears of it by the end
        of its connection, as of every lock that it no longer has."""
        for name, one in list(self._exclusive.items()):
            if one is hold:
                del self._exclusive[name], self._locks[name]
        for name, one in list(self._shared.items()):
            if one is hold:
                del self._shared[name]
                self._tables.unshare(name, self)
        self._count_loss(hold)
        self._end_connection()

    def _count_loss(self, hold: aio.Hold) -> None:
        self._service.counters["lost_holds"] += 1
        self._service.log.warning("glockd door lost a hold client=%s lock=%r token=%d",
                                  self.address.decode("ascii", "replace"),
                                  hold.key.descriptor, hold.token)

    def _problem(self, problem: DlockError) -> bool:
        """Counts why a lock could not be had; False: there is nobody any more who could say it."""
        if isinstance(problem, ClientClosed):
            return False
        kind = type(problem).__name__
        self._service.counters[f"refused_{kind}"] += 1
        if self._service.counters[f"refused_{kind}"] == 1:
            self._service.log.warning("glockd door refuses a lock client=%s problem=%s",
                                      self.address.decode("ascii", "replace"), problem)
        return True

    # ---- Everything else is answered from the tables ---------------------------------------------

    def list_locks(self, command: Command) -> bytes:
        """d"""
        self._count(command)
        return self._tables.list_locks(command.name) if self._service.dump else DISABLED

    def list_shared(self, command: Command) -> bytes:
        """sd"""
        self._count(command)
        return self._tables.list_shared(command.name) if self._service.dump else DISABLED

    def dump(self, command: Command) -> bytes:
        """dump"""
        self._count(command)
        return self._tables.dump(command.name) if self._service.dump else DISABLED

    def me(self, command: Command) -> bytes:
        """me"""
        self._count(command)
        return protocol.me(self.address, self.called)

    def iam(self, command: Command) -> bytes:
        """iam"""
        self._count(command)
        if not self._service.registry:
            return DISABLED
        self._tables.call(self, command.name)
        self._say(b"changed their name to '%b'" % command.name)
        return OK

    def who(self, command: Command) -> bytes:
        """who"""
        self._count(command)
        allowed = self._service.registry and self._service.dump
        return self._tables.who(command.name) if allowed else DISABLED

    def statistics(self, command: Command) -> bytes:
        """q"""
        self._count(command)
        return self._tables.statistics()

    def invalid(self, command: Command) -> bytes:
        """Not known: counted, and not answered."""
        self._tables.invalid += 1
        self._say(b"invalid command '%b'" % command.name)
        return b""

    def _count(self, command: Command) -> None:
        self._counts[command.verb] = self._counts.get(command.verb, 0) + 1


_RUNS: Final[dict[str, Run]] = {
    "g": Session.get,
    "r": Session.release,
    "i": Session.inspect,
    "sg": Session.share,
    "sr": Session.unshare,
    "si": Session.inspect_shared,
    "d": Session.list_locks,
    "sd": Session.list_shared,
    "dump": Session.dump,
    "me": Session.me,
    "iam": Session.iam,
    "who": Session.who,
    "q": Session.statistics,
}
