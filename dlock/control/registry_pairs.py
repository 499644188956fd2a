"""Queue pairs: how a session gets the server's end of one, and what becomes of it before the plane
has it; what happened to RDMA, in words.

A client asks (OpenQueuePair), the loop makes our end (the effect OpenPair, answered by `made`), the
plane takes it as a link that has not attached yet (LINK_OPEN), and only then is the client told. An
attach number gets one queue pair. Until LINK_OPEN is done the queue pair is ours: whatever ends the
session or its connection meanwhile, it is given back (FreePair) or, once the plane has it, ends as
a link that nobody attaches.

To connect an end may take the device a second when its address cannot be found, and the control
thread waits for that. So of its time only a part goes into what fails: who asks beyond that is told
to go over TCP at once.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Final, NamedTuple

from dlock import _core
from dlock._core import Command, Event
from dlock._verbs import Address, Made
from dlock.control import messages as m
from dlock.control.registry_effects import Call, FreePair, Note, OpenPair, Outbox, carried_out
from dlock.control.registry_sessions import Client, Sessions
from dlock.types import DlockStatus

FAILING_NS_MAX: Final = 2_000_000_000  # may go into what fails at a stretch,
FAILING_PART: Final = 10  # and of all time one part in so many


class Happened(NamedTuple):
    """One of enum dlk_verbs_event: for the log, and for Stats."""

    words: str
    counter: str
    level: int


EVENTS: Final = {
    _core.DLK_VERBS_PEER_GONE: Happened(
        "a queue pair does not answer any more", "VERBS_PEER_GONE", logging.INFO),
    _core.DLK_VERBS_ACCESS: Happened(
        "a client used a key that is not valid", "VERBS_ACCESS", logging.WARNING),
    _core.DLK_VERBS_WINDOW_FULL: Happened(
        "a client sent more than there is room for", "VERBS_WINDOW_FULL", logging.WARNING),
    _core.DLK_VERBS_PAIR_ERROR: Happened(
        "a queue pair is broken", "VERBS_BROKEN", logging.WARNING),
    _core.DLK_VERBS_PORT_DOWN: Happened(
        "the RDMA port is down", "VERBS_PORT_DOWN", logging.WARNING),
    _core.DLK_VERBS_PORT_UP: Happened(
        "the RDMA port is up again", "VERBS_PORT_UP", logging.INFO),
    _core.DLK_VERBS_DEVICE_LOST: Happened(
        "the RDMA device is lost: from now on everybody is served over TCP", "VERBS_DEVICE_LOST",
        logging.ERROR),
}

# What verbs call it (<infiniband/verbs.h>), by number: enum ibv_wc_status, of what ended a client's
# queue pair, and enum ibv_event_type, of what happened to the device.
WC_STATUSES: Final = (
    "SUCCESS", "LOC_LEN_ERR", "LOC_QP_OP_ERR", "LOC_EEC_OP_ERR", "LOC_PROT_ERR", "WR_FLUSH_ERR",
    "MW_BIND_ERR", "BAD_RESP_ERR", "LOC_ACCESS_ERR", "REM_INV_REQ_ERR", "REM_ACCESS_ERR",
    "REM_OP_ERR", "RETRY_EXC_ERR", "RNR_RETRY_EXC_ERR", "LOC_RDD_VIOL_ERR", "REM_INV_RD_REQ_ERR",
    "REM_ABORT_ERR", "INV_EECN_ERR", "INV_EEC_STATE_ERR", "FATAL_ERR", "RESP_TIMEOUT_ERR",
    "GENERAL_ERR",
)
DEVICE_EVENTS: Final = (
    "CQ_ERR", "QP_FATAL", "QP_REQ_ERR", "QP_ACCESS_ERR", "COMM_EST", "SQ_DRAINED", "PATH_MIG",
    "PATH_MIG_ERR", "DEVICE_FATAL", "PORT_ACTIVE", "PORT_ERR", "LID_CHANGE", "PKEY_CHANGE",
    "SM_CHANGE", "SRQ_ERR", "SRQ_LIMIT_REACHED", "QP_LAST_WQE_REACHED", "CLIENT_REREGISTER",
    "GID_CHANGE", "WQ_FATAL",
)


def _named(prefix: str, names: tuple[str, ...], number: int) -> str:
    return prefix + names[number] if number < len(names) else f"{prefix}{number}"


class _Asked(NamedTuple):
    """A queue pair that is under way."""

    client: Client
    call: Call
    attach: int


class Pairs:
    """The queue pairs that are under way to the plane."""

    def __init__(self, outbox: Outbox, sessions: Sessions) -> None:
        self._out = outbox
        self._sessions = sessions
        self._asked: dict[int, _Asked] = {}  # OpenPair.number -> who waits for it
        self._opening: set[int] = set()  # made, and LINK_OPEN is under way
        self._numbers = 0
        self._failing_ns = 0  # went into what failed, less what has been let off since
        self._failing_at_ns = 0

    @property
    def gauges(self) -> dict[str, int]:
        """For Stats."""
        return {"verbs": int(self._sessions.verbs),
                "queue_pairs_under_way": len(self._asked) + len(self._opening)}

    def open(self, client: Client, call: Call) -> None:
        """OpenQueuePair of a session."""
        if not self._sessions.verbs or client.pair_asked == client.attach:
            self._out.refuse(call, DlockStatus.ERROR)
            return
        asked = _Asked(client, call, client.attach)
        if self._failing(call.now_ns) > FAILING_NS_MAX:
            self._not_given(asked, DlockStatus.ERROR, "connecting others has failed for too long")
            return
        client.pair_asked = client.attach
        self._numbers += 1
        self._asked[self._numbers] = asked
        message: m.OpenQueuePair = call.message
        self._out.add(OpenPair(self._numbers, Address(
            message.queue_pair, message.packet, message.gid, message.lid, message.mtu,
            message.ethernet, message.window, message.message_bytes, message.reads)))

    def _failing(self, now_ns: int) -> int:
        """How much of its time is to be let off yet."""
        let_off_ns = (now_ns - self._failing_at_ns) // FAILING_PART
        self._failing_ns = max(0, self._failing_ns - let_off_ns)
        self._failing_at_ns = now_ns
        return self._failing_ns

    def made(self, number: int, made: Made, began_ns: int, now_ns: int) -> None:
        """What became of an OpenPair, which was begun then."""
        asked = self._asked.pop(number)
        if made.status != DlockStatus.SUCCESS:
            self._failing_ns = self._failing(now_ns) + now_ns - began_ns
            full = made.status == DlockStatus.SERVER_NO_RESOURCE
            self._not_given(asked, DlockStatus.SERVER_NO_RESOURCE if full else DlockStatus.ERROR,
                            made.reason)
        elif (status := self._of_no_use(asked)) is not None:
            self._out.add(FreePair(made.pair))
            self._out.refuse(asked.call, status)
        elif made.linked:
            asked.client.pair_given = asked.attach
            self._out.answer(asked.call, m.QueuePair(DlockStatus.SUCCESS, *made.own))
        else:
            client = asked.client
            self._opening.add(made.pair)
            self._out.command(
                Command(_core.DLK_COMMAND_LINK_OPEN, slot=client.slot, id=client.id,
                        value=made.pair),
                partial(self._opened, asked, made))

    def _opened(self, asked: _Asked, made: Made, event: Event) -> None:
        self._opening.remove(made.pair)
        taken = carried_out(event)
        if not taken:
            self._out.add(FreePair(made.pair))
        if (status := self._of_no_use(asked)) is not None:
            self._out.refuse(asked.call, status)
        elif not taken:
            self._not_given(asked, DlockStatus.SERVER_NO_RESOURCE,
                            f"the data plane did not take it: {_core.result_text(event.result)}")
        else:
            asked.client.pair_given = asked.attach
            self._out.answer(asked.call, m.QueuePair(DlockStatus.SUCCESS, *made.own))

    @staticmethod
    def _of_no_use(asked: _Asked) -> DlockStatus | None:
        """What the client is told if it cannot use a queue pair any more."""
        client = asked.client
        if client.gone:
            return DlockStatus.CLIENT_REMOVED_BY_SERVER
        if client.attach != asked.attach or client.connection != asked.call.connection:
            return DlockStatus.ERROR  # Another connection has taken its place, or will.
        return None

    def _not_given(self, asked: _Asked, status: DlockStatus, reason: str) -> None:
        """It may ask again with the same attach number, or attach over TCP."""
        client = asked.client
        if client.pair_asked == asked.attach:
            client.pair_asked = 0
        self._out.counters["QUEUE_PAIRS_REFUSED"] += 1
        self._out.add(Note("no queue pair for a client",
                           {"client_id": client.id, "reason": reason}))
        self._out.refuse(asked.call, status)

    def event(self, event: Event) -> None:
        """VERBS of the plane."""
        happened = EVENTS.get(event.result)
        if happened is None:
            return
        if event.result == _core.DLK_VERBS_DEVICE_LOST:
            self._sessions.verbs = False
        self._out.counters[happened.counter] += 1
        if event.id:
            fields = {"client_id": event.id, "info": self._sessions.info_of(event.id)}
            if event.cookie:
                fields["reason"] = _named("IBV_WC_", WC_STATUSES, event.cookie)
        else:
            fields = {"reason": _named("IBV_EVENT_", DEVICE_EVENTS, event.cookie),
                      "links_ended": event.value}
        self._out.add(Note(happened.words, fields, happened.level))

    def check(self) -> None:
        """Asserts what must hold between any two inputs; for tests."""
        for asked in self._asked.values():
            assert asked.client.pair_asked <= asked.client.attach
