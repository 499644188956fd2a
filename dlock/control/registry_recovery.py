"""Who is waited for after a restart, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from dlock.control.roster import RosterEntry


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """What a new primary knows of its predecessor's clients.

    `roster`: the sessions that are waited for. `count`: how many are waited for where there is no
    roster, whoever they are. With neither, anybody may come until `not_before_ns`, and nobody is
    waited for longer. `trusted`: anybody may come, and lapsed sessions are believed. `started_ns`:
    from when on the predecessor did not serve, or could know that it was replaced;
    `not_before_ns`: nothing is granted before. `deadline_ms`: nobody is waited for longer than this
    from the start; None: for as long as they could believe. `session_ttl_ms`: the longest that the
    predecessor promised. `reread`: the predecessor may serve until not_before_ns: its roster is
    then read again (ReadFormerRoster), and until then nobody is told to be unknown.
    """

    started_ns: int
    session_ttl_ms: int
    roster: tuple[RosterEntry, ...] = ()
    count: int = 0
    trusted: bool = False
    not_before_ns: int = 0
    deadline_ms: int | None = None
    reread: bool = False
