"""How the fields of control messages travel: kinds that check a value in both directions.

A kind knows nothing of messages; `messages` combines them. What does not pass is a ProtocolError.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import le
from typing import Annotated, Any, Final, Protocol, get_args, get_origin

from dlock._frozen import Frozen
from dlock.types import DlockStatus

U16_MAX: Final = 2**16 - 1
U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1


class ProtocolError(Exception):
    """The peer (or, when encoding, the caller) broke the protocol; the text says how."""


class Kind(Protocol):
    """How one field travels."""

    @property
    def text(self) -> str:
        """As docs/protocol.md shows it."""

    def load(self, wire: object) -> Any:
        """The checked value of what msgpack decoded."""

    def dump(self, value: Any) -> object:
        """The checked form that msgpack encodes."""


class Integer(Frozen):
    """An integer from low to high; a bool is none."""

    low: int
    high: int

    @property
    def text(self) -> str:
        named = {U16_MAX: "u16", U32_MAX: "u32", U64_MAX: "u64"}
        if self.low == 0 and self.high in named:
            return named[self.high]
        return f"{self.low}..{self.high}"

    def load(self, wire: object) -> int:
        if type(wire) is not int:
            raise ProtocolError(f"{type(wire).__name__} where an integer belongs")
        if not self.low <= wire <= self.high:
            raise ProtocolError(f"{wire} is not in {self.low}..{self.high}")
        return wire

    def dump(self, value: int) -> int:
        return self.load(int(value))


class Boolean(Frozen):
    """True or false; an integer is none."""

    text = "bool"

    def load(self, wire: object) -> bool:
        if type(wire) is not bool:
            raise ProtocolError(f"{type(wire).__name__} where a bool belongs")
        return wire

    dump = load


class Binary(Frozen):
    """Bytes, from low to high many."""

    low: int
    high: int

    @property
    def text(self) -> str:
        many = str(self.low) if self.low == self.high else f"{self.low}..{self.high}"
        return f"{many} bytes"

    def load(self, wire: object) -> bytes:
        if type(wire) is not bytes:
            raise ProtocolError(f"{type(wire).__name__} where bytes belong")
        if not self.low <= len(wire) <= self.high:
            raise ProtocolError(f"{len(wire)} bytes, not {self.low}..{self.high}")
        return wire

    dump = load


class Text(Frozen):
    """Text of at most so many bytes as UTF-8."""

    high: int

    @property
    def text(self) -> str:
        return f"text of at most {self.high} bytes"

    def load(self, wire: object) -> str:
        if not isinstance(wire, str):
            raise ProtocolError(f"{type(wire).__name__} where text belongs")
        if len(wire.encode("utf-8", "surrogatepass")) > self.high:
            raise ProtocolError(f"a text of more than {self.high} bytes")
        return wire

    dump = load


_STATUSES: Final = {int(one): one for one in DlockStatus}


class StatusCode(Frozen):
    """A number of DlockStatus."""

    text = "status"

    def load(self, wire: object) -> DlockStatus:
        if type(wire) is not int:
            raise ProtocolError(f"{type(wire).__name__} where a status belongs")
        status = _STATUSES.get(wire)
        if status is None:
            raise ProtocolError(f"{wire} is no status")
        return status

    def dump(self, value: DlockStatus) -> int:
        return int(_STATUSES[value])


class Table(Frozen):
    """A map of short texts to integers and, if text_bytes is not 0, to texts of at most as many."""

    items: int
    key_bytes: int
    text_bytes: int
    integer: Integer

    @property
    def text(self) -> str:
        texts = f"text of at most {self.text_bytes} bytes, or " if self.text_bytes else ""
        return (f"map of at most {self.items}: key of at most {self.key_bytes} bytes -> "
                f"{texts}{self.integer.text}")

    def load(self, wire: object) -> dict[str, Any]:
        if not isinstance(wire, dict):
            raise ProtocolError(f"{type(wire).__name__} where a map belongs")
        if len(wire) > self.items:
            raise ProtocolError(f"a map of {len(wire)} items, at most {self.items}")
        for key, value in wire.items():
            self._check_text(key, self.key_bytes)
            if isinstance(value, str) and self.text_bytes:
                self._check_text(value, self.text_bytes)
            else:
                self.integer.load(value)
        return wire

    def dump(self, value: Mapping[str, Any]) -> object:
        return self.load(dict(value))

    @staticmethod
    def _check_text(value: object, most: int) -> None:
        Text(most).load(value)


class Many(Frozen):
    """An array of low to high values of one kind; a tuple in Python."""

    item: Kind
    low: int
    high: int

    @property
    def text(self) -> str:
        return f"array of {self.low}..{self.high}: {self.item.text}"

    def load(self, wire: object) -> tuple[Any, ...]:
        if not isinstance(wire, list):
            raise ProtocolError(f"{type(wire).__name__} where an array belongs")
        self._check_count(len(wire))
        if isinstance(self.item, FlatRecord):
            return self.item.load_all(wire)
        return tuple(map(self.item.load, wire))

    def dump(self, value: tuple[Any, ...]) -> object:
        self._check_count(len(value))
        if isinstance(self.item, FlatRecord):
            return self.item.dump_all(value)
        return list(map(self.item.dump, value))

    def _check_count(self, count: int) -> None:
        if not self.low <= count <= self.high:
            raise ProtocolError(f"an array of {count}, not {self.low}..{self.high}")


class Record:
    """A Frozen or a named tuple whose annotated fields travel as one array, in their order."""

    __slots__ = ("fields", "kind")

    def __init__(self, kind: type[Any]) -> None:
        hints = kind.__annotations__
        self.kind = kind
        self.fields: tuple[tuple[str, Kind], ...] = tuple(
            (name, _kind_of(hints[name])) for name in kind._fields
        )

    @property
    def text(self) -> str:
        return "[" + ", ".join(f"{name}: {kind.text}" for name, kind in self.fields) + "]"

    def load(self, wire: object) -> Any:
        if not isinstance(wire, list):
            raise ProtocolError(f"{type(wire).__name__} where an array belongs")
        if len(wire) != len(self.fields):
            raise ProtocolError(
                f"{self.kind.__name__} of {len(wire)} fields, not {len(self.fields)}")
        values = []
        for (name, kind), value in zip(self.fields, wire, strict=True):
            try:
                values.append(kind.load(value))
            except ProtocolError as problem:
                raise ProtocolError(f"{self.kind.__name__}.{name}: {problem}") from None
        return self.kind(*values)

    def dump(self, value: Any) -> list[object]:
        wire = []
        for name, kind in self.fields:
            try:
                wire.append(kind.dump(getattr(value, name)))
            except ProtocolError as problem:
                raise ProtocolError(f"{self.kind.__name__}.{name}: {problem}") from None
        return wire


class FlatRecord(Record):
    """A Record of a named tuple of bytes first and integers behind them, of which very many travel:
    what is right is told in bulk; for everything else the fields say what is wrong."""

    __slots__ = ("_bytes", "_highs", "_lows", "_make")

    def __init__(self, kind: type[Any]) -> None:
        super().__init__(kind)
        kinds = [one for _, one in self.fields]
        first, integers = kinds[0], [one for one in kinds[1:] if isinstance(one, Integer)]
        if not isinstance(first, Binary) or len(integers) != len(kinds) - 1:
            raise TypeError(f"{kind.__name__} is not flat")
        self._make = kind._make
        self._bytes = first
        self._lows = [one.low for one in integers]
        self._highs = [one.high for one in integers]

    def load_all(self, wires: list[Any]) -> tuple[Any, ...]:
        """Many at once."""
        if set(map(type, wires)) == {list} and self._are_right(wires):
            return tuple(map(self._make, wires))
        return tuple(map(self.load, wires))

    def dump_all(self, values: tuple[Any, ...]) -> list[list[object]]:
        """Many at once."""
        wires: list[list[object]] = list(map(list, values))
        return wires if wires and self._are_right(wires) else list(map(self.dump, values))

    def _are_right(self, wires: list[list[Any]]) -> bool:
        """Field by field: each is of its type and within its limits in all of them."""
        if set(map(len, wires)) != {len(self.fields)}:
            return False
        first, *columns = zip(*wires, strict=True)
        if set(map(type, first)) != {bytes}:
            return False
        lengths = list(map(len, first))
        return (min(lengths) >= self._bytes.low and max(lengths) <= self._bytes.high
                and all(set(map(type, column)) == {int} for column in columns)
                and all(map(le, self._lows, map(min, columns)))
                and all(map(le, map(max, columns), self._highs)))


def _kind_of(hint: Any) -> Kind:
    """The kind that stands in an Annotated hint."""
    if get_origin(hint) is not Annotated:
        raise TypeError(f"{hint} is not annotated with a kind")
    kind: Kind = get_args(hint)[1]
    return kind
