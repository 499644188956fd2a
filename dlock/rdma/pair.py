"""One end of a queue pair, over pyverbs: whole frames in, whole frames out, within the window of
the other end; and, at a client, operations on cells of the server.

It has no thread and waits for nothing: its pump hands it the completions, asks it to send, and
takes out what came. Written after docs/rdma.md and docs/protocol.md, apart from the C code that
does the same.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from dlock import _verbs
from dlock.rdma.flow import Flow, FlowError
from dlock.rdma.station import (
    FRAME_BYTES,
    FRAMES_MAX,
    MESSAGE_BYTES,
    OPERATIONS,
    RECEIVES,
    SENDS,
    WINDOW,
    Slab,
    Station,
)

# The numbers of work requests: which pair, then what it is of, then which of those.
PAIR_SHIFT: Final = 24
KIND_SHIFT: Final = 16
INDEX: Final = 0xFFFF
RECEIVE, SEND, OPERATION = range(3)

SIGNAL_EVERY: Final = 8
HOP_LIMIT: Final = 64
# docs/rdma.md, "Retry limits"
TIMEOUT: Final = 14
RETRY_COUNT: Final = 6
RNR_RETRY: Final = 6
RNR_TIMER: Final = 20
WITH_IMMEDIATE: Final = 2  # in the flags of a completion
ACCESS_ERROR: Final = 10  # a status of a completion: the key is not valid, nothing was done
FLUSHED: Final = 5


class Operation(NamedTuple):
    """On one cell of the other end. `verb`: "read", "add" or "swap"; `cookie` is the caller's."""

    verb: str
    address: int
    key: int
    operand: int  # to add, or to compare with
    swap: int
    cookie: Any


class Ended(NamedTuple):
    """What became of an operation: the cell as it was before; `refused`: its key is not valid, and
    nothing was done."""

    operation: Operation
    value: int
    refused: bool


class Broken(Exception):  # noqa: N818 - an outcome, not an error of the caller's
    """The queue pair can be used no more; the text says why. `status`: of the completion that said
    so, 0: none did; `fault`: the other end broke the rules."""

    def __init__(self, why: str, status: int = 0, fault: bool = False) -> None:
        super().__init__(why)
        self.status = status
        self.fault = fault


class Pair:
    """`number`: in the numbers of its work requests, never used again; `own`: its address. After
    `Broken` it is to be closed. `said_bye`: nothing goes out any more; `heard_bye`: nothing
    comes."""

    def __init__(self, station: Station, number: int, *, operates: bool) -> None:
        """VerbsError is not raised here: pyverbs' errors come as they are."""
        self.number = number
        self.connected = False
        self.said_bye = False
        self.heard_bye = False
        self._station = station
        self._slab: Slab = station.take_slab()
        try:
            self._pair = station.new_pair()
        except BaseException:
            station.give_slab(self._slab)
            raise
        port = station.port
        self.own = _verbs.Address(
            queue_pair=int(self._pair.qp_num), packet=random.getrandbits(24), gid=port.gid,
            lid=port.lid, mtu=station.mtu, ethernet=port.ethernet, window=WINDOW,
            message_bytes=MESSAGE_BYTES, reads=0)
        self._operates = operates
        self._flow = Flow(WINDOW, 0)
        self._frames_max = 0
        self._posted = 0  # sends, ever
        self._done = 0  # of those, how many have left the send queue
        self._free = list(range(OPERATIONS))
        self._under_way: dict[int, Operation] = {}
        for index in range(RECEIVES):
            self._slab.receives[index].wr_id = self._wr_id(RECEIVE, index)

    def _wr_id(self, kind: int, index: int) -> int:
        return self.number << PAIR_SHIFT | kind << KIND_SHIFT | index

    # ---- Its life --------------------------------------------------------------------------------

    def connect(self, peer: _verbs.Address) -> None:
        """Ready to receive and to send."""
        modules, station = self._station.modules, self._station
        port, addr = station.port, modules.addr
        attributes = modules.qp.QPAttr()
        attributes.qp_access_flags = 0
        attributes.port_num = port.port
        attributes.pkey_index = 0
        self._pair.to_init(attributes)
        for receive in self._slab.receives:
            self._pair.post_recv(receive)
        attributes.path_mtu = min(station.mtu, peer.mtu)
        attributes.dest_qp_num = peer.queue_pair
        attributes.rq_psn = peer.packet
        attributes.max_dest_rd_atomic = 0
        attributes.min_rnr_timer = RNR_TIMER
        if port.ethernet:
            route = addr.GlobalRoute(dgid=addr.GID(_words_of(peer.gid)),
                                     sgid_index=port.gid_index, hop_limit=HOP_LIMIT)
            attributes.ah_attr = addr.AHAttr(is_global=1, port_num=port.port, gr=route)
        else:
            attributes.ah_attr = addr.AHAttr(dlid=peer.lid, port_num=port.port)
        attributes.timeout = TIMEOUT
        attributes.retry_cnt = RETRY_COUNT
        attributes.rnr_retry = RNR_RETRY
        attributes.sq_psn = self.own.packet
        reads = min(station.reads_max, peer.reads) if self._operates else 0
        attributes.max_rd_atomic = reads
        self._operates = reads > 0
        self._pair.to_rts(attributes)
        self._flow = Flow(WINDOW, peer.window)
        self._frames_max = min(station.inline_max, peer.message_bytes) // FRAME_BYTES
        self._frames_max = min(self._frames_max, FRAMES_MAX)
        self.connected = True

    def close(self) -> None:
        """Destroys it. Completions of it may still lie in the queue; its number tells which."""
        self._pair.close()
        self._station.give_slab(self._slab)

    # ---- Sending ---------------------------------------------------------------------------------

    @property
    def operates(self) -> bool:
        """Operations can be asked for."""
        return self._operates

    def send(self, frames: memoryview) -> int:
        """Sends as many of these whole frames as one message takes; how many bytes that were, 0:
        there is no room now. Broken."""
        count = min(len(frames) // FRAME_BYTES, self._frames_max)
        if not count or not self._flow.room() or not self._places():
            return 0
        length = count * FRAME_BYTES
        self._slab.scratch[:length] = frames[:length]
        self._post(count, self._flow.send())
        return length

    def tell(self) -> None:
        """Says what was taken, if that is owed and there is a place for it."""
        if self._flow.owes() and self._flow.place() and self._places() and not self.said_bye:
            self._post(0, self._flow.send())

    def bye(self) -> bool:
        """The last message; False: there is no place for it now."""
        if not self._flow.place() or not self._places():
            return False
        self._post(0, self._flow.send(bye=True), signalled=True)
        self.said_bye = True
        return True

    @property
    def delivered(self) -> bool:
        """All that was sent has arrived, as far as it was signalled: after `bye` all of it."""
        return self._done == self._posted

    def _places(self) -> int:
        """In the send queue, for messages."""
        return SENDS - (self._posted - self._done)

    def _post(self, frames: int, immediate: int, signalled: bool = False) -> None:
        enums, request = self._station.modules.enums, self._slab.sends[frames]
        self._posted += 1
        signalled = signalled or self._posted % SIGNAL_EVERY == 0
        request.wr_id = self._wr_id(SEND, self._posted & INDEX)
        request.imm_data = socket.htonl(immediate)
        request.send_flags = enums.IBV_SEND_INLINE | (
            enums.IBV_SEND_SIGNALED if signalled else 0)
        self._hand_over(request)

    def operate(self, operation: Operation) -> bool:
        """Asks for an operation; False: there is no room now. Broken."""
        if not self._free:
            return False
        index = self._free.pop()
        enums, request = self._station.modules.enums, self._slab.operations[index]
        request.wr_id = self._wr_id(OPERATION, index)
        request.send_flags = enums.IBV_SEND_SIGNALED
        if operation.verb == "read":
            request.opcode = enums.IBV_WR_RDMA_READ
            request.set_wr_rdma(operation.key, operation.address)
        else:
            request.opcode = (enums.IBV_WR_ATOMIC_FETCH_AND_ADD if operation.verb == "add"
                              else enums.IBV_WR_ATOMIC_CMP_AND_SWP)
            request.set_wr_atomic(
                operation.key, operation.address, operation.operand, operation.swap)
        self._under_way[index] = operation
        self._slab.results.expect(index)
        self._hand_over(request)
        return True

    def _hand_over(self, request: Any) -> None:
        try:
            self._pair.post_send(request)
        except self._station.problem as problem:
            raise Broken(f"a send was refused: {problem}") from None

    # ---- Completions -----------------------------------------------------------------------------

    def completed(self, completion: Any) -> Iterator[bytes | Ended]:
        """What a completion of this pair brings: the frames of a message, b"" for one that only
        tells, or the end of an operation. Broken."""
        wr_id, status = int(completion.wr_id), int(completion.status)
        kind, index = wr_id >> KIND_SHIFT & 0xFF, wr_id & INDEX
        if kind == OPERATION:
            yield from self._operated(index, status)
        if status:
            raise Broken(_status_words(status), status)
        if kind == SEND:
            self._done += ((index - self._done) & INDEX)
        elif kind == RECEIVE:
            yield self._received(completion, index)

    def _operated(self, index: int, status: int) -> Iterator[Ended]:
        operation = self._under_way.pop(index)
        self._free.append(index)
        if status == ACCESS_ERROR:
            yield Ended(operation, 0, refused=True)
        elif status == 0:
            found = self._slab.results.take(index)
            if found is None:
                raise Broken("an operation succeeded and left no result")
            yield Ended(operation, found, refused=False)

    def _received(self, completion: Any, buffer: int) -> bytes:
        length = int(completion.byte_len)
        if self.heard_bye:
            raise Broken("it sent something after its last message", fault=True)
        if length % FRAME_BYTES or not int(completion.wc_flags) & WITH_IMMEDIATE:
            raise Broken(f"its message of {length} bytes is not of whole frames, or has no "
                         f"immediate data", fault=True)
        try:
            self.heard_bye = self._flow.receive(socket.ntohl(int(completion.imm_data)))
        except FlowError as problem:
            raise Broken(str(problem), fault=True) from None
        message = self._slab.message(buffer, length)
        try:
            self._pair.post_recv(self._slab.receives[buffer])
        except self._station.problem as problem:
            raise Broken(f"a receive was refused: {problem}") from None
        return message

    def take(self) -> None:
        """One message that came has been handed on."""
        self._flow.take()


def pair_of(completion: Any) -> int:
    """The number of the pair that a completion belongs to."""
    return int(completion.wr_id) >> PAIR_SHIFT


def _status_words(status: int) -> str:
    known = {
        FLUSHED: "it was put into error",
        9: "the other end refused a message: it is longer than its buffers",
        ACCESS_ERROR: "a key is not valid (any more)",
        12: "the other end does not answer any more",
        13: "the other end has no buffer for a message",
    }
    return f"{known.get(status, 'the queue pair failed')} (status {status})"


def _words_of(gid: bytes) -> str:
    """A GID as pyverbs wants it: eight words of four digits."""
    digits = gid.hex()
    return ":".join(digits[at:at + 4] for at in range(0, 32, 4))
