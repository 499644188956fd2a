"""RDMA: the device that the other tests of RDMA stand on."""

from __future__ import annotations

import pytest

from dlock._core import ffi, lib


@pytest.mark.rdma
def test_there_is_a_port_to_use() -> None:
    ports = ffi.new("struct dlk_verbs_port[16]")
    reason = ffi.new("char[]", lib.DLK_REASON_BYTES)
    assert lib.dlk_verbs_ports(ports, 16, reason) > 0, ffi.string(reason)
    chosen = ffi.new("struct dlk_verbs_port *")
    assert lib.dlk_verbs_choose(ffi.new("struct dlk_verbs_wish *"), chosen, reason) == 1
    assert chosen.active == 1
