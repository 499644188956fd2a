"""Carries out, in the calling thread, what a session must ask on the control plane: the steps of
the generators of _session.py, which an asyncio client shares. It decides nothing itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final, TypeVar

from dlock._pairing import NewEnd
from dlock._session import REPLY_TIMEOUT_MS, Attach, Connect, Pause, Settle, Step, Steps
from dlock.control.link import ControlLink, LinkError

T = TypeVar("T")

REPLY_S: Final = REPLY_TIMEOUT_MS / 1000
_LEAST_S: Final = 0.05


def exchange(link: ControlLink, steps: Steps[T], timeout_s: float) -> T:
    """The value of steps that are exchanges and pauses only. LinkError."""
    try:
        step = next(steps)
        while True:
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                step = steps.send(None)
                continue
            assert isinstance(step, list)
            step = steps.send(link.exchange(step, timeout_s))
    except StopIteration as end:
        value: T = end.value
        return value


class Driver:
    """Steps of any kind. `link`: what the last Connect has opened. `pause` waits so many seconds,
    or until the seeker is called that is its second argument; what it raises, when the wait is not
    wanted any more, ends the steps, and so does `check`, which is asked before each of them. After
    `deadline` (time.monotonic) nothing is waited for."""

    __slots__ = ("_check", "_deadline", "_pause", "link")

    def __init__(
        self, check: Callable[[], None], pause: Callable[..., None],
        deadline: float = math.inf,
    ) -> None:
        self._check = check
        self._pause = pause
        self._deadline = deadline
        self.link: ControlLink | None = None

    def run(self, steps: Steps[T]) -> T:
        """The value of these steps."""
        try:
            step = next(steps)
            while True:
                try:
                    outcome = self._carry_out(step)
                except LinkError as problem:
                    step = steps.throw(problem)
                except BaseException:
                    steps.close()  # now: what it has of a device is given back
                    raise
                else:
                    step = steps.send(outcome)
        except StopIteration as end:
            value: T = end.value
            return value

    def _carry_out(self, step: Step) -> object:
        self._check()
        if isinstance(step, list):
            if self.link is None:
                raise LinkError("there is no link")
            left_s = self._deadline - time.monotonic()
            return self.link.exchange(step, max(_LEAST_S, min(REPLY_S, left_s)))
        if isinstance(step, Connect):
            former, self.link = self.link, None
            if former is not None:
                former.close()
            endpoint = step.endpoint
            self.link = ControlLink.connect(endpoint.host, endpoint.port, step.timeout_s)
            return self.link.peer
        if isinstance(step, NewEnd):
            return step.make()
        if isinstance(step, Attach):
            return step.session.attach(step.host, step.welcome, step.timeout_s, step.end)
        if isinstance(step, Settle):
            return step.session.settle(step.timeout_s)
        if step.seeker is None:
            self._pause(step.seconds)
        else:
            self._pause(step.seconds, step.seeker)
        return None
