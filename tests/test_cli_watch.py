"""`dlock watch` and `dlock top`: what they make of two looks at a server, and what they print."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from cli_tools import dlock, finish, started
from mirror_tools import ATOMIC, S, Service, ex, free_port
from rich.console import Console, ConsoleDimensions

from dlock import dclient, dserver
from dlock.admin import ClientSummary, Holder, LockDetails, LockSummary, Waiter
from dlock.cli.activity import Activity, Sample, compare
from dlock.cli.changes import Change, History
from dlock.cli.plain import bars, parts, state, text
from dlock.cli.screen import frame
from dlock.cli.text import columns_of
from dlock.types import LockDesc


def summary(key: bytes = b"a", served: int = 0, holders: int = 0, waiters: int = 0,
            lock_id: int = 1) -> LockSummary:
    return LockSummary(key, "atomic", 1, lock_id, holders, waiters, served)


def holder(token: int, client: int = 1, **more: Any) -> Holder:
    return Holder(client, token=token, actor=1, **more)


def waiter(stamp: int, client: int = 1) -> Waiter:
    return Waiter(client, stamp=stamp, actor=1)


def details(*who: Holder | Waiter, key: bytes = b"a") -> LockDetails:
    return LockDetails(
        key, "atomic", 1, 1, tuple(one for one in who if isinstance(one, Holder)),
        tuple(one for one in who if isinstance(one, Waiter)), 0)


def look(history: History, one: LockSummary, *who: Holder | Waiter, first: bool = False
         ) -> list[tuple[str, int]]:
    """What one look at one lock tells: (what, token, stamp or count)."""
    found = history.look({one.key: one}, {one.key: details(*who)}, first)
    return [(change.what, _number(change)) for change in found]


def _number(change: Change) -> int:
    who = change.who
    return who.token if isinstance(who, Holder) else who.stamp if who else change.count


# ---- Changes -------------------------------------------------------------------------------------


def test_a_lock_passes_from_one_to_the_next() -> None:
    history = History()
    assert look(history, summary(holders=1), holder(7), first=True) == [("held", 7)]
    assert look(history, summary(holders=1, waiters=1), holder(7), waiter(8, 2)) == [("waits", 8)]
    assert look(history, summary(served=1, holders=1), holder(9, 2)) == [("freed", 7), ("held", 9)]
    assert look(history, summary(served=1)) == [("freed", 9)]


def test_a_waiter_that_gives_up() -> None:
    history = History()
    look(history, summary(holders=1, waiters=1), holder(7), waiter(8, 2), first=True)
    assert look(history, summary(served=1, holders=1), holder(7)) == [("left", 8)]


def test_what_was_not_seen_is_counted() -> None:
    history = History()
    look(history, summary(served=65_530, holders=1), holder(7), first=True)
    assert look(history, summary(served=4, holders=1), holder(99)) == [
        ("freed", 7), ("served", 9), ("held", 99)]


def test_new_gone_and_born_again() -> None:
    history = History()
    assert look(history, summary(), first=True) == []
    assert look(history, summary(b"b", holders=1), holder(3)) == [
        ("gone", 0), ("new", 0), ("held", 3)]
    assert look(history, summary(b"b", holders=1, lock_id=9), holder(5)) == [
        ("freed", 3), ("held", 5)]


def test_a_break_is_told_though_no_count_changes() -> None:
    history = History()
    one = summary(holders=1)
    look(history, one, holder(7), first=True)
    assert history.worth_a_look([one], 10) == [one]
    assert look(history, one, holder(7, breaking=True)) == [("breaking", 7)]
    assert look(history, one, holder(7, breaking=True)) == []


def test_many_changes_take_turns() -> None:
    history = History()
    locks = [summary(b"%d" % number, holders=1) for number in range(250)]
    seen: set[bytes] = set()
    for _ in range(3):
        chosen = history.worth_a_look(locks, 100)
        assert len(chosen) <= 100
        seen |= {one.key for one in chosen}
        history.look({one.key: one for one in locks},
                     {one.key: details(holder(1), key=one.key) for one in chosen}, first=True)
    assert len(seen) == 250
    assert history.worth_a_look(locks, 100) == []


# ---- Activity ------------------------------------------------------------------------------------


def sample(at: float, *locks: LockSummary, **stats: int) -> Sample:
    return Sample(at, {"epoch": 2, "ready": 1, **stats}, {one.key: one for one in locks},
                  (ClientSummary(1, host="node", pid=5, locks=3, connected=True),))


def test_rates_are_a_second() -> None:
    found = compare(sample(10.0, summary(served=65_535), summary(b"b"), GRANTS=100),
                    sample(12.0, summary(served=3), summary(b"b", waiters=2), GRANTS=500), 10)
    assert found.rates["grants"] == 200
    assert [(one.summary.key, one.rate) for one in found.hot] == [(b"a", 2.0), (b"b", 0.0)]
    assert [one.summary.key for one in found.crowded] == [b"b"]
    assert (found.busy, found.lines, found.sessions) == (2, 1, 1)


def test_rdma_is_shown_of_the_server_and_of_each_client() -> None:
    over_tcp = compare(sample(1.0), sample(2.0), 10)
    assert state(over_tcp) == "epoch 2, ready"
    over_verbs = compare(sample(1.0), Sample(
        2.0, {"epoch": 2, "ready": 1, "verbs": 1}, {},
        (ClientSummary(1, connected=True, transport="verbs"), ClientSummary(2))), 10)
    assert state(over_verbs) == "epoch 2, ready, RDMA"
    clients = parts(over_verbs)[2]
    at = clients.head.index("OVER")
    assert [row[at] for row in clients.rows] == ["verbs", "tcp"]


def test_a_server_that_started_anew_has_no_negative_rates() -> None:
    found = compare(sample(1.0, summary(served=9), GRANTS=900),
                    sample(2.0, summary(served=3, lock_id=2, holders=1), GRANTS=7), 10)
    assert found.rates["grants"] == 7
    assert [one.rate for one in found.hot] == [0.0]


def busy_activity(locks: int = 40) -> Activity:
    before = [summary(b"[red]lock/%d\x1b[2J" % k) for k in range(locks)]
    now = [summary(one.key, served=k, holders=1, waiters=k % 3) for k, one in enumerate(before)]
    found = compare(sample(0.0, *before), sample(1.0, *now, REQUESTS=12_345, STALLS=2), 20)
    return Activity(**{name: getattr(found, name) for name in found.__slots__}
                    | {"history": tuple(float(k) for k in range(60))})


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (200, 60), (80, 6), (20, 3)])
def test_the_screen_fits(width: int, height: int) -> None:
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(frame(busy_activity(), "h:1\x1b[2J", "", ConsoleDimensions(width, height)))
    lines = capture.get().splitlines()
    assert len(lines) <= height
    assert max(map(columns_of, lines)) <= width
    assert "\x1b" not in capture.get()
    if (width, height) == (80, 24):
        assert re.search(r"^dlock top  h:1\\x1b\[2J  epoch 2, ready  \d\d:\d\d:\d\d *$", lines[0])
        assert any(line.startswith("requests 12.3k/s") for line in lines)
        assert any("stalls 2" in line for line in lines)
        for title in ("HOT LOCKS (", "WAITS (", "CLIENTS"):
            assert any(line.startswith(title) for line in lines), lines
        assert any(line.startswith("[red]lock/39") for line in lines)


def test_the_screen_says_that_the_server_is_away() -> None:
    console = Console(width=80, height=24, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(frame(None, "h:1", "no server", ConsoleDimensions(80, 24)))
    assert "no answer, trying again: no server" in capture.get()


def test_bars() -> None:
    assert bars([0.0, 50.0, 100.0]) == " ▄█"
    assert bars([0.0]) == " "
    assert bars([]) == ""


def test_the_text_says_how_much_is_left_out() -> None:
    assert "HOT LOCKS (20 of 40)" in text(busy_activity())


# ---- As processes --------------------------------------------------------------------------------


def address(service: Service) -> str:
    return f"127.0.0.1:{service.port}"


def test_watch_prints_what_happens(service: Service) -> None:
    client = service.client()
    status, lock_id = dclient.get_lock(client, LockDesc(b"a/b", ATOMIC))
    assert status is S.SUCCESS
    assert lock_id is not None
    with started("watch", "a/", "--json", "--interval", "0.05", "--for", "30",
                 address=address(service)) as watch, \
            started("watch", "nope", "--exact", "--for", "0.3", address=address(service)) as other:
        assert watch.stdout is not None
        held = dclient.trylock(client, ex(lock_id))[1]
        line = watch.stdout.readline()
        assert '"event": "held"' in line
        assert held is not None
        assert f'"token": {held.token}' in line
        assert f'"pid": {os.getpid()}' in line
        assert dclient.unlock(client, lock_id)[0] is S.SUCCESS
        assert '"event": "freed"' in watch.stdout.readline()
        assert finish(other).out == ""


def test_watch_waits_for_a_server_that_went(service: Service) -> None:
    status, lock_id = dclient.get_lock(service.client(), LockDesc(b"a", ATOMIC))
    assert status is S.SUCCESS
    with started("watch", "--json", "--interval", "0.05", address=address(service)) as watch:
        assert watch.stdout is not None
        assert lock_id is not None
        dclient.trylock(service.clients[0], ex(lock_id))
        assert '"event": "held"' in watch.stdout.readline()
        dserver.server_stop(service.server_id)
        assert '"event": "no-server"' in watch.stdout.readline()


def test_top_once(service: Service) -> None:
    client = service.client()
    status, lock_id = dclient.get_lock(client, LockDesc(b"a", ATOMIC))
    assert status is S.SUCCESS
    assert lock_id is not None
    dclient.trylock(client, ex(lock_id))
    done = dlock("top", "--once", "--interval", "0.1", address=address(service))
    assert (done.code, done.err) == (0, "")
    assert re.search(rf"^a +atomic +0 +1 +0 +\S+:{os.getpid()} ", done.out, re.M)
    found = dlock("top", "--once", "--json", "--interval", "0.1", address=address(service)).json
    assert found["hot"][0]["first_holder"]["pid"] == os.getpid()
    assert found["gauges"]["locks"] == 1
    assert found["clients"][0]["client_id"] == client


def test_top_needs_a_terminal() -> None:
    done = dlock("top", address=f"127.0.0.1:{free_port()}")
    assert (done.code, done.out) == (2, "")
    assert "use --once or --json" in done.err


