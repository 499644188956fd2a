"""`dlock.dss`: every outcome of its calls, the texts and addresses they take, threads and forks."""

from __future__ import annotations

import errno
import inspect
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dss_tools import LIMIT_S, opened, start

from dlock import dss
from dlock.dss import DssHandle, Timeval
from dlock.errors import ForkedError
from dlock.server import Server

EEXIST, ENOLCK, EACCES, EINVAL = (
    -errno.EEXIST, -errno.ENOLCK, -errno.EACCES, -errno.EINVAL)
NOTHING = None, None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = start(tmp_path_factory.mktemp("state"))
    yield one
    one.stop()


@pytest.fixture
def handle(server: Server, request: pytest.FixtureRequest) -> Iterator[DssHandle]:
    """A handle; ids of each test are its own, by `mine`."""
    one = opened(server)
    yield one
    dss.dss_fini(one)


@pytest.fixture
def mine(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name}/{os.urandom(4).hex()}"


# ---- The table -----------------------------------------------------------------------------------


def test_lock_takes_what_nobody_has(handle: DssHandle, mine: str) -> None:
    assert dss.dss_lock(handle, mine, "o") == 0
    assert dss.dss_lock(handle, mine, "o") == EEXIST  # not reentrant
    assert dss.dss_lock(handle, mine, "another") == EEXIST
    assert dss.dss_lock_status(handle, mine)[:2] == (0, "o")


def test_refresh_is_the_owners(handle: DssHandle, mine: str) -> None:
    assert dss.dss_lock_refresh(handle, mine, "o") == ENOLCK
    dss.dss_lock(handle, mine, "o")
    taken = dss.dss_lock_status(handle, mine)
    assert dss.dss_lock_refresh(handle, mine, "another") == EACCES
    assert dss.dss_lock_status(handle, mine) == taken
    time.sleep(0.002)
    assert dss.dss_lock_refresh(handle, mine, "o") == 0
    refreshed = dss.dss_lock_status(handle, mine)
    assert refreshed[2] > taken[2]  # type: ignore[operator]


def test_unlock_is_the_owners(handle: DssHandle, mine: str) -> None:
    assert dss.dss_unlock(handle, mine, "o") == ENOLCK
    dss.dss_lock(handle, mine, "o")
    assert dss.dss_unlock(handle, mine, "another") == EACCES
    assert dss.dss_lock_status(handle, mine)[:2] == (0, "o")
    assert dss.dss_unlock(handle, mine, "o") == 0
    assert dss.dss_lock_status(handle, mine) == (ENOLCK, *NOTHING)


def test_none_forces_an_unlock(handle: DssHandle, mine: str) -> None:
    assert dss.dss_unlock(handle, mine, None) == ENOLCK
    for owner in ("o", ""):
        dss.dss_lock(handle, mine, owner)
        assert dss.dss_unlock(handle, mine, None) == 0
        assert dss.dss_lock_status(handle, mine)[0] == ENOLCK


def test_an_empty_owner_forces_nothing(handle: DssHandle, mine: str) -> None:
    dss.dss_lock(handle, mine, "o")
    assert dss.dss_unlock(handle, mine, "") == EACCES
    assert dss.dss_lock_refresh(handle, mine, "") == EACCES
    dss.dss_unlock(handle, mine, "o")
    assert dss.dss_lock(handle, mine, "") == 0
    assert dss.dss_lock_status(handle, mine)[1] == ""
    assert dss.dss_unlock(handle, mine, b"") == 0


def test_status_says_who_and_since_when(handle: DssHandle, mine: str) -> None:
    before = time.time()
    dss.dss_lock(handle, mine, b"o\xc3\xa9")
    after = time.time()
    error, owner, when = dss.dss_lock_status(handle, mine)
    assert (error, owner) == (0, "o\xe9")
    assert isinstance(when, Timeval)
    assert type(when.tv_sec) is type(when.tv_usec) is int
    assert 0 <= when.tv_usec < 1_000_000
    assert before - 1e-5 <= when.tv_sec + when.tv_usec / 1e6 <= after + 1e-5


def test_any_handle_that_gives_the_owner_may_unlock(server: Server, mine: str) -> None:
    one, two = opened(server), opened(server)
    assert dss.dss_lock(one, mine, "o") == 0
    assert dss.dss_lock(two, mine, "o") == EEXIST
    dss.dss_fini(one)
    assert dss.dss_lock_refresh(two, mine, "o") == 0
    assert dss.dss_unlock(two, mine, "o") == 0
    dss.dss_fini(two)


# ---- Texts ---------------------------------------------------------------------------------------

ODD_TEXTS = ["", " ", "it's", 'say "x"', "a;DROP TABLE dss_lock;--", "%s%d", "\\", "\n\t\x01\x7f",
             "\xe9", "e\u0301", "\U0001f600" * 256, "\ufeff", "\uffff", "x" * 256]
PAIRS = [("a", "A"), ("a", "a "), ("\xe9", "e\u0301"), ("", " "), ("1", "1.0"), ("(a,b)", "(a, b)")]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=range(len(ODD_TEXTS)))
def test_every_valid_text_is_an_id_and_an_owner(server: Server, tmp_path: Path, text: str) -> None:
    own = start(tmp_path) if text == "" else server
    one = opened(own)
    assert dss.dss_lock(one, text, text) == 0
    assert dss.dss_lock(one, text.encode(), "x") == EEXIST  # bytes are the same text
    assert dss.dss_lock_status(one, text)[:2] == (0, text)
    assert dss.dss_unlock(one, text, text.encode()) == 0
    dss.dss_fini(one)
    if own is not server:
        own.stop()


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_comparison_is_exact(handle: DssHandle, mine: str, one: str, other: str) -> None:
    assert dss.dss_lock(handle, mine + one, one) == 0
    assert dss.dss_lock(handle, mine + other, other) == 0
    assert dss.dss_unlock(handle, mine + one, other) == EACCES


@pytest.mark.parametrize("letter", ["x", "\xe9", "\U0001f600"])
def test_limits_count_characters(handle: DssHandle, letter: str) -> None:
    assert dss.dss_lock(handle, letter * 2048, letter * 256) == 0
    assert dss.dss_lock(handle, (letter * 2048).encode(), "o") == EEXIST
    assert dss.dss_unlock(handle, letter * 2048, letter * 256) == 0
    for long in (letter * 2049, (letter * 2049).encode()):
        assert dss.dss_lock(handle, long, "o") == EINVAL
        assert dss.dss_lock_status(handle, long) == (EINVAL, *NOTHING)
    for long in (letter * 257, (letter * 257).encode()):
        assert dss.dss_lock(handle, "id", long) == EINVAL
        assert dss.dss_lock_refresh(handle, "id", long) == EINVAL
        assert dss.dss_unlock(handle, "id", long) == EINVAL


BAD_TEXTS = ["\0", "a\0b", b"\0", "\ud800", "a\udfff", b"\xff", b"\xc0\x80", b"\xed\xa0\x80",
             b"\xf4\x90\x80\x80", b"\xe2\x82"]


@pytest.mark.parametrize("text", BAD_TEXTS, ids=ascii)
def test_what_is_no_valid_text_is_invalid(handle: DssHandle, text: str | bytes) -> None:
    assert dss.dss_lock(handle, text, "o") == EINVAL
    assert dss.dss_lock(handle, "id", text) == EINVAL
    assert dss.dss_lock_refresh(handle, text, "o") == EINVAL
    assert dss.dss_lock_refresh(handle, "id", text) == EINVAL
    assert dss.dss_unlock(handle, text, None) == EINVAL
    assert dss.dss_unlock(handle, "id", text) == EINVAL
    assert dss.dss_lock_status(handle, text) == (EINVAL, *NOTHING)


def test_none_is_invalid_but_for_the_owner_of_an_unlock(handle: DssHandle) -> None:
    assert dss.dss_lock(handle, None, "o") == EINVAL
    assert dss.dss_lock(handle, "id", None) == EINVAL
    assert dss.dss_lock_refresh(handle, None, "o") == EINVAL
    assert dss.dss_lock_refresh(handle, "id", None) == EINVAL
    assert dss.dss_unlock(handle, None, "o") == EINVAL
    assert dss.dss_unlock(handle, None, None) == EINVAL
    assert dss.dss_lock_status(handle, None) == (EINVAL, *NOTHING)


@pytest.mark.parametrize("wrong", [1, 1.5, True, bytearray(b"x"), memoryview(b"x"), ["x"]])
def test_other_types_raise(handle: DssHandle, wrong: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: dss.dss_lock(handle, wrong, "o"), lambda: dss.dss_lock(handle, "id", wrong),
        lambda: dss.dss_lock_refresh(handle, wrong, "o"),
        lambda: dss.dss_lock_refresh(handle, "id", wrong),
        lambda: dss.dss_unlock(handle, wrong, None), lambda: dss.dss_unlock(handle, "id", wrong),
        lambda: dss.dss_lock_status(handle, wrong), lambda: DssHandle(wrong),
        lambda: dss.dss_init(wrong), lambda: dss.dss_fini(wrong),
        lambda: dss.dss_lock(wrong, "id", "o"),
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()


# ---- Handles -------------------------------------------------------------------------------------


def test_a_handle_that_is_not_open_is_invalid(server: Server) -> None:
    one = DssHandle(server.address)
    for _ in range(2):
        dss.dss_fini(one)
        assert dss.dss_lock(one, "id", "o") == EINVAL
        assert dss.dss_lock_refresh(one, "id", "o") == EINVAL
        assert dss.dss_unlock(one, "id", None) == EINVAL
        assert dss.dss_lock_status(one, "id") == (EINVAL, *NOTHING)
        assert dss.dss_init(one) == 0
        assert dss.dss_lock_status(one, "nobody has this") == (ENOLCK, *NOTHING)
        dss.dss_fini(one)
    assert dss.dss_init(one) == dss.dss_init(one) == 0  # opened anew
    dss.dss_fini(one)


def test_names_and_places_of_arguments_are_those_of_c() -> None:
    wanted = {
        "dss_init": "handle", "dss_fini": "handle", "dss_lock": "handle lock_id lock_owner",
        "dss_lock_refresh": "handle lock_id lock_owner", "dss_unlock": "handle lock_id lock_owner",
        "dss_lock_status": "handle lock_id",
    }
    for name, words in wanted.items():
        parameters = inspect.signature(getattr(dss, name)).parameters
        assert list(parameters) == words.split()
        assert all(one.default is inspect.Parameter.empty for one in parameters.values())
    assert Timeval(1, 2) == (1, 2)
    assert Timeval._fields == ("tv_sec", "tv_usec")
    assert pickle.loads(pickle.dumps(Timeval(1, 2))).tv_usec == 2


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that names no primary."""
    monkeypatch.delenv("DLOCK_ADDRESS", raising=False)
    monkeypatch.delenv("PHOBOS_DSS_connect_string", raising=False)
    return monkeypatch


def init(address: str | None = None) -> int:
    one = DssHandle(address)
    try:
        return dss.dss_init(one)
    finally:
        dss.dss_fini(one)


NOBODY = "127.0.0.1:1"


def test_the_handles_address_comes_first(bare: pytest.MonkeyPatch, server: Server) -> None:
    assert init() == EINVAL
    good = f"host={server.host} port={server.port}"
    bare.setenv("PHOBOS_DSS_connect_string", good)
    assert init() == 0
    bare.setenv("DLOCK_ADDRESS", NOBODY)
    assert init() == -errno.ENOTCONN
    assert init(server.address) == 0
    bare.setenv("DLOCK_ADDRESS", server.address)
    bare.setenv("PHOBOS_DSS_connect_string", "nonsense")
    assert init() == 0
    assert init(NOBODY) == -errno.ENOTCONN


@pytest.mark.parametrize("address", ["", ":", "host:", "host:0", "host:65536", "host:x", "a b:1",
                                     "[::1", ","])
def test_an_address_that_cannot_be_read_is_invalid(
    bare: pytest.MonkeyPatch, address: str
) -> None:
    assert init(address) == EINVAL
    if address:
        bare.setenv("DLOCK_ADDRESS", address)
        assert init() == EINVAL


STRINGS = [
    "dbname=phobos host={host} user=phobos password=phobos port={port}",
    "host = {host}  port\t=\n{port}",
    "host='{host}' port='{port}' password='a b\\'c\\\\' ",
    "password=a\\ b\\'c host={host} port={port}",
    "host=elsewhere host={host} port={port} options=''",
    "port={port} application_name='host=x' host={host}",
]


@pytest.mark.parametrize("text", STRINGS)
def test_a_connection_string_is_read_as_libpq_does(
    bare: pytest.MonkeyPatch, server: Server, text: str
) -> None:
    bare.setenv("PHOBOS_DSS_connect_string", text.format(host=server.host, port=server.port))
    assert init() == 0


@pytest.mark.parametrize("text", [
    "", " ", "dbname=phobos", "host='' port=5", "host='127.0.0.1", "host", "=x host=h", "host h",
    "host=h port=x", "host=h port=0", "host=h port=70000", "host=a,b", "host=/tmp", "host='a b'",
])
def test_a_connection_string_that_names_no_primary_is_invalid(
    bare: pytest.MonkeyPatch, text: str
) -> None:
    bare.setenv("PHOBOS_DSS_connect_string", text)
    assert init() == EINVAL


def test_the_port_of_a_connection_string_is_21616_without_one(bare: pytest.MonkeyPatch) -> None:
    for text in ("host=127.0.0.1", "host=127.0.0.1 port=''"):
        address = dss._address(None, {"PHOBOS_DSS_connect_string": text})
        assert str(address) == "127.0.0.1:21616"


def test_nobody_answers() -> None:
    began = time.monotonic()
    assert init(NOBODY) == -errno.ENOTCONN
    assert init("no-such-host.invalid:7") == -errno.ENOTCONN
    assert init("/no/such/file") == -errno.ENOTCONN
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert init(f"127.0.0.1:{silent.getsockname()[1]}") == -errno.ENOTCONN
    assert time.monotonic() - began < 3 * LIMIT_S


def test_what_is_no_primary_is_not_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:

        def talk() -> None:
            with stranger.accept()[0] as peer:
                peer.recv(100)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        talking = threading.Thread(target=talk)
        talking.start()
        assert init(f"127.0.0.1:{stranger.getsockname()[1]}") == -errno.ENOTCONN
        talking.join()


# ---- Threads and processes -----------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_of_many_who_race_one_gets_it(server: Server, mine: str, shared: bool) -> None:
    threads = 16
    handles = [opened(server)] * threads if shared else [opened(server) for _ in range(threads)]
    for turn in range(10):
        gate = threading.Barrier(threads)
        outcomes: list[int] = []

        def race(one: DssHandle, owner: str, lock_id: str, gate: threading.Barrier,
                 outcomes: list[int]) -> None:
            gate.wait()
            outcomes.append(dss.dss_lock(one, lock_id, owner))

        racing = [threading.Thread(target=race, args=(one, str(number), f"{mine}/{turn}", gate,
                                                      outcomes))
                  for number, one in enumerate(handles)]
        for thread in racing:
            thread.start()
        for thread in racing:
            thread.join()
        assert sorted(outcomes) == [EEXIST] * (threads - 1) + [0]
    for one in handles:
        dss.dss_fini(one)


def in_child(body: Callable[[], bool]) -> bool:
    """Does it in a forked child; was it true there?"""
    child = os.fork()
    if child == 0:
        right = False
        try:
            right = body()
        finally:
            os._exit(0 if right else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_makes_its_own_handle(server: Server, mine: str) -> None:
    parents = opened(server)
    unopened = DssHandle(server.address)
    assert dss.dss_lock(parents, mine, "parent") == 0

    def child() -> bool:
        for call in (lambda: dss.dss_lock(parents, mine, "x"), lambda: dss.dss_fini(parents),
                     lambda: dss.dss_lock_status(parents, mine), lambda: dss.dss_init(parents)):
            with pytest.raises(ForkedError):
                call()
        ours = opened(server)
        right = (dss.dss_lock(ours, mine, "child") == EEXIST
                 and dss.dss_lock(ours, mine + "2", "child") == 0 and dss.dss_init(unopened) == 0
                 and dss.dss_lock_status(unopened, mine)[:2] == (0, "parent"))
        dss.dss_fini(ours)
        return right

    assert in_child(child)
    assert dss.dss_unlock(parents, mine, "parent") == 0  # its connection is as it was
    assert dss.dss_lock_status(parents, mine + "2")[:2] == (0, "child")
    dss.dss_fini(parents)


def test_locks_outlive_the_process(server: Server, mine: str) -> None:
    def child() -> bool:
        return dss.dss_lock(opened(server), mine, "child") == 0

    assert in_child(child)
    one = opened(server)
    assert dss.dss_lock_status(one, mine)[:2] == (0, "child")
    dss.dss_fini(one)
