"""How a session gets its data connection, and has its debts settled, in an event loop: C only
looks, and the loop waits.

What the loop watches is never what C closes: C gets a duplicate of the socket. So it does not
matter who ends the session meanwhile, and nothing stays behind in the loop, whatever ends the wait.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from functools import partial
from typing import Final

from dlock import _core
from dlock._core import ffi, lib
from dlock._pairing import OwnEnd, data_link, handed_over
from dlock._session import Attach, Settle, forked_or

PENDING: Final[int] = _core.DLK_STATUS_PENDING
BAD_RESPONSE: Final[int] = _core.DLK_STATUS_BAD_RESPONSE
FLAGS: Final[int] = _core.DLK_LINK_ADOPT | _core.DLK_LINK_NOWAIT
# A queue pair of which nothing can be watched at this moment is looked at so often.
LOOK_S: Final = 0.01
# Answers to debts are read by the collector, or by whoever waits: between two looks it rests.
SETTLE_FIRST_S: Final = 0.001
SETTLE_MOST_S: Final = 0.032


async def attach(loop: asyncio.AbstractEventLoop, step: Attach) -> int:
    """Opens the data connection; a status. Cancelled, it leaves none."""
    session, deadline = step.session, time.monotonic() + step.timeout_s
    lib.dlk_client_drop_link(session.client)
    try:
        if step.end is not None:
            status = await _attach_pair(loop, step, step.end, deadline)
        else:
            sock = await _connect(loop, step.host, step.welcome.data_port, step.timeout_s)
            if sock is None:
                return BAD_RESPONSE
            with sock:
                status = await _prove(loop, step, sock, deadline)
    except BaseException:
        lib.dlk_client_detach(session.client)
        raise
    if session.ended:
        lib.dlk_client_detach(session.client)  # or a wait would stay that nobody takes along
    return forked_or(status)


async def _connect(
    loop: asyncio.AbstractEventLoop, host: str, port: int, timeout_s: float
) -> socket.socket | None:
    """A socket that is connected; None: nobody answers there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError:  # there are no descriptors left
        return None
    sock.setblocking(False)
    # A task of its own: the time limits of older versions may swallow a cancellation. It lets go of
    # the socket before that is closed.
    connecting = loop.create_task(loop.sock_connect(sock, (host, port)))
    connected = False
    try:
        await asyncio.wait((connecting,), timeout=timeout_s)
        connected = connecting.done() and connecting.exception() is None
    finally:
        if not connected:
            connecting.cancel()
            connecting.add_done_callback(partial(_discard, sock))
    return sock if connected else None


def _discard(sock: socket.socket, connecting: asyncio.Task[None]) -> None:
    if not connecting.cancelled():
        connecting.exception()  # nobody else asks for it
    sock.close()


async def _prove(
    loop: asyncio.AbstractEventLoop, step: Attach, sock: socket.socket, deadline: float
) -> int:
    """Hands a duplicate of the socket to C, and waits with the other one until C is satisfied."""
    session = step.session
    left_s = max(deadline - time.monotonic(), 0)
    link = data_link(step.host, step.welcome, left_s)
    link.flags = FLAGS
    try:
        link.fd = os.dup(sock.fileno())
    except OSError:
        return BAD_RESPONSE
    for_room = ffi.new("int *")
    status: int = lib.dlk_client_attach(session.client, link)
    handed_over(link)
    while status == PENDING and not session.ended:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            lib.dlk_client_drop_link(session.client)
            return BAD_RESPONSE
        lib.dlk_client_attach_fd(session.client, for_room)
        await _ready(loop, sock, bool(for_room[0]), left_s)
        status = lib.dlk_client_attach(session.client, link)
    return status


async def _attach_pair(
    loop: asyncio.AbstractEventLoop, step: Attach, end: OwnEnd, deadline: float
) -> int:
    """Has C use this end of a queue pair, and waits until C is satisfied."""
    session = step.session
    link = data_link(step.host, step.welcome, step.timeout_s, end)
    link.flags |= _core.DLK_LINK_NOWAIT
    for_room = ffi.new("int *")
    status: int = lib.dlk_client_attach(session.client, link)
    handed_over(link)
    while status == PENDING and not session.ended:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            lib.dlk_client_drop_link(session.client)
            return BAD_RESPONSE
        watched = lib.dlk_client_attach_fd(session.client, for_room)
        try:
            duplicate = os.dup(watched)
        except OSError:  # it has ended meanwhile, or there are no descriptors left
            await asyncio.sleep(min(LOOK_S, left_s))
        else:
            try:
                await _ready(loop, duplicate, bool(for_room[0]), left_s)
            finally:
                os.close(duplicate)
        status = lib.dlk_client_attach(session.client, link)
    return status


async def _ready(
    loop: asyncio.AbstractEventLoop, sock: socket.socket | int, for_room: bool, timeout_s: float
) -> None:
    """Until the socket can be written to, or read from; at most so long."""
    ready = loop.create_future()
    watch, leave = ((loop.add_writer, loop.remove_writer) if for_room
                    else (loop.add_reader, loop.remove_reader))
    watch(sock, _end, ready)
    timer = loop.call_later(timeout_s, _end, ready)
    try:
        await ready
    finally:
        timer.cancel()
        leave(sock)


def _end(wait: asyncio.Future[None]) -> None:
    if not wait.done():
        wait.set_result(None)


async def settle(step: Settle) -> int:
    """Has every unlock and cancel without an answer answered; a status, PENDING if that takes
    longer."""
    session, deadline = step.session, time.monotonic() + step.timeout_s
    status: int = lib.dlk_client_settle_start(session.client)
    rest_s = SETTLE_FIRST_S
    while status == PENDING and not session.ended:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        await asyncio.sleep(min(rest_s, left_s))
        rest_s = min(2 * rest_s, SETTLE_MOST_S)
        status = lib.dlk_client_settle_poll(session.client)
    return forked_or(status)
