"""The task that brings the links of a connection back after a failure, and then waits until the
server serves everything. The policy is dlock/_enter.py's; what is installed is the connection's.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import weakref
from typing import TYPE_CHECKING

from dlock._enter import awaiting_ready
from dlock._session import Session
from dlock.aio._drive import Driver
from dlock.control.link import LinkError
from dlock.control.messages import ClientDeinit
from dlock.errors import Superseded

if TYPE_CHECKING:
    from dlock.aio._connection import Connection

_log = logging.getLogger("dlock.aio")


def start(connection: Connection, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
    """Begins it. It ends when both links are there and the server serves everything, or when the
    connection is closed or dropped."""
    reference = weakref.ref(connection)
    recovering = loop.create_task(_recover(reference))
    recovering.add_done_callback(functools.partial(_recovered, reference))
    return recovering


async def _recover(reference: weakref.ref[Connection]) -> None:
    """The body of the task. It does not keep its connection alive: one that its program has dropped
    is not brought back."""
    driver: Driver | None = None
    try:
        while (connection := _wanted(reference)) is not None and not connection.settled:
            if connection.whole:
                session, links = connection.session, connection.await_ready(True)
                del connection
                await _await_ready(reference, session, links)
                continue
            _log.info("a link to %s is lost", connection.options.address)
            steps = connection.enter_again()
            driver = connection.replace_driver()
            del connection
            session = await driver.run(steps)
            connection = _wanted(reference)
            if connection is None:
                break
            connection.install(session, driver)
            driver = None
    finally:
        if driver is not None:
            connection = _wanted(reference)
            if connection is None:
                driver.farewell(ClientDeinit())
            else:
                driver.close()


async def _await_ready(
    reference: weakref.ref[Connection], session: Session, driver: Driver
) -> None:
    """Until the server serves everything, or a link is lost."""
    try:
        await driver.run(awaiting_ready(session))
    except LinkError:
        driver.close()
    finally:
        connection = reference()
        if connection is not None:
            connection.await_ready(False)


def _recovered(reference: weakref.ref[Connection], recovering: asyncio.Task[None]) -> None:
    problem = None if recovering.cancelled() else recovering.exception()
    by_itself = not recovering.cancelled() and problem is None
    connection = reference()
    if isinstance(problem, Superseded):
        if connection is not None:
            connection.supersede(problem)
    elif problem is not None:
        _log.error("the links of a dlock client cannot be brought back", exc_info=problem)
    if connection is not None:
        connection.recovered(by_itself)


def _wanted(reference: weakref.ref[Connection]) -> Connection | None:
    connection = reference()
    return None if connection is None or connection.closed else connection
