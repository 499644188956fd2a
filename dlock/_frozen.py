"""`Frozen`: values with named, typed fields that do not change.

What a frozen dataclass is, without the source code that `dataclasses` writes and compiles for each
class: a millisecond for each on a busy core, and dlock has many of them, which every start of a
program and every restart of a primary would pay. Fields are declared and checked (mypy) alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: object) -> Any:
        """Tells type checkers only."""
        return lambda kind: kind


@dataclass_transform(frozen_default=True)
class Frozen:
    """A subclass annotates its fields, those with defaults last; what is not annotated is none.
    `hidden`: the fields that its repr leaves out. Equal are those of one type with equal fields."""

    _fields: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[dict[str, Any]] = {}
    _hidden: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, hidden: Iterable[str] = ()) -> None:
        super().__init_subclass__()  # of Generic, which may stand behind it
        own = tuple(cls.__annotations__)
        given = vars(cls)
        cls._fields = (*cls._fields, *own)
        cls._defaults = {**cls._defaults, **{name: given[name] for name in own if name in given}}
        cls._hidden = cls._hidden.union(hidden)

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = self._fields
        if len(values) == len(fields) and not named:
            self.__dict__.update(zip(fields, values))  # noqa: B905 - they are as many
            return
        given = dict(zip(fields, values, strict=False))
        twice = given.keys() & named.keys()
        whole = {**self._defaults, **given, **named}
        if twice or len(values) > len(fields) or whole.keys() != set(fields):
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(fields)}; given were "
                            f"{len(values)} values and {', '.join(named) or 'none by name'}")
        self.__dict__.update((name, whole[name]) for name in fields)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in self.__dict__.items()
                 if name not in self._hidden)
        return f"{type(self).__name__}({', '.join(shown)})"
