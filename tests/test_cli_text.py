"""What the command line prints: no name steers a terminal, no two names look alike."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlock.cli.text import (
    as_json,
    columns_of,
    duration,
    name_fields,
    number,
    safe,
    shortened,
    table,
)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"reports/daily", "reports/daily"),
        ("größe/日本".encode(), "größe/日本"),
        (b"a b", "a b"),
        (b"\xff\x00", r"\xff\x00"),
        (b"a\nb\tc\r", r"a\nb\tc\r"),
        (b"\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\x9b31m".encode(), r"\u009b31m"),
        ("gpj.\u202eexe".encode(), r"gpj.\u202eexe"),
        ("\U000e0001".encode(), r"\U000e0001"),
        (b"\\n", r"\\n"),
        ("a\x7f", r"a\x7f"),
    ],
)
def test_names_are_safe(name: bytes | str, shown: str) -> None:
    assert safe(name) == shown


@given(st.binary())
def test_nothing_reaches_the_terminal_but_what_is_printable(name: bytes) -> None:
    assert safe(name).isprintable()
    assert as_json(name_fields(name)).isascii()
    assert as_json(name_fields(name)).isprintable()


@given(st.binary(max_size=6), st.binary(max_size=6))
def test_two_names_never_look_alike(one: bytes, other: bytes) -> None:
    assert (safe(one) == safe(other)) == (one == other)


@given(st.binary())
def test_json_gives_the_name_back(name: bytes) -> None:
    fields = json.loads(as_json(name_fields(name)))
    whole = bytes.fromhex(fields["name_hex"]) if "name_hex" in fields else fields["name"].encode()
    assert whole == name


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"), (-1.0, "0ms"), (0.0, "0ms"), (0.45, "450ms"), (0.9996, "1.0s"), (1.0, "1.0s"),
        (12.34, "12.3s"), (59.96, "1m00s"), (245.0, "4m05s"), (3599.6, "1h00m"), (12_000, "3h20m"),
        (450_000, "5d05h"),
    ],
)
def test_durations(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (9999, "9,999"), (12_345, "12.3k"), (123_456, "123k"), (999_600, "1.0M"),
     (1_234_567, "1.2M"), (3.2e9, "3.2G")],
)
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown


def test_tables_are_aligned_by_what_the_terminal_shows() -> None:
    rows = [("日本", "7"), ("abc", "123"), ("e\u0301", "1")]
    assert table(("NAME", "N"), rows, right=("N",)) == (
        "NAME    N\n"
        "日本    7\n"
        "abc   123\n"
        "e\u0301       1")


def test_a_table_that_is_too_wide_cuts_names() -> None:
    lines = table(("NAME", "WHO"), [("a" * 90, "host:1"), ("b", "host:2")], width=40).splitlines()
    assert max(map(columns_of, lines)) == 40
    assert "…  host:1" in lines[1]


@given(st.text(), st.integers(1, 20))
def test_what_is_shortened_fits(text: str, columns: int) -> None:
    shown = shortened(text, columns)
    assert columns_of(shown) <= columns
    assert shown == text or shown.endswith("…")
