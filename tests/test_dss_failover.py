"""Durable locks over lost answers and over the death of primaries: nothing that was acknowledged is
lost, nothing is told that is not so, and a primary that was replaced answers nothing."""

from __future__ import annotations

import contextlib
import errno
import random
import signal
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_client import eventually
from dss_tools import LIMIT_S, Child, Relay, opened, start

from dlock import dss, durable
from dlock.control import messages as m
from dlock.control.link import ControlLink
from dlock.dss import DssHandle
from dlock.errors import ClientClosed, ConnectionLost
from dlock.server import Server

ECOMM, EEXIST, ENOLCK = -errno.ECOMM, -errno.EEXIST, -errno.ENOLCK


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    started: list[Server] = []
    yield started
    for one in started:
        one.stop()


@contextlib.contextmanager
def handle_of(address: str | Server) -> Iterator[DssHandle]:
    one = opened(address)
    try:
        yield one
    finally:
        dss.dss_fini(one)


def begin(servers: list[Server], folder: Path | None, **config: Any) -> Server:
    servers.append(start(folder, **config))
    return servers[-1]


# ---- Lost answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 2, 4])
def test_a_call_whose_answer_was_lost_is_told_what_came_of_it(
    tmp_path: Path, servers: list[Server], lost: int
) -> None:
    relay = Relay(begin(servers, tmp_path).port)
    with handle_of(relay.address) as one:
        for _ in range(3):
            relay.lose = lost
            assert dss.dss_lock(one, "id", "o") == 0  # not EEXIST: it is its own
            relay.lose = lost
            assert dss.dss_lock(one, "id", "o") == EEXIST
            relay.lose = lost
            assert dss.dss_lock_refresh(one, "id", "o") == 0
            relay.lose = lost
            assert dss.dss_lock_status(one, "id")[:2] == (0, "o")
            relay.lose = lost
            assert dss.dss_unlock(one, "id", "o") == 0  # not ENOLCK
            relay.lose = lost
            assert dss.dss_unlock(one, "id", "o") == ENOLCK
    relay.close()


def test_a_request_that_comes_late_is_not_carried_out_again(
    tmp_path: Path, servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first copy of a lock hangs in the network until the lock is taken, by the second copy,
    and given back."""
    monkeypatch.setattr(durable, "ATTEMPT_S", 0.3)
    server = begin(servers, tmp_path)
    relay = Relay(server.port)
    with handle_of(relay.address) as one, handle_of(server) as other:
        assert dss.dss_lock_status(one, "id")[0] == ENOLCK
        relay.hold()
        outcome: list[int] = []
        locking = threading.Thread(target=lambda: outcome.append(dss.dss_lock(one, "id", "o")))
        locking.start()
        assert eventually(lambda: relay.held > 0)
        old = relay.pass_new()
        locking.join()
        assert outcome == [0]
        assert dss.dss_unlock(one, "id", "o") == 0
        served = server.stats()["DURABLE_REQUESTS"]
        old.set()
        assert eventually(lambda: server.stats()["DURABLE_REQUESTS"] > served)
        assert dss.dss_lock_status(other, "id")[0] == ENOLCK
    relay.close()


def test_what_was_given_up_is_not_carried_out_after_the_next_call(
    tmp_path: Path, servers: list[Server]
) -> None:
    """A lock without an answer is -ECOMM; once the handle has asked anything else, it is known."""
    server = begin(servers, tmp_path)
    relay = Relay(server.port)
    with handle_of(server) as other, durable.DurableLocks(relay.address, timeout=0.3) as locks:
        relay.hold()
        with pytest.raises(ConnectionLost, match="not known whether"):
            locks.lock("id", "o")
        held = relay.pass_new()
        assert locks.status("id") is None
        served = server.stats()["DURABLE_REQUESTS"]
        held.set()
        assert eventually(lambda: server.stats()["DURABLE_REQUESTS"] > served)
        assert dss.dss_lock_status(other, "id")[0] == ENOLCK
    relay.close()


def test_no_answer_for_ten_seconds_is_an_unknown_outcome(tmp_path: Path) -> None:
    with Child(tmp_path) as primary, handle_of(primary.address) as one:
        assert dss.dss_lock(one, "held", "o") == 0
        primary.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        outcomes: list[object] = []
        asking = [threading.Thread(target=lambda call=call: outcomes.append(call()))
                  for call in (lambda: dss.dss_lock(one, "new", "o"),
                               lambda: dss.dss_lock(one, "held", "o"),
                               lambda: dss.dss_unlock(one, "none", "o"),
                               lambda: dss.dss_lock_status(one, "none")[0])]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert outcomes == [ECOMM] * 4
        assert 9.9 < time.monotonic() - began < 10 + LIMIT_S
        primary.process.send_signal(signal.SIGCONT)
        assert eventually(lambda: dss.dss_lock_status(one, "held")[:2] == (0, "o"))
        found = [dss.dss_lock_status(one, "new")[0] for _ in range(5)]
        assert len(set(found[1:])) == 1  # whichever it is, it stays so


def test_a_handle_works_again_when_the_primary_is_back(tmp_path: Path) -> None:
    with Child(tmp_path) as first, handle_of(first.address) as one:
        assert dss.dss_lock(one, "id", "o") == 0
        first.kill()
        outcome: list[int] = []
        asking = threading.Thread(target=lambda: outcome.append(dss.dss_lock(one, "id", "x")))
        asking.start()
        with Child(tmp_path, first.port):
            asking.join()
            assert outcome == [EEXIST]
            assert dss.dss_unlock(one, "id", "o") == 0


# ---- Kills ---------------------------------------------------------------------------------------


class Owner(threading.Thread):
    """Takes and gives back ids that are its own, and knows what must be so."""

    def __init__(self, address: str, number: int, seed: int, patience_s: float = 20) -> None:
        super().__init__()
        self._handle = opened(address)
        assert self._handle._locks is not None
        self._handle._locks._timeout_s = patience_s
        self._number = number
        self._chance = random.Random(seed)
        self.held: dict[str, bool] = {}
        self.wrong: list[str] = []
        self.calls = 0
        self.stopping = False

    def run(self) -> None:
        while not self.stopping and not self.wrong:
            self._turn(f"{self._number}/{self._chance.randrange(8)}")
        dss.dss_fini(self._handle)

    def _turn(self, lock_id: str) -> None:
        held = self.held.get(lock_id, False)
        asked = self._chance.choice([dss.dss_lock, dss.dss_unlock, dss.dss_lock_refresh])
        told = asked(self._handle, lock_id, "o")
        self.calls += 1
        wanted = (EEXIST if held else 0) if asked is dss.dss_lock else (0 if held else ENOLCK)
        if told == ECOMM:
            self.held[lock_id] = dss.dss_lock_status(self._handle, lock_id)[0] == 0
        elif told != wanted:
            self.wrong.append(f"{asked.__name__}({lock_id}) gave {told}, not {wanted}")
        elif told == 0:
            self.held[lock_id] = asked is not dss.dss_unlock


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(
    tmp_path: Path, seed: int
) -> None:
    """Between a request and its answer too: the handles ask again, and are told what came of it."""
    chance = random.Random(seed)
    primary = Child(tmp_path)
    owners = [Owner(primary.address, number, 100 * seed + number) for number in range(4)]
    try:
        for one in owners:
            one.start()
        for _ in range(6):
            before = sum(one.calls for one in owners)
            assert eventually(lambda before=before: sum(one.calls for one in owners) > before + 20)
            time.sleep(chance.random() / 20)
            primary.kill()
            primary = Child(tmp_path, primary.port)
        for one in owners:
            one.stopping = True
            one.join()
        assert [one.wrong for one in owners] == [[]] * 4
        with handle_of(primary.address) as last:
            for one in owners:
                for lock_id, held in one.held.items():
                    assert dss.dss_lock_status(last, lock_id)[0] == (0 if held else ENOLCK)
    finally:
        for one in owners:
            one.stopping = True
        primary.kill()


@pytest.mark.parametrize("seed", range(3))
def test_a_stopped_primary_that_was_replaced_answers_nothing(tmp_path: Path, seed: int) -> None:
    """It stands still anywhere, in the middle of a commit too, while another one takes over."""
    chance = random.Random(seed)
    with Child(tmp_path) as old, contextlib.ExitStack() as stack:
        owners = [Owner(old.address, number, seed, 2) for number in range(4)]
        for one in owners:
            one.start()
        assert eventually(lambda: sum(one.calls for one in owners) > 100)
        time.sleep(chance.random() / 50)
        old.process.send_signal(signal.SIGSTOP)
        new = stack.enter_context(Child(tmp_path))
        with handle_of(new.address) as at_new:
            for one in owners:
                one.stopping = True
            for lock_id in (f"{number}/{place}" for number in range(4) for place in range(8)):
                dss.dss_unlock(at_new, lock_id, None)
                assert dss.dss_lock(at_new, lock_id, "new") == 0
            old.process.send_signal(signal.SIGCONT)
            for one in owners:
                one.join()  # whatever the old one says now, nothing contradicts what they know
            assert [one.wrong for one in owners] == [[]] * 4
            assert old.process.wait(LIMIT_S) is not None
            for lock_id in (f"{number}/{place}" for number in range(4) for place in range(8)):
                assert dss.dss_lock_status(at_new, lock_id)[:2] == (0, "new")


def test_a_running_primary_that_is_replaced_acknowledges_nothing_more(tmp_path: Path) -> None:
    """Its session_ttl is so long that nothing but the look after each commit can tell it."""
    held: list[str] = []
    with Child(tmp_path, ttl_ms=120_000) as old, durable.DurableLocks(
            old.address, timeout=3) as locks:
        ended: list[Exception] = []

        def ask() -> None:
            try:
                for number in range(1_000_000):
                    locks.lock(f"{number}", "o")
                    held.append(f"{number}")
            except (ConnectionLost, ClientClosed) as problem:
                ended.append(problem)

        asking = threading.Thread(target=ask)
        asking.start()
        assert eventually(lambda: len(held) > 100)
        with Child(tmp_path) as new, handle_of(new.address) as at_new:
            assert old.process.wait(LIMIT_S) is not None
            locks.close()
            asking.join()
            assert len(ended) == 1
            lost = [one for one in held if dss.dss_lock_status(at_new, one)[:2] != (0, "o")]
            assert not lost, f"{len(lost)} of {len(held)}"


def test_what_the_old_primary_acknowledged_before_it_stopped_is_there(tmp_path: Path) -> None:
    with Child(tmp_path) as old, handle_of(old.address) as at_old:
        for number in range(300):
            assert dss.dss_lock(at_old, f"{number}", "o") == 0
        old.process.send_signal(signal.SIGSTOP)
        with Child(tmp_path) as new, handle_of(new.address) as at_new:
            for number in range(300):
                assert dss.dss_lock_status(at_new, f"{number}")[:2] == (0, "o")


# ---- Not the last primary's directory ------------------------------------------------------------


def refused(server: Server) -> bool:
    with handle_of(server) as one:
        outcomes = {dss.dss_lock(one, "x", "o"), dss.dss_lock_refresh(one, "x", "o"),
                    dss.dss_unlock(one, "x", None), dss.dss_lock_status(one, "x")[0]}
    return outcomes == {ECOMM}


def served(server: Server) -> bool:
    with handle_of(server) as one:
        return dss.dss_lock(one, "x", "o") == 0 and dss.dss_unlock(one, "x", "o") == 0


def again(server: Server, servers: list[Server], folder: Path, **config: Any) -> Server:
    server.stop()
    return begin(servers, folder, **config)


def test_an_empty_directory_behind_a_known_epoch_is_refused(
    tmp_path: Path, servers: list[Server], caplog: pytest.LogCaptureFixture
) -> None:
    server = begin(servers, tmp_path, epoch_above=5)
    assert refused(server)
    assert "--accept-empty-state" in caplog.text
    server = again(server, servers, tmp_path)  # whose epoch is right by now
    assert refused(server)
    server = again(server, servers, tmp_path, accept_empty_state=True)
    assert served(server)
    assert served(again(server, servers, tmp_path))


def test_the_directory_of_the_last_epoch_is_served(
    tmp_path: Path, servers: list[Server]
) -> None:
    server = begin(servers, tmp_path)
    server = again(server, servers, tmp_path, epoch_above=server.epoch)
    assert served(server)


@pytest.mark.parametrize("lost", ["an older copy", "everything"])
def test_a_handle_shows_that_a_directory_is_not_the_last_ones(
    tmp_path: Path, servers: list[Server], lost: str
) -> None:
    copy = tmp_path / "copy"
    server = begin(servers, tmp_path / "state")
    server.stop()
    if lost == "an older copy":
        (tmp_path / "state").rename(copy)
        (tmp_path / "state").mkdir()
        for file in copy.iterdir():
            (tmp_path / "state" / file.name).write_bytes(file.read_bytes())
    server = begin(servers, tmp_path / "state")
    with handle_of(server) as one:
        assert dss.dss_lock(one, "id", "o") == 0
        server.stop()
        server = begin(servers, copy, port=server.port)
        if lost == "everything":
            server = again(server, servers, copy, port=server.port)  # its epoch has caught up
        assert served(server)  # nobody has shown anything yet
        assert dss.dss_lock_status(one, "id") == (ECOMM, None, None)
        assert refused(server)
        server = again(server, servers, copy, port=server.port)
        assert refused(server)
        server = again(server, servers, copy, port=server.port, accept_empty_state=True)
        assert dss.dss_lock_status(one, "id")[0] == ENOLCK
        server = again(server, servers, copy, port=server.port)
        assert dss.dss_lock(one, "id", "o") == 0


def test_a_session_shows_it_too(tmp_path: Path, servers: list[Server]) -> None:
    server = begin(servers, tmp_path)
    link = ControlLink.connect(server.host, server.port, LIMIT_S)
    link.request(m.ClientReinit(1, 1, 7, bytes(16), 9, 1, 1, {}), LIMIT_S)
    assert eventually(lambda: refused(server))
    link.close()


def test_a_store_that_somebody_removed_is_refused(tmp_path: Path, servers: list[Server]) -> None:
    server = begin(servers, tmp_path)
    server.stop()
    for file in tmp_path.glob("durable-*"):
        file.unlink()
    server = begin(servers, tmp_path)
    assert refused(server)
    assert served(again(server, servers, tmp_path, accept_empty_state=True))


def test_a_directory_of_an_earlier_version_has_an_empty_store(
    tmp_path: Path, servers: list[Server]
) -> None:
    server = begin(servers, tmp_path)
    server.stop()
    for file in tmp_path.glob("durable-*"):
        file.unlink()
    state = tmp_path / "state-1"
    data = state.read_bytes().partition(b" ")[2].replace(b', "durable": true', b"")
    state.write_bytes(b"%08x " % zlib.crc32(data) + data)
    assert served(begin(servers, tmp_path))


def test_without_a_state_directory_it_is_refused_and_logged_once(
    servers: list[Server], caplog: pytest.LogCaptureFixture
) -> None:
    server = begin(servers, None)
    assert refused(server)
    assert refused(server)
    assert caplog.text.count("nothing durable is served") == 1
    assert server.stats()["DURABLE_REFUSED"] >= 8
