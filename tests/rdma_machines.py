"""Machines with RDMA, as trees of files that look like /sys, /dev, /proc and /lib/modules."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from dlock.rdma.machine import Roots

ROOT_STATUS = "CapEff:\t000001ffffffffff\n"
USER_STATUS = "CapEff:\t0000000000000000\n"
LINK_LOCAL = "fe80:0000:0000:0000:8885:c6ff:fec5:f03f"
V4 = "0000:0000:0000:0000:0000:ffff:0a42:0001"
UNSET = "0000:0000:0000:0000:0000:0000:0000:0000"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


class Tree:
    """A machine under a folder, with nothing of RDMA until it is added."""

    def __init__(self, folder: Path, *, modules: bool = True, status: str = USER_STATUS) -> None:
        self.folder = folder
        self.roots = Roots(*(str(folder / name)
                             for name in ("sys", "dev", "proc", "lib/modules", "etc")))
        write(self.roots.proc / "self/status", status)
        write(self.roots.etc / "debian_version", "12.11")
        if modules:
            write(self.roots.lib / platform.release() / "modules.dep",
                  "kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko.xz: kernel/lib/crc32.ko.xz\n"
                  "kernel/drivers/infiniband/core/ib_uverbs.ko.xz:\n"
                  "kernel/drivers/infiniband/hw/mlx5/mlx5_ib.ko.xz:")

    def module(self, *names: str) -> Tree:
        """These are loaded."""
        for name in names:
            (self.roots.sys / "module" / name).mkdir(parents=True)
        return self

    def interface(self, name: str, *, state: str = "up", driver: str = "") -> Tree:
        """A network interface; with a driver it is a card."""
        folder = self.roots.sys / "class/net" / name
        write(folder / "operstate", state)
        if driver:
            self._card(folder, f"pci-{name}", driver)
        return self

    def _card(self, folder: Path, name: str, driver: str) -> None:
        card = self.roots.sys / "devices" / name
        card.mkdir(parents=True, exist_ok=True)
        if not (card / "driver").exists():
            target = self.roots.sys / "bus/drivers" / driver
            target.mkdir(parents=True, exist_ok=True)
            (card / "driver").symlink_to(target)
        (folder / "device").symlink_to(card)

    def device(self, name: str, number: int = 0, *, card: str = "", driver: str = "",
               state: str = "4: ACTIVE", link: str = "Ethernet", node_type: str = "1: CA",
               gids: tuple[tuple[str, str], ...] = ((LINK_LOCAL, "RoCE v2"), (V4, "RoCE v2")),
               mode: int | None = 0o666) -> Tree:
        """An RDMA device with one port; soft unless it is of a card. mode None: no device file."""
        real = self.roots.sys / ("devices/virtual/infiniband" if not card else "devices/ib") / name
        write(real / "node_type", node_type)
        write(real / "fw_ver", "22.31")
        if card:
            self._card(real, f"pci-{card}", driver)
        else:
            write(real / "parent", "eth0")
        write(real / "ports/1/state", state)
        write(real / "ports/1/link_layer", link)
        write(real / "ports/1/rate", "100 Gb/sec (4X EDR)")
        for index, (gid, kind) in enumerate(gids):
            write(real / f"ports/1/gids/{index}", gid)
            write(real / f"ports/1/gid_attrs/types/{index}", kind)
            write(real / f"ports/1/gid_attrs/ndevs/{index}", "eth0")
        place = self.roots.sys / "class/infiniband"
        place.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(real)
        write(self.roots.sys / f"class/infiniband_verbs/uverbs{number}/ibdev", name)
        if mode is not None:
            node = self.roots.dev / f"infiniband/uverbs{number}"
            write(node, "")
            os.chmod(node, mode)
        return self
