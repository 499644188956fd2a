"""What the tests of durable locks share: primaries in this process and in others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from dlock import dss
from dlock.server import Server, ServerConfig

LIMIT_S = 20.0

PRIMARY = """
import sys, time
from pathlib import Path
from dlock.server import Server, ServerConfig
server = Server(ServerConfig(port=int(sys.argv[2]), state_dir=Path(sys.argv[1]), take_over=True,
                             accept_empty_state=sys.argv[3] == "True", session_ttl_ms=2000))
print(server.port, flush=True)
time.sleep(300)
"""


def start(folder: Path | None, **config: Any) -> Server:
    """A primary in this process."""
    return Server(ServerConfig(**{"port": 0, "state_dir": folder, **config}))


def opened(server: Server | str) -> dss.DssHandle:
    """An open handle."""
    handle = dss.DssHandle(server if isinstance(server, str) else server.address)
    assert dss.dss_init(handle) == 0
    return handle


class Child:
    """A primary in a process of its own, which ends with the block at the latest."""

    def __init__(self, folder: Path, port: int = 0, *, accept: bool = False,
                 **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRIMARY, str(folder), str(port), str(accept)], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, **environment})
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the primary did not start"
        self.port = int(line)
        self.address = f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        """SIGKILL, and its end."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
