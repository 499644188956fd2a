"""Who a client is, for people: what `dlock show` prints beside a hold. It is sent once, when a
session is opened, and decides nothing.
"""

from __future__ import annotations

import os
import pwd
import socket
import sys
from collections.abc import Mapping
from typing import Final

TEXT_BYTES_MAX: Final = 128
ROLE_BYTES_MAX: Final = 128
JOB_VARIABLES: Final = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
RANK_VARIABLES: Final = ("SLURM_PROCID", "PMIX_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")


def client_info(
    name: str | None = None, environment: Mapping[str, str] = os.environ
) -> dict[str, str | int]:
    """host, pid, user, program (or the name that the client was given) and, inside a batch job or
    a parallel program, job."""
    program = os.path.basename(sys.argv[0]) if sys.argv else ""
    texts = {
        "host": socket.gethostname(),
        "user": environment.get("USER") or environment.get("LOGNAME") or _user(),
        "program": name or program,
        "job": _job(environment),
    }
    info: dict[str, str | int] = {"pid": os.getpid()}
    for key, text in texts.items():
        if text:
            info[key] = text.encode("utf-8", "replace")[:TEXT_BYTES_MAX].decode("utf-8", "ignore")
    return info


def checked_role(role: str) -> str:
    """The role that a client is to have; empty: none. ValueError."""
    if not isinstance(role, str):
        raise TypeError(f"a role is text, not {type(role).__name__}")
    if not role.isprintable() or len(role.encode()) > ROLE_BYTES_MAX:
        raise ValueError(f"a role is printable text of at most {ROLE_BYTES_MAX} bytes, "
                         f"not {role!r}")
    return role


def _user() -> str:
    """The name of the user who runs the process, or the number where it has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _job(environment: Mapping[str, str]) -> str:
    """The id of the batch job, and the rank in it; either may be missing."""
    job = next((environment[name] for name in JOB_VARIABLES if environment.get(name)), "")
    rank = next((environment[name] for name in RANK_VARIABLES if environment.get(name)), "")
    return " ".join(part for part in (job, f"rank {rank}" if rank else "") if part)
