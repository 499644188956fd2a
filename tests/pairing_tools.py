"""What the tests of the choice between RDMA and TCP share: a queue pair that no device has, and a
world in which a client enters servers of the test's making, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dlock import _verbs
from dlock._pairing import NewEnd, OwnEnd
from dlock._session import Attach, Connect, Pause, Settle, Steps
from dlock.control.link import LinkError
from dlock.control.messages import (
    ClientDeinit,
    ClientInit,
    ClientReinit,
    Heartbeat,
    OpenQueuePair,
    QueuePair,
    ReinitDone,
    Status,
    UpdateLocks,
    Welcome,
)
from dlock.types import DlockStatus as S

T = TypeVar("T")

GID = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 1])
PORT = _verbs.Port(b"rxe7".ljust(64, b"\0"), GID, 1, 1, 2, 1, 1, 1, 1024, 0, 1, 400, 0, 32767,
                   32767, 128)
OWN = _verbs.Address(17, 5, GID, 0, 3, 1, 16, 512, 16)
THEIRS = QueuePair(S.SUCCESS, 18, 6, GID, 0, 3, 1, 16, 512, 16, 4096)


class PretendPair:
    """Stands for what a device would have made. `freed`: how often."""

    def __init__(self) -> None:
        self.own = OWN
        self.freed = 0

    def free(self) -> None:
        self.freed += 1


def own_end() -> OwnEnd:
    return OwnEnd(PORT, PretendPair())  # type: ignore[arg-type]


def welcome(verbs: int = 1, **changed: Any) -> Welcome:
    fields = {"status": S.SUCCESS, "version": 1, "client_id": 7, "session_slot": 0, "attach": 1,
              "data_port": 1, "epoch": 3, "incarnation": 77, "session_ttl_ms": 10_000,
              "max_lease_ms": 10_000, "declared_lease_ms": 10_000, "verbs": verbs}
    return Welcome(**{**fields, **changed})


class World:
    """Carries out the steps of a client that enters. What is to be otherwise than well is set:

    `verbs`: of Welcome; `device`: None, or why there is none; `pair`: the answer to OpenQueuePair;
    `attach`: status by "verbs" and "tcp"; `before`: called with each step, may raise. `log`: what
    was done, in words; `ends`: the queue pairs that were made.
    """

    def __init__(self) -> None:
        self.verbs = 1
        self.device: str | None = None
        self.pair: QueuePair | Exception = THEIRS
        self.attach = {"verbs": S.SUCCESS, "tcp": S.SUCCESS}
        self.welcome: dict[str, Any] = {}
        self.before: Callable[[Any], None] = lambda _step: None
        self.log: list[str] = []
        self.ends: list[OwnEnd] = []
        self.pauses_max = 3
        self.ids = 6

    def run(self, steps: Steps[T]) -> T:
        """To their end; after `pauses_max` pauses they are closed, which is a TimeoutError."""
        try:
            step = next(steps)
            while True:
                try:
                    outcome = self._carry_out(step)
                except LinkError as problem:
                    step = steps.throw(problem)
                except BaseException:
                    steps.close()
                    raise
                else:
                    step = steps.send(outcome)
        except StopIteration as end:
            value: T = end.value
            return value

    def _carry_out(self, step: Any) -> Any:
        self.before(step)
        if isinstance(step, list):
            return [self._answer(request) for request in step]
        if isinstance(step, Connect):
            self.log.append("connect")
            return "127.0.0.1"
        if isinstance(step, NewEnd):
            self.log.append("new end")
            if self.device is not None:
                return self.device
            self.ends.append(own_end())
            return self.ends[-1]
        if isinstance(step, Attach):
            kind = "tcp" if step.end is None else "verbs"
            self.log.append(f"attach {kind}")
            return self.attach[kind]
        if isinstance(step, Settle):
            return S.SUCCESS
        assert isinstance(step, Pause)
        self.log.append("pause")
        if self.log.count("pause") >= self.pauses_max:
            raise TimeoutError
        return None

    def _answer(self, request: Any) -> Any:
        if isinstance(request, ClientInit):
            self.log.append("init")
            self.ids += 1
            return welcome(self.verbs, **{"client_id": self.ids, **self.welcome})
        if isinstance(request, ClientReinit):
            self.log.append("reinit")
            return welcome(
                self.verbs, **{"client_id": request.client_id, "attach": 2, **self.welcome})
        if isinstance(request, OpenQueuePair):
            self.log.append("open")
            if isinstance(self.pair, Exception):
                raise self.pair
            return self.pair
        names = {ClientDeinit: "deinit", ReinitDone: "done", Heartbeat: "beat",
                 UpdateLocks: "claims"}
        self.log.append(names[type(request)])
        return Status(S.SUCCESS)

    @property
    def freed(self) -> list[int]:
        """How often each queue pair was freed."""
        return [end.pair.freed for end in self.ends]  # type: ignore[attr-defined]
