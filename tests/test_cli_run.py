"""`dlock run`: a command under a lock, as processes beside a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from cli_tools import Done, dlock, finish, start, started
from mirror_tools import Service, free_port, line_of, run_python, until

from dlock.admin import Admin, LockDetails
from dlock.cli.child import Command
from dlock.cli.run import _wait

SERVER = """
import signal, sys
from dlock.server import Server, ServerConfig
server = Server(ServerConfig(port=0, session_ttl_ms=int(sys.argv[1]), wait_mode="block"))
print(server.port, flush=True)
sys.stdin.read()
"""
COUNT_TO = 'echo $$; while [ ! -e "$1" ]; do sleep 0.02; done'


class Far:
    """A server in a process of its own."""

    def __init__(self, ttl_ms: int) -> None:
        self.process = run_python(SERVER, ttl_ms)
        self.address = f"127.0.0.1:{line_of(self.process)}"

    def stop_in_its_tracks(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture
def far() -> Iterator[Far]:
    """A server whose sessions last for 4 s."""
    one = Far(4000)
    yield one
    one.process.kill()
    one.process.communicate()


@pytest.fixture
def where(service: Service) -> str:
    return f"127.0.0.1:{service.port}"


def look(where: str, name: str = "a") -> LockDetails | None:
    with Admin(where) as admin:
        return admin.show(name)


def holders(where: str, name: str = "a") -> int:
    shown = look(where, name)
    return len(shown.holders) if shown else 0


def waiters(where: str, name: str = "a") -> int:
    shown = look(where, name)
    return len(shown.waiters) if shown else 0


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def run(*words: str, where: str) -> Done:
    return dlock("run", *words, address=where)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# ---- The command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("exit 69", 69)])
def test_the_exit_code_is_that_of_the_command(where: str, script: str, code: int) -> None:
    done = run("a", "--", "sh", "-c", script, where=where)
    assert (done.code, done.err) == (code, "")
    assert holders(where) == 0


def test_the_lock_is_held_while_it_runs_and_free_afterwards(where: str, tmp_path: Path) -> None:
    end = tmp_path / "end"
    with started("run", "a", "--", "sh", "-c", COUNT_TO, "sh", str(end), address=where) as process:
        line(process)
        shown = look(where)
        assert shown is not None
        (holder,) = shown.holders
        assert (holder.pid, holder.program) == (process.pid, "dlock run sh")
        assert holder.lease_left_s is None
        end.touch()
        assert finish(process).code == 0
    assert holders(where) == 0


def test_the_environment_of_the_command(where: str) -> None:
    show = 'echo "$DLOCK_NAME $DLOCK_KIND $DLOCK_TOKEN $DLOCK_ADDRESS"; dlock show "$DLOCK_NAME"'
    done = dlock("run", "a b", "--address", where, "--", "sh", "-c", show.split(";")[0])
    name, kind, token, address = done.out.rsplit(maxsplit=3)
    assert (name, kind, address) == ("a b", "lock", where)
    assert int(token) > 0
    for flags, word in ((["--shared"], "read"), (["--exclusive"], "write"), (["--fair"], "fair"),
                        (["--fair", "--shared"], "fair-read"), (["--size", "2"], "semaphore")):
        assert run(f"x{word}", *flags, "--", "sh", "-c", "echo $DLOCK_KIND",
                   where=where).out == f"{word}\n"


def test_flags_and_dashes_of_the_command_are_its_own(where: str) -> None:
    done = run("a", "--", "printf", "%s\n", "--timeout", "--", "-x", where=where)
    assert done.out == "--timeout\n--\n-x\n"


def test_it_reads_standard_input(where: str) -> None:
    with started("run", "a", "--", "cat", address=where, stdin=subprocess.PIPE) as process:
        assert process.communicate("hello", timeout=60)[0] == "hello"


def test_two_that_run_under_one_name_exclude_each_other(where: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f"echo in >> {log}; sleep 0.1; echo out >> {log}"
    processes = [start("run", "a", "--", "sh", "-c", script, address=where) for _ in range(4)]
    assert [finish(process).code for process in processes] == [0] * 4
    assert log.read_text().split() == ["in", "out"] * 4


# ---- Not started ---------------------------------------------------------------------------------


def test_what_is_not_got_in_time(where: str, tmp_path: Path) -> None:
    end = tmp_path / "end"
    with started("run", "a", "--", "sh", "-c", COUNT_TO, "sh", str(end), address=where) as process:
        line(process)
        for timeout in ("0", "0.2"):
            done = run("a", "--timeout", timeout, "--", "echo", "ran", where=where)
            assert (done.code, done.out) == (75, "")
            assert "dlock run: a was not free within" in done.err
        end.touch()
        assert finish(process).code == 0


def test_no_server() -> None:
    done = run("a", "--connect-timeout", "0.3", "--", "echo", "ran",
               where=f"127.0.0.1:{free_port()}")
    assert (done.code, done.out) == (69, "")
    assert "no server answers at" in done.err
    assert "DLOCK_ADDRESS" in done.err


def test_a_command_that_is_not_there_is_told_before_the_lock_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    nowhere = f"127.0.0.1:{free_port()}"
    done = run("a", "--", "no-such-command-here", where=nowhere)
    assert done == Done(127, "", "dlock run: no-such-command-here: command not found\n")
    assert run("a", "--", str(tmp_path / "plain"), where=nowhere).code == 126


@pytest.mark.parametrize(("words", "text"), [
    (["a"], "the command is missing"),
    (["a", "--"], "the command is missing"),
    (["a", "--shared", "--exclusive", "--", "x"], "exclude each other"),
    (["a", "--size", "2", "--fair", "--", "x"], "--size stands alone"),
    (["a", "--size", "0", "--", "x"], "no whole number above 0"),
    (["a", "--shared", "--lease", "5", "--", "x"], "has no leases"),
    (["a", "--lease", "0", "--", "x"], "is not above 0"),
    (["a", "b", "--", "x"], "unrecognized arguments: b"),
])
def test_misuse(words: list[str], text: str) -> None:
    done = dlock("run", *words)
    assert (done.code, done.out) == (2, "")
    assert text in done.err


# ---- Which lock ----------------------------------------------------------------------------------


def both(where: str, tmp_path: Path, *flags: str) -> bool:
    """Can two with these flags run at one time?"""
    end = tmp_path / "end"
    end.unlink(missing_ok=True)
    with started("run", "k", *flags, "--", "sh", "-c", COUNT_TO, "sh", str(end),
                 address=where) as process:
        line(process)
        code = run("k", *flags, "--timeout", "0", "--", "true", where=where).code
        end.touch()
        assert finish(process).code == 0
    assert code in (0, 75)
    return code == 0


@pytest.mark.parametrize(("flags", "together"), [
    ([], False), (["--exclusive"], False), (["--shared"], True), (["--fair"], False),
    (["--fair", "--shared"], True), (["--size", "1"], False), (["--size", "2"], True),
    (["--lease", "30"], False),
])
def test_the_kinds(where: str, tmp_path: Path, flags: list[str], together: bool) -> None:
    assert both(where, tmp_path, *flags) is together


def test_readers_and_writers_exclude_each_other(where: str, tmp_path: Path) -> None:
    end = tmp_path / "end"
    with started("run", "k", "--shared", "--", "sh", "-c", COUNT_TO, "sh", str(end),
                 address=where) as process:
        line(process)
        assert run("k", "--exclusive", "--timeout", "0", "--", "true", where=where).code == 75
        end.touch()
        assert finish(process).code == 0
    assert run("k", "--exclusive", "--timeout", "0", "--", "true", where=where).code == 0


def test_another_kind_under_the_same_name_is_told(where: str, tmp_path: Path) -> None:
    end = tmp_path / "end"
    with started("run", "k", "--", "sh", "-c", COUNT_TO, "sh", str(end), address=where) as process:
        line(process)
        done = run("k", "--size", "2", "--", "echo", "ran", where=where)
        assert (done.code, done.out) == (70, "")
        assert "another kind or size" in done.err
        end.touch()
        assert finish(process).code == 0


# ---- Signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_handed_on(where: str, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f'trap "echo got {name}; exit 3" {name}; echo ready; while :; do sleep 0.02; done'
    with started("run", "a", "--", "sh", "-c", script, address=where) as process:
        assert line(process) == "ready"
        process.send_signal(number)
        done = finish(process)
        assert (done.code, done.out) == (3, f"got {name}\n")
    assert holders(where) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait(where: str, tmp_path: Path, number: signal.Signals) -> None:
    end = tmp_path / "end"
    with started("run", "a", "--", "sh", "-c", COUNT_TO, "sh", str(end), address=where) as one:
        line(one)
        with started("run", "a", "--", "echo", "ran", address=where) as other:
            until(lambda: waiters(where) == 1)
            other.send_signal(number)
            assert finish(other) == Done(128 + number, "", "")
            assert waiters(where) == 0
            end.touch()
            assert finish(one).code == 0


def test_a_wait_that_is_interrupted_when_its_time_is_over_hands_nothing_on() -> None:
    """As by a debugger: then Python returns a signal that is none."""
    handed_on: list[int] = []
    command = SimpleNamespace(send=handed_on.append)
    former = signal.signal(signal.SIGALRM, lambda _number, _frame: time.sleep(0.1))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        for _ in range(5):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            _wait({signal.SIGUSR2}, 0.05, cast(Command, command))
        assert not handed_on
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
        _wait({signal.SIGUSR2}, 20, cast(Command, command))
    finally:
        signal.signal(signal.SIGALRM, former)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert handed_on == [signal.SIGUSR2]


def test_what_nohup_ignores_does_not_end_the_wait(where: str, tmp_path: Path) -> None:
    end = tmp_path / "end"
    with started("run", "a", "--", "sh", "-c", COUNT_TO, "sh", str(end), address=where) as one:
        line(one)
        with started("run", "a", "--", "echo", "ran", address=where,
                     preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as other:
            until(lambda: waiters(where) == 1)
            other.send_signal(signal.SIGHUP)
            time.sleep(0.2)
            end.touch()
            assert finish(other) == Done(0, "ran\n", "")
            assert finish(one).code == 0


# ---- Its end, and the end of the lock ------------------------------------------------------------


def test_the_lock_is_free_when_the_command_is_killed(where: str) -> None:
    with started("run", "a", "--", "sh", "-c", COUNT_TO, "sh", "/none", address=where) as process:
        os.kill(int(line(process)), signal.SIGKILL)
        assert finish(process).code == 137
    assert holders(where) == 0


@pytest.mark.parametrize(("mode", "ends"), [("warn", True), ("kill", True), ("ignore", False)])
def test_dlock_itself_is_killed(far: Far, mode: str, ends: bool) -> None:
    """The session ends, and with it the lock; the command is ended by the kernel, or goes on."""
    with started("run", "a", "--on-lost", mode, "--", "sh", "-c", COUNT_TO, "sh", "/none",
                 address=far.address) as process:
        pid = int(line(process))
        process.kill()
        process.wait()
        if ends:
            until(lambda: gone(pid))
        until(lambda: holders(far.address) == 0)
        if not ends:
            assert not gone(pid)
            os.kill(pid, signal.SIGKILL)


def test_a_lease_outlasts_the_session(far: Far) -> None:
    with started("run", "a", "--lease", "60", "--", "sh", "-c", COUNT_TO, "sh", "/none",
                 address=far.address) as process:
        line(process)
        shown = look(far.address)
        assert shown is not None
        left = shown.holders[0].lease_left_s
        assert left is not None
        assert 40 < left <= 60
        process.kill()
        process.wait()
        until(lambda: (now := look(far.address)) is not None and bool(now.holders)
              and now.holders[0].session_left_s == 0.0)
    token = str(shown.holders[0].token)
    done = dlock("break", "a", "--now", address=far.address)
    assert (done.code, done.out) == (0, f"{token}\n")


def test_warn_says_so_and_lets_it_go_on(where: str, tmp_path: Path) -> None:
    end = tmp_path / "end"
    script = f"{COUNT_TO}; exit ${{2:-0}}"
    for code, expected in (("0", 76), ("5", 5)):
        end.unlink(missing_ok=True)
        with started("run", "a", "--", "sh", "-c", script, "sh", str(end), code,
                     address=where) as process:
            line(process)
            assert dlock("break", "a", "--timeout", "20", address=where).code == 0
            assert process.stderr is not None
            assert "broken by an operator; the command goes on" in process.stderr.readline()
            end.touch()
            assert finish(process).code == expected


def test_ignore_says_nothing(where: str, tmp_path: Path) -> None:
    end = tmp_path / "end"
    with started("run", "a", "--on-lost", "ignore", "--", "sh", "-c", COUNT_TO, "sh", str(end),
                 address=where) as process:
        line(process)
        assert dlock("break", "a", "--timeout", "20", address=where).code == 0
        end.touch()
        done = finish(process)
        assert (done.code, done.err) == (0, "")


def test_kill_asks_it_to_end_when_the_lock_is_broken(where: str) -> None:
    script = 'trap "echo asked; exit 0" TERM; echo ready; while :; do sleep 0.02; done'
    with started("run", "a", "--on-lost", "kill", "--", "sh", "-c", script,
                 address=where) as process:
        assert line(process) == "ready"
        assert dlock("break", "a", "--timeout", "20", address=where).code == 0
        done = finish(process)
        assert (done.code, done.out) == (76, "asked\n")
        assert "the command is asked to end" in done.err


def test_kill_ends_all_that_it_started(where: str, tmp_path: Path) -> None:
    """Also what ignores SIGTERM, and what went into a session of its own."""
    pids = tmp_path / "pids"
    script = (f'trap "" TERM; echo $$ >> {pids}; '
              f"setsid sh -c 'echo $$ >> {pids}; while :; do sleep 1; done' & "
              f"while [ $(wc -l < {pids}) -lt 2 ]; do sleep 0.02; done; echo ready; "
              "while :; do sleep 1; done")
    with started("run", "a", "--on-lost", "kill", "--grace", "0.2", "--", "sh", "-c", script,
                 address=where) as process:
        assert line(process) == "ready"
        assert dlock("break", "a", "--timeout", "20", address=where).code == 0
        done = finish(process)
        assert done.code == 76
        assert "the command is killed" in done.err
    assert all(gone(int(pid)) for pid in pids.read_text().split())


def test_kill_ends_it_before_the_server_could_pass_the_lock_on(far: Far) -> None:
    """The server stands still, so that it can tell nobody anything; when it goes on, it ends the
    session. By then the command, which ignores SIGTERM, is gone."""
    with started("run", "a", "--on-lost", "kill", "--", "sh", "-c",
                 f'trap "" TERM; {COUNT_TO}', "sh", "/none", address=far.address) as process:
        pid = int(line(process))
        far.stop_in_its_tracks()
        until(lambda: gone(pid))
        far.go_on()
        done = finish(process)
        assert done.code == 76
        assert "could not be renewed and is about to end; the command is asked to end" in done.err
        assert "the command is killed" in done.err


def test_the_hold_is_renewed_for_as_long_as_it_runs(far: Far) -> None:
    """Longer than the session and the lease, both kept alive in the background."""
    for flags in ([], ["--lease", "4"]):
        done = run("a", "--on-lost", "kill", *flags, "--", "sleep", "5", where=far.address)
        assert (done.code, done.err) == (0, "")


def test_python_and_the_command_line_mean_the_same_lock(where: str) -> None:
    import dlock as api

    with api.connect(where) as client, client.lock("a"):
        assert run("a", "--timeout", "0", "--", "true", where=where).code == 75
    assert run("a", "--timeout", "0", "--", "true", where=where).code == 0


def test_importing_starts_no_thread() -> None:
    """Command is forked while there is one thread; so nothing may start one before."""
    program = ("import threading, dlock.cli.run, dlock.cli.guard; "
               "print(len(open('/proc/self/status').read().split('Threads:')[1].split()[0]),"
               " threading.active_count())")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          check=True, timeout=60)
    assert done.stdout == "1 1\n"
