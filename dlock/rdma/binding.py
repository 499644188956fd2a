"""The only importer of pyverbs: loads it when it is first asked for, whichever version, and says in
words why it cannot be had.

Between rdma-core 44 and 59 the module with the constants has changed its name. Addresses of the C
objects exist in newer versions only, and reading them in older ones can crash, so none is ever
asked for. Importing pyverbs sets up the root logger of the process; here it does not.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import re
import threading
from types import ModuleType, SimpleNamespace
from typing import Any, Final

ENUMS: Final = ("pyverbs.libibverbs_enums", "pyverbs.enums")
MODULES: Final = ("addr", "cq", "device", "fork", "mr", "pd", "qp", "wr", "pyverbs_error")
# How to get one that fits: the distribution's is of the same rdma-core as its libibverbs.
ADVICE: Final = ("apt-get install python3-pyverbs   # Debian, Ubuntu; then a virtual environment "
                 "with --system-site-packages",
                 "dnf install python3-pyverbs       # Fedora, RHEL and their like",
                 "pip install 'dlock[rdma]'         # where libibverbs is as new as that pyverbs")


class PyverbsError(Exception):
    """pyverbs is not here, or does not load; the text says which and why."""


class _Loaded:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.modules: Any = None


_loaded: Final = _Loaded()


def load() -> Any:
    """The modules of pyverbs as one namespace (`device`, `cq`, .. and `enums`). PyverbsError."""
    with _loaded.lock:
        if _loaded.modules is None:
            _loaded.modules = _load()
        return _loaded.modules


def version() -> str | None:
    """Of the pyverbs that is installed, if its package says so."""
    try:
        return importlib.metadata.version("pyverbs")
    except importlib.metadata.PackageNotFoundError:
        return None


def _load() -> SimpleNamespace:
    root, quiet = logging.getLogger(), logging.NullHandler()
    root.handlers.append(quiet)  # with a handler there, basicConfig changes nothing
    try:
        modules = {name: importlib.import_module(f"pyverbs.{name}") for name in MODULES}
        return SimpleNamespace(**modules, enums=_enums())
    except ImportError as problem:
        raise PyverbsError(_why(problem)) from None
    finally:
        root.handlers.remove(quiet)


def _enums() -> ModuleType:
    for name in ENUMS:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ImportError(f"it has neither {' nor '.join(ENUMS)}")


def _why(problem: ImportError) -> str:
    if isinstance(problem, ModuleNotFoundError) and problem.name == "pyverbs":
        return "not installed"
    found = version()
    which = f"version {found} is installed" if found else "it is installed"
    wanted = re.search(r"IBVERBS_PRIVATE_(\d+)|version [`'](\w+)' not found", str(problem))
    if wanted:
        return (f"{which}, and does not load: it was built for another rdma-core than the "
                f"libibverbs of this machine ({problem})")
    return f"{which}, and does not load: {problem}"
