"""The command line of DoubleDutch: `PORT [flag value]...`, and our own words for its paths. Pure.

A flag is one letter, of a longer word only the first counts. What is wrong is said in the words of
the original.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from dlock.doors.door import Usage

PORT_MAX: Final = 65535
INT_MAX: Final = 2**31 - 1
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
OURS: Final = ("--cert", "--key", "--config", "--host")
HELP: Final = """\
usage: dlock door doubledutch [--connect HOST:PORT] [--namespace NAME] [--ready-file FILE]
                              PORT [flag value]... [--host HOST] [--cert FILE] [--key FILE]
                              [--config FILE]

flags of DoubleDutch:
  n NAME  name of the server (default: DoubleDutch/v0.3.0)
  a KEY   API key (default: the first line of the config file)
  p MS    precision in milliseconds (default: 333)
  h 0     plain HTTP (default: HTTPS)
  t N     threads; read and not needed
ours:
  --host HOST    listen there (default: everywhere)
  --cert FILE    certificate (default: /certificate.crt)
  --key FILE     its key (default: /privateKey.key)
  --config FILE  the API key is its first line (default: /config.txt)
"""


@dataclass(frozen=True)
class Flags:
    """What a DoubleDutch server was told."""

    port: int
    host: str = ""
    server_name: str = "DoubleDutch/v0.3.0"
    precision_ms: int = 333
    threads: int = 0  # read and not used: nothing that waits here has a thread
    https: bool = True
    api_key: str | None = None
    certificate_path: str = "/certificate.crt"
    key_path: str = "/privateKey.key"
    config_path: str = "/config.txt"


def error_text(message: str) -> str:
    """As the original ends."""
    return f"[ERROR]: {message}! Terminating...\n"


def parse(words: list[str]) -> Flags:
    """Usage: what is wrong with them, or what -h asks for."""
    if words[:1] in (["-h"], ["--help"]):
        raise Usage(HELP, 0, "stdout")
    words, ours = _split(words)
    if len(words) % 2 == 0 or not _digits(words[0]):
        raise _wrong("Not a valid input")
    flags = Flags(_number(words[0], least=1))
    flags = replace(
        flags, host=ours.get("--host", flags.host),
        certificate_path=ours.get("--cert", flags.certificate_path),
        key_path=ours.get("--key", flags.key_path),
        config_path=ours.get("--config", flags.config_path))
    if flags.port > PORT_MAX:
        raise _wrong("Not a valid input")
    for word, value in zip(words[1::2], words[2::2], strict=True):
        flags = _with_flag(flags, word[:1], value)
    return flags


def _with_flag(flags: Flags, letter: str, value: str) -> Flags:
    if letter == "n":
        if not value.isprintable():
            raise _wrong("Not a valid input")  # it stands in a header
        return replace(flags, server_name=value)
    if letter == "a":
        if not value:
            raise _wrong("Not a valid input")
        return replace(flags, api_key=value)
    if not _digits(value):
        raise _wrong("Not a valid flag")
    if letter == "p":
        return replace(flags, precision_ms=_number(value, least=0))
    if letter == "t":
        return replace(flags, threads=_number(value, least=1))
    if letter == "h":
        if int(value) != 0:
            raise _wrong("h only takes 0 as an argument")
        return replace(flags, https=False)
    raise _wrong("Not a valid command-line flag")


def _split(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Words of the original, and our own with their values."""
    theirs: list[str] = []
    ours: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        name, given, value = word.partition("=")
        if name not in OURS:
            theirs.append(word)
            continue
        if not given:
            value = next(rest, "")
        if not value:
            raise _wrong(f"{name} needs a value")
        ours[name] = value
    return theirs, ours


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(text: str, least: int) -> int:
    if len(text) > 10 or not least <= int(text) <= INT_MAX:
        raise _wrong("Need [SIGNED INT] as argument")
    return int(text)


def _wrong(message: str) -> Usage:
    return Usage(error_text(message), EXIT_USAGE)
