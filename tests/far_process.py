"""A program of its own that uses dlock and does what a test tells it, line by line.

The test can stop it in its tracks, kill it, or step its clock, as only another process allows. What
is told is a Python expression over `client`, `lock` and `now_ns`; what comes back is its value.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = """
import json, sys
import dlock
from dlock import errors
from dlock._core import now_ns
client = dlock.connect(sys.argv[1], timeout=20)
print(json.dumps("ready"), flush=True)
names = {"client": client, "dlock": dlock, "now_ns": now_ns}
for line in sys.stdin:
    try:
        name, _, code = line.rstrip("\\n").partition("=")
        value = eval(code, names)
        if name:
            names[name] = value
            value = None
        answer = {"value": value}
    except Exception as problem:
        answer = {"error": type(problem).__name__, "text": str(problem)}
    print(json.dumps(answer), flush=True)
"""


class Raised(Exception):  # noqa: N818 - it tells what was raised elsewhere
    """What the other program raised; `kind` is the name of its class."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class FarProcess:
    """One such program, connected to a server. `environment` is added to ours."""

    def __init__(self, address: str, environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address], text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, **(environment or {})})
        assert self.answer() == "ready"

    def tell(self, line: str) -> None:
        """Sends `NAME=EXPRESSION` or `=EXPRESSION` without waiting for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """The next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the program ended"
        return json.loads(line)

    def ask(self, code: str) -> Any:
        """The value of an expression; Raised if it raised."""
        self.tell(f"={code}")
        return self.result()

    def result(self) -> Any:
        """The value of what was told."""
        answer = self.answer()
        if "error" in answer:
            raise Raised(answer["error"], answer["text"])
        return answer["value"]

    def let(self, name: str, code: str) -> None:
        """Names the value of an expression."""
        self.tell(f"{name}={code}")
        self.result()

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        self._process.send_signal(number)

    def close(self) -> None:
        """Ends it, however it is."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def clock_shim(folder: Path) -> tuple[Path, Path]:
    """A library to preload under which the wall clock of a process steps by as many seconds as a
    file says, and nothing else changes: (the library, the file)."""
    source, library, steps = folder / "shim.c", folder / "shim.so", folder / "steps"
    source.write_text("""
        #define _GNU_SOURCE
        #include <fcntl.h>
        #include <stdlib.h>
        #include <sys/syscall.h>
        #include <sys/time.h>
        #include <time.h>
        #include <unistd.h>
        static long step(void)
        {
            char text[32] = {0};
            int file = open(getenv("CLOCK_STEPS"), O_RDONLY | O_CLOEXEC);
            if (file < 0) return 0;
            ssize_t got = read(file, text, sizeof(text) - 1);
            close(file);
            return got > 0 ? atol(text) : 0;
        }
        int clock_gettime(clockid_t clock, struct timespec *now)
        {
            int failed = (int)syscall(SYS_clock_gettime, clock, now);
            if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
                now->tv_sec += step();
            return failed;
        }
        int gettimeofday(struct timeval *restrict now, void *restrict zone)
        {
            struct timespec time;
            (void)zone;
            clock_gettime(CLOCK_REALTIME, &time);
            now->tv_sec = time.tv_sec;
            now->tv_usec = time.tv_nsec / 1000;
            return 0;
        }
        time_t time(time_t *out)
        {
            struct timespec now;
            clock_gettime(CLOCK_REALTIME, &now);
            if (out) *out = now.tv_sec;
            return now.tv_sec;
        }
        """, encoding="utf-8")
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", library, source], check=True)
    return library, steps
