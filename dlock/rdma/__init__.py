"""RDMA from Python: what this machine has of it (`look`), and the data path over pyverbs, which is
used where the C core was built without verbs.

`look` says what `dlock rdma` prints. It works on a machine with nothing at all.
"""

from __future__ import annotations

from dlock.rdma.facts import (
    Device,
    Gid,
    Machine,
    Missing,
    Part,
    Port,
    Report,
    Use,
)
from dlock.rdma.report import look

__all__ = ["Device", "Gid", "Machine", "Missing", "Part", "Port", "Report", "Use", "look"]
