"""What the tests of RDMA share: is there a device, and which."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

DEVICES = Path("/sys/class/infiniband")


@functools.cache
def what_is_missing() -> str | None:
    """Why no test of RDMA can run on this machine; None: they can."""
    from dlock._core import ffi, lib

    if not DEVICES.is_dir() or not any(DEVICES.iterdir()):
        return "no RDMA device here: `make test-rdma` runs it in a guest that has one"
    reason = ffi.new("char[]", lib.DLK_REASON_BYTES)
    if not lib.dlk_verbs_load(reason):
        return f"there is a device, but: {ffi.string(reason).decode()}"
    return None


def demand_device() -> None:
    """Skips the test that runs, or, where a device is promised (DLOCK_TEST_RDMA=1), fails it."""
    missing = what_is_missing()
    if missing is None:
        return
    if os.environ.get("DLOCK_TEST_RDMA") == "1":
        pytest.fail(missing)
    pytest.skip(missing)
