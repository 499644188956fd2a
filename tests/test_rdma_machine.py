"""What is read of RDMA from the operating system's files, and which port is chosen by it."""

from __future__ import annotations

from pathlib import Path

import pytest
from rdma_machines import LINK_LOCAL, ROOT_STATUS, UNSET, V4, Tree

from dlock.rdma.choice import Wish, choose
from dlock.rdma.facts import Device, Gid, Port
from dlock.rdma.machine import read_machine


def test_a_machine_with_nothing_is_read_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    machine = read_machine(Tree(tmp_path / "empty", modules=False).roots)
    assert machine.devices == ()
    assert machine.cards == ()
    assert machine.modules == frozenset()
    assert machine.modules_found is None
    assert machine.interface is None
    assert not machine.privileged
    assert not machine.container


def test_a_device_its_port_and_its_gids(tmp_path: Path) -> None:
    tree = Tree(tmp_path).module("ib_core", "rdma_rxe", "ib_uverbs").interface("eth0")
    tree.device("rxe0", gids=((LINK_LOCAL, "RoCE v2"), (V4, "IB/RoCE v1"), (UNSET, ""),
                              (V4, "RoCE v2")))
    (device,) = read_machine(tree.roots).devices
    assert (device.name, device.soft, device.kind) == ("rxe0", True, "soft-RoCE")
    assert (device.interface, device.opens, device.unfit) == ("eth0", True, None)
    (port,) = device.ports
    assert (port.number, port.active, port.link) == (1, True, "Ethernet")
    assert [(gid.index, gid.address, gid.type) for gid in port.gids] == [
        (0, "fe80::8885:c6ff:fec5:f03f", "RoCE v2"), (1, "10.66.0.1", "RoCE v1"),
        (3, "10.66.0.1", "RoCE v2")]


def test_hardware_is_told_from_software(tmp_path: Path) -> None:
    tree = Tree(tmp_path).module("mlx5_ib").interface("eth0", driver="mlx5_core")
    tree.device("mlx5_0", card="eth0", driver="mlx5_core").device("rxe0", 1)
    machine = read_machine(tree.roots)
    assert [(one.name, one.soft, one.kind) for one in machine.devices] == [
        ("mlx5_0", False, "mlx5_core"), ("rxe0", True, "soft-RoCE")]
    (card,) = machine.cards
    assert card.has_device
    assert card.loaded
    assert card.module == "mlx5_ib"


def test_a_card_without_its_module_is_seen(tmp_path: Path) -> None:
    (card,) = read_machine(Tree(tmp_path).interface("eth0", driver="mlx5_core").roots).cards
    assert not card.has_device
    assert not card.loaded
    assert card.found


def test_infiniband_has_no_addresses_of_the_network(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.device("mlx5_0", link="InfiniBand", gids=(("fe80:0:0:0:1:2:3:4", ""),
                                                   (LINK_LOCAL, "IB/RoCE v1")))
    ((port,),) = [one.ports for one in read_machine(tree.roots).devices]
    assert [(gid.type, gid.address) for gid in port.gids] == [("InfiniBand", None)]


@pytest.mark.parametrize(("node_type", "driver", "words"),
                         [("4: RNIC", "", "iWARP"), ("1: CA", "efa", "EFA")])
def test_devices_that_cannot_be_used(tmp_path: Path, node_type: str, driver: str, words: str
                                     ) -> None:
    tree = Tree(tmp_path).device("one0", node_type=node_type, card="eth9" if driver else "",
                                 driver=driver)
    (device,) = read_machine(tree.roots).devices
    assert words in (device.unfit or "")


def test_who_may_lock_memory(tmp_path: Path) -> None:
    assert read_machine(Tree(tmp_path, status=ROOT_STATUS).roots).privileged


def test_a_device_without_its_file(tmp_path: Path) -> None:
    (device,) = read_machine(Tree(tmp_path).device("rxe0", mode=None).roots).devices
    assert device.node is None
    assert not device.opens


# ---- the choice ----------------------------------------------------------------------------------


def gid(index: int, address: str, kind: str = "RoCE v2") -> Gid:
    text = address if ":" in address else f"::ffff:{address}"
    return Gid(index, text, address, kind, "eth0")


def device(name: str, *gids: Gid, soft: bool = False, state: str = "ACTIVE", opens: bool = True,
           unfit: str | None = None) -> Device:
    port = Port(1, state, "Ethernet", "", None, gids or (gid(1, "10.0.0.1"),))
    return Device(name, soft, "", "", None, (port,), "/dev/x", opens, unfit=unfit)


def chosen(*devices: Device, **wish: object) -> tuple[str, int] | str:
    choice, why = choose(devices, Wish(**wish))
    return why if choice is None else (choice.device.name, choice.gid.index)


def test_hardware_comes_before_software() -> None:
    assert chosen(device("rxe0", soft=True), device("mlx5_0")) == ("mlx5_0", 1)


def test_roce_2_comes_before_1() -> None:
    old = device("a", gid(0, "10.0.0.1", "RoCE v1"))
    assert chosen(old, device("b")) == ("b", 1)
    both = device("a", gid(0, "10.0.0.1", "RoCE v1"), gid(1, "10.0.0.1"))
    assert chosen(both) == ("a", 1)


def test_soft_roce_2_does_not_come_before_hardware_roce_1() -> None:
    assert chosen(device("rxe0", soft=True), device("a", gid(0, "10.0.0.1", "RoCE v1"))) == ("a", 0)


def test_an_ipv4_address_comes_first_and_one_of_the_link_last() -> None:
    one = device("a", gid(0, "fe80::1"), gid(1, "2001:db8::1"), gid(2, "10.0.0.1"))
    assert chosen(one) == ("a", 2)
    assert chosen(one, version=6) == ("a", 1)
    assert chosen(device("a", gid(0, "fe80::1"))) == ("a", 0)


def test_what_was_asked_for_is_taken() -> None:
    devices = (device("a"), device("rxe0", gid(1, "10.0.0.2"), soft=True))
    assert chosen(*devices, device="rxe0") == ("rxe0", 1)
    assert chosen(*devices, gid="::ffff:10.0.0.2") == ("rxe0", 1)
    assert "no device is named" in chosen(*devices, device="b")


def test_why_there_is_none() -> None:
    why = chosen(device("a", state="DOWN"), device("b", opens=False), device("c", unfit="iWARP"))
    assert isinstance(why, str)
    assert "DOWN" in why
    assert "may not open" in why
    assert "iWARP" in why
    assert "no device" in chosen()
