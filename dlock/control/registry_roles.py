"""Those whose role another client has taken: each is told so when it comes again, so that it does
not come back in another session. Pure. Who has which role is in registry_sessions.
"""

from __future__ import annotations

import hmac
from typing import Final

from dlock.control import messages as m
from dlock.control.registry_effects import Counters
from dlock.control.roster import verifier_of
from dlock.types import DlockStatus

# So many are remembered. The others hear that their session has ended, and then, if somebody has
# their role still, that they have not.
GAVE_WAY_MAX: Final = 4096


class GaveWay:
    """By client id, what the secret of each is known by."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._verifiers: dict[int, bytes] = {}

    def add(self, client_id: int, verifier: bytes) -> None:
        """Another client has taken the role of this one."""
        self._counters["SESSIONS_SUPERSEDED"] += 1
        self._verifiers[client_id] = verifier
        if len(self._verifiers) > GAVE_WAY_MAX:
            del self._verifiers[next(iter(self._verifiers))]

    def status(self, message: m.ClientReinit) -> DlockStatus:
        """What a client is told that has no session here."""
        verifier = self._verifiers.get(message.client_id, b"")
        same = hmac.compare_digest(verifier, verifier_of(message.secret))
        return DlockStatus.ALREADY_LOCKED if same else DlockStatus.CLIENT_REMOVED_BY_SERVER
