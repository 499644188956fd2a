"""The recorder: what it writes of every kind of lock and of numbers, in both APIs; and what is read
out of a file that a killed process left behind."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lock_tools import Service, serving, until

import dlock.aio
from dlock import linear
from dlock.errors import LockLost, NotHeld
from dlock.linear import history as h


def counted(operations: list[h.Operation]) -> Counter[tuple[str, str]]:
    return Counter((one.action, one.outcome) for one in operations)


def recorded(path: Path) -> list[h.Operation]:
    operations = linear.read([path])
    verdict = linear.check(operations)
    assert verdict.ok, str(verdict)
    return operations


@pytest.fixture
def service() -> Any:
    with serving() as running:
        yield running


def test_a_mutex(service: Service, tmp_path: Path) -> None:
    recorder = linear.Recorder(tmp_path / "h", "me")
    lock = recorder.watch(service.client().lock("a"))
    other = recorder.watch(service.client().lock("a"))
    assert lock.acquire()
    assert not other.acquire(blocking=False)
    assert not other.acquire(timeout=0.01)
    assert lock.held
    assert lock.remaining > 0
    lock.ensure_held(min_left=0.1)
    lock.release()
    with other:
        pass
    with pytest.raises(NotHeld):
        other.release()
    recorder.close()
    operations = recorded(tmp_path / "h")
    assert counted(operations) == {
        (h.ACQUIRE, h.DONE): 2, (h.ACQUIRE, h.REFUSED): 2, (h.HELD, h.DONE): 5,
        (h.RELEASE, h.DONE): 2}
    assert [one.waits for one in operations if one.outcome == h.REFUSED] == [False, True]
    assert all(one.end_ns is not None for one in operations)
    assert {one.kind for one in operations} == {h.MUTEX}
    tokens = [one.token for one in operations if one.action == h.ACQUIRE and one.token]
    assert tokens == sorted(tokens)


def test_every_other_kind(service: Service, tmp_path: Path) -> None:
    client = service.client()
    recorder = linear.Recorder(tmp_path / "h", "me")
    again = recorder.watch(client.lock("again", reentrant=True))
    with again, again:
        assert again.held
    read, write = map(recorder.watch, (client.rwlock("rw").read(), client.rwlock("rw").write()))
    with read:
        assert not write.acquire(blocking=False)
    with write:
        assert not recorder.watch(service.client().rwlock("rw").read()).acquire(blocking=False)
    leased = recorder.watch(client.fair_lock("fair", lease=5, renew=False))
    with leased:
        assert leased.extend(6) > 5
    with recorder.watch(client.fair_lock("fair", shared=True)):
        pass
    slots = recorder.watch(client.semaphore("s", 2))
    with slots, slots:
        assert not slots.acquire(blocking=False)
    recorder.close()
    operations = recorded(tmp_path / "h")
    assert {one.name: one.kind for one in operations} == {
        "again": h.REENTRANT, "rw": h.RW, "fair": h.FAIR, "s": h.SEMAPHORE}
    assert {one.size for one in operations if one.name == "s"} == {2}
    assert len({one.hold for one in operations if one.name == "again"}) == 1
    shared = Counter(one.shared for one in operations if one.action == h.ACQUIRE)
    assert shared == {True: 3, False: 8}


def test_numbers(service: Service, tmp_path: Path) -> None:
    recorder = linear.Recorder(tmp_path / "h", "me")
    number = recorder.watch(service.client().atomic("n", 5))
    assert number.next() == 5
    assert number.add(2) == 8
    assert number.compare_exchange(8, 1) == (True, 8)
    assert number.compare_exchange(8, 1) == (False, 1)
    assert number.set(4) == 1
    assert number.update(lambda value: value * 3) == 12
    assert number.get() == 12
    with pytest.raises(AttributeError):
        number.destroy()
    recorder.close()
    operations = recorded(tmp_path / "h")
    assert {one.life > 0 for one in operations} == {True}
    assert counted(operations) == {(h.ADD, h.DONE): 2, (h.SWAP, h.DONE): 4, (h.GET, h.DONE): 3}
    wrong = [one._replace(result=6) if one.action == h.ADD and one.result == 5 else one
             for one in operations]
    assert linear.check(wrong).violated


def test_asyncio(service: Service, tmp_path: Path) -> None:
    async def work() -> None:
        async with dlock.aio.connect(service.address) as client:
            await one_of_each(client)

    async def one_of_each(client: dlock.aio.Client) -> None:
        lock = recorder.watch(client.lock("a"))
        number = recorder.watch(client.atomic("n"))
        await lock.acquire()
        waiting = asyncio.create_task(lock.acquire())
        while service.waiters("a") != 1:
            await asyncio.sleep(0.001)
        await lock.see_line()
        assert lock.held
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await lock.release()
        async with lock, recorder.watch(client.lock("again", reentrant=True)):
            assert await number.next() == 0
        assert await number.compare_exchange(1, 7) == (True, 1)
        assert await number.set(3) == 7
        assert await number.update(lambda value: value + 1) == 4

    recorder = linear.Recorder(tmp_path / "h", "me")
    asyncio.run(work())
    recorder.close()
    operations = recorded(tmp_path / "h")
    acquires = [one for one in operations if one.action == h.ACQUIRE and one.name == "a"]
    assert Counter(one.outcome for one in acquires) == {h.DONE: 2, h.UNKNOWN: 1}
    # The server has confirmed that nothing is left of it, so it explains no later refusal.
    (cancelled,) = (one for one in acquires if one.outcome == h.UNKNOWN)
    assert cancelled.end_ns is not None
    assert cancelled.end_ns <= acquires[-1].end_ns


def test_who_was_seen_in_line(service: Service, tmp_path: Path) -> None:
    recorder = linear.Recorder(tmp_path / "h", "me")
    lock = recorder.watch(service.client().lock("a"))
    others = [recorder.watch(service.client().lock("a")) for _ in range(3)]
    threads = [threading.Thread(target=one.__enter__) for one in others]
    lock.acquire()
    for number, thread in enumerate(threads, 1):
        thread.start()
        until(lambda number=number: service.waiters("a") == number)  # type: ignore[misc]
        lock.see_line()
    lock.release()
    for thread, other in zip(threads, others, strict=True):
        thread.join()
        other.release()
    recorder.close()
    operations = recorded(tmp_path / "h")
    waited = [one for one in operations if one.action == h.ACQUIRE and one.queued_ns]
    assert len(waited) == 3
    # The last two change places: that cannot be.
    first, second = (operations.index(one) for one in waited[1:])
    tokens = operations[first].token, operations[second].token
    operations[first] = operations[first]._replace(token=0)
    operations[second] = operations[second]._replace(token=0)
    assert linear.check(operations).ok
    operations[first] = operations[first]._replace(token=tokens[1])
    operations[second] = operations[second]._replace(token=tokens[0])
    assert linear.check(operations).violated


def test_a_hold_that_is_lost(service: Service, tmp_path: Path) -> None:
    recorder = linear.Recorder(tmp_path / "h", "me")
    lock = recorder.watch(service.client().lock("a"))
    lock.acquire()
    service.admin.break_lock("a")
    until(lambda: not lock.held)
    with recorder.watch(service.client().lock("a")):
        pass
    with pytest.raises(LockLost):
        lock.release()
    recorder.close()
    assert counted(recorded(tmp_path / "h"))[h.END, h.UNKNOWN] == 1


def test_another_threads_hold_and_one_that_is_dropped(service: Service, tmp_path: Path) -> None:
    recorder = linear.Recorder(tmp_path / "h", "me")
    lock = recorder.watch(service.client().lock("a", reentrant=True))
    lock.acquire()

    def elsewhere(lock: Any) -> None:
        with pytest.raises(NotHeld):
            lock.release()

    thread = threading.Thread(target=elsewhere, args=(lock,))
    thread.start()
    thread.join()
    del thread
    assert lock.held
    with pytest.warns(ResourceWarning):
        del lock
    until(lambda: not service.holders("a"))
    with recorder.watch(service.client().lock("a", reentrant=True)):
        pass
    recorder.close()
    assert counted(recorded(tmp_path / "h"))[h.END, h.UNKNOWN] == 1


@pytest.mark.parametrize("kind", [h.MUTEX, h.REENTRANT, h.RW, h.FAIR, h.SEMAPHORE, h.CELL])
def test_two_primaries_that_know_nothing_of_each_other_are_found_out(
    kind: str, tmp_path: Path
) -> None:
    """Real programs at a service that breaks its word: each holds what the other one holds."""
    def use(client: dlock.Client, recorder: linear.Recorder) -> Any:
        if kind == h.CELL:
            return recorder.watch(client.atomic("n"))
        return recorder.watch({
            h.MUTEX: lambda: client.lock("a"),
            h.REENTRANT: lambda: client.lock("a", reentrant=True),
            h.RW: lambda: client.rwlock("a").write(), h.FAIR: lambda: client.fair_lock("a"),
            h.SEMAPHORE: lambda: client.semaphore("a", 1)}[kind]())

    files = [tmp_path / "one", tmp_path / "other"]
    recorders = [linear.Recorder(path, path.name) for path in files]
    with serving() as one, serving() as other:
        used = [use(service.client(), recorder)
                for service, recorder in zip((one, other), recorders, strict=True)]
        for lock in used:
            if kind == h.CELL:
                lock.next()
            else:
                lock.acquire()
        if kind != h.CELL:
            assert used[0].held
            assert used[1].held
            for lock in used:
                lock.release()
    for recorder in recorders:
        recorder.close()
    assert all(linear.check(linear.read([path])).ok for path in files)
    assert linear.check(linear.read(files)).violated


# ---- What a file says whose process is gone ------------------------------------------------------

LOCK = '"name": "a", "kind": "mutex", "size": 1, "shared": false, "who": "c/1", "client": 9'


def lines(*told: str) -> list[str]:
    return ['{"history": 1, "process": "c", "pid": 1, "t": 0}', *told]


ACQUIRED = (
    f'{{"b": 1, "t": 10, "do": "acquire", {LOCK}, "waits": true, "hold": "c.1", "actor": 4}}',
    '{"e": 1, "t": 20, "out": "done", "token": 7, "again": false, "seen": 18, "left_ms": 3}',
)
HELD = '{"do": "held", "t": 30, "u": 31, "hold": "c.1", "left_ms": 5}'
RELEASING = f'{{"b": 2, "t": 40, "do": "release", {LOCK}, "hold": "c.1"}}'


def test_killed_while_it_waits() -> None:
    (one,) = linear.assemble(lines(ACQUIRED[0]))
    assert (one.action, one.outcome, one.begin_ns, one.end_ns) == (h.ACQUIRE, h.UNKNOWN, 10, None)


def test_what_is_owed_no_more_is_over() -> None:
    (one,) = linear.assemble(lines(
        ACQUIRED[0], '{"e": 1, "t": 20, "out": "unknown"}', '{"settled": [1], "t": 30}'))
    assert (one.outcome, one.begin_ns, one.end_ns) == (h.UNKNOWN, 10, 30)


def test_killed_while_it_holds() -> None:
    told = lines(*ACQUIRED, HELD)
    *_, end = linear.assemble(told)
    assert (end.action, end.begin_ns, end.end_ns) == (h.END, 30 + 5_000_000, None)
    *_, end = linear.assemble(told, promised=False)
    assert (end.action, end.begin_ns) == (h.END, 30)
    *_, end = linear.assemble([*told, '{"left": true, "t": 50}'])
    assert (end.action, end.begin_ns) == (h.END, 30)


def test_killed_while_it_releases() -> None:
    *_, end = linear.assemble(lines(*ACQUIRED, HELD, RELEASING))
    assert (end.action, end.begin_ns, end.end_ns) == (h.END, 30, None)


@pytest.mark.parametrize(("more", "end_ns"), [('"sure": true', 50), ('"sure": false', None)])
def test_a_release_that_nobody_confirmed(more: str, end_ns: int | None) -> None:
    *_, end = linear.assemble(
        lines(*ACQUIRED, RELEASING, f'{{"e": 2, "t": 50, "out": "done", {more}}}'))
    assert (end.action, end.begin_ns, end.end_ns) == (h.RELEASE, 40, end_ns)


def test_dropped_while_it_is_held() -> None:
    *_, end = linear.assemble(
        lines(*ACQUIRED, HELD, '{"do": "dropped", "t": 50, "hold": "c.1"}'))
    assert (end.action, end.begin_ns, end.end_ns) == (h.END, 30, None)


def test_told_that_it_is_lost() -> None:
    *_, end = linear.assemble(lines(*ACQUIRED, HELD, RELEASING, '{"e": 2, "t": 50, "out": "lost"}'))
    assert (end.action, end.begin_ns, end.end_ns) == (h.END, 30, None)


@pytest.mark.parametrize(("believed_ns", "end_ns"), [(30, None), (41, 50)])
def test_a_release_that_only_the_client_counted(believed_ns: int, end_ns: int | None) -> None:
    again = [line.replace(': 1, "t"', ': 3, "t"') for line in ACQUIRED]
    left = RELEASING, '{"e": 2, "t": 50, "out": "done", "sure": true}'
    *_, one, two, end = linear.assemble(lines(
        *ACQUIRED, *again, HELD, *left, HELD.replace("30", str(believed_ns)),
        RELEASING.replace('"b": 2', '"b": 4'), '{"e": 4, "t": 60, "out": "lost"}'))
    assert [each.action for each in (one, two, end)] == [h.RELEASE, h.HELD, h.END]
    assert (one.begin_ns, one.end_ns) == (40, end_ns)


def test_who_is_seen_with_an_earlier_request_is_not_taken_for_the_later_one() -> None:
    sight = '{"do": "line", "t": 25, "u": 26, "name": "a", "waiting": [[9, 4]]}'
    waiting = ACQUIRED[0].replace('"t": 10', '"t": 22').replace('"b": 1', '"b": 3')
    after = '{"e": 3, "t": 60, "out": "done", "token": 8}'
    clear = linear.assemble(lines(waiting, sight, after))
    assert [(one.queued_ns, one.waiting_ns) for one in clear if one.action == h.ACQUIRE] == [
        (26, 25)]
    unclear = linear.assemble(lines(
        ACQUIRED[0], '{"e": 1, "t": 20, "out": "unknown"}', waiting, sight, after))
    assert {one.queued_ns for one in unclear} == {None}
    moved = linear.assemble(lines(waiting, sight, after[:-1] + ', "place": false}'))
    assert {one.queued_ns for one in moved} == {None}


def test_what_is_no_history_is_refused_with_its_place(tmp_path: Path) -> None:
    for wrong in ("nonsense", '{"history": 2}', '{"e": 5, "t": 1, "out": "done"}', "[]"):
        with pytest.raises(linear.HistoryError, match="history, line 2"):
            linear.assemble(lines(wrong))
    (tmp_path / "h").write_text("\n".join([*lines(*ACQUIRED), HELD[:20]]))
    assert len(linear.read([tmp_path / "h"])) == 3  # the last line was cut short


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dlock.linear.__main__ import main

    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("".join(f"{line}\n" for line in lines(*ACQUIRED)))
    told = [line.replace("c.1", "d.1").replace(": 7", ": 8") for line in lines(*ACQUIRED)]
    bad.write_text("".join(f"{line}\n" for line in [*told]))
    assert main([str(good)]) == 0
    assert "linearizable: 3 operations on 1 names" in capsys.readouterr().out
    assert main([str(good), str(bad)]) == 1
    assert "it is held by c.1 with token 7" in capsys.readouterr().out
    assert main([str(tmp_path / "none")]) == 2
    assert main([]) == 2
    bad.write_text(json.dumps({"history": 3}) + "\n")
    assert main([str(bad)]) == 2
    assert "line 1" in capsys.readouterr().err
