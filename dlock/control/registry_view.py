"""What operators ask: which locks there are, who holds one, breaking its holds, who is a client.

Names are the registry's, holders the engine's: so a question becomes looks of the plane thread
(VIEW, SURVEY), each bounded by DLK_LOOK_MAX, and an answer becomes one message of at most
MESSAGE_BYTES_MAX. One question is under way at a time, so that operators take turns with each other
and never more than one look with the data plane; the others wait here, at most QUESTIONS_MAX.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from dlock import _core
from dlock._core import Command, EntryView, Event
from dlock.control import messages as m
from dlock.control.messages_operate import (
    BROKEN_MAX,
    CLIENT_LINES_MAX,
    ENTRY_LINES_MAX,
    NEVER,
)
from dlock.control.registry_effects import Call, Note, Outbox, Views, carried_out
from dlock.control.registry_labels import Labels
from dlock.control.registry_locks import Lock, LockTable
from dlock.control.registry_sessions import MS_NS, Client, Sessions
from dlock.types import DlockStatus

QUESTIONS_MAX: Final = 1024
LOOKS_PER_ANSWER: Final = 4  # of a search that finds little: then the operator asks on
SLOTS_PER_ANSWER: Final = 4096  # of sessions
ANSWER_BYTES_MAX: Final = _core.DLK_CONTROL_MESSAGE_BYTES_MAX - 256
# What a line takes at most as msgpack, apart from its texts.
LOCK_LINE_BYTES: Final = 64
ENTRY_LINE_BYTES: Final = 60
CLIENT_LINE_BYTES: Final = 32
_FOREVER_NS: Final = 2**64 - 1
_U32_MAX: Final = 2**32 - 1


def info_bytes(info: Mapping[str, object]) -> int:
    """What a client's info takes at most as msgpack."""
    size = 3
    for key, value in info.items():
        text = value if isinstance(value, str) else ""
        size += len(key.encode("utf-8", "surrogatepass")) + 2
        size += max(len(text.encode("utf-8", "surrogatepass")) + 3, 9)
    return size


def text_bytes(text: str) -> int:
    """What a text takes, beside its head."""
    return len(text.encode("utf-8", "surrogatepass"))


def _ms(ns: int) -> int:
    return max(ns, 0) // MS_NS


@dataclass(slots=True, eq=False)
class _Search:
    """A ListLocks under way."""

    call: Call
    start: int
    lines: list[m.LockLine] = field(default_factory=list)
    clients: dict[int, m.WhoLine] = field(default_factory=dict)
    bytes_left: int = ANSWER_BYTES_MAX
    looks: int = 0

    @property
    def room(self) -> int:
        """How many more locks the answer may have."""
        return int(self.call.message.limit) - len(self.lines)


@dataclass(slots=True, eq=False)
class _Breaking:
    """A BreakLock under way: `met` of `asked` holds, `left` commands without an answer."""

    call: Call
    lock: Lock
    left: int
    tokens: list[int] = field(default_factory=list)
    met: int = 0


class Operators:
    """The questions of operators. `ask` takes one; the answers come with the plane's events."""

    def __init__(
        self, outbox: Outbox, locks: LockTable, sessions: Sessions, labels: Labels
    ) -> None:
        self._labels = labels
        self._out = outbox
        self._locks = locks
        self._sessions = sessions
        self._questions: deque[Call] = deque()
        self._busy = False
        self._going = False
        self._begin: dict[type[m.Message], Callable[[Call], None]] = {
            m.ListLocks: self._list,
            m.ShowLock: self._show,
            m.BreakLock: self._break,
            m.ListClients: self._list_clients,
        }

    def knows(self, message: m.Message) -> bool:
        """Is this a question for here?"""
        return type(message) in self._begin

    @property
    def gauges(self) -> dict[str, int]:
        """For Stats."""
        return {"questions": len(self._questions) + self._busy}

    def ask(self, call: Call) -> None:
        """A question; its turn comes."""
        if len(self._questions) >= QUESTIONS_MAX:
            self._out.refuse(call, DlockStatus.SERVER_NO_RESOURCE)
            return
        self._questions.append(call)
        self._go_on()

    def _go_on(self) -> None:
        if self._going:
            return  # A question that was answered at once: the loop below goes on.
        self._going = True
        while self._questions and not self._busy:
            self._busy = True
            call = self._questions.popleft()
            self._begin[type(call.message)](call)
        self._going = False

    def _answer(self, call: Call, message: m.Message) -> None:
        self._out.answer(call, message)
        self._over()

    def _refuse(self, call: Call, status: DlockStatus) -> None:
        self._out.refuse(call, status)
        self._over()

    def _over(self) -> None:
        self._busy = False
        self._go_on()

    # ---- Which locks there are -------------------------------------------------------------------

    def _list(self, call: Call) -> None:
        self._look_on(_Search(call, call.message.start))

    def _look_on(self, search: _Search) -> None:
        """Everything is wanted: then no more is looked at than the answer has room for."""
        asked: m.ListLocks = search.call.message
        everything = not asked.prefix and not asked.busy_only
        search.looks += 1
        self._out.look(
            Command(_core.DLK_COMMAND_SURVEY, slot=search.start,
                    size=search.room if everything else _core.DLK_LOOK_MAX),
            partial(self._found, search))

    def _found(self, search: _Search, event: Event, views: Views, now_ns: int) -> None:
        asked: m.ListLocks = search.call.message
        after = event.slot if carried_out(event) else m.NONE
        for view in views:
            assert isinstance(view, _core.LockView)
            lock = self._locks.at(view.slot, view.id)
            holders = view.n_exclusive + view.n_shared
            if lock is None or not lock.descriptor.startswith(asked.prefix) or (
                    asked.busy_only and not holders and not view.n_queue):
                continue
            if not self._add(search, lock, view, now_ns):
                self._answer_list(search, view.slot)
                return
        if after == m.NONE or not search.room or search.looks == LOOKS_PER_ANSWER:
            self._answer_list(search, after)
        else:
            search.start = after
            self._look_on(search)

    def _add(
        self, search: _Search, lock: Lock, view: _core.LockView, now_ns: int
    ) -> bool:
        """False: the answer has no room for one more."""
        client = self._sessions.at(view.session, view.client_id) if view.client_id else None
        label = self._labels.label_of(client, view.owner >> 32)
        text = self._labels.text_of(lock)
        search.bytes_left -= (
            LOCK_LINE_BYTES + len(lock.descriptor) + text_bytes(label) + len(text))
        if client is not None and client.id not in search.clients:
            search.bytes_left -= CLIENT_LINE_BYTES + info_bytes(client.info)
        if search.bytes_left < 0 or not search.room:
            return False
        if client is not None:
            search.clients[client.id] = m.WhoLine(client.id, client.info)
        search.lines.append(m.LockLine(
            lock.descriptor, lock.kind, lock.size, lock.id, view.n_exclusive + view.n_shared,
            view.n_queue, view.served, view.client_id, view.owner >> 32,
            _ms(now_ns - view.since_ns) if view.client_id else 0, label, text))
        return True

    def _answer_list(self, search: _Search, after: int) -> None:
        self._answer(search.call, m.LockList(
            DlockStatus.SUCCESS, tuple(search.lines), after, tuple(search.clients.values())))

    # ---- Who holds a lock ------------------------------------------------------------------------

    def _view(
        self, call: Call, size: int, then: Callable[[Call, Lock, Event, Views, int], None]
    ) -> None:
        lock = self._locks.find(call.message.descriptor)
        if lock is None:
            self._refuse(call, DlockStatus.LOCK_NOT_GET)
            return
        self._out.look(
            Command(_core.DLK_COMMAND_VIEW, slot=lock.slot, id=lock.id, size=size),
            partial(then, call, lock))

    def _show(self, call: Call) -> None:
        self._view(call, ENTRY_LINES_MAX, self._shown)

    def _shown(self, call: Call, lock: Lock, event: Event, views: Views, now_ns: int) -> None:
        if not carried_out(event):  # It was closed meanwhile.
            self._refuse(call, DlockStatus.LOCK_NOT_GET)
            return
        entries: list[m.EntryLine] = []
        clients: dict[int, m.WhoLine] = {}
        text = self._labels.text_of(lock)
        bytes_left = ANSWER_BYTES_MAX - len(text)
        for view in views:
            assert isinstance(view, EntryView)
            client = self._sessions.at(view.session, view.client_id)
            label = self._labels.label_of(client, view.owner >> 32)
            bytes_left -= ENTRY_LINE_BYTES + text_bytes(label)
            if client is not None and client.id not in clients:
                bytes_left -= CLIENT_LINE_BYTES + info_bytes(client.info)
            if bytes_left < 0:
                break
            if client is not None:
                clients[client.id] = m.WhoLine(client.id, client.info)
            entries.append(self._entry_line(view, client, label, now_ns))
        self._answer(call, m.LockShown(
            DlockStatus.SUCCESS, lock.kind, lock.size, lock.id, tuple(entries),
            tuple(clients.values()), event.value, text))

    @staticmethod
    def _entry_line(
        view: EntryView, client: Client | None, label: str, now_ns: int
    ) -> m.EntryLine:
        leased = view.end_ns != _FOREVER_NS
        ended = client is None or client.gone
        return m.EntryLine(
            view.state, view.mode, view.token, view.client_id, view.owner >> 32,
            _ms(now_ns - view.since_ns),
            min(_ms(view.end_ns - now_ns), _U32_MAX) if leased else NEVER,
            0 if ended else _ms(view.session_end_ns - now_ns),
            bool(view.flags & _core.DLK_ENTRY_BREAKING), label)

    # ---- Breaking --------------------------------------------------------------------------------

    def _break(self, call: Call) -> None:
        """One token is one command. All holds are those that a look finds, each by its own token,
        so that nobody is broken who has got the lock since."""
        lock = self._locks.find(call.message.descriptor)
        if lock is not None and call.message.token:
            self._break_one(_Breaking(call, lock, 1), call.message.token, m.NONE)
        else:
            self._view(call, _core.DLK_LOOK_MAX, self._break_seen)

    def _break_seen(
        self, call: Call, lock: Lock, event: Event, views: Views, _now_ns: int
    ) -> None:
        if not carried_out(event):
            self._refuse(call, DlockStatus.LOCK_NOT_GET)
            return
        holds = [one for one in views
                 if isinstance(one, EntryView) and one.state == _core.DLK_ENTRY_HELD]
        breaking = _Breaking(call, lock, len(holds))
        if not holds:
            self._answer_broken(breaking)
        elif len(holds) < _core.DLK_LOOK_MAX:
            for one in holds:
                self._break_one(breaking, one.token, one.entry)
        else:  # There may be more than a look shows.
            breaking.left = 1
            breaking.tokens = [one.token for one in holds][:BROKEN_MAX]
            self._break_one(breaking, 0, m.NONE)

    def _break_one(self, breaking: _Breaking, token: int, entry: int) -> None:
        self._out.command(
            Command(_core.DLK_COMMAND_BREAK, slot=breaking.lock.slot, id=breaking.lock.id,
                    value=token, attach=entry, size=int(breaking.call.message.now)),
            partial(self._broken, breaking, token))

    def _broken(self, breaking: _Breaking, token: int, event: Event) -> None:
        if carried_out(event):
            breaking.met += event.value
            if token and event.value:
                breaking.tokens.append(token)
        breaking.left -= 1
        if not breaking.left:
            self._answer_broken(breaking)

    def _answer_broken(self, breaking: _Breaking) -> None:
        asked: m.BreakLock = breaking.call.message
        if breaking.met:
            self._out.counters["HOLDS_BROKEN"] += breaking.met
            self._out.add(Note("lock broken", {
                "name": asked.descriptor, "holds": breaking.met, "now": asked.now,
                "first_token": breaking.tokens[0]}, logging.WARNING))
        self._answer(breaking.call, m.BrokenLock(
            DlockStatus.SUCCESS, tuple(breaking.tokens), breaking.met))

    # ---- Who is a client -------------------------------------------------------------------------

    def _list_clients(self, call: Call) -> None:
        lines: list[m.ClientLine] = []
        bytes_left = ANSWER_BYTES_MAX
        after = min(call.message.start + SLOTS_PER_ANSWER, self._sessions.slots)
        for slot in range(call.message.start, after):
            client = self._sessions.in_slot(slot)
            if client is None or client.opening:
                continue
            bytes_left -= CLIENT_LINE_BYTES + info_bytes(client.info)
            if bytes_left < 0 or len(lines) == CLIENT_LINES_MAX:
                after = slot
                break
            lines.append(m.ClientLine(
                client.id, client.info, client.connection is not None, client.gone,
                len(client.locks), _ms(call.now_ns - client.opened_ns),
                client.pair_given == client.attach))
        more = after < self._sessions.slots
        self._answer(call, m.ClientList(
            DlockStatus.SUCCESS, tuple(lines), after if more else m.NONE))
