"""What the tests of RDMA share: is there a device, which, and servers and clients that use it."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dlock
from dlock.admin import Admin
from dlock.primary import Primary
from dlock.server import Server, ServerConfig

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from guest import devices  # noqa: E402

DEVICES = Path("/sys/class/infiniband")
PATIENCE_S = 60.0
TTL_MS = 120_000  # nobody is evicted for being slow, where that is not what is tested


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


def demand_guest() -> None:
    """The test that runs changes the network under the guest's devices; it does so nowhere else."""
    if os.environ.get("DLOCK_GUEST") != "1":
        pytest.skip("it takes links down and loses packets: only in the guest (make test-rdma)")
    names = [devices.DUMMY[0], *(device for device, _, _ in devices.VETH)]
    missing = [name for name in names if not (DEVICES / name).exists()]
    assert not missing, f"the guest lacks {missing}"


def until(condition: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    """Waits for what must come true; how soon is not asserted."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[Server]:
    """A server in this process that serves RDMA."""
    config = {"port": 0, "wait_mode": "block", "transport": "verbs", "session_ttl_ms": TTL_MS}
    server = Server(ServerConfig(**{**config, **settings}))
    try:
        yield server
    finally:
        server.stop()


def connect(address: Any, **options: Any) -> dlock.Client:
    """A client that has RDMA, or whatever else these say."""
    if isinstance(address, Server):
        address = f"{address.host}:{address.port}"
    options = {"transport": "verbs", "timeout": PATIENCE_S, "wait": "block", **options}
    client = dlock.connect(address, **options)
    if options["transport"] == "verbs":
        assert client.transport.kind == "verbs", client.transport.why
    return client


def at_server(address: str) -> list[str]:
    """What carries the data plane of each session there, by what the server says."""
    with Admin(address) as admin:
        return [one.transport for one in admin.clients()]


# ---- The tests of the data plane, over verbs -----------------------------------------------------


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """What the servers of this process have counted in the block, by the time each has ended."""
    sums: Counter[str] = Counter()
    close = Primary.close

    def counting(primary: Primary) -> None:
        stats = primary.stats()
        sums.update(stats)
        over_tcp = stats["CONNECTIONS"] - stats["VERBS_CONNECTIONS"]
        if over_tcp:
            sums[f"over TCP: {os.environ.get('PYTEST_CURRENT_TEST')}"] += over_tcp
        close(primary)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Primary, "close", counting)
        yield sums


def demand_verbs_alone(stats: Counter[str]) -> None:
    """Every data connection at these servers was a queue pair, and there were some."""
    verbs, all_of_them = stats["VERBS_CONNECTIONS"], stats["CONNECTIONS"]
    assert verbs > 0, "nothing went over verbs"
    where = {name: links for name, links in stats.items() if name.startswith("over TCP: ")}
    assert verbs == all_of_them, (
        f"{all_of_them - verbs} of {all_of_them} links went over TCP: {where}")
