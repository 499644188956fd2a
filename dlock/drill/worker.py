"""One client process of a drill: sessions and actors that take locks until they are told to stop.

`main` gets one word, JSON of `Orders`. It says `working` on standard output when every session is
open, and ends when its standard input does.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

CONNECT_S: Final = 60.0
THREADS, TASKS, MIRROR, CROWD = "sync", "aio", "mirror", "crowd"
FLAVOURS: Final = (THREADS, TASKS, MIRROR)
MODULES: Final = {THREADS: "worker_threads", TASKS: "worker_tasks", MIRROR: "worker_mirror",
                  CROWD: "worker_crowd"}


@dataclass(frozen=True)
class Orders:
    """What a client process is told. `address`: as for `dlock.connect`; `hosts`: the same for the
    mirror, which takes one at a time, and `port`. `sessions` and `actors` each. `prefix`: of the
    names of locks. `slots`: on the board."""

    client: str
    flavour: str
    folder: str
    address: str
    hosts: list[str]
    port: int
    sessions: int
    actors: int
    seed: str
    prefix: str

    @property
    def slots(self) -> int:
        """How many actors there are in the process."""
        return self.sessions * self.actors

    def to_word(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_word(cls, word: str) -> Orders:
        """From the command line."""
        return cls(**json.loads(word))


def main(words: Sequence[str]) -> int:
    """Works until standard input ends; the exit status is 1 if something went wrong in here."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the drill's to handle
    orders = Orders.from_word(words[0])
    from dlock.drill.holds import Process

    process = Process(Path(orders.folder), orders.client, orders.slots)
    ended = threading.Event()
    run = importlib.import_module(f"dlock.drill.{MODULES[orders.flavour]}").run
    if orders.flavour != CROWD:  # which is told more
        threading.Thread(target=_until_input_ends, args=(ended,), daemon=True).start()
    return int(run(orders, process, ended))


def _until_input_ends(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


def say_working() -> None:
    """Every session is open."""
    print("working", flush=True)
