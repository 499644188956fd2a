"""Connecting, closing, leaving: the life of a client while its server does nothing odd."""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mirror_tools import line_of, run_python
from session_tools import acquire, confirmed, key, release, until

import dlock
from dlock import _info, errors
from dlock._calls import Outcome
from dlock.control.link import ControlLink
from dlock.server import Server, ServerConfig

SETTINGS = {"port": 0, "wait_mode": "block"}


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server(ServerConfig(**SETTINGS))
    yield one
    one.stop()


def nobody() -> str:
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


# ---- Connecting ----------------------------------------------------------------------------------


def test_connect_and_close(server: Server) -> None:
    with dlock.connect(server.address) as client:
        assert client.address == server.address
        assert 0 < client.session_left <= 10
        assert client.stats()["clients"] == 1
        handle = acquire(client, key("a"))
        assert release(handle) is Outcome.DONE
        assert not client.closed
    assert client.closed
    assert server.stats()["clients"] == 0
    client.close()  # again: nothing
    for use in (client.stats, lambda: client._take(key("a"), 0, 0.0), client.__enter__):
        with pytest.raises(errors.ClientClosed):
            use()


def test_the_environment_names_the_server(server: Server, monkeypatch) -> None:
    monkeypatch.setenv("DLOCK_ADDRESS", server.address)
    dlock.connect().close()


def test_nobody_there_is_an_error_that_says_where_and_what_to_do() -> None:
    address = nobody()
    with pytest.raises(errors.ConnectError) as raised:
        dlock.connect(address, timeout=0.2)
    assert isinstance(raised.value, ConnectionError)
    for part in (address, "refused", "dlock serve", "DLOCK_ADDRESS"):
        assert part in str(raised.value)


def test_a_server_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(errors.ConnectError, match="no answer in time"):
            dlock.connect(address, timeout=0.2)
        assert time.monotonic() - started < 60


def test_several_addresses_are_tried_in_turn(server: Server) -> None:
    dlock.connect(f"{nobody()},{server.address}").close()
    first, second = nobody(), nobody()
    with pytest.raises(errors.ConnectError) as raised:
        dlock.connect(f"{first},{second}", timeout=0.1)
    assert first in str(raised.value)
    assert second in str(raised.value)


def test_an_address_file_may_appear_later(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "address"
    with pytest.raises(errors.ConnectError, match=r"address file .* cannot be read"):
        dlock.connect(path, timeout=0.1)
    timer = threading.Timer(0.3, path.write_text, (f"{server.address}\nepoch 1 pid 2\n",))
    timer.start()
    dlock.connect(str(path)).close()
    timer.join()


def is_refused(address: str, why: str) -> None:
    """Asked again while an answer takes longer than a client that is in a hurry gives it."""

    def is_told_why() -> bool:
        with pytest.raises(errors.ConnectError) as raised:
            dlock.connect(address, timeout=0.1)
        return why in str(raised.value)

    until(is_told_why)


def test_a_server_that_settles_is_waited_for() -> None:
    server = Server(ServerConfig(**SETTINGS, settle_blindly=True, session_ttl_ms=3000))
    is_refused(server.address, "predecessor")
    dlock.connect(server.address).close()
    server.stop()


def test_a_full_server_says_so(server: Server) -> None:
    full = Server(ServerConfig(**SETTINGS, max_clients=1))
    with dlock.connect(full.address):
        is_refused(full.address, "--max-clients")
    full.stop()


def test_waiting_modes(server: Server, monkeypatch) -> None:
    for mode in ("adaptive", "block", "poll"):
        with dlock.connect(server.address, wait=mode) as client:
            release(acquire(client, key("a")))
    with pytest.raises(ValueError, match="'hasty'"):
        dlock.connect(server.address, wait="hasty")
    monkeypatch.setenv("DLOCK_WAIT", "lazy")
    with pytest.raises(ValueError, match="'lazy'"):
        dlock.connect(server.address)


# ---- Who it is -----------------------------------------------------------------------------------


def test_what_a_client_tells_about_itself(server: Server, caplog, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("USER", "ada")
    with caplog.at_level(logging.DEBUG, "dlock.control"):
        dlock.connect(server.address, name="solver").close()
    (opened,) = [one for one in caplog.records if getattr(one, "event", "") == "session opened"]
    assert opened.fields["info"] == {
        "host": socket.gethostname(), "pid": os.getpid(), "user": "ada", "program": "solver",
        "job": "4711 rank 3"}


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"PBS_JOBID": "9.head", "PMI_RANK": "0"}, "9.head rank 0"),
        ({"PMIX_RANK": "2"}, "rank 2"),
        ({"OMPI_COMM_WORLD_RANK": "5"}, "rank 5"),
    ],
)
def test_jobs(environment: dict[str, str], job: str | None) -> None:
    assert _info.client_info(None, environment).get("job") == job


def test_long_names_are_cut_between_characters() -> None:
    program = _info.client_info("\N{EURO SIGN}" * 100)["program"]
    assert program == "\N{EURO SIGN}" * (_info.TEXT_BYTES_MAX // 3)


# ---- The end -------------------------------------------------------------------------------------


def test_closing_frees_at_once_what_was_held(server: Server) -> None:
    one, two = dlock.connect(server.address), dlock.connect(server.address)
    handle = acquire(one, key("a"))
    assert confirmed(handle)
    one.close()
    assert not confirmed(handle)
    release(acquire(two, key("a")))
    two.close()


def test_closing_ends_the_belief_before_the_hold(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server is about to free, nobody in the program believes to hold any more."""
    client = dlock.connect(server.address)
    lock = client.lock("a")
    lock.acquire()
    beliefs, real = [], ControlLink.request

    def request(link: ControlLink, *arguments: Any) -> Any:
        beliefs.append(lock.held)
        return real(link, *arguments)

    monkeypatch.setattr(ControlLink, "request", request)
    client.close()
    assert beliefs == [False]


def test_closing_ends_every_wait(server: Server, background) -> None:
    one, two = dlock.connect(server.address), dlock.connect(server.address)
    held = acquire(one, key("a"))
    waits = [background(acquire, two, key("a")) for _ in range(8)]
    until(lambda: server.stats()["WAITS"] >= 8)
    two.close()
    for wait in waits:
        with pytest.raises(errors.ClientClosed):
            wait.result(timeout=30)
    release(held)
    one.close()


def test_closing_from_another_thread_while_names_are_asked_for(server: Server, background) -> None:
    client = dlock.connect(server.address)

    def work(number: int) -> None:
        for turn in range(100_000):
            release(acquire(client, key(f"{number} {turn}")))

    workers = [background(work, number) for number in range(4)]
    until(lambda: server.stats()["locks"] > 20)
    client.close()
    for worker in workers:
        with pytest.raises(errors.ClientClosed):
            worker.result(timeout=30)
    until(lambda: server.stats()["locks"] == 0)


def test_a_client_that_is_dropped_warns_and_leaves(server: Server) -> None:
    client = dlock.connect(server.address)
    handle = acquire(client, key("a"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del client
        gc.collect()
    assert any(issubclass(one.category, ResourceWarning) for one in caught)
    until(lambda: server.stats()["clients"] == 0)
    del handle


def test_one_shared_client_an_address(server: Server) -> None:
    one = dlock.shared(server.address)
    assert dlock.shared(server.address) is one
    one.close()
    two = dlock.shared(server.address)
    assert two is not one
    two.close()


EXITS = """
import os, sys, threading, time
sys.path.insert(0, sys.argv[2])
import dlock
from session_tools import acquire, key

client = dlock.connect(sys.argv[1])
handle = acquire(client, key("a"))
print("holds", flush=True)

def busy():
    threading.Thread(target=lambda _: time.sleep(60), args=(client,), daemon=True).start()
"""


@pytest.mark.parametrize(
    "how", ["pass", "sys.exit(0)", "raise ValueError", "del client, handle", "busy()"]
)
def test_at_exit_everything_is_free_at_once(server: Server, how: str) -> None:
    process = run_python(EXITS + how + "\n", server.address, Path(__file__).parent)
    assert line_of(process) == "holds"
    process.communicate(timeout=60)
    assert server.stats()["clients"] == 0  # not after the session's time to live
    with dlock.connect(server.address) as client:
        release(acquire(client, key("a")))


def test_an_exit_without_a_server_does_not_hang(server: Server) -> None:
    process = run_python(EXITS + "sys.stdin.read()", server.address, Path(__file__).parent)
    assert line_of(process) == "holds"
    server.stop()
    process.communicate("", timeout=60)
    assert process.returncode == 0


FORKS = """
import os, sys, gc, time
sys.path.insert(0, sys.argv[2])
import dlock
from dlock import errors
from session_tools import ByHand, acquire, confirmed, key, release

client = dlock.connect(sys.argv[1])
handle, idle = acquire(client, key("a")), acquire(client, key("b"))
release(idle)
same = dlock.shared(sys.argv[1])
child = os.fork()
if child == 0:
    raised = 0
    for use in (
        client.stats, client.__enter__, lambda: acquire(client, key("b")), same.stats,
        lambda: acquire(client, key("new")), lambda: acquire(client, key("a")),
        lambda: release(handle), lambda: client._link_lost(client._session),
    ):
        try:
            use()
        except errors.ForkedError as problem:
            assert "fork" in str(problem)
            raised += 1
    client.close()  # nothing
    own = dlock.shared(sys.argv[1])
    assert own is not same
    release(acquire(own, key("c")))
    print(raised, flush=True)
    del client, handle, idle
    gc.collect()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
print(confirmed(handle), release(handle).name, client.stats()["clients"], flush=True)
sys.stdin.read()
"""


def test_a_forked_child_may_not_use_it_and_the_parent_goes_on(server: Server) -> None:
    process = run_python(FORKS, server.address, Path(__file__).parent)
    assert line_of(process) == "8"
    assert line_of(process) == "True DONE 2"
    process.communicate("", timeout=60)
    assert process.returncode == 0


def test_import_dlock_starts_nothing() -> None:
    process = run_python(
        "import sys, threading, dlock\n"
        "print(threading.active_count(), 'asyncio' in sys.modules, 'dlock.server' in sys.modules)")
    assert line_of(process) == "1 False False"
    process.communicate(timeout=60)
