"""`dlock door ldlm-lock` and the socket behind it: texts, exit codes, living and dead sockets."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("httptools", reason="pip install 'dlock[doors]'")

from aio_tools import run
from cli_tools import Done, finish, start
from door_tools import Door, Place, beside
from ldlm_service_tools import granted, serving_ldlm
from lock_tools import Service, serving

from dlock.doors.ldlm import ipc, tool

FLAGS = ("-l", "127.0.0.1:0")
NO_COMMAND = 'ldlm-lock: error: expected one of "unlock", "list"\n'


@pytest.fixture(scope="module")
def server() -> Iterator[Service]:
    with serving() as started:
        yield started


def asked(*words: str, **added: str) -> Done:
    """`dlock door ldlm-lock` with these words."""
    return finish(start("door", "ldlm-lock", *words, added=added))


async def answered(*words: str, **environ: str) -> tuple[int, str, str]:
    """The same in a process beside this loop: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dlock", "door", "ldlm-lock", *words,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environ})
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


# ---- list and unlock -----------------------------------------------------------------------------


def test_list_and_unlock_say_what_ldlm_lock_says(server: Service, tmp_path: Path) -> None:
    async def program() -> None:
        path = str(tmp_path / "ipc.sock")
        async with serving_ldlm(server) as service:
            listener = ipc.IpcServer(service, service.counters)
            await listener.start(await ipc.claim(path))
            assert await answered("-s", path, "list") == (0, "No locks found\n", "")
            session = service.open("one")
            first = granted(await session.try_lock("My lock", None, None), "My lock")
            pair = [granted(await session.try_lock("pair", None, 2), "pair") for _ in range(2)]
            assert await answered("-s", path, "list") == (
                0, f"{{Name: My lock, Key: {first}, Size: 1}}\n"
                   f"{{Name: pair, Key: {pair[0]}, Size: 2}}\n"
                   f"{{Name: pair, Key: {pair[1]}, Size: 2}}\n", "")
            assert await answered("unlock", "My lock", LDLM_IPC_SOCKET_FILE=path) == (
                0, "Unlocked: true\n", "")
            assert await answered("unlock", "pair", pair[0], f"--socket={path}") == (
                0, "Unlocked: true\n", "")
            assert [key for _, key, _ in service.list()] == [pair[1]]
            assert await answered("-s", path, "unlock", "My lock") == (
                1, "", "a lock by that name does not exist\n")
            assert await answered("-s", path, "unlock", "nobody knows it", "key") == (
                1, "", "a lock by that name does not exist\n")
            assert await answered("-s", path, "unlock", "pair", "wrong") == (
                1, "", "failed to unlock lock: invalid lock key\n")
            listener.stop()

    run(program())


def test_a_name_that_would_steer_a_terminal_is_shown_harmless() -> None:
    said = {"locks": [["a\x1b[2J\n", "key", 1], ["ü", "key", 2]]}
    assert tool.lines("list", said) == [
        "{Name: a\\x1b[2J\\n, Key: key, Size: 1}", "{Name: ü, Key: key, Size: 2}"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), NO_COMMAND),
        (("-s", "x"), NO_COMMAND),
        (("lock",), "ldlm-lock: error: unexpected argument lock\n"),
        (("list", "x"), "ldlm-lock: error: unexpected argument x\n"),
        (("unlock",), 'ldlm-lock: error: expected "<lock-name> [<key>]"\n'),
        (("unlock", "a", "b", "c"), "ldlm-lock: error: unexpected argument c\n"),
        (("list", "--all"), "ldlm-lock: error: unknown flag --all\n"),
    ],
)
def test_words_that_are_no_command(
    words: tuple[str, ...], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(words, {}) == 1
    assert capsys.readouterr() == ("", error)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--help"], {}) == 0
    assert capsys.readouterr().out.startswith("Usage: ldlm-lock <command>")


def test_flags_may_stand_anywhere() -> None:
    expected = tool.Asked("p", "unlock", "a", "b")
    for words in (["-s", "p", "unlock", "a", "b"], ["unlock", "a", "-sp", "b"],
                  ["unlock", "a", "b", "--socket", "p"], ["-s=p", "unlock", "--", "a", "b"]):
        assert tool.parse(words) == expected
    assert tool.parse(["unlock", "--", "-a"]) == tool.Asked("", "unlock", "-a")


def test_without_a_server(tmp_path: Path) -> None:
    path = str(tmp_path / "none.sock")
    hint = ("Is the ldlm server running? Do you need to specify the socket file path? See help\n")
    assert asked("-s", path, "list") == Done(
        1, "", f"IPC error: dial unix {path}: connect: no such file or directory. {hint}")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    assert asked("list", LDLM_IPC_SOCKET_FILE=path) == Done(
        1, "", f"IPC error: dial unix {path}: connect: connection refused. {hint}")
    assert asked("list", TMPDIR=str(tmp_path)).err.startswith(
        f"IPC error: dial unix {tmp_path}/ldlm-ipc.sock: connect: ")
    assert asked("-s", "x" * 200, "list").code == 1


# ---- The socket ----------------------------------------------------------------------------------


def test_whatever_is_asked_is_answered_or_dropped(server: Service, tmp_path: Path) -> None:
    async def ask(path: str, sent: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(sent)
        writer.write_eof()
        received = await reader.read()
        writer.close()
        return received

    async def program() -> None:
        path = str(tmp_path / "ipc.sock")
        async with serving_ldlm(server) as service:
            listener = ipc.IpcServer(service, service.counters)
            await listener.start(await ipc.claim(path))
            for sent in (b"{}\n", b"\xff\n", b"[]\n", b'"list"\n', b"[" * 100000 + b"\n",
                         b'{"call": "unlock"}\n', b'{"call": "unlock", "name": 1, "key": 2}\n',
                         b"x" * (ipc.REQUEST_BYTES_MAX + 1)):
                assert b"malformed" in await ask(path, sent), sent[:30]
            for sent in (b"", b'{"call": "list"}'):  # no whole line
                assert await ask(path, sent) == b""
            assert json.loads(await ask(path, b'{"call": "list"}\n')) == {"locks": []}
            assert service.counters["ipc_malformed"] == 8
            listener.stop()

    run(program())


def test_the_socket_is_its_owner_s_alone(tmp_path: Path) -> None:
    async def program() -> None:
        path = tmp_path / "ipc.sock"
        with await ipc.claim(str(path)):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    run(program())


def test_a_dead_socket_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    async def program() -> None:
        path = tmp_path / "ipc.sock"
        (await ipc.claim(str(path))).close()  # as kill -9 leaves it
        with await ipc.claim(str(path)):
            with pytest.raises(OSError, match="another ldlm server is listening"):
                await ipc.claim(str(path))
            assert path.is_socket()
        path.unlink()
        path.write_text("of somebody else")
        with pytest.raises(OSError, match="no socket"):
            await ipc.claim(str(path))
        assert path.read_text() == "of somebody else"
        with pytest.raises(OSError, match="No such file"):
            await ipc.claim(str(tmp_path / "no folder" / "ipc.sock"))

    run(program())


def test_of_many_that_claim_a_dead_socket_one_gets_it(tmp_path: Path) -> None:
    async def program() -> None:
        path = str(tmp_path / "ipc.sock")
        (await ipc.claim(path)).close()
        outcomes = await asyncio.gather(*(ipc.claim(path) for _ in range(20)),
                                        return_exceptions=True)
        winners = [one for one in outcomes if isinstance(one, socket.socket)]
        assert len(winners) == 1
        winners[0].close()

    run(program())


# ---- Doors ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with beside(tmp_path_factory.mktemp("ldlm")) as made:
        yield made


def refused(door: Door) -> str:
    """What it says when it does not start; the exit code is 1."""
    assert door.process.wait(60) == 1
    return door.said().splitlines()[-1]


def test_a_door_refuses_the_socket_of_a_living_one(place: Place, tmp_path: Path) -> None:
    path = str(tmp_path / "ipc.sock")
    first = place.door("ldlm", *FLAGS, LDLM_IPC_SOCKET_FILE=path)
    assert first.listeners[-1] == f"unix:{path}"
    second = Door(tmp_path, place.primary.listen, "ldlm", *FLAGS, "--ipc_socket_file", path,
                  wait=False, name="second")
    assert refused(second).startswith(
        f"net.Run() error starting server: ipc.Run(): file: {path}: another ldlm server")
    assert asked("-s", path, "list").out == "No locks found\n"
    assert first.stop() == 0
    assert not os.path.exists(path)


def test_a_door_replaces_the_socket_of_a_killed_one(place: Place, tmp_path: Path) -> None:
    path = str(tmp_path / "ipc.sock")
    door = place.door("ldlm", *FLAGS, "--ipc_socket_file", path, name="killed")
    door.restart()
    assert asked("-s", path, "list").out == "No locks found\n"
    assert door.stop() == 0


def test_a_door_without_a_socket(place: Place) -> None:
    door = place.door("ldlm", *FLAGS, "--ipc_socket_file=", name="none")
    assert [one for one in door.listeners if one.startswith("unix:")] == []
    assert "IPC server disabled because of empty socket file path" in door.said()
    assert door.stop() == 0


def test_a_port_that_is_taken_is_named(place: Place, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        door = Door(tmp_path, place.primary.listen, "ldlm", "-l", address, "--ipc_socket_file=",
                    wait=False, name="taken")
        assert refused(door) == (f"net.Run() error starting server: listen tcp {address}: bind: "
                                 f"address already in use")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("-l", "nowhere"), "listen tcp: address nowhere: missing port in address"),
        (("-l", "h:x"), "listen tcp: address h:x: invalid port"),
        (("-l", "::1:5"), "listen tcp: address ::1:5: too many colons in address"),
        (("--tls_cert", "x"), "TLS needs both --tls_cert and --tls_key"),
        (("--tls_cert", "/no/c", "--tls_key", "/no/k"), "the TLS certificate, key or client CA "
         "(/no/c, /no/k) cannot be used: No such file or directory"),
        (("--client_ca", "x"), "client TLS certificate verification requires server TLS to be "
                               "configured"),
    ],
)
def test_what_cannot_start_says_why(
    place: Place, tmp_path: Path, words: tuple[str, ...], error: str
) -> None:
    door = Door(tmp_path, place.primary.listen, "ldlm", "--ipc_socket_file=", *words, wait=False)
    assert refused(door) == f"net.Run() error starting server: {error}"


def test_the_log_is_one_json_object_a_line(place: Place) -> None:
    door = place.door("ldlm", *FLAGS, "--ipc_socket_file=", "-v", "debug", name="log")
    assert door.stop() == 0
    lines = [json.loads(line) for line in door.said().splitlines()]
    assert all({"time", "level", "msg"} <= line.keys() for line in lines)
    assert {"INFO", "WARN"} <= {line["level"] for line in lines}
    quiet = place.door("ldlm", *FLAGS, "--ipc_socket_file=", "-v", "error", name="quiet")
    assert quiet.stop() == 0
    assert quiet.said() == ""
