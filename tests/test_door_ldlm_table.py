"""The LDLM door's table and records without any server: names, keys, time, what survives."""

from __future__ import annotations

import asyncio
import errno
from collections import Counter

import pytest
from aio_tools import run, turns, until
from ldlm_service_tools import Paper

from dlock.doors.ldlm import problems, records
from dlock.doors.ldlm.records import Book, Record, survivors
from dlock.doors.ldlm.table import Entry, Table
from dlock.errors import ConnectionLost, StoreError


def table() -> Table[tuple[str, int]]:
    return Table(lambda name, size: (name, size))


def made(names: Table[tuple[str, int]], name: str, size: int = 1, now_s: float = 0.0) -> Entry[
        tuple[str, int]]:
    entry = names.entry(name, size, now_s)
    assert isinstance(entry, Entry)
    return entry


# ---- The table -----------------------------------------------------------------------------------


def test_the_first_who_asks_makes_the_name_with_its_size() -> None:
    names = table()
    entry = made(names, "a", 2)
    assert entry.lock == ("a", 2)
    assert names.entry("a", 1, 0.0) is problems.SIZE_MISMATCH
    assert names.entry("a", 2, 0.0) is entry


def test_a_key_is_found_until_its_time_is_over() -> None:
    names = table()
    held = names.give(made(names, "a"), "key", 10.0, 0.0)
    assert names.find("a", "key", 9.999) is held
    assert names.find("a", "key", 10.0) is problems.WRONG_KEY
    assert names.find("a", "other", 0.0) is problems.WRONG_KEY
    assert names.find("b", "key", 0.0) is problems.NO_SUCH_LOCK
    assert held.entry.lapsed(10.0) == [held]
    assert held.entry.lapsed(9.0) == []


def test_a_key_goes_once() -> None:
    names = table()
    held = names.give(made(names, "a"), "key", None, 0.0)
    assert names.take(held, 1.0)
    assert not names.take(held, 1.0)
    assert names.find("a", "key", 1.0) is problems.WRONG_KEY


def test_names_go_when_nobody_has_used_them_for_longer_than_that() -> None:
    names = table()
    held = names.give(made(names, "held"), "key", None, 0.0)
    made(names, "asked").asking = 1
    made(names, "idle")
    made(names, "touched")
    names.find("touched", "key", 6.0)
    assert [entry.name for entry in names.collect(5.0, 5.0)] == []
    assert [entry.name for entry in names.collect(5.0, 5.1)] == ["idle"]
    names.take(held, 6.0)
    assert {entry.name for entry in names.collect(5.0, 20.0)} == {"held", "touched"}
    assert len(names) == 1


def test_a_name_that_dlock_has_otherwise_is_forgotten_unless_it_is_used() -> None:
    names = table()
    entry = made(names, "a", 2)
    entry.asking = 1
    assert not names.forget(entry)
    entry.asking = 0
    assert names.forget(entry)
    assert not names.forget(entry)
    assert made(names, "a", 3).size == 3


def test_the_newest_key_is_the_last_that_was_given_out() -> None:
    names = table()
    entry = made(names, "a", 3)
    keys = [names.give(entry, key, None, 0.0) for key in "xyz"]
    assert names.newest("a") is keys[2]
    names.take(keys[2], 0.0)
    assert names.newest("a") is keys[1]
    assert names.newest("b") is None


# ---- What survives a restart ---------------------------------------------------------------------


def test_records_are_read_as_they_were_written() -> None:
    for name in ("a", "two\nlines", "ü" * 5000, "\x00"):
        value = records.encode(name, 7, 2**62)
        assert records.decode(b"key", value) == Record(name, 7, "key", 2**62)


@pytest.mark.parametrize(
    "value", [b"", b"1 1", b"1 1\n", b"0 1\na", b"1 0\na", b"1\na", b"x y\na", b"1 1\n\xff",
              b"-1 1\na", b"9" * 5000 + b" 1\na"])
def test_what_is_no_record_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        records.decode(b"key", value)


def test_of_a_lock_with_too_many_keys_the_latest_stand() -> None:
    old, new = Record("a", 1, "old", 5), Record("a", 1, "new", 9)
    assert survivors([new, old]) == ([new], [old])
    two = [Record("b", 2, str(token), token) for token in (3, 8, 6)]
    assert survivors(two) == ([two[2], two[1]], [two[0]])
    sizes = [Record("c", 4, "before", 1), Record("c", 2, "after", 2)]
    assert survivors(sizes) == ([sizes[1]], [sizes[0]])
    assert survivors([]) == ([], [])


def test_a_space_is_named_for_its_namespace_and_file() -> None:
    assert records.space_of("ldlm", "locks.db") == "ldlm:ldlm:locks.db"
    long = [records.space_of(one, two) for one, two in (
        ("ldlm", "/var/lib/" + "x" * 100), ("other", "/var/lib/" + "x" * 100), ("ldlm", "a\n"),
        ("n" * 64, "f"))]
    assert len(set(long)) == 4
    assert all(len(space.encode()) <= 64 for space in long)


# ---- Writing -------------------------------------------------------------------------------------


def test_a_write_is_repeated_until_the_primary_is_back() -> None:
    async def program() -> None:
        paper = Paper()
        book = Book(paper, Counter())
        paper.fails = [ConnectionLost("away"), ConnectionLost("still")]
        await book.write("a", 1, "key", 7)
        assert paper.written == {b"key": records.encode("a", 1, 7)}
        paper.fails = [ConnectionLost("away")]
        await book.strike("key")
        assert paper.written == {}

    run(program())


def test_what_is_struck_out_while_it_is_written_is_gone() -> None:
    async def program() -> None:
        paper = Paper()
        book = Book(paper, Counter())
        paper.gate.clear()
        written = book.write("a", 1, "key", 7)
        await turns()
        struck = book.strike("key")
        paper.gate.set()
        await asyncio.gather(written, struck)
        assert paper.written == {}

    run(program())


def test_a_store_that_refuses_is_told_to_who_locks_and_not_to_who_unlocks() -> None:
    async def program() -> None:
        paper, counters = Paper(), Counter[str]()
        book = Book(paper, counters)
        paper.fails = [StoreError(errno.ENOSPC)]
        with pytest.raises(StoreError):
            await book.write("a", 1, "key", 7)
        paper.fails = [StoreError(errno.EIO)]
        await book.strike("key")
        assert counters["records_failed"] == 2

    run(program())


def test_the_end_waits_for_what_is_being_written_but_not_for_ever() -> None:
    async def program() -> None:
        paper = Paper()
        book = Book(paper, Counter())
        paper.gate.clear()
        first = book.write("a", 1, "one", 7)
        await until(lambda: paper.calls == 1)
        ending = asyncio.ensure_future(book.close())
        await turns()
        paper.gate.set()
        await ending
        assert first.done()
        assert paper.written
        paper.gate.clear()
        second = book.write("b", 1, "two", 8)
        await book.close(0.01)
        await turns()
        assert second.cancelled()

    run(program())


def test_what_cannot_be_read_or_cannot_stand_is_left_out() -> None:
    async def program() -> None:
        paper, counters = Paper(), Counter[str]()
        paper.written = {b"bad": b"?", b"old": records.encode("a", 1, 1),
                         b"new": records.encode("a", 1, 2)}
        book = Book(paper, counters)
        assert await book.load() == [Record("a", 1, "new", 2)]
        assert counters["records_unreadable"] == 1
        await book.close()
        assert set(paper.written) == {b"bad", b"new"}

    run(program())
