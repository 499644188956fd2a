"""That nothing is left: in clients whose users have given everything back, in the engine, in the
control plane, in the state directory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from dlock._core import lib
from sim.diary import Diary
from sim.laws_engine import EngineView

LEFT: Final = ("clients", "sessions_leaving", "locks", "commands_under_way")


def at_rest(diaries: Iterable[Diary], view: EngineView | None) -> str | None:
    """What is still there although everybody has given back what he had and asks for nothing;
    None: nothing."""
    for diary in diaries:
        left = _left_in_client(diary)
        if left is not None:
            return f"{diary.node.name} has {left}"
    return _left_in_engine(view)


def _left_in_engine(view: EngineView | None) -> str | None:
    if view is None or not view.ready:
        return "no primary is ready"
    if view.entries:
        return f"{view.node.name} has {view.entries} entries: {view.describe()}"
    return None


def _left_in_client(diary: Diary) -> str | None:
    if diary.holds:
        return f"holds: {', '.join(map(str, diary.holds.values()))}"
    if not diary.node.alive or diary.node.client is None:
        return None
    connection: Any = diary.node.client._connection
    if not connection.settled:
        return "no link that serves"
    session = connection.session
    counts = {
        "debts": int(lib.dlk_client_debts(session.client)),
        "calls under way": connection.collector.waits,
        "actors that hold": len(connection.holding),
        "sleepers": len(connection._sleepers),
        "names asked for": len(connection._wanted._wishes),
        "handles in use": sum(len(name.owners) - len(name.idle)
                              for name in session.names._names.values()),
    }
    left = [f"{count} {what}" for what, count in counts.items() if count]
    return ", ".join(left) or None


def left_behind(diaries: Iterable[Diary], view: EngineView | None) -> str | None:
    """What is still there although all clients have left, or have been missed for long enough."""
    for diary in diaries:
        if diary.node.alive and diary.holds:
            return f"{diary.node.name} has {', '.join(map(str, diary.holds.values()))}"
        if diary.node.alive and diary.waits:
            waits = ", ".join(wait.what for wait in diary.waits.values())
            return f"{diary.node.name} still waits: {waits}"
    left_there = _left_in_engine(view)
    if view is None or left_there is not None:
        return left_there
    registry = view.registry
    registry.check()
    stats = registry.stats(view.node.now_ns())
    left = [f"{stats[name]} {name}" for name in LEFT if stats.get(name)]
    return f"{view.node.name} has {', '.join(left)}" if left else None
