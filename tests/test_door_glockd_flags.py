"""glockd's command line, as Go's flag package reads it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlock.doors.glockd.flags import Flags, FlagsError, parse, usage


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("", {}),
        ("-port 1 -ws 2", {"port": 1, "ws": 2}),
        ("--port 1 --ws=2", {"port": 1, "ws": 2}),
        ("-port=0", {"port": 0}),
        ("-port 0x10", {"port": 16}),
        ("-port 010", {"port": 8}),
        ("-dump=false -registry=F", {"dump": False, "registry": False}),
        ("-verbose", {"verbose": True}),
        ("-verbose false -port 1", {"verbose": True}),  # a bool takes no next word: the end
        ("-unix /s -pidfile=/p", {"unix": "/s", "pidfile": "/p"}),
        ("-unix=", {}),
        ("-port 1 -port 2", {"port": 2}),
        ("-port 1 -- -nonsense", {"port": 1}),
        ("-port 1 word -nonsense", {"port": 1}),
        ("-", {}),
    ],
)
def test_flags_are_read(words: str, changed: dict[str, int | str]) -> None:
    assert parse(words.split()) == Flags(**changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("-nonsense", "flag provided but not defined: -nonsense"),
        ("-port", "flag needs an argument: -port"),
        ("-port x", 'invalid value "x" for flag -port: parse error'),
        ("-port=", 'invalid value "" for flag -port: parse error'),
        ("-port 08", 'invalid value "08" for flag -port: parse error'),
        (f"-port {1 << 63}", f'invalid value "{1 << 63}" for flag -port: value out of range'),
        ("-dump=maybe", 'invalid boolean value "maybe" for -dump: parse error'),
        ("---port", "bad flag syntax: ---port"),
        ("-=1", "bad flag syntax: -=1"),
    ],
)
def test_wrong_flags_are_named_with_the_usage(words: str, says: str) -> None:
    with pytest.raises(FlagsError) as end:
        parse(words.split())
    assert end.value.code == 2
    assert end.value.text == f"{says}\n{usage()}"


@pytest.mark.parametrize("word", ["-h", "-help", "--help", "--h"])
def test_help_is_no_failure(word: str) -> None:
    with pytest.raises(FlagsError) as end:
        parse([word])
    assert (end.value.code, end.value.text) == (0, usage())


def test_the_usage_names_every_flag_and_its_default() -> None:
    for name in ("dump", "pidfile", "port", "registry", "unix", "verbose", "ws"):
        assert f"\n  -{name}" in usage()
    for default in ("9999", "9998", "true"):
        assert f"(default {default})" in usage()


@given(st.lists(st.text(max_size=12) | st.sampled_from(["-port", "-dump=", "--ws=1", "-unix"])))
@settings(max_examples=200, deadline=None)
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    with contextlib.suppress(FlagsError):
        assert isinstance(parse(words), Flags)
