"""What all queue pairs of one pump share at a device: the open device, protection domain, one
completion queue with its channel, and slabs of registered memory with the work requests on them.

A slab has all that one queue pair needs, made once and used by one pair after another: pyverbs does
not give back the memory of its work requests by itself.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any, Final

from dlock import _core, _verbs
from dlock._verbs import VerbsError
from dlock.rdma import binding
from dlock.rdma.flow import CELL_BYTES, Results

MESSAGE_BYTES: Final[int] = _core.DLK_VERBS_MESSAGE_BYTES
WINDOW: Final[int] = _core.DLK_VERBS_WINDOW
FRAME_BYTES: Final[int] = _core.DLK_FRAME_BYTES
FRAMES_MAX: Final = MESSAGE_BYTES // FRAME_BYTES
RECEIVES: Final = WINDOW  # a buffer is posted again before its message is told as taken
SENDS: Final = 32  # of a send queue, besides operations
OPERATIONS: Final = 16
COMPLETIONS: Final = RECEIVES + SENDS + OPERATIONS  # of one pair, at most: all of it is flushed
INLINE_LEAST: Final = FRAME_BYTES
CHANNEL: Final = "anon_inode:[infinibandevent]"
SIZES: Final = (512, 256, 128, 64)  # of inline data, tried in turn


class Slab:
    """See the file. `sends[n]` sends n frames of `scratch`; `operations[i]` leaves its result at
    the i-th place of `results`; `receives` fill the buffers."""

    def __init__(self, station: Station) -> None:
        modules = station.modules
        enums = modules.enums
        self.memory = mmap.mmap(-1, _slab_bytes())
        self._anchor = ctypes.c_char.from_buffer(self.memory)
        base = ctypes.addressof(self._anchor)
        self.region = modules.mr.MR(
            station.domain, _slab_bytes(), enums.IBV_ACCESS_LOCAL_WRITE, address=base)
        key = self.region.lkey
        self.view = memoryview(self.memory)
        scratch = RECEIVES * MESSAGE_BYTES
        cells = scratch + MESSAGE_BYTES
        self.scratch = self.view[scratch:cells]
        self.results = Results(self.view[cells:cells + OPERATIONS * CELL_BYTES])
        wr = modules.wr
        self.receives = [
            wr.RecvWR(num_sge=1, sg=[wr.SGE(base + at * MESSAGE_BYTES, MESSAGE_BYTES, key)])
            for at in range(RECEIVES)]
        self.sends = [
            wr.SendWR(opcode=enums.IBV_WR_SEND_WITH_IMM, num_sge=1,
                      sg=[wr.SGE(base + scratch, max(frames, 1) * FRAME_BYTES, key)])
            for frames in range(FRAMES_MAX + 1)]
        self.sends[0].num_sge = 0
        self.operations = [
            wr.SendWR(opcode=enums.IBV_WR_RDMA_READ, num_sge=1,
                      sg=[wr.SGE(base + cells + at * CELL_BYTES, CELL_BYTES, key)])
            for at in range(OPERATIONS)]

    def message(self, buffer: int, length: int) -> bytes:
        """What came in this buffer."""
        at = buffer * MESSAGE_BYTES
        return bytes(self.view[at:at + length])

    def close(self) -> None:
        """Registered no more."""
        self.region.close()


def _slab_bytes() -> int:
    whole = RECEIVES * MESSAGE_BYTES + MESSAGE_BYTES + OPERATIONS * CELL_BYTES
    return -(-whole // mmap.PAGESIZE) * mmap.PAGESIZE


class Station:
    """At this port, for so many queue pairs at once: `pairs_max` of them, which may be fewer than
    were wanted. VerbsError: it cannot be had."""

    def __init__(self, port: _verbs.Port, pairs_wanted: int) -> None:
        try:
            self.modules = binding.load()
        except binding.PyverbsError as problem:
            raise VerbsError(f"pyverbs: {problem}. {binding.ADVICE[0]}") from None
        self.problem = self.modules.pyverbs_error.PyverbsError
        self.port = port
        self._slabs: list[Slab] = []
        try:
            self._open(port, pairs_wanted)
        except (self.problem, OSError) as problem:
            raise VerbsError(f"{port}: {_words(problem)}. `dlock rdma` says what is missing"
                             ) from None

    def _open(self, port: _verbs.Port, pairs_wanted: int) -> None:
        modules = self.modules
        modules.fork.fork_init()  # before anything is registered
        self.context = modules.device.Context(name=port.name)
        limits = self.context.query_device()
        self.reads_max = min(int(limits.max_qp_init_rd_atom), OPERATIONS)
        self.pairs_max = max(1, min(pairs_wanted, int(limits.max_cqe) // COMPLETIONS))
        self.mtu = int(self.context.query_port(port.port).active_mtu)
        self.domain = modules.pd.PD(self.context)
        self.channel, self.channel_fd = self._new_channel()
        self.completions = modules.cq.CQ(
            self.context, self.pairs_max * COMPLETIONS, None, self.channel, 0)
        self.inline_max = self._find_inline_max()

    def _new_channel(self) -> tuple[Any, int]:
        """A completion channel, and its descriptor, which pyverbs does not tell: it is the one that
        is there only afterwards. Another thread may have opened one in between: then again."""
        for _ in range(16):
            before = _channels()
            channel = self.modules.cq.CompChannel(self.context)
            found = _channels() - before
            if len(found) == 1:
                return channel, found.pop()
            channel.close()
        raise OSError("the descriptor of the completion channel cannot be told from others")

    def _find_inline_max(self) -> int:
        """Bytes of a message that need no registered memory, tried with a queue pair."""
        for size in SIZES:
            try:
                pair = self.new_pair(size)
            except self.problem:
                continue
            pair.close()
            return size
        raise OSError("it sends nothing inline")

    def new_pair(self, inline: int = 0) -> Any:
        """A queue pair that is not connected."""
        qp = self.modules.qp
        capacity = qp.QPCap(
            max_send_wr=SENDS + OPERATIONS, max_recv_wr=RECEIVES, max_send_sge=1, max_recv_sge=1,
            max_inline_data=inline or self.inline_max)
        asked = qp.QPInitAttr(qp_type=self.modules.enums.IBV_QPT_RC, scq=self.completions,
                              rcq=self.completions, cap=capacity, sq_sig_all=0)
        return qp.QP(self.domain, asked)

    def take_slab(self) -> Slab:
        """One that no pair uses."""
        return self._slabs.pop() if self._slabs else Slab(self)

    def give_slab(self, slab: Slab) -> None:
        """The queue pair that used it has been destroyed."""
        self._slabs.append(slab)

    def poll(self) -> list[Any]:
        """Completions that are there."""
        found: list[Any] = self.completions.poll(64)[1]
        return found

    def arm(self) -> None:
        """The next completion makes the channel readable. Poll once more afterwards."""
        self.completions.req_notify()

    def rung(self) -> None:
        """The channel is readable: takes its event."""
        self.channel.get_cq_event(self.completions)
        self.completions.ack_events(1)

    def close(self) -> None:
        """All of it; there are no pairs any more."""
        for slab in self._slabs:
            slab.close()
        self._slabs.clear()
        for one in (self.completions, self.channel, self.domain, self.context):
            one.close()


def _channels() -> set[int]:
    """Descriptors of this process that are event channels of verbs."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == CHANNEL:
                found.add(int(name))
        except OSError:  # closed meanwhile
            continue
    return found


def _words(problem: Exception) -> str:
    return str(problem).strip().rstrip(".").replace("\n", "; ") or type(problem).__name__
