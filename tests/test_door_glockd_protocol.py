"""glockd's lines: how they are cut and read, and what the replies look like to the byte."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlock.doors.glockd import protocol
from dlock.doors.glockd.protocol import LINE_MAX, Lines, parse

LINE = st.one_of(
    st.binary(max_size=40).filter(lambda line: b"\n" not in line),
    st.sampled_from([b"g foo", b"  g  foo ", b"r foo\r", b"", b"\r", b"q", b"\xff\x00", b"g"]),
)


@pytest.mark.parametrize(
    ("line", "verb", "name"),
    [
        (b"g foo", "g", b"foo"),
        (b"g foo\r", "g", b"foo"),
        (b"  g   n   b  ", "g", b"n b"),
        (b" g  foo", "g", b"foo"),
        (b"g", "g", b""),
        (b"g ", "g", b""),
        (b"g\t", "g", b""),
        (b"\tg\tx", None, b""),  # only a blank proper ends the verb
        (b"g\t x", None, b"x"),
        (b"g \tx\t\ty\v", "g", b"x y"),
        (b"g x\ng y", "g", b"x g y"),
        (b"g \xff\x00\xfe", "g", b"\xff\x00\xfe"),
        (b"g a\xc2\xa0b", "g", b"a b"),  # white space of Unicode, as in Go
        (b"\xe3\x80\x80g x\xe2\x80\x83", "g", b"x"),
        (b"g a\xe2\x80b", "g", b"a\xe2\x80b"),  # no valid UTF-8: untouched
        (b"g \xc3\xa4\xc3\xb6", "g", b"\xc3\xa4\xc3\xb6"),
        (b"G foo", None, b"foo"),
        (b"get foo", None, b"foo"),
        (b"", None, b""),
        (b"   ", None, b""),
        (b"dump shared", "dump", b"shared"),
    ],
)
def test_a_line_is_read_as_glockd_reads_it(line: bytes, verb: str | None, name: bytes) -> None:
    assert parse(line)[0] == verb
    assert verb is None or parse(line)[1] == name


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_can_be_read(line: bytes) -> None:
    verb, name = parse(line)
    assert verb is None or verb in protocol.VERBS
    assert name == b" ".join(protocol.words(name))
    if verb is not None:  # what is even already stays as it is
        assert parse(verb.encode() + b" " + name) == (verb, name)


@given(st.lists(LINE, max_size=8), LINE, st.data())
@settings(max_examples=200, deadline=None)
def test_the_pieces_do_not_matter(lines: list[bytes], last: bytes, data: st.DataObject) -> None:
    sent = b"".join(line + b"\n" for line in lines) + last
    cut, found = Lines(), []
    while sent:
        size = data.draw(st.integers(1, len(sent)))
        found += cut.feed(sent[:size])
        sent = sent[size:]
    assert found == lines
    assert cut.within == bool(last)
    assert cut.end() == ([last] if last else [])
    assert not cut.overlong


@pytest.mark.parametrize("size", [64 * 1024, LINE_MAX])
def test_long_lines_are_lines(size: int) -> None:
    cut = Lines()
    line = b"g " + b"x" * (size - 2)
    assert cut.feed(line) == []
    assert cut.feed(b"\nq\n") == [line, b"q"]


@pytest.mark.parametrize("pieces", [1, 7])
def test_what_stands_before_a_line_that_is_too_long_is_still_answered(pieces: int) -> None:
    sent = b"q\nme\n" + b"x" * (LINE_MAX + 1) + b"\nq\n"
    size = len(sent) // pieces + 1
    cut = Lines()
    found = [one for at in range(0, len(sent), size) for one in cut.feed(sent[at : at + size])]
    assert found == [b"q", b"me"]
    assert cut.overlong
    assert cut.end() == []


def test_the_replies_to_the_byte() -> None:
    name = b"a b"
    assert [
        protocol.got(name), protocol.got_before(name), protocol.not_got(name),
        protocol.released(name), protocol.not_released(name),
        protocol.locked_by_asker(name), protocol.locked(name), protocol.not_locked(name),
        protocol.shared_got(name, 5), protocol.shared_released(name),
        protocol.shared_not_released(name),
        protocol.shared_locked(name, 2), protocol.shared_locked(name, 0),
        protocol.me(b"unix:1", b"n"),
    ] == [
        b"1 Lock Get Success: a b\r\n", b"1 Lock Get Success: a b\n",
        b"0 Lock Get Failure: a b\r\n",
        b"1 Lock Release Success: a b\n", b"0 Lock Release Failure: a b\n",
        b"1 Lock Is Locked: a b\n", b"1 Lock Is Locked: a b\r\n", b"0 Lock Not Locked: a b\r\n",
        b"5 Shared Lock Get Success: a b\r\n", b"1 Shared Lock Release Success: a b\r\n",
        b"0 Shared Lock Release Failure: a b\r\n",
        b"2 Shared Lock Is Locked: a b\r\n", b"0 Shared Lock Not Locked: a b\r\n",
        b"1 unix:1 n\n",
    ]
