"""`dlock door ldlm-lock`: lists and unlocks the locks of an LDLM door of this machine, over its
socket (dlock/doors/ldlm/ipc.py).

Its words, texts and exit codes are those of ldlm-lock.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from dlock.doors.ldlm.config import ENVIRONMENT, default_socket

EXIT_CLEAN, EXIT_FAILED = 0, 1
SOCKET_VARIABLE: Final = f"{ENVIRONMENT}IPC_SOCKET_FILE"
PIECE_BYTES: Final = 64 * 1024
USAGE: Final = """\
Usage: ldlm-lock <command>

Flags:
  -h, --help             Show context-sensitive help.
  -s, --socket=STRING    Path to the IPC socket file used for communication with the ldlm server

Commands:
  unlock <lock-name> [<key>]
    Unlock a lock

  list
    List locks

Run "ldlm-lock <command> --help" for more information on a command.
"""


class ToolError(Exception):
    """What is said on standard error; the exit code is 1."""


class Asked(NamedTuple):
    """What the words say. `socket`: empty: the default; `call`: empty: only help is wanted."""

    socket: str
    call: str
    name: str = ""
    key: str = ""


def main(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs one command; returns the exit code."""
    try:
        asked = parse(words)
        if not asked.call:
            print(USAGE, end="")
            return EXIT_CLEAN
        path = asked.socket or environ.get(SOCKET_VARIABLE) or default_socket(environ)
        for line in lines(asked.call, ask(path, asked)):
            print(line)
    except ToolError as problem:
        print(problem, file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:  # whoever read the list has seen enough
        sys.stdout = sys.stderr  # nothing is flushed into it at exit
        return EXIT_FAILED
    return EXIT_CLEAN


def parse(words: Sequence[str]) -> Asked:
    """ToolError: they are no command."""
    path = ""
    plain: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            plain += left
            break
        if word in ("-h", "--help"):
            return Asked(path, "")
        if word in ("-s", "--socket"):
            if not left:
                raise _wrong(f"{word}: expected string value but got \"EOL\" (<EOL>)")
            path = left.pop(0)
        elif word.startswith("--socket="):
            path = word.partition("=")[2]
        elif word.startswith("-s"):
            path = word[2:].removeprefix("=")
        elif word.startswith("-") and len(word) > 1:
            raise _wrong(f"unknown flag {word.partition('=')[0]}")
        else:
            plain.append(word)
    return _command(path, plain)


def _command(path: str, plain: list[str]) -> Asked:
    if not plain:
        raise _wrong('expected one of "unlock", "list"')
    call, *values = plain
    if call not in ("unlock", "list"):
        raise _wrong(f"unexpected argument {call}")
    most = 2 if call == "unlock" else 0
    if len(values) > most:
        raise _wrong(f"unexpected argument {values[most]}")
    if call == "unlock" and not values:
        raise _wrong('expected "<lock-name> [<key>]"')
    return Asked(path, call, *values)


def _wrong(text: str) -> ToolError:
    return ToolError(f"ldlm-lock: error: {text}")


def ask(path: str, asked: Asked) -> dict[str, Any]:
    """One request to the door at this socket. ToolError: there is none, or it refuses."""
    request = {"call": asked.call}
    if asked.call == "unlock":
        request.update(name=_text(asked.name), key=_text(asked.key))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        try:
            link.connect(path)
        except (OSError, ValueError) as problem:
            raise ToolError(f"IPC error: dial unix {path}: connect: {_why(problem)}. Is the ldlm "
                            f"server running? Do you need to specify the socket file path? See "
                            f"help") from None
        try:
            link.sendall(json.dumps(request).encode() + b"\n")
            received = b"".join(iter(lambda: link.recv(PIECE_BYTES), b""))
            said = json.loads(received)
        except (OSError, ValueError) as problem:
            raise ToolError(f"IPC error: the ldlm server did not answer: "
                            f"{_why(problem)}") from None
    if not isinstance(said, dict) or "error" in said:
        raise ToolError(str(said["error"]) if isinstance(said, dict) else "IPC error: no answer")
    return said


def _why(problem: Exception) -> str:
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror.lower()
    return str(problem)


def _text(word: str) -> str:
    """A word of the command line as text; LDLM's names are UTF-8."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise _wrong("names and keys are UTF-8") from None
    return word


def lines(call: str, said: dict[str, Any]) -> list[str]:
    """What is printed of an answer."""
    if call == "unlock":
        return [f"Unlocked: {'true' if said.get('unlocked') else 'false'}"]
    locks = [f"{{Name: {_shown(name)}, Key: {_shown(key)}, Size: {size}}}"
             for name, key, size in said.get("locks", [])]
    return locks or ["No locks found"]


def _shown(name: str) -> str:
    """A name as it is, but for what would steer a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)
