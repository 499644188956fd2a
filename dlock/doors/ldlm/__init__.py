"""The LDLM door: clients of `ldlm-server` (gRPC, REST, ldlm-lock) on dlock. docs/door-ldlm.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dlock import __version__
from dlock.doors.door import Usage

if TYPE_CHECKING:
    from dlock.doors.ldlm.door import LdlmDoor


def make(words: Sequence[str], environ: Mapping[str, str]) -> LdlmDoor:
    """The door that ldlm-server's own command line describes. Usage: it describes none."""
    # ldlm-lock, which is in this package too, needs none of this.
    from dlock.doors.ldlm import config
    from dlock.doors.ldlm.door import LdlmDoor

    try:
        read = config.load(words, environ)
    except config.ConfigError as problem:
        shown = config.usage() if problem.usage else ""
        said = f"{problem.text}\n" if problem.text else ""
        raise Usage(said + shown, problem.code, "stderr" if problem.code else "stdout") from None
    if read.version:
        raise Usage(f"Version: {__version__}\nCommit: none\nBuilt: unknown\n", 0, "stdout")
    return LdlmDoor(read)
