"""The client processes of a drill: started, stopped, killed and replaced; and whether they are
served."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from dlock.drill import child, records
from dlock.drill.beliefs import Board
from dlock.drill.primary import DrillError, clean_environment, read_line
from dlock.drill.records import (
    ClientContinued,
    ClientEnded,
    ClientKilled,
    ClientStarted,
    ClientStopped,
    ClientWorking,
    Hold,
    Writer,
    now_ns,
)
from dlock.drill.worker import MIRROR, Orders

WORKING_S: Final = 120.0
END_S: Final = 120.0
LOOK_S: Final = 0.005
LOG_BYTES_SHOWN: Final = 3000


@dataclass
class Client:
    """One client process."""

    orders: Orders
    popen: subprocess.Popen[bytes]
    board: Board
    log: Path
    stopped: bool = False

    @property
    def name(self) -> str:
        """As in the records."""
        return self.orders.client

    def served_since(self, t_ns: int) -> bool:
        """Has every session been granted something that it asked for after this moment?"""
        orders = self.orders
        actors = 1 if orders.flavour == MIRROR else orders.actors
        return all(
            any(self.board.served_ns(first + actor) > t_ns for actor in range(actors))
            for first in range(0, orders.slots, orders.actors))


    @property
    def held(self) -> int:
        """How many holds it follows now."""
        return sum(map(self.board.holding, range(self.orders.slots)))

    # ---- A crowd (dlock/drill/worker_crowd.py) takes orders --------------------------------------

    def tell(self, order: str) -> None:
        """An order, on its standard input."""
        pipe = _pipe(self.popen.stdin)
        pipe.write(f"{order}\n".encode())
        pipe.flush()

    def hear(self, answer: str, seconds: float) -> None:
        """Waits for the answer. DrillError."""
        line = read_line(self.popen.stdout, seconds)
        if line != answer:
            raise DrillError(f"the client {self.name} said {line!r} instead of {answer!r}: "
                             f"{_end_of(self)}")

    def all_held(self, seconds: float) -> bool:
        """Waits until every actor holds something; False: not in this time."""
        deadline = time.monotonic() + seconds
        while self.held < self.orders.slots:
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_S)
        return True


class Clients:
    """All that run now. `address`, `hosts`, `port`: see `Orders`."""

    def __init__(self, folder: Path, writer: Writer, *, seed: str, prefix: str, port: int,
                 sessions: int, actors: int, network: str = child.NO_NETWORK,
                 label: str = "c") -> None:
        self._folder, self._writer = folder, writer
        self._seed, self._prefix, self._port = seed, prefix, port
        self._sessions, self._actors = sessions, actors
        self._network, self._label = network, label
        self._count = 0
        self.running: list[Client] = []

    # ---- Starting --------------------------------------------------------------------------------

    def begin(self, flavour: str, address: str, hosts: list[str], *, sessions: int = 0,
              actors: int = 0) -> Client:
        """Starts one; it works when `working` has returned. `sessions`, `actors`: others than those
        of all."""
        sessions, actors = sessions or self._sessions, actors or self._actors
        self._count += 1
        name = f"{self._label}{self._count}"
        orders = Orders(
            name, flavour, str(self._folder), address, hosts, self._port, sessions, actors,
            self._seed, self._prefix)
        board = Board(self._folder / f"{name}.board", orders.slots, create=True)
        log = self._folder / f"{name}.log"
        with log.open("wb") as errors:
            started_ns = now_ns()
            popen = subprocess.Popen(
                child.words("client", orders.to_word(), network=self._network),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                start_new_session=True, env=clean_environment())
        client = Client(orders, popen, board, log)
        self.running.append(client)
        self._writer.write(ClientStarted(started_ns, name, popen.pid, flavour, sessions))
        return client

    def working(self, client: Client) -> None:
        """Waits until all its sessions are open. DrillError."""
        line = read_line(client.popen.stdout, WORKING_S)
        if line != "working":
            raise DrillError(f"the client {client.name} did not begin to work: {_end_of(client)}")
        self._writer.write(ClientWorking(now_ns(), client.name))

    # ---- What befalls them -----------------------------------------------------------------------

    def stop(self, client: Client) -> None:
        """SIGSTOP, and until it has stopped."""
        client.popen.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, client.popen.pid, os.WSTOPPED | os.WNOWAIT)
        client.stopped = True
        self._writer.write(ClientStopped(now_ns(), client.name))

    def go_on(self, client: Client) -> None:
        """SIGCONT."""
        self._writer.write(ClientContinued(now_ns(), client.name))
        client.popen.send_signal(signal.SIGCONT)
        client.stopped = False

    def kill(self, client: Client) -> int:
        """kill -9; what it held is written down. It never comes back. How many holds it had."""
        killed_ns = now_ns()
        client.popen.kill()
        status = client.popen.wait()
        self._writer.write(ClientKilled(killed_ns, client.name))
        left = self._write_down(client)
        self._ended(client, status, expected=True)
        return left

    def _write_down(self, client: Client) -> int:
        """The holds that it could not write down itself."""
        path = self._folder / f"{client.name}{records.SUFFIX}"
        over = {one.token for one in records.read_file(path) if isinstance(one, Hold)}
        left = [hold for hold in client.board.holds() if hold.token not in over]
        for hold in left:
            self._writer.write(hold)
        return len(left)

    def replace(self, client: Client) -> Client:
        """Another one, in the place of one that was killed."""
        orders = client.orders
        return self.begin(orders.flavour, orders.address, orders.hosts)

    # ---- What they are at ------------------------------------------------------------------------

    def await_served(self, since_ns: int, seconds: float) -> list[Client]:
        """Waits until all who are not stopped are served again; those who are not in this time."""
        deadline = time.monotonic() + seconds
        while True:
            self.check()
            left = [one for one in self.running
                    if not one.stopped and not one.served_since(since_ns)]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(LOOK_S)

    def check(self) -> None:
        """DrillError if one has ended by itself."""
        for client in self.running:
            status = None if client.stopped else client.popen.poll()
            if status is not None:
                self._write_down(client)
                self._ended(client, status, expected=False)
                raise DrillError(f"the client {client.name} ended with {status}: {_end_of(client)}")

    # ---- Their end -------------------------------------------------------------------------------

    def end(self, seconds: float = END_S) -> None:
        """All give back what they hold, and end. Those that do not are killed, which is a
        violation."""
        for client in self.running:
            self._ask_to_end(client)
        deadline = time.monotonic() + seconds
        for client in list(self.running):
            self._await_end(client, deadline)

    def leave(self, client: Client, seconds: float = END_S) -> None:
        """The same for one."""
        self._ask_to_end(client)
        self._await_end(client, time.monotonic() + seconds)

    def _ask_to_end(self, client: Client) -> None:
        if client.stopped:
            self.go_on(client)
        with contextlib.suppress(OSError):
            _pipe(client.popen.stdin).close()

    def _await_end(self, client: Client, deadline: float) -> None:
        try:
            status = client.popen.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            client.popen.kill()
            status = client.popen.wait()
            self._write_down(client)
        self._ended(client, status, expected=status == 0)

    def close(self) -> None:
        """Whatever is left is killed."""
        for client in list(self.running):
            client.popen.kill()
            client.popen.wait()
            self._write_down(client)
            self._ended(client, -signal.SIGKILL, expected=True)

    def _ended(self, client: Client, status: int, *, expected: bool) -> None:
        self._writer.write(ClientEnded(now_ns(), client.name, status, expected))
        self.running.remove(client)
        for pipe in (client.popen.stdin, client.popen.stdout):
            with contextlib.suppress(OSError):
                _pipe(pipe).close()
        client.board.close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _end_of(client: Client) -> str:
    return client.log.read_bytes()[-LOG_BYTES_SHOWN:].decode(errors="replace").strip()
