"""The door for clients of glockd: exclusive and counted shared locks over TCP, a unix socket and
websockets. docs/door-glockd.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dlock.doors.door import Usage
from dlock.doors.glockd import flags
from dlock.doors.glockd.door import NO_PIDFILE, GlockdDoor


def make(words: Sequence[str], environ: Mapping[str, str]) -> GlockdDoor:
    """The door that glockd's own command line describes. Usage: it describes none."""
    try:
        read = flags.parse(words)
    except flags.FlagsError as end:
        raise Usage(end.text, end.code) from None
    if not read.pidfile:
        raise Usage("Please specify a pidfile\n", NO_PIDFILE)
    return GlockdDoor(read)
