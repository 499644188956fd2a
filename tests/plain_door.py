"""The smallest door there can be, run by the real frame: it answers each connection with a line.
Words: PORT, then what it is to do wrong ("late-failure", "ends", "failing-stop", "deaf")."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from dlock.doors import frame, listen
from dlock.doors.door import Door, DoorError, Site, Usage


class Plain(Door):
    """Tells each client which namespace it is in, and ends its connection."""

    kind = "plain"

    def __init__(self, port: int, wrong: str = "") -> None:
        self._port = port
        self._wrong = wrong
        self._server: asyncio.AbstractServer | None = None

    async def prepare(self) -> None:
        try:
            self._listener = listen.tcp_socket("127.0.0.1", self._port)
        except OSError as problem:
            raise DoorError(f"error listening: {problem}", 7) from None

    async def start(self, site: Site) -> list[str]:
        class Greeter(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                site.counters["connections"] += 1
                stream = cast(asyncio.Transport, transport)  # that of uvloop is of no such class
                stream.write(site.namespace.encode() + b"\n")
                stream.close()

        if self._wrong == "late-failure":
            raise DoorError("it cannot begin", 9)
        if self._wrong == "ends":
            site.loop.call_later(0.1, site.end, "for a reason")
        self._server = await listen.accept(self._listener, Greeter)
        return [listen.shown(self._listener)]

    async def stop(self) -> None:
        if self._wrong == "deaf":
            time.sleep(3600)
        if self._wrong == "failing-stop":
            raise RuntimeError("no end")
        if self._server is not None:
            self._server.close()


def make(words: list[str], _environ: Mapping[str, str]) -> Plain:
    """As every kind has it."""
    if not words or not words[0].isdecimal():
        raise Usage(f"plain: {words} begins with no port", 5)
    if words[0] == "0":
        raise Usage("plain: help", 0, "stdout")
    return Plain(int(words[0]), *words[1:])


def main() -> int:
    address, namespace, ready_file, port, wrong = sys.argv[1:]
    logging.basicConfig(level="INFO", stream=sys.stderr)
    place = frame.Place(address, namespace, Path(ready_file))
    try:
        return frame.run(Plain(int(port), wrong), place, logging.getLogger("dlock.door"))
    except DoorError as problem:
        print(problem.text, file=sys.stderr)
        return problem.code


if __name__ == "__main__":
    sys.exit(main())
