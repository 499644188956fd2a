"""The check that the tests of the data plane really ran over verbs can fail."""

from __future__ import annotations

from collections import Counter

import pytest
import rdma_tools

import dlock
from dlock.server import Server, ServerConfig


def test_a_link_over_tcp_is_seen() -> None:
    with rdma_tools.counted() as stats:
        server = Server(ServerConfig(port=0, wait_mode="block", transport="tcp"))
        with dlock.connect(f"{server.host}:{server.port}", transport="tcp"):
            pass
        server.stop()
    assert stats["CONNECTIONS"] == 1
    with pytest.raises(AssertionError, match="nothing went over verbs"):
        rdma_tools.demand_verbs_alone(stats)
    with pytest.raises(AssertionError, match="1 of 3 links went over TCP"):
        rdma_tools.demand_verbs_alone(Counter(VERBS_CONNECTIONS=2, CONNECTIONS=3))
    rdma_tools.demand_verbs_alone(Counter(VERBS_CONNECTIONS=2, CONNECTIONS=2))


@pytest.mark.parametrize("promised", [False, True])
def test_without_a_device_a_test_is_skipped_or_where_one_is_promised_fails(
    promised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rdma_tools, "what_is_missing", lambda: "no device")
    monkeypatch.setenv("DLOCK_TEST_RDMA", "1" if promised else "0")
    with pytest.raises(pytest.fail.Exception if promised else pytest.skip.Exception):
        rdma_tools.demand_device()
