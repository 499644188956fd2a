"""glockd's flags at work: what they switch, what cannot begin, what stays behind."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import environment
from door_tools import DLOCK_MODULE, beside, free_port
from failover_tools import until
from glockd_tools import Glockd, Wire, glockd


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """`dlock door glockd` that ends by itself; there is no server, and none is needed for that."""
    return subprocess.run(
        [*DLOCK_MODULE, "door", "glockd", "--connect", "127.0.0.1:1", *words],
        stdin=subprocess.DEVNULL, capture_output=True, cwd=folder, env=environment(None),
        timeout=60, check=False)


# ---- What cannot begin ---------------------------------------------------------------------------


def test_help_is_no_failure(tmp_path: Path) -> None:
    ended = run("-h", folder=tmp_path)
    assert ended.returncode == 0
    assert ended.stderr.startswith(b"Usage of glockd:\n")


def test_a_wrong_flag_shows_the_usage(tmp_path: Path) -> None:
    ended = run("-nonsense", "-pidfile", "p", folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"flag provided but not defined: -nonsense\nUsage of glockd:\n")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("words", [(), ("-pidfile", ""), ("-port", "0")])
def test_a_pidfile_is_needed(tmp_path: Path, words: tuple[str, ...]) -> None:
    ended = run(*words, folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (2, b"Please specify a pidfile\n")


def test_a_pidfile_that_cannot_be_opened(tmp_path: Path) -> None:
    ended = run("-pidfile", "none/pid", folder=tmp_path)
    assert ended.returncode == 3
    assert ended.stdout == (b"Error opening pidfile: none/pid: open none/pid: no such file or "
                            b"directory\n")


def test_ports_that_cannot_be_had(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run("-pidfile", "pid", "-port", port, "-ws", "0", folder=tmp_path)
        assert ended.returncode == 1
        assert ended.stderr == (f"error listening: listen tcp 0.0.0.0:{port}: bind: address "
                                f"already in use\n").encode()
        ended = run("-pidfile", "pid", "-port", "0", "-ws", port, folder=tmp_path)
        assert ended.returncode == 1
        assert ended.stderr.startswith(b"HTTP Listening Error: ")
    ended = run("-pidfile", "pid", "-port", "70000", folder=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr == b"error listening: listen tcp: address 70000: invalid port\n"
    ended = run("-pidfile", "pid", "-port", "0", "-ws", "0", "-unix", "none/socket",
                folder=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith(b"UNIX SOCKET Listener Error: ")


# ---- What is switched ----------------------------------------------------------------------------


def test_each_listener_can_be_switched_off(tmp_path: Path) -> None:
    with beside(tmp_path) as place:
        for off in ("port", "ws", "unix"):
            words = {"-port": str(free_port()), "-ws": str(free_port()),
                     "-unix": str(tmp_path / f"without-{off}")}
            del words[f"-{off}"]
            if off != "unix":
                words[f"-{off}"] = "0"
            door = place.door("glockd", "-host", "127.0.0.1", "-pidfile", f"pid-{off}",
                              *(word for pair in words.items() for word in pair),
                              namespace=f"without-{off}", name=off)
            expected = [f"127.0.0.1:{words[flag]}" for flag in ("-port", "-ws")
                        if words[flag] != "0"]
            expected += [f"unix:{words['-unix']}"] if off != "unix" else []
            assert door.listeners == expected
            assert door.stop() == 0


def test_it_listens_on_one_address_only(tmp_path: Path) -> None:
    with beside(tmp_path) as place:
        port, ws = free_port(), free_port()
        door = place.door("glockd", "-host", "127.0.0.2", "-port", str(port), "-ws", str(ws),
                          "-pidfile", "pid")
        assert door.listeners == [f"127.0.0.2:{port}", f"127.0.0.2:{ws}"]
        for one in (port, ws):
            socket.create_connection(("127.0.0.2", one)).close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", one))


def test_an_address_that_is_none(tmp_path: Path) -> None:
    ended = run("-host", "no address", "-pidfile", "pid", folder=tmp_path)
    assert ended.returncode == 1
    assert b"error listening: listen tcp no address:9999: bind: " in ended.stdout + ended.stderr


def test_dump_can_be_switched_off(tmp_path: Path) -> None:
    with glockd(tmp_path, "-dump=false") as door:
        one = door.tcp()
        one.ask(b"g a")
        for command in (b"d", b"d a", b"sd", b"sd a", b"dump", b"dump shared", b"who", b"who x"):
            assert one.ask(command) == b"0 disabled\n"
        assert one.ask(b"iam x") == b"1 ok\n"
        assert one.ask(b"me") == b"1 %b x\n" % one.called
        counts = one.statistics()
        assert (counts["command_d"], counts["command_dump"], counts["command_who"]) == (2, 2, 2)


def test_the_registry_can_be_switched_off(tmp_path: Path) -> None:
    with glockd(tmp_path, "-registry=false") as door:
        one = door.tcp()
        one.ask(b"g a")
        one.ask(b"sg b")
        for command in (b"iam", b"iam x", b"who", b"who x"):
            assert one.ask(command) == b"0 disabled\n"
        assert one.ask(b"me") == b"1 %b %b\n" % (one.called, one.called)
        assert one.all(b"d") == b"a: %b\n" % one.called
        assert one.all(b"sd b") == b"b: %b\n" % one.called
        assert one.statistics()["command_iam"] == 2


def test_verbose_prints_what_connections_do(tmp_path: Path) -> None:
    with glockd(tmp_path, "-verbose") as door:
        one = door.tcp()
        for command in (b"g a", b"g a", b"sg s", b"r a", b"g \xff", b"iam x"):
            one.ask(command)
        one.send(b"nonsense is this\n")
        one.ask(b"sr s")
        one.ask(b"sg t")
        one.close()
        out = door.door.out
        until(lambda: b"orphaned shared" in out.read_bytes())
        said = out.read_bytes().splitlines()
        settings = [b"cfg_port:     %d" % door.port, b"cfg_ws:       %d" % door.ws_port,
                    b"cfg_pidfile:  %b" % door.pidfile.encode(), b"cfg_registry: true",
                    b"cfg_unix:     %b" % door.path.encode(), b"cfg_dump:     true",
                    b"cfg_verbose:  true"]
        assert sorted(said[:7]) == sorted(settings)
        me = said[7].split()[0]
        assert said[7:] == [b"%b %b" % (me, words) for words in (
            b"connected", b"obtained lock for a", b"obtained shared lock for s",
            b"released lock for a", b"obtained lock for \xff", b"changed their name to 'x'",
            b"invalid command 'nonsense is this'", b"released shared lock for s",
            b"obtained shared lock for t", b"disconnected", b"orphaned lock \xff",
            b"orphaned shared lock t")]


def test_without_verbose_nothing_is_printed(tmp_path: Path) -> None:
    with glockd(tmp_path) as door:
        door.tcp().ask(b"g a")
        assert door.door.stop() == 0
        assert door.door.out.read_bytes() == b""


# ---- Pidfile and socket --------------------------------------------------------------------------


def test_pidfile_and_socket(tmp_path: Path) -> None:
    (tmp_path / "socket0").write_text("what was there before")
    (tmp_path / "pid0").write_text("123456789 and more")
    with glockd(tmp_path) as door:
        pid = door.door.process.pid
        assert Path(door.pidfile).read_text() == str(pid)
        assert stat.S_IMODE(os.stat(door.path).st_mode) == 0o766
        second = run("-pidfile", door.pidfile, "-port", "0", "-ws", "0", folder=tmp_path)
        assert second.returncode == 4
        assert second.stdout == (f"Error locking  pidfile: {door.pidfile}: resource temporarily "
                                 f"unavailable\n").encode()
        assert Path(door.pidfile).read_text() == str(pid)
        one = door.unix()
        one.ask(b"g a")
        assert door.door.stop() == 0
        assert one.rest() == b""
        assert Path(door.pidfile).read_text() == str(pid)
        assert stat.S_ISSOCK(os.stat(door.path).st_mode)
        door.door.start()  # over what was left
        assert Path(door.pidfile).read_text() == str(door.door.process.pid)
        assert door.unix().ask(b"g a").startswith(b"1 ")


def test_an_interrupt_ends_it_too(tmp_path: Path) -> None:
    with glockd(tmp_path) as door:
        one = door.tcp()
        one.ask(b"g a")
        assert door.door.stop(2) == 0
        assert one.rest() == b""


def test_what_it_needs_is_named_where_it_is_missing(tmp_path: Path) -> None:
    (tmp_path / "wsproto.py").write_text("raise ModuleNotFoundError('no', name='wsproto')\n")
    ended = subprocess.run(
        [sys.executable, "-m", "dlock", "door", "glockd", "-pidfile", "p"], capture_output=True,
        env={**environment(None), "PYTHONPATH": str(tmp_path)}, timeout=60, check=False)
    assert ended.returncode != 0
    assert re.search(rb"wsproto.*pip install 'dlock\[doors\]'", ended.stderr)


# ---- Beside others -------------------------------------------------------------------------------


def test_two_doors_of_different_namespaces_do_not_meet(tmp_path: Path) -> None:
    with beside(tmp_path) as place:
        one = Glockd(place, name="one", namespace="one")
        other = Glockd(place, name="other", namespace="other")
        first, second = one.tcp(), other.tcp()
        assert first.ask(b"g a").startswith(b"1 ")
        assert second.ask(b"i a").startswith(b"0 ")
        assert second.ask(b"g a").startswith(b"1 ")
        one.close()
        other.close()


def test_a_wire_is_a_wire(tmp_path: Path) -> None:
    """The program of glockd's own guide, word for word but for Python 3."""
    with glockd(tmp_path) as door:
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        s.connect(door.path)
        s.sendall(b"g foo\n")
        assert s.recv(4096) == b"1 Lock Get Success: foo\r\n"
        Wire(s).close()
