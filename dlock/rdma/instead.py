"""Does pyverbs stand in for the C core? Where the core was built without verbs, or where that is
asked for: DLOCK_VERBS is "core" or "pyverbs".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dlock import _verbs
from dlock._verbs import VerbsError

ENVIRONMENT: Final = "DLOCK_VERBS"
CORE: Final = "core"
PYVERBS: Final = "pyverbs"
DEVICES: Final = Path("/sys/class/infiniband")


def stands_in(environment: Mapping[str, str] = os.environ) -> bool:
    """At both ends alike. VerbsError: neither can be used, or no such word is known."""
    word = environment.get(ENVIRONMENT) or ""
    if word not in ("", CORE, PYVERBS):
        raise VerbsError(f"{ENVIRONMENT} is {word!r}, not {CORE} or {PYVERBS}")
    if word:
        return word == PYVERBS
    problem = _verbs.load()
    if problem is None:
        return False
    if not DEVICES.is_dir() or not any(DEVICES.iterdir()):
        raise VerbsError(f"{problem}. There is no RDMA device for pyverbs either")
    return True
