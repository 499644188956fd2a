"""`dlock recover` and the admin's view of a recovery, beside a server that waits for clients."""

from __future__ import annotations

import os
import pty
import re
import threading
from collections.abc import Iterator

import pytest
from cli_tools import TIMEOUT, dlock, started
from control_client import Client

from dlock.admin import Admin, RecoveryStatus
from dlock.control import messages as m
from dlock.server import Server, ServerConfig
from dlock.types import DlockStatus as S

SECRET = b"0123456789abcdef"


@pytest.fixture
def server() -> Iterator[Server]:
    """One that waits for three clients, whoever they are."""
    service = Server(ServerConfig(port=0, recovery_client_num=3, trusted=True))
    try:
        yield service
    finally:
        service.stop()


def reinit(client_id: int) -> m.ClientReinit:
    return m.ClientReinit(1, 1, client_id, SECRET, 0, 0, 1, {"host": "node7", "pid": client_id})


def come(server: Server, client_id: int, *, done: bool) -> Client:
    """A client of a former primary; it has said that it is done, or not."""
    client = Client(server.host, server.port, init=False)
    assert client.ask(reinit(client_id)).status is S.SUCCESS
    if done:
        assert client.ask(m.ReinitDone()).status is S.SUCCESS
    return client


def test_it_shows_whom_the_server_waits_for(server: Server) -> None:
    with come(server, 11, done=True), come(server, 12, done=False):
        done = dlock("recover", address=server.address)
        assert (done.code, done.err) == (0, "")
        first, _, *table = done.out.splitlines()
        assert re.fullmatch(
            r"recovering: 1 of 3 back, 0 evicted, 2 waited for; ready in .* at the latest", first)
        assert table[0].split() == ["CLIENT", "WHO", "STATE", "LEASE", "WAITED", "FOR"]
        assert table[1].split()[:4] == ["12", "node7", "12", "came"]
        assert table[2] == "... and 1 more"
        shown = dlock("recover", "--json", address=server.address).json
        assert (shown["ready"], shown["expected"], shown["back"]) == (False, 3, 1)
        assert shown["absent"][0]["client_id"] == 12
        stats = dlock("stats", "--json", address=server.address).json
        assert [stats[f"recovery_{name}"] for name in ("expected", "back", "absent")] == [3, 1, 2]
        assert (stats["recovering"], stats["ready"]) == (1, 0)


def test_a_server_that_is_ready() -> None:
    server = Server(ServerConfig(port=0))
    try:
        done = dlock("recover", "--evict", "--wait", "5", address=server.address)
        assert (done.code, done.out) == (0, "ready\n")
        with Admin(server.address) as admin:
            assert admin.recovery() == RecoveryStatus(True, 0, 0, 0, 0.0, 0, ())
            assert admin.await_ready(0)
    finally:
        server.stop()


def test_evict_ends_the_waiting(server: Server) -> None:
    with come(server, 11, done=True), come(server, 12, done=False):
        done = dlock("recover", "--evict", "--yes", address=server.address)
        assert (done.code, done.out) == (0, "ready: 1 of 3 clients came back, 2 were evicted\n")
    assert server.stats()["CLIENTS_EVICTED"] == 1, "the third has no name"


def test_evict_asks_and_needs_a_terminal_for_that(server: Server) -> None:
    done = dlock("recover", "--evict", address=server.address)
    assert done.code == 2
    assert "--yes" in done.err
    assert server.stats()["ready"] == 0


@pytest.mark.parametrize(("answer", "ready"), [("y", True), ("n", False), ("", False)])
def test_evict_takes_yes_for_an_answer(server: Server, answer: str, ready: bool) -> None:
    ours, theirs = pty.openpty()
    with started("recover", "--evict", address=server.address, stdin=theirs,
                 stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while b"[y/N]" not in said:
            said += os.read(ours, 4096)
        os.write(ours, f"{answer}\n".encode())
        assert process.wait(TIMEOUT) == (0 if ready else 1)
        with Admin(server.address) as admin:
            assert admin.recovery().ready is ready
    os.close(ours)


def test_evict_of_some(server: Server) -> None:
    with come(server, 11, done=True), come(server, 12, done=False), \
            come(server, 13, done=False) as last:
        done = dlock("recover", "--evict-client", "12", "--wait", "0", address=server.address)
        assert done.code == 75, "it waits for the third"
        done = dlock("recover", "--evict-client", "12", "13", address=server.address)
        assert done.code == 1, "one of them is evicted already"
        assert "not all of these" in done.err
        assert done.out.startswith("ready: 1 of 3")
        with Client(server.host, server.port, init=False) as again:
            assert again.ask(reinit(13)).status is S.CLIENT_REMOVED_BY_SERVER
        assert last is not None


def test_it_waits_until_the_server_is_ready(server: Server) -> None:
    with come(server, 11, done=True), come(server, 12, done=True), \
            come(server, 13, done=False) as last, Admin(server.address) as admin:
        assert dlock("recover", "--wait", "0.1", address=server.address).code == 75
        assert not admin.await_ready(0)
        waiting = threading.Thread(target=lambda: last.ask(m.ReinitDone()))
        waiting.start()
        done = dlock("recover", "--wait", "60", address=server.address)
        waiting.join()
        assert (done.code, done.out) == (0, "ready: 3 of 3 clients came back, 0 were evicted\n")


def test_the_admin_evicts_very_many(server: Server) -> None:
    with Admin(server.address) as admin:
        status = admin.evict(range(1, 3000))
        assert (status.ready, status.all_met) == (False, False)
        status = admin.evict()
        assert (status.ready, status.evicted, status.all_met) == (True, 3, True)
