"""What clients say of their parties and of their long names, for operators: kept while the session
lives, or the lock is open, and within limits. It decides nothing. Pure.
"""

from __future__ import annotations

from typing import Final

from dlock.control import messages as m
from dlock.control.registry_effects import Call, Outbox
from dlock.control.registry_locks import Lock, LockTable
from dlock.control.registry_sessions import Client
from dlock.types import DlockStatus

LABELS_MAX: Final = 131_072  # of all sessions together
TEXT_BYTES_MAX: Final = 32 << 20  # of all names together


class Labels:
    """Labels are kept by the sessions, texts here: by lock id."""

    def __init__(self, outbox: Outbox, locks: LockTable) -> None:
        self._out = outbox
        self._locks = locks
        self._labels = 0
        self._texts: dict[int, tuple[int, bytes]] = {}  # by lock id: slot and text
        self._text_bytes = 0
        self._sweep_at = 1024  # so many texts: some may be of locks that are gone

    @property
    def gauges(self) -> dict[str, int]:
        """For Stats."""
        return {"labels": self._labels, "name_text_bytes": self._text_bytes}

    def describe(self, client: Client, call: Call) -> None:
        """Describe. What has no room is dropped and counted."""
        dropped = 0
        for label in call.message.labels:
            dropped += not self._label(client, label)
        for text in call.message.texts:
            dropped += not self._text(client, text)
        if dropped:
            self._out.counters["DESCRIPTIONS_DROPPED"] += dropped
        self._out.status(
            call, DlockStatus.SERVER_NO_RESOURCE if dropped else DlockStatus.SUCCESS)

    def _label(self, client: Client, line: m.LabelLine) -> bool:
        known = line.actor in client.labels
        if not line.label:
            self._labels -= client.labels.pop(line.actor, None) is not None
        elif known or self._labels < LABELS_MAX:
            client.labels[line.actor] = line.label
            self._labels += not known
        else:
            return False
        return True

    def _text(self, client: Client, line: m.TextLine) -> bool:
        lock = self._locks.find(line.descriptor)
        if lock is None or lock.id not in client.locks:
            return True  # it has been let go meanwhile
        self._forget(lock.id)
        if (self._text_bytes + len(line.text) > TEXT_BYTES_MAX
                or len(self._texts) >= self._sweep_at):
            self._sweep()
        if self._text_bytes + len(line.text) > TEXT_BYTES_MAX:
            return False
        self._texts[lock.id] = lock.slot, line.text
        self._text_bytes += len(line.text)
        return True

    def _forget(self, lock_id: int) -> None:
        _, text = self._texts.pop(lock_id, (0, b""))
        self._text_bytes -= len(text)

    def _sweep(self) -> None:
        gone = [lock_id for lock_id, (slot, _) in self._texts.items()
                if self._locks.at(slot, lock_id) is None]
        for lock_id in gone:
            self._forget(lock_id)
        self._sweep_at = max(1024, 2 * len(self._texts))

    def left(self, client: Client) -> None:
        """The session has ended."""
        self._labels -= len(client.labels)
        client.labels.clear()

    def label_of(self, client: Client | None, actor: int) -> str:
        """What the client says of this actor; empty: nothing."""
        return "" if client is None else client.labels.get(actor, "")

    def text_of(self, lock: Lock) -> bytes:
        """What the name of this lock stands for; empty: nobody has said so."""
        return self._texts.get(lock.id, (0, b""))[1]
