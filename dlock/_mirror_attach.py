"""How a client of the mirror gets its data connection: over a queue pair or over TCP, as its
configuration and the environment say. The policy is the one of the Python API (_pairing.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from dlock import _mirror_data
from dlock._mirror_client import STATUSES, MirrorClient
from dlock._pairing import NewEnd, NoVerbs, OwnEnd, Unreached, how, pairing, unreached
from dlock._transport import Transport
from dlock.control.link import ControlLink, LinkError
from dlock.control.messages import Welcome
from dlock.types import DlockStatus

_log = logging.getLogger("dlock.client")

T = TypeVar("T")


def attach(client: MirrorClient, welcome: Welcome, link: ControlLink) -> DlockStatus:
    """Opens the data connection that this Welcome speaks of. BAD_RESPONSE; where RDMA alone is
    wanted also ERROR (no device here, or none that the server's goes with) and SERVER_NO_RESOURCE
    (the server has none, or no room). Unreached: see `entered`."""
    wish = client.settings.wish
    try:
        host = link.peer
        place = f"{host}:{client.settings.port}"
        way = _pair(client, place, welcome, link)
    except NoVerbs as problem:
        _log.error("client %d: %s", client.id, problem)
        return problem.status
    except LinkError as problem:
        _log.info("client %d: %s", client.id, problem)
        return DlockStatus.BAD_RESPONSE
    timeout_ms = round(client.settings.reply_timeout_s * 1000)
    if isinstance(way, Transport):
        status = STATUSES[_mirror_data.attach(client.pointer, host, timeout_ms, welcome)]
    else:
        try:
            status = STATUSES[_mirror_data.attach(client.pointer, host, timeout_ms, welcome, way)]
        finally:
            way.free()
        if status is not DlockStatus.SUCCESS:
            raise unreached(wish, place, way)
        way = way.transport
    if status is DlockStatus.SUCCESS:
        said = how(wish, place, way, client.transport)
        if said:
            _log.info("client %d: %s", client.id, said)
        client.transport = way
    return status


def _pair(
    client: MirrorClient, place: str, welcome: Welcome, link: ControlLink
) -> OwnEnd | Transport:
    steps = pairing(client.settings.wish, place, welcome)
    try:
        step = next(steps)
        while True:
            step = steps.send(step.make() if isinstance(step, NewEnd)
                              else link.exchange(step, client.settings.reply_timeout_s))
    except StopIteration as end:
        way: OwnEnd | Transport = end.value
        return way
    finally:
        steps.close()


def entered(what: str, enter: Callable[[], T]) -> T | DlockStatus:
    """What `enter` returns, which opens a session or takes it up again; if the server was not
    reached over a queue pair, what it returns the second time, over TCP."""
    outcome: T | DlockStatus = DlockStatus.BAD_RESPONSE
    try:
        return enter()
    except Unreached as problem:
        _log.warning("%s: %s", what, problem)
        if not problem.again:
            return outcome
        try:
            outcome = enter()
        except Unreached as another:
            _log.warning("%s: %s", what, another)
        finally:
            if isinstance(outcome, DlockStatus) and outcome is not DlockStatus.SUCCESS:
                problem.forget()
        return outcome
