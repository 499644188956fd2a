"""What `Frozen` promises: fields by place and name, equality, a repr without secrets, no change."""

from __future__ import annotations

import copy
import pickle

import pytest

from dlock._frozen import Frozen
from dlock.control import messages as m
from dlock.types import DlockStatus


class Point(Frozen):
    x: int
    y: int = 7


class Named(Point, hidden=("word",)):
    word: str = "open sesame"


class Empty(Frozen):
    """Without fields."""


class AlsoEmpty(Frozen):
    """Another one."""


def test_fields_by_place_and_by_name_and_defaults() -> None:
    assert Point(1, 2) == Point(1, y=2) == Point(y=2, x=1)
    assert Point(1).y == 7
    named = Named(1, word="w")
    assert (named.x, named.y, named.word) == (1, 7, "w")


@pytest.mark.parametrize(("values", "named"), [
    ((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1}), ((), {"y": 1}),
    ((1, 2), {"x": 1}),
])
def test_what_does_not_fit_is_refused(values: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="Point has the fields x, y"):
        Point(*values, **named)


def test_equal_are_those_of_one_type_with_equal_fields() -> None:
    assert Point(1, 2) != Point(1, 3)
    assert Empty() == Empty()
    assert Empty() != AlsoEmpty()
    assert Point(1, 2) != (1, 2)
    assert len({Point(1, 2), Point(1, 2), Point(2, 1), Empty(), AlsoEmpty()}) == 4


def test_nothing_changes() -> None:
    point = Point(1, 2)
    with pytest.raises(AttributeError, match="frozen"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="frozen"):
        point.z = 2  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="frozen"):
        del point.x
    assert point == Point(1, 2)


def test_copies_and_pickles() -> None:
    point = Point(1, 2)
    assert copy.copy(point) == copy.deepcopy(point) == pickle.loads(pickle.dumps(point)) == point


def test_a_repr_shows_no_secret() -> None:
    assert repr(Point(1, 2)) == "Point(x=1, y=2)"
    assert repr(Named(1, 2)) == "Named(x=1, y=2)"
    secret = b"0123456789abcdef"
    for message in (m.Welcome(DlockStatus.SUCCESS, secret=secret),
                    m.ClientReinit(1, 1, 5, secret, 3, 4, 1, {})):
        assert "0123456789abcdef" not in repr(message)
