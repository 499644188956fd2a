"""`dlock ls`, `show`, `stats` and `break` as processes, beside a server and clients of it."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from cli_tools import Done, dlock, finish, started, stopped_holder
from mirror_tools import ATOMIC, FAIR, RW, S, Service, ex, free_port, sh, until

from dlock import dclient
from dlock.admin import Admin
from dlock.types import LockDesc

NASTY = b"db/\xff\x1b[31m\n"
NASTY_SHOWN = r"db/\xff\x1b[31m\n"


def address(service: Service) -> str:
    return f"127.0.0.1:{service.port}"


_ids: dict[tuple[int, bytes], int] = {}


def got(client: int, name: bytes, kind: Any = ATOMIC) -> int:
    """The id of a lock, which the client gets at its first use."""
    if (client, name) in _ids:
        return _ids[client, name]
    status, lock_id = dclient.get_lock(client, LockDesc(name, kind))
    assert status is S.SUCCESS
    assert lock_id is not None
    return _ids.setdefault((client, name), lock_id)


def held(client: int, name: bytes, kind: Any = ATOMIC, *, shared: bool = False) -> int:
    """A client holds this lock; its token."""
    lock_id = got(client, name, kind)
    status, state = dclient.trylock(client, sh(lock_id) if shared else ex(lock_id))
    assert status is S.SUCCESS
    assert state is not None
    return int(state.token)


# ---- ls ------------------------------------------------------------------------------------------


def test_ls_lists_locks_with_holders_and_waiters(
    service: Service, background: Callable[..., Future[Any]]
) -> None:
    one, other = service.client(), service.client()
    held(one, b"b/held")
    got(one, b"a/idle", RW)
    held(one, b"c", RW, shared=True)
    held(other, b"c", RW, shared=True)
    waits = background(dclient.lock, other, ex(got(other, b"b/held")))
    with Admin(address(service)) as admin:
        until(lambda: any(lock.waiters for lock in admin.locks()))
    done = dlock("ls", address=address(service))
    assert (done.code, done.err) == (0, "")
    me = f"{socket.gethostname()}:{os.getpid()}"
    assert done.rows[0] == ["NAME", "KIND", "HOLDERS", "WAITERS", "DOOR", "CLIENT", "AGE"]
    assert [row[:4] for row in done.rows[1:]] == [
        ["a/idle", "rw", "0", "0"], ["b/held", "atomic", "1", "1"], ["c", "rw", "2", "0"]]
    assert done.rows[1][4:] == ["-", "-", "-"]
    assert done.rows[2][4:6] == done.rows[3][4:6]
    assert done.rows[2][4] == "-"
    assert done.rows[2][5].startswith(me)
    assert [row[0] for row in dlock("ls", "--busy", address=address(service)).rows[1:]] == [
        "b/held", "c"]
    assert [row[0] for row in dlock("ls", "b", address=address(service)).rows[1:]] == ["b/held"]
    found = {one["name"]: one for one in dlock("ls", "--json", address=address(service)).jsons}
    assert (found["b/held"]["holders"], found["b/held"]["waiters"]) == (1, 1)
    assert found["c"]["kind"] == "rw"
    assert dclient.unlock(one, got(one, b"b/held"))[0] is S.SUCCESS
    assert waits.result()[0] is S.SUCCESS


def test_ls_of_nothing(service: Service) -> None:
    for words in (["ls"], ["ls", "--json"], ["ls", "-0"], ["ls", "--names"], ["ls", "nope"]):
        assert dlock(*words, address=address(service)) == Done(0, "", "")


def test_no_name_reaches_the_terminal_as_it_is(service: Service) -> None:
    client = service.client()
    held(client, NASTY)
    got(client, b"$(touch x)")
    got(client, b"plain/1.2:3")
    got(client, "größe".encode())
    where = address(service)
    assert dlock("ls", "--names", address=where).out.splitlines() == [
        "$(touch x)", NASTY_SHOWN, "größe", "plain/1.2:3"]
    assert dlock("ls", "--words", address=where).out == "plain/1.2:3\n"
    for words in (["ls"], ["show", NASTY], ["watch", "--for", "0.1"], ["top", "--once"]):
        out = dlock(*words, address=where).out
        assert NASTY_SHOWN in out, words
        assert re.search(r"[^\x20-\x7e\n\xa0-\uffff]", out) is None, words
    done = dlock("ls", "--json", "db", address=where)
    assert done.out.isascii()
    assert bytes.fromhex(done.json["name_hex"]) == NASTY


def test_names_byte_for_byte(service: Service) -> None:
    got(service.client(), NASTY)
    with started("ls", "-0", address=address(service)) as process:
        assert process.stdout is not None
        assert process.stdout.buffer.read() == NASTY + b"\0"


def test_a_reader_that_went_is_no_error(service: Service) -> None:
    client = service.client()
    for number in range(60):
        got(client, b"%d/" % number + b"x" * 500)
    with started("ls", address=address(service), bufsize=0) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        assert finish(process).code in (0, 141)


# ---- show ----------------------------------------------------------------------------------------


def test_show_tells_holders_and_waiters_in_order(
    service: Service, background: Callable[..., Future[Any]]
) -> None:
    clients = [service.client() for _ in range(3)]
    token = held(clients[0], b"a", FAIR)
    waits = []
    with Admin(address(service)) as admin:
        for number, client in enumerate(clients[1:], 1):
            waits.append(background(dclient.lock, client, ex(got(client, b"a", FAIR))))
            until(lambda number=number: any(  # type: ignore[misc]
                lock.waiters == number for lock in admin.locks()))
    done = dlock("show", "a", address=address(service))
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "a: fair, 1 holder, 2 waiters"
    me = f"{socket.gethostname()}:{os.getpid()}"
    assert lines[2].split() == ["HOLDER", "USER", "JOB", "MODE", "SINCE", "EXPIRES", "TOKEN"]
    assert lines[3].startswith(me)
    assert re.search(rf"exclusive  .*s +[56]\d\.\ds \(lease\)  {token}$", lines[3])
    assert [line.startswith(me) for line in lines[6:]] == [True, True]
    found = dlock("show", "a", "--json", address=address(service)).json
    assert found["holders"][0]["token"] == token
    assert found["holders"][0]["host"] == socket.gethostname()
    assert found["holders"][0]["pid"] == os.getpid()
    assert 0 < found["holders"][0]["lease_left_s"] <= 60
    assert [one["client_id"] for one in found["waiters"]] == clients[1:]
    for client, wait in zip(clients, [None, *waits], strict=True):
        if wait is not None:
            assert wait.result()[0] is S.SUCCESS
        assert dclient.unlock(client, got(client, b"a", FAIR))[0] is S.SUCCESS


def test_a_hold_without_a_lease_ends_with_its_session(service: Service) -> None:
    held(service.client(), b"rw", RW, shared=True)
    out = dlock("show", "rw", address=address(service)).out
    assert re.search(r" shared .* \d+\.\ds \(session\) ", out)


def test_show_of_what_is_not_there(service: Service) -> None:
    done = dlock("show", NASTY, address=address(service))
    assert done == Done(1, "", f"dlock show: there is no lock {NASTY_SHOWN}, so nobody holds it\n")
    done = dlock("show", "a", "--json", address=address(service))
    assert (done.code, done.json["holders"]) == (1, [])


# ---- break ---------------------------------------------------------------------------------------


def test_break_tells_the_holder_and_passes_on(service: Service) -> None:
    client = service.client()
    token = held(client, b"a")
    done = dlock("break", "a", "--timeout", "20", address=address(service))
    assert (done.code, done.out) == (0, f"{token}\n")
    assert re.search(rf"asked \S+:{os.getpid()} .* to give it up; it ends by itself in 5", done.err)
    assert re.search(r"passed on after \d", done.err)
    with Admin(address(service)) as admin:
        shown = admin.show(b"a")
    assert shown is not None
    assert shown.holders == ()


def test_break_waits_for_a_holder_that_does_not_answer(service: Service) -> None:
    where = address(service)
    with stopped_holder(service.port, "a") as token:
        done = dlock("break", "a", "--timeout", "0.3", address=where)
        assert (done.code, done.out) == (75, f"{token}\n")
        assert "not passed on within 300ms" in done.err
        assert f"{token} (asked to give it up)" in dlock("show", "a", address=where).out
        done = dlock("break", "a", "--now", address=where)
        assert (done.code, done.out) == (0, f"{token}\n")
        assert f"Only storage that checks tokens, and refuses {token}, is safe" in done.err
        assert "0 holders" in dlock("show", "a", address=where).out


def test_break_of_one_token(service: Service) -> None:
    tokens = [held(service.client(), b"a", RW, shared=True) for _ in range(2)]
    done = dlock("break", "a", "--token", str(tokens[0]), "--json", "--timeout", "20",
                 address=address(service))
    assert (done.code, done.json) == (0, {"name": "a", "tokens": [tokens[0]], "passed_on": True})
    found = dlock("show", "a", "--json", address=address(service)).json
    assert [one["token"] for one in found["holders"]] == [tokens[1]]


def test_break_of_nothing(service: Service) -> None:
    token = held(service.client(), b"a")
    where = address(service)
    assert dlock("break", "b", address=where) == Done(1, "", "dlock break: nobody holds b\n")
    done = dlock("break", "a", "--token", str(token + 1), address=where)
    assert (done.code, done.out) == (1, "")
    assert f"nobody holds a with token {token + 1}" in done.err
    assert dlock("break", "b", "--json", address=where).json == {
        "name": "b", "tokens": [], "passed_on": False}


# ---- stats, and what all have in common ----------------------------------------------------------


def test_stats(service: Service) -> None:
    held(service.client(), b"a")
    where = address(service)
    rows = dict(row for row in dlock("stats", address=where).rows if len(row) == 2)
    assert (rows["locks"], rows["clients"], rows["GRANTS"]) == ("1", "1", "1")
    assert "LEASES_EXPIRED" not in rows
    assert "LEASES_EXPIRED" in dlock("stats", "--all", address=where).out
    found = dlock("stats", "--json", address=where).json
    assert (found["GRANTS"], found["LEASES_EXPIRED"], found["epoch"]) == (1, 0, 1)


@pytest.mark.parametrize("words", [
    ["ls"], ["show", "a"], ["break", "a"], ["stats"], ["watch"], ["top", "--once"]])
def test_no_server(words: list[str]) -> None:
    done = dlock(*words, address=f"127.0.0.1:{free_port()}")
    assert (done.code, done.out) == (69, "")
    assert re.fullmatch(rf"dlock {words[0]}: no server answers .* DLOCK_ADDRESS says where the "
                        r"server is\n", done.err)


@pytest.mark.parametrize(("words", "text"), [
    (["show", ""], "a name has 1 to 512 bytes, not 0"),
    (["show", "x" * 513], "not 513"),
    (["break", "a", "--token", "0"], "is no token"),
    (["break", "a", "--token", "x"], "is no token"),
    (["break", "a", "--timeout", "-1"], "is no number of seconds"),
    (["watch", "--interval", "0"], "is not above 0"),
    (["watch", "--interval", "nan"], "is no number of seconds"),
    (["ls", "--json", "--names"], "not allowed with"),
    (["ls", "--address", "a:99999"], "the port is 1..65535"),
    (["ls", "--address", "a,,b"], "is no address"),
    (["nope"], "invalid choice"),
    ([], "required: COMMAND"),
])
def test_misuse(words: list[str], text: str) -> None:
    done = dlock(*words)
    assert (done.code, done.out) == (2, "")
    assert text in done.err
