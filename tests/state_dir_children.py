"""Processes that are killed in the midst of writing a state directory, and processes that all want
it at once: run by tests/test_state_dir.py in an interpreter that has no threads, since it forks.

    python state_dir_children.py kills|starts|takeovers FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlock.control.registry_effects import PersistEpoch, PersistSession
from dlock.control.roster import RosterEntry
from dlock.control.state_dir import StateDir, StateDirError, StateDirLostError, open_state_dir
from dlock.control.state_file import State, decode_state

TTL_MS = 10_000


def entry(client_id: int, lease_ms: int = 0, *, ended: bool = False) -> RosterEntry:
    return RosterEntry(
        client_id, lease_ms, ended, client_id.to_bytes(16, "little"), f"n1 {client_id}")


def opened(path: Path, incarnation: int = 1, **named: Any) -> StateDir:
    return open_state_dir(path, incarnation, TTL_MS, **named)


def entered(state: StateDir, *client_ids: int) -> None:
    for one in client_ids:
        state.apply(PersistSession(entry(one)))
    state.commit()


def on_disk(path: Path) -> State:
    """What the primary of the highest epoch has written."""
    epochs = [int(one.name[6:]) for one in path.glob("state-*") if one.name[6:].isdecimal()]
    return decode_state((path / f"state-{max(epochs)}").read_bytes())


def ids(path: Path) -> set[int]:
    return set(on_disk(path).roster)


def files(path: Path) -> set[str]:
    """But for the durable store, which has tests of its own."""
    return {name for name in os.listdir(path) if not name.startswith("durable-")}


# ---- Kills ---------------------------------------------------------------------------------------


def in_a_child(body: Callable[[], None]) -> int:
    """The wait status of a child that does it."""
    child = os.fork()
    if child == 0:
        try:
            body()
        finally:
            os._exit(7)
    return os.waitpid(child, 0)[1]


def killed_at(number: int, body: Callable[[], None]) -> bool:
    """Does it in a child that is killed (9) before its call number `number` of anything that
    changes files; a write is cut in half. False: there are not so many."""
    left = [number]

    def dying(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if left[0] == 0 and name == "write":
                real(arguments[0], arguments[1][:len(arguments[1]) // 2])
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*arguments, **named)
        return call

    def child() -> None:
        for name in ("open", "write", "fsync", "rename", "link", "unlink", "ftruncate", "pwrite"):
            setattr(os, name, dying(getattr(os, name), name))
        body()

    status = in_a_child(child)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def kills(folder: Path) -> None:
    def child(path: Path) -> Callable[[], None]:
        def body() -> None:
            state = opened(path, 2)
            state.apply(PersistSession(entry(6)))
            state.commit()
            state.apply(PersistEpoch(3))
            state.commit()
            state.forget_former()
        return body

    number, seen = 0, set()
    while True:
        path = folder / str(number)
        first = opened(path)
        entered(first, 5)
        first.close()
        if not killed_at(number, child(path)):
            break
        after = opened(path, 9)
        assert after.former is not None
        assert ids(path) in ({5}, {5, 6})
        assert set(on_disk(path).roster) == {one.client_id for one in after.former.roster}
        seen.add((after.epoch, len(ids(path))))
        after.forget_former()
        assert files(path) - {f"lock-{after.epoch + 1}"} == {
            f"state-{after.epoch}", f"lock-{after.epoch}"}
        after.close()
        number += 1
    assert seen == {(2, 1), (3, 1), (3, 2), (4, 2)}, "every state that there is was met"
    assert number > 20


# ---- Races ---------------------------------------------------------------------------------------


def starts(folder: Path) -> None:
    """Many rounds of four processes; in every round exactly one, whatever the interleaving."""
    outcome = folder / "outcome"
    for number in range(25):
        path = folder / str(number)
        if number % 2:
            before = opened(path)
            entered(before, 5)
            before.close()
        outcome.write_bytes(b"")
        race(4, path, outcome, take_over=False)
        words = outcome.read_text().split()
        assert sorted(words) == ["has", "refused", "refused", "refused"], words
        assert on_disk(path).epoch == 1 + number % 2
        assert ids(path) == ({5} if number % 2 else set())


def takeovers(folder: Path) -> None:
    """Every one has an epoch of its own; all but the highest are told that they lost it."""
    outcome = folder / "outcome"
    for number in range(15):
        path = folder / str(number)
        running = opened(path)
        entered(running, 5)
        outcome.write_bytes(b"")
        race(4, path, outcome, take_over=True)
        words = outcome.read_text().split()
        assert words.count("has") == 1, words
        assert len(words) == 4
        assert ids(path) == {5}
        try:
            running.confirm()
            raise AssertionError("it was replaced four times")
        except StateDirLostError:
            pass
        running.close()


def race(count: int, path: Path, outcome: Path, *, take_over: bool) -> None:
    """Processes that begin at the same moment, and hold what they have until all have tried."""
    begin_read, begin_write = os.pipe()
    end_read, end_write = os.pipe()
    tried_read, tried_write = os.pipe()

    def child(incarnation: int) -> None:
        os.close(begin_write)
        os.close(end_write)
        os.read(begin_read, 1)
        state = None
        try:
            state = open_state_dir(path, incarnation, TTL_MS, take_over=take_over)
        except StateDirError:
            word = b"refused\n"
        os.write(tried_write, b".")
        os.read(end_read, 1)
        if state is not None:
            try:
                state.confirm()
                word = b"has\n"
            except StateDirLostError:
                word = b"lost\n"
        with open(outcome, "ab", buffering=0) as file:
            file.write(word)

    children = []
    for incarnation in range(1, count + 1):
        process = os.fork()
        if process == 0:
            try:
                child(incarnation)
            finally:
                os._exit(0)
        children.append(process)
    os.close(begin_write)
    for _ in children:
        os.read(tried_read, 1)
    os.close(end_write)
    for process in children:
        os.waitpid(process, 0)
    for fd in (begin_read, end_read, tried_read, tried_write):
        os.close(fd)


if __name__ == "__main__":
    {"kills": kills, "starts": starts, "takeovers": takeovers}[sys.argv[1]](Path(sys.argv[2]))
