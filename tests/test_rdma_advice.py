"""What `dlock rdma` says is missing, and the commands that it names: one test a fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rdma_machines import Tree

from dlock.rdma import advice
from dlock.rdma.facts import Machine, Missing, Part
from dlock.rdma.machine import read_machine

GOOD = Part(True, "good")
NO = Part(False, "it is not here")
MIB = 1 << 20


def whole(folder: Path) -> Tree:
    tree = Tree(folder).module("ib_core", "ib_uverbs", "rdma_rxe").interface("eth0")
    return tree.device("rxe0")


def machine(tree: Tree, **changes: Any) -> Machine:
    """With everything in order that this machine's own limits and programs decide."""
    found = read_machine(tree.roots)
    known = {name: getattr(found, name) for name in Machine._fields}
    usual = {"memlock": None, "memlock_hard": None, "privileged": False, "container": False,
             "tools": frozenset({"rdma", "modprobe"})}
    return Machine(**{**known, **usual, **changes})


def missing(found: Machine, core: Part = GOOD, library: Part = GOOD, pyverbs: Part = GOOD
            ) -> list[Missing]:
    return list(advice.missing(found, core, library, pyverbs, 56 * MIB, 128 * 1024, 1000))


def only(found: list[Missing]) -> Missing:
    (one,) = found
    return one


def commands(one: Missing) -> str:
    return "\n".join(one.mend)


def test_where_all_is_well_nothing_is_missing(tmp_path: Path) -> None:
    assert missing(machine(whole(tmp_path))) == []


def test_no_device(tmp_path: Path) -> None:
    one = only(missing(machine(Tree(tmp_path).interface("eth0"))))
    assert one.blocks
    assert "modprobe rdma_rxe" in commands(one)
    assert "rdma link add rxe0 type rxe netdev eth0" in commands(one)


def test_no_device_and_a_kernel_without_the_module(tmp_path: Path) -> None:
    found = machine(Tree(tmp_path).interface("eth0"), modules_found=frozenset())
    assert "apt-get install linux-image" in commands(only(missing(found)))
    found = machine(Tree(tmp_path / "b", modules=False).interface("eth0"))
    assert "make test-rdma" in commands(only(missing(found)))


def test_no_device_and_no_command_to_make_one(tmp_path: Path) -> None:
    found = machine(Tree(tmp_path).interface("eth0"), tools=frozenset())
    assert "apt-get install iproute2" in commands(only(missing(found)))


def test_a_module_that_is_loaded_is_not_named_again(tmp_path: Path) -> None:
    found = machine(Tree(tmp_path).module("rdma_rxe").interface("eth0"))
    assert "modprobe" not in commands(only(missing(found)))


def test_a_card_whose_module_is_not_loaded(tmp_path: Path) -> None:
    tree = Tree(tmp_path).interface("eth7", driver="mlx5_core")
    first, second = missing(machine(tree))
    assert first.blocks
    assert first.mend == ("modprobe mlx5_ib",)
    assert "eth7" in first.what
    assert "no RDMA device" in second.what
    tree = whole(tmp_path / "b").interface("eth7", driver="mlx5_core")
    assert not only(missing(machine(tree))).blocks


def test_the_module_of_programs_is_not_loaded(tmp_path: Path) -> None:
    tree = Tree(tmp_path).module("rdma_rxe").device("rxe0", mode=None)
    found = missing(machine(tree))
    assert found[0].mend == ("modprobe ib_uverbs",)
    assert found[0].blocks


def test_a_device_file_that_this_user_may_not_open(tmp_path: Path) -> None:
    found = machine(whole(tmp_path))
    known = {name: getattr(found.devices[0], name) for name in found.devices[0]._fields}

    def barred(mode: str, group: str) -> Missing:
        device = type(found.devices[0])(**{**known, "opens": False, "mode": mode, "group": group})
        return only(missing(machine(whole(tmp_path / mode), devices=(device,))))

    member = barred("crw-rw----", "rdma")
    assert member.blocks
    assert member.mend[0].startswith("usermod -aG rdma")
    assert "uverbs0" in member.what
    rule = barred("crw-------", "root")
    assert "udev/rules.d" in commands(rule)
    assert "groupadd -f rdma" in commands(rule)


def test_no_port_is_up(tmp_path: Path) -> None:
    tree = Tree(tmp_path).module("ib_uverbs").device("rxe0", state="1: DOWN")
    assert only(missing(machine(tree))).mend == ("ip link set eth0 up",)


def test_infiniband_without_a_subnet_manager(tmp_path: Path) -> None:
    tree = Tree(tmp_path).module("ib_uverbs", "mlx5_ib").device(
        "mlx5_0", state="2: INIT", link="InfiniBand", card="ib0", driver="mlx5_core")
    assert "opensm" in commands(only(missing(machine(tree))))


def test_a_port_without_an_address(tmp_path: Path) -> None:
    tree = Tree(tmp_path).module("ib_uverbs").device("rxe0", gids=())
    assert "ip addr add" in commands(only(missing(machine(tree))))


def test_a_device_that_is_of_no_use(tmp_path: Path) -> None:
    tree = Tree(tmp_path).module("siw").device("siw0", node_type="4: RNIC")
    first, second = missing(machine(tree))
    assert "iWARP" in first.what
    assert not first.blocks
    assert "no RDMA device" in second.what
    assert second.blocks


@pytest.mark.parametrize(("limit", "blocks"), [(64 * 1024, True), (8 * MIB, False)])
def test_too_little_memory_may_be_locked(tmp_path: Path, limit: int, blocks: bool) -> None:
    one = only(missing(machine(whole(tmp_path), memlock=limit)))
    assert one.blocks is blocks
    assert "56.0 MiB" in one.what
    assert "1000 clients" in one.what
    for word in ("ulimit -l unlimited", "limits.d", "LimitMEMLOCK=infinity"):
        assert word in commands(one)


def test_a_shell_cannot_raise_what_is_fixed(tmp_path: Path) -> None:
    found = machine(whole(tmp_path), memlock=64 * 1024, memlock_hard=64 * 1024)
    assert "ulimit" not in commands(only(missing(found)))


def test_who_may_lock_anything_lacks_nothing(tmp_path: Path) -> None:
    assert missing(machine(whole(tmp_path), memlock=64 * 1024, privileged=True)) == []
    assert missing(machine(whole(tmp_path / "b"), memlock=56 * MIB)) == []


def test_no_libibverbs(tmp_path: Path) -> None:
    first, *_ = missing(machine(whole(tmp_path)), core=NO, library=NO, pyverbs=NO)
    assert first.blocks
    assert "ibverbs-providers" in commands(first)


def test_a_core_without_verbs(tmp_path: Path) -> None:
    one = only(missing(machine(whole(tmp_path)), core=NO))
    assert not one.blocks
    assert "pyverbs is used" in one.what
    assert "libibverbs-dev" in commands(one)


def test_neither_the_core_nor_pyverbs(tmp_path: Path) -> None:
    first, second = missing(machine(whole(tmp_path)), core=NO, pyverbs=NO)
    assert first.blocks
    assert "libibverbs-dev" in commands(first)
    assert not second.blocks
    assert "python3-pyverbs" in commands(second)
    assert "dlock[rdma]" in commands(second)


def test_in_a_container_the_host_is_meant(tmp_path: Path) -> None:
    found = machine(Tree(tmp_path).interface("eth0"), container=True)
    assert "--device=/dev/infiniband" in commands(only(missing(found)))
