"""Histories of real processes over real sockets, with kill -9, SIGSTOP, cut links, lost answers and
a new primary, are linearizable. (That faults are found is for tests/test_linear_faults.py.)

DLOCK_LINEAR_SEED gives the same orders once more, though not the way in which the machine carries
them out.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from failover_tools import Primary
from mirror_tools import free_port
from proxy import Proxy

from dlock import linear
from dlock.linear import history as h
from dlock.server import Server

STORM_S = 8.0
FAILOVER_S = 3.0  # in the midst of it the primary is killed
TTL_S = 1.0
NAMES = {"a", "r", "rw", "f", "s", "n", "m"}
WORKERS = ("sync", "aio", "sync")
FEW = 10  # operations on one name
LONGEST_S = 120.0  # by when all was seen, unless the machine is a very slow one
END_S = 120.0  # by when everybody has come to his end


class Storm:
    """A primary, a network to it, programs that record what they see, and what befalls them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._chance = random.Random(seed)
        port, data_port = free_port(), free_port()
        self.primary = Primary(
            folder, ttl_s=TTL_S, listen=f"127.0.0.1:{port}", flags=("--data-port", str(data_port)))
        assert self.primary.place
        self.proxy = Proxy(cast(Server, SimpleNamespace(port=port, data_port=data_port)))
        self.files: list[Path] = []
        self.workers = [self._begin(flavour) for flavour in WORKERS]
        self._stopped: set[int] = set()

    def _begin(self, flavour: str) -> subprocess.Popen[str]:
        number = len(self.files) + 1
        self.files.append(self._folder / f"c{number}.jsonl")
        program = Path(__file__).parent / "linear_worker.py"
        return subprocess.Popen(
            [sys.executable, str(program), self.proxy.address, str(self._chance.randrange(2**32)),
             str(self.files[-1]), f"c{number}", flavour],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    def rage(self) -> list[str]:
        """For STORM_S; then it is calm, until everything was seen a few times. What was not."""
        begun, killed = time.monotonic(), False
        befalls = [self.cut, self.cut, self.silence, self.lose_answers, self.lose_answers,
                   self.stop, self.stop, self.go_on, self.go_on, self.kill, self.stop_primary]
        while (passed := time.monotonic() - begun) < STORM_S or not killed:
            if passed > LONGEST_S:
                break
            time.sleep(self._chance.random() * 0.5)
            if passed > FAILOVER_S and not killed and self.lives():
                killed = True
                self.primary.restart()
            self._chance.choice(befalls)()
        self.go_on()
        while (missing := self.missing()) and time.monotonic() < begun + LONGEST_S:
            time.sleep(0.3)
        return missing

    def missing(self) -> list[str]:
        """What was not seen often enough yet."""
        operations = self.history()
        names = Counter(one.name for one in operations)
        seen = Counter((one.action, one.outcome) for one in operations)
        return [
            *(name for name in NAMES if names[name] <= FEW),
            *(str(what) for what in ((h.ACQUIRE, h.DONE), (h.ACQUIRE, h.REFUSED), (h.HELD, h.DONE),
                                     (h.ACQUIRE, h.UNKNOWN)) if not seen[what]),
            *(["numbers of both primaries"] if len(self.lives()) < 2 else [])]

    def lives(self) -> set[int]:
        """The primaries at which a number was certainly changed."""
        return {one.life for one in self.history()
                if (one.action, one.outcome) == (h.ADD, h.DONE)}

    def history(self) -> list[h.Operation]:
        return linear.read(path for path in self.files if path.exists())

    # ---- What befalls ----------------------------------------------------------------------------

    def cut(self) -> None:
        self.proxy.cut(*self._chance.choice([(), self.proxy.ports[:1], self.proxy.ports[1:]]))

    def silence(self) -> None:
        self.proxy.silence()
        time.sleep(self._chance.choice([0.1, 0.5, 1.5]))
        self.proxy.mend()

    def lose_answers(self) -> None:
        """What was asked is carried out, and nobody hears of it."""
        self.proxy.hold_answers()
        time.sleep(self._chance.choice([0.01, 0.05, 0.5]))
        self.proxy.cut()
        self.proxy.mend()

    def stop(self) -> None:
        which = self._chance.randrange(len(self.workers))
        self.workers[which].send_signal(signal.SIGSTOP)
        self._stopped.add(which)

    def go_on(self) -> None:
        while self._stopped:
            self.workers[self._stopped.pop()].send_signal(signal.SIGCONT)

    def kill(self) -> None:
        which = self._chance.randrange(len(self.workers))
        self._stopped.discard(which)
        self._end(self.workers[which])
        self.workers[which] = self._begin(self._chance.choice(WORKERS))

    def stop_primary(self) -> None:
        self.primary.stop()
        time.sleep(self._chance.choice([0.05, 0.3, 1.2]))
        self.primary.go_on()

    # ---- The end ---------------------------------------------------------------------------------

    def calm(self) -> None:
        """All come to their end by themselves."""
        self.go_on()
        for worker in self.workers:
            worker.communicate("", timeout=END_S)
            assert worker.returncode == 0

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()

    def close(self) -> None:
        for worker in self.workers:
            self._end(worker)
        self.primary.go_on()
        self.primary.kill()
        self.proxy.close()


def test_real_processes_in_a_storm(tmp_path: Path) -> None:
    seed = int(os.environ.get("DLOCK_LINEAR_SEED") or random.SystemRandom().randrange(2**32))
    print(f"DLOCK_LINEAR_SEED={seed} {tmp_path}", file=sys.stderr)  # shown when it fails
    storm = Storm(tmp_path, seed)
    try:
        missing = storm.rage()
        storm.calm()
        verdict = linear.check(storm.history())
    finally:
        storm.close()
    assert not verdict.violated, str(verdict)
    if missing or not verdict.ok:  # sessions of TTL_S hardly live on a machine that is so busy
        pytest.skip(f"too slow a machine: not seen {missing}; {verdict}"[:500])
    assert verdict.names == len(NAMES)
