"""Fixtures: a server in this process, and the mirror's client library set up for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from mirror_tools import FarService, Service

StartService = Callable[..., "Service"]

# How fast a machine is says nothing about what is tested on it.
settings.register_profile(
    "any machine", settings.get_profile(settings.get_current_profile_name()), deadline=None,
    suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# What ignores a signal hands that down to every program that it starts: a shell to what it starts
# in the background, nohup to all. The programs of the tests must not, for they are sent these
# signals on purpose; a handler is not handed down.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda _number, _frame: None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test of RDMA needs a device; where one is promised, its absence is a failure."""
    if item.get_closest_marker("rdma") is not None:
        import rdma_tools

        rdma_tools.demand_device()


@pytest.fixture(scope="session", autouse=True)
def all_links_were_over_verbs() -> Iterator[None]:
    """Where the tests run a second time over RDMA, none of them may have gone over TCP unseen."""
    if os.environ.get("DLOCK_TRANSPORT") != "verbs":
        yield
        return
    import rdma_tools

    with rdma_tools.counted() as stats:
        yield
    rdma_tools.demand_verbs_alone(stats)


@pytest.fixture
def start_service() -> Iterator[StartService]:
    """Starts a server with these limits, and the client library with `client` as its settings.
    Everything has ended after the test, whatever it left."""
    import mirror_tools

    from dlock import dclient, dserver

    assert dserver.dserver_lib_init(32) is mirror_tools.S.SUCCESS

    def start(client: dict[str, object] | None = None, **limits: object) -> Service:
        port = mirror_tools.free_port()
        server_id = mirror_tools.start_server(port, **limits)
        cfg = mirror_tools.client_cfg(port, **(client or {}))
        assert dclient.dclient_lib_init(cfg) is mirror_tools.S.SUCCESS
        return mirror_tools.Service(port, server_id)

    yield start
    dclient.dclient_lib_deinit()
    dserver.dserver_lib_deinit()


@pytest.fixture
def service(start_service: StartService) -> Service:
    """A server with default limits."""
    return start_service()


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    """Runs a call in a thread of its own; its future."""
    with ThreadPoolExecutor(32) as pool:
        yield pool.submit


@pytest.fixture
def far_service() -> Iterator[Callable[..., FarService]]:
    """Starts a server in a process of its own, which can be stopped in its tracks or killed, and
    the client library with these settings."""
    import mirror_tools

    from dlock import dclient

    services: list[FarService] = []

    def start(limits: dict[str, object] | None = None, **client: object) -> FarService:
        port = mirror_tools.free_port()
        process = mirror_tools.start_far(port, **(limits or {}))
        services.append(mirror_tools.FarService(port, 0, process=process))
        cfg = mirror_tools.client_cfg(port, **client)
        assert dclient.dclient_lib_init(cfg) is mirror_tools.S.SUCCESS
        return services[-1]

    yield start
    for service in services:
        service.crash()
    dclient.dclient_lib_deinit()


@pytest.fixture(params=["stopped", "killed"])
def start_primary(request: pytest.FixtureRequest) -> StartService:
    """As `start_service`, for a primary that is going to die: once stopped in this process, once
    killed with kill -9 in one of its own."""
    if request.param == "stopped":
        return request.getfixturevalue("start_service")  # type: ignore[no-any-return]
    far_service = request.getfixturevalue("far_service")

    def start(client: dict[str, object] | None = None, **limits: object) -> Service:
        return far_service(limits, **(client or {}))  # type: ignore[no-any-return]

    return start
