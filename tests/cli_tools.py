"""What the tests of the command line share: running `dlock` as a process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

DLOCK = (sys.executable, "-c", "import sys; from dlock.cli import main; sys.exit(main())")
TIMEOUT = 60.0


@dataclass(frozen=True)
class Done:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def jsons(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def rows(self) -> list[list[str]]:
        return [line.split() for line in self.out.splitlines()]


def environment(address: str | None, **added: str) -> dict[str, str]:
    """That of this process without what it says of dlock."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DLOCK_")}
    return {**kept, **({"DLOCK_ADDRESS": address} if address else {}), **added}


def start(*words: str | bytes, address: str | None = None, **options: Any
          ) -> subprocess.Popen[str]:
    """`dlock` with these words, as a process that goes on."""
    added = options.pop("added", {})
    return subprocess.Popen(
        [*DLOCK, *words], stdin=options.pop("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE, stderr=options.pop("stderr", subprocess.PIPE), text=True,
        encoding="utf-8",
        env=environment(address, **added), **options)


def finish(process: subprocess.Popen[str], seconds: float = TIMEOUT) -> Done:
    """Waits until it has ended."""
    out, err = process.communicate(timeout=seconds)
    assert "Traceback" not in err, err
    return Done(process.returncode, out, err)


def dlock(*words: str | bytes, address: str | None = None, **options: Any) -> Done:
    """`dlock` with these words, to its end."""
    return finish(start(*words, address=address, **options))


@contextlib.contextmanager
def started(*words: str | bytes, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed afterwards, if it has not ended."""
    process = start(*words, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


HOLDER = """
import sys
from dlock import dclient
from dlock.types import ClientCfg, DlockStatus, DlockType, LockDesc, LockOp, LockRequest

dclient.dclient_lib_init(ClientCfg(primary_port=int(sys.argv[1])))
status, client = dclient.client_init("127.0.0.1")
status, lock_id = dclient.get_lock(client, LockDesc(sys.argv[2].encode(), DlockType.ATOMIC))
status, state = dclient.trylock(client, LockRequest(lock_id, LockOp.LOCK_EXCLUSIVE, 60))
assert status is DlockStatus.SUCCESS, status
print(state.token, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def stopped_holder(port: int, name: str) -> Iterator[int]:
    """A process that holds this lock and is stopped in its tracks; its token."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(port), name], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        token = int(process.stdout.readline())
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)  # until it has stopped
        yield token
    finally:
        process.kill()
        process.communicate()
