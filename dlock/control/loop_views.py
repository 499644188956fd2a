"""The arrays that the plane thread writes: the control loop's, and lent while a command that names
one is under way. VIEW and SURVEY show something in it; CLAIM reads claims from it, and writes what
became of them.

The registry has one look under way at a time, so one array of each kind lasts for the loop's life.
Of claims as many messages may be under way as the command ring holds: their arrays are made when
they are needed, and used again.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Final, NamedTuple

from dlock import _core
from dlock._core import Claim, Command, EntryView, Event, LockView, layout
from dlock.control.messages_recover import LockClaim
from dlock.control.registry_effects import Claims, Look, Shown

# The fields of struct dlk_claim, in their order, out of a LockClaim. All but the result.
_FIELDS: Final = Claim._fields[:-1]
_in_order_of_memory: Final = itemgetter(*map(LockClaim._fields.index, _FIELDS))


class _Array:
    """Room for `count` structs of one kind."""

    def __init__(self, struct_name: str, view: type[NamedTuple], count: int) -> None:
        fields: tuple[str, ...] = view._fields
        self._layout = layout(struct_name, fields)
        self._view: Any = view
        self._memory = _core.ffi.new(f"struct {struct_name}[]", count)
        self._bytes = _core.ffi.buffer(self._memory)

    @property
    def address(self) -> int:
        """Where the plane thread writes."""
        return int(_core.ffi.cast("uintptr_t", self._memory))

    def take(self, count: int) -> Shown:
        """The first `count` structs."""
        data = self._bytes[0 : count * self._layout.size]
        return tuple(map(self._view._make, self._layout.iter_unpack(data)))


class _ClaimArray:
    """Room for the claims of one message."""

    SIZE: Final = _core.ffi.sizeof("struct dlk_claim")
    _WRITE: Final = layout("dlk_claim", _FIELDS)
    _RESULT: Final = layout("dlk_claim", ("result",))

    def __init__(self) -> None:
        self._memory = _core.ffi.new("struct dlk_claim[]", _core.DLK_BATCH_MAX)
        self._bytes = _core.ffi.buffer(self._memory)
        self.address = int(_core.ffi.cast("uintptr_t", self._memory))

    def write(self, claims: list[LockClaim]) -> None:
        """The claims of one command, at most DLK_BATCH_MAX."""
        pack = self._WRITE.pack
        data = b"".join([pack(*_in_order_of_memory(claim)) for claim in claims])
        self._bytes[0 : len(data)] = data

    def results(self, count: int) -> Shown:
        """What became of each."""
        data = self._bytes[0 : count * self.SIZE]
        return [result for (result,) in self._RESULT.iter_unpack(data)]


class LentArrays:
    """`lend` before such a command is sent, `take` with every DONE event."""

    def __init__(self) -> None:
        self._looks = {
            _core.DLK_COMMAND_VIEW: _Array("dlk_entry_view", EntryView, _core.DLK_LOOK_MAX),
            _core.DLK_COMMAND_SURVEY: _Array("dlk_lock_view", LockView, _core.DLK_LOOK_MAX),
        }
        self._looking = False
        self._claims: list[_ClaimArray] = []
        self._lent: dict[int, tuple[Command, _Array | _ClaimArray]] = {}  # by cookie

    def lend(self, effect: Look | Claims) -> Command:
        """The command with the address of the array for it."""
        command = effect.command
        array: _Array | _ClaimArray
        if isinstance(effect, Claims):
            array = self._claims.pop() if self._claims else _ClaimArray()
            array.write(effect.claims)
        else:
            assert not self._looking, "one look at a time"
            self._looking = True
            array = self._looks[command.op]
        self._lent[command.cookie] = command, array
        return command._replace(value=array.address)

    def take(self, event: Event) -> Shown:
        """What the command of this event has written; nothing if it was lent no array."""
        if event.op != _core.DLK_EVENT_DONE or event.cookie not in self._lent:
            return ()
        command, array = self._lent.pop(event.cookie)
        if isinstance(array, _ClaimArray):
            self._claims.append(array)
            return array.results(command.size)
        self._looking = False
        return array.take(min(event.value, command.size))
