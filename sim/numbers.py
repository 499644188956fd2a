"""The law of numbers (`client.atomic`): everybody gets another one, what is said to have been added
has been added once, and what is said to be unknown was added once or not at all.

A number lives as long as its primary, so each epoch has numbers of its own. Only positive amounts
are added here, so that a value says how much was added before.
"""

from __future__ import annotations

from collections import defaultdict

from sim.scene import LawBroken


class _Number:
    """One number at one primary. `certain`: the sum of what was surely added by now; `taken`: the
    values that an addition has found."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.certain = 0
        self.taken: dict[int, Addition] = {}


class Addition:
    """One that is under way. `certain_before`: what had surely been added when it began."""

    __slots__ = ("amount", "certain_before", "name", "who")

    def __init__(self, name: str, who: str, amount: int) -> None:
        self.name = name
        self.who = who
        self.amount = amount
        self.certain_before: dict[int, int] = {}


class Numbers:
    """All numbers of a world, by name and epoch. `bases`: what each begins with."""

    def __init__(self) -> None:
        self.bases: dict[str, int] = {}
        self._numbers: dict[str, dict[int, _Number]] = defaultdict(dict)
        self._begun: dict[str, int] = defaultdict(int)  # whatever the epoch

    def begins(self, name: str, who: str, amount: int) -> Addition:
        """Somebody asks for an addition (0: only looks)."""
        one = Addition(name, who, amount)
        self._begun[name] += amount
        for epoch, number in self._numbers[name].items():
            one.certain_before[epoch] = number.certain
        return one

    def never(self, one: Addition) -> None:
        """It is known not to have been made."""
        self._begun[one.name] -= one.amount

    def found(self, one: Addition, epoch: int, value: int) -> None:
        """It was made at the primary of this epoch, and found this value."""
        number = self._number(one.name, epoch)
        if one.amount:
            other = number.taken.setdefault(value, one)
            if other is not one:
                raise LawBroken(f"{one.who} and {other.who} both found {value} in {one.name}, to "
                                f"which each of them added (epoch {epoch})")
        least = number.base + one.certain_before.get(epoch, 0)
        elsewhere = sum(other.certain for other in self._numbers[one.name].values()
                        if other is not number)
        most = number.base + self._begun[one.name] - elsewhere - one.amount
        if not least <= value <= most:
            raise LawBroken(f"{one.who} found {value} in {one.name} (epoch {epoch}), where "
                            f"{least}..{most} is possible")
        number.certain += one.amount

    def _number(self, name: str, epoch: int) -> _Number:
        number = self._numbers[name].get(epoch)
        if number is None:
            number = self._numbers[name][epoch] = _Number(self.bases.get(name, 0))
        return number
