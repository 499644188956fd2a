"""The arrays that the plane thread writes for VIEW and SURVEY: the control loop's, and lent while
such a command is under way.

The registry has one look under way at a time, so one array of each kind lasts for the loop's life.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dlock import _core
from dlock._core import Command, EntryView, Event, LockView, layout
from dlock.control.registry_effects import Look, Views


class _Array:
    """Room for `DLK_LOOK_MAX` structs of one kind."""

    def __init__(self, struct_name: str, view: type[NamedTuple]) -> None:
        fields: tuple[str, ...] = view._fields
        self._layout = layout(struct_name, fields)
        self._view: Any = view
        self._memory = _core.ffi.new(f"struct {struct_name}[]", _core.DLK_LOOK_MAX)
        self._bytes = _core.ffi.buffer(self._memory)

    @property
    def address(self) -> int:
        """Where the plane thread writes."""
        return int(_core.ffi.cast("uintptr_t", self._memory))

    def take(self, count: int) -> Views:
        """The first `count` structs."""
        data = self._bytes[0 : count * self._layout.size]
        return tuple(map(self._view._make, self._layout.iter_unpack(data)))


class LookArrays:
    """`lend` before a look is sent, `take` with every DONE event."""

    def __init__(self) -> None:
        self._arrays = {
            _core.DLK_COMMAND_VIEW: _Array("dlk_entry_view", EntryView),
            _core.DLK_COMMAND_SURVEY: _Array("dlk_lock_view", LockView),
        }
        self._lent: Command | None = None

    def lend(self, look: Look) -> Command:
        """The command with the address of the array for it."""
        assert self._lent is None, "one look at a time"
        self._lent = look.command
        return look.command._replace(value=self._arrays[look.command.op].address)

    def take(self, event: Event) -> Views:
        """What the command of this event has shown; nothing if it was no look."""
        lent = self._lent
        if lent is None or event.op != _core.DLK_EVENT_DONE or event.cookie != lent.cookie:
            return ()
        self._lent = None
        return self._arrays[lent.op].take(min(event.value, lent.size))
