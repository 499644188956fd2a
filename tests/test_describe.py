"""Labels of owners and texts of names: who tells them, who keeps them how long, who sees them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from aio_tools import run, until
from cli_tools import dlock
from failover_tools import PATIENCE_S, Primary
from lock_tools import Service, fresh_name, serving
from registry_world import World

from dlock import _core as core
from dlock import aio
from dlock.admin import Admin
from dlock.aio import FOREVER, Hold, Owner, keys
from dlock.aio.keys import Key
from dlock.control import messages as m
from dlock.control import registry_labels
from dlock.control.codec import encode
from dlock.control.messages_describe import NAME_TEXT_BYTES_MAX
from dlock.types import DlockStatus as S

MESSAGE_BYTES_MAX = 65536


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as started:
        yield started


async def take(owner: Owner, key: Key) -> Hold:
    hold = await owner.take(key)
    assert hold is not None
    return hold


# ---- Through a client ----------------------------------------------------------------------------


def test_operators_see_door_client_and_age(service: Service) -> None:
    async def program() -> None:
        async with aio.connect(service.address, role="door:glockd:site") as client:
            holder, waiter = client.owner("10.0.0.7:4711"), client.owner("10.0.0.8:1\n")
            key = keys.exclusive("site:tape/7")
            await take(holder, key)
            waiter.ask(key, lambda _outcome: None, FOREVER)

            def told() -> bool:
                view = service.view(key.descriptor)
                return view is not None and bool(
                    view.waiters and view.holders[0].label and view.waiters[0].label)

            await until(told)
            view = service.view(key.descriptor)
            assert view is not None
            assert view.holders[0].label == "10.0.0.7:4711"
            assert view.holders[0].role == "door:glockd:site"
            assert view.waiters[0].label == "10.0.0.8:1\n"
            ls = dlock("ls", key.descriptor.decode(), address=service.address)
            (row,) = ls.rows[1:]
            assert row[:6] == [key.descriptor.decode(), "atomic", "1", "1", "glockd:site",
                               "10.0.0.7:4711"]
            assert row[6] != "-"
            found = dlock("ls", "--json", key.descriptor.decode(), address=service.address).json
            assert found["label"] == "10.0.0.7:4711"
            assert found["role"] == "door:glockd:site"
            assert found["since_s"] >= 0
            out = dlock("show", key.descriptor.decode(), address=service.address).out
            assert "door:glockd:site), 10.0.0.7:4711" in out
            assert "10.0.0.8:1\\n" in out
            top = dlock("top", "--once", "--interval", "0.1", address=service.address).out
            assert "door:glockd:site" in top

    run(program())


def test_the_text_of_a_hashed_name_is_shown_whole(service: Service) -> None:
    text = b"a very long name \xff" * 100

    async def program() -> None:
        async with aio.connect(service.address) as client:
            key = keys.exclusive("site+long:" + "0" * 64)
            client.describe(key, text)  # before the name is had
            await take(client.owner(), key)
            await until(lambda: bool((service.view(key.descriptor) or _Nothing).text))
            view = service.view(key.descriptor)
            assert view is not None
            assert view.text == text
            found = dlock("ls", "--json", "site+long:", address=service.address).json
            assert bytes.fromhex(found["text_hex"]) == text
            shown = dlock("show", "--json", key.descriptor.decode(), address=service.address).json
            assert bytes.fromhex(shown["text_hex"]) == text
            assert "(a very long name \\xff" in dlock("ls", address=service.address).out
            assert "stands for a very long name \\xff" in dlock(
                "show", key.descriptor.decode(), address=service.address).out

    run(program())


class _Nothing:
    text = b""


def test_an_owner_that_is_gone_is_forgotten(service: Service) -> None:
    async def program() -> None:
        async with aio.connect(service.address) as client:
            labels = client._connection.descriptions
            brief = client.owner("brief")
            brief.close()
            assert not labels._new_labels
            kept = client.owner("kept")
            dropped = client.owner("dropped")
            before = service.admin.stats()["labels"]
            await until(lambda: service.admin.stats()["labels"] == before + 2)
            kept.close()
            del dropped
            last = client.owner("last")
            await until(lambda: service.admin.stats()["labels"] == before + 1)
            assert last.label == "last"
        await until(lambda: service.admin.stats()["labels"] == 0)

    run(program())


def test_all_of_it_is_told_to_the_next_primary(tmp_path: Path) -> None:
    async def program(primary: Primary) -> None:
        async with aio.connect(primary.address, timeout=60) as client:
            owner, key = client.owner("the holder"), keys.exclusive("a")
            client.describe(key, b"the whole name")
            await take(owner, key)

            def told() -> bool:
                with Admin(primary.place) as admin:
                    view = admin.show("a")
                return (view is not None and view.text == b"the whole name"
                        and view.holders[0].label == "the holder")

            await until(told, PATIENCE_S)
            primary.restart()
            connection = client._connection
            await until(lambda: connection.session.home[0] == 2 and connection.settled, PATIENCE_S)
            await until(told, PATIENCE_S)

    primary = Primary(tmp_path, ttl_s=30.0)
    try:
        run(program(primary), 90)
    finally:
        primary.kill()


def test_many_labels_and_long_texts_are_told_in_pieces(service: Service) -> None:
    async def program() -> None:
        async with aio.connect(service.address) as client:
            before = service.admin.stats()
            owners = [client.owner(f"owner {number}") for number in range(1000)]
            long = [keys.exclusive(fresh_name()) for _ in range(5)]
            for key in long:
                await take(owners[0], key)
                client.describe(key, b"x" * (2 * NAME_TEXT_BYTES_MAX))
            await until(lambda: service.admin.stats()["labels"] >= before["labels"] + 1000)
            await until(lambda: service.admin.stats()["name_text_bytes"]
                        >= before["name_text_bytes"] + 5 * NAME_TEXT_BYTES_MAX)
            seen = {one.key: one for one in service.admin.locks()}
            assert all(len(seen[key.descriptor].text) == NAME_TEXT_BYTES_MAX for key in long)

    run(program())


# ---- At the registry -----------------------------------------------------------------------------


def describe(world: World, connection: int, *labels: tuple[int, str],
             texts: tuple[m.TextLine, ...] = ()) -> S:
    lines = tuple(m.LabelLine(*label) for label in labels)
    return world.ask(connection, m.Describe(lines, texts)).status


def test_labels_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_labels, "LABELS_MAX", 3)
    world = World()
    world.init(1)
    world.init(2)
    assert describe(world, 1, (1, "a"), (2, "b")) is S.SUCCESS
    assert describe(world, 2, (1, "c"), (2, "d"), (3, "e")) is S.SERVER_NO_RESOURCE
    assert world.stats()["DESCRIPTIONS_DROPPED"] == 2
    assert world.stats()["labels"] == 3
    assert describe(world, 1, (1, "again"), (2, "")) is S.SUCCESS
    assert describe(world, 1, (2, ""), (9, "")) is S.SUCCESS
    assert world.stats()["labels"] == 2
    assert describe(world, 2, (2, "d")) is S.SUCCESS
    world.ask(1, m.ClientDeinit())
    assert world.stats()["labels"] == 2
    world.ask(2, m.ClientDeinit())
    assert world.stats()["labels"] == 0


def test_texts_have_a_limit_and_end_with_their_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_labels, "TEXT_BYTES_MAX", 100)
    world = World()
    world.init(1)
    world.init(2)
    first, second = world.get(1, b"a"), world.get(1, b"b")
    assert describe(world, 1, texts=(m.TextLine(b"a", b"x" * 60),)) is S.SUCCESS
    assert describe(world, 1, texts=(m.TextLine(b"b", b"y" * 60),)) is S.SERVER_NO_RESOURCE
    assert describe(world, 2, texts=(m.TextLine(b"b", b"another's"),)) is S.SUCCESS
    assert world.stats()["name_text_bytes"] == 60
    assert world.ask(2, m.ShowLock(b"a")).text == b"x" * 60
    assert world.ask(2, m.ShowLock(b"b")).text == b""
    world.release(1, first.lock_id)
    assert describe(world, 1, texts=(m.TextLine(b"b", b"y" * 60),)) is S.SUCCESS
    assert world.stats()["name_text_bytes"] == 60
    assert world.get(1, b"a").lock_id > second.lock_id
    assert world.ask(2, m.ShowLock(b"a")).text == b""


def test_no_answer_is_longer_than_a_message_with_all_of_it() -> None:
    info = {f"{number:032}": "ü" * 128 for number in range(16)}
    world = World()
    for number in range(4):
        welcome = world.ask(number, m.ClientInit(1, 1, info))
        names = [b"%d" % number * 512, b"%dx" % number * 256]
        for name in names:
            lock = world.get(number, name)
            world.data(registry_request(welcome, lock))
            assert describe(world, number, (7, "l" * 128),
                            texts=(m.TextLine(name, b"t" * NAME_TEXT_BYTES_MAX),)) is S.SUCCESS
    met: Counter[bytes] = Counter()
    start = 0
    while start != m.NONE:
        answer = world.ask(99, m.ListLocks(b"", start, 512, False))
        assert len(encode(1, answer)) <= MESSAGE_BYTES_MAX
        assert answer.locks
        for line in answer.locks:
            met[line.descriptor] += 1
            assert (line.label, len(line.text)) == ("l" * 128, NAME_TEXT_BYTES_MAX)
        start = answer.next
    assert set(met.values()) == {1}
    assert len(met) == 8
    shown = world.ask(99, m.ShowLock(b"0" * 512))
    assert len(encode(1, shown)) <= MESSAGE_BYTES_MAX
    assert shown.entries[0].label == "l" * 128


def registry_request(welcome: m.Welcome, lock: m.LockResult) -> core.Request:
    return core.Request(op=core.DLK_OP_LOCK, session=welcome.session_slot, lock_id=lock.lock_id,
                        slot=lock.slot, owner=7 << 32 | 1)


def test_json_is_one_object_a_line(service: Service) -> None:
    for line in dlock("ls", "--json", address=service.address).out.splitlines():
        assert json.loads(line)["name"]
