"""The control messages and their codec: round trips, every limit, and docs/protocol.md."""

from __future__ import annotations

import struct
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlock.control import messages as m
from dlock.control.codec import MESSAGE_BYTES_MAX, Decoder, decode, encode
from dlock.control.fields import FlatRecord, Integer, Many, Record
from dlock.types import DlockStatus

SPEC = m.LockSpec(b"d" * 512, 3, 7)
CLAIM = m.LockClaim(b"x", 1, 5, 7, 2, 9, 2**62, 0, 1, 0, 3, 1000, 0, 1, 77, 2**32 - 1, 2)
GID = bytes.fromhex("00000000000000000000ffff7f000001")
SAMPLES: list[m.Message] = [
    m.ClientInit(1, 1, {"host": "node1", "pid": 7}),
    m.ClientReinit(1, 2, 0x7FFFFFFF, b"s" * 16, 3, 2**64 - 1, 1, {"pid": 7}),
    m.EnterRole(1, 1, "r" * 128, 1, {"pid": 7}),
    m.Describe((m.LabelLine(2**32 - 1, "x" * 128),) * 256),
    m.Describe((), (m.TextLine(b"d" * 512, b"t" * 49152),)),
    m.ReinitDone(), m.ClientDeinit(), m.Heartbeat(), m.Stats(),
    m.GetLocks((SPEC,) * 31),
    m.ReleaseLocks((1, 2, 0x7FFFFFFF)),
    m.DeclareLease(1),
    m.UpdateLocks((CLAIM,) * 31),
    m.ObjectCreate(b"o", 2**64 - 1, 60),
    m.ObjectGet(b"o", 0),
    m.ObjectRelease(1), m.ObjectDestroy(1),
    m.Status(DlockStatus.ERROR),
    m.Welcome(DlockStatus.SUCCESS, 1, 5, 0, b"k" * 16, 1, 40000, 1, 2**63, 10000, 3600000, 1024,
              1),
    m.Welcome(DlockStatus.NOT_READY),
    m.LockIds(DlockStatus.SUCCESS, (m.LockResult(DlockStatus.SUCCESS, 1, 0),
                                    m.LockResult(DlockStatus.ERROR))),
    m.Statuses(DlockStatus.SUCCESS, (DlockStatus.SUCCESS, DlockStatus.LOCK_NOT_GET)),
    m.ObjectId(DlockStatus.OBJECT_TOO_MANY),
    m.ObjectId(DlockStatus.SUCCESS, 5, 0, 2**32 - 1),
    m.StatsReply({"requests": 2**64 - 1}),
    m.GetCycle(2**64 - 1),
    m.Cycle(DlockStatus.SUCCESS, (m.CycleEdge(b"d" * 512, 5, 2**32 - 1, {"pid": 7}),
                                  m.CycleEdge(b"", 6, 1, {})), 2),
    m.Cycle(DlockStatus.FAIL),
    m.ListLocks(b"", m.NONE, 512, True),
    m.ShowLock(b"d" * 512),
    m.BreakLock(b"d", 2**64 - 1, False),
    m.ListClients(0),
    m.AwaitReady(60_000),
    m.Recover(2, (1, 0x7FFFFFFF)),
    m.RecoveryShown(DlockStatus.SUCCESS, 0, 5, 2, 1, 12_000, 2, (
        m.AbsentLine(5, 16384, 12_000, 1, "node1 77"), m.AbsentLine(6, 0, 9, 0, ""))),
    m.LockList(DlockStatus.SUCCESS, (m.LockLine(b"d", 3, 7, 1, 2, 3, 65535),) * 512, 5),
    m.LockShown(DlockStatus.SUCCESS, 2, 1, 9, (m.EntryLine(1, 0, 2**62, 5, 1, 7, -1, 0, True),
                                               m.EntryLine(3, 1, 1, 0, 0, 0, 5, 9, False)),
                (m.WhoLine(5, {"host": "node1", "pid": 7}),), 3),
    m.LockShown(DlockStatus.LOCK_NOT_GET),
    m.BrokenLock(DlockStatus.SUCCESS, (2**62,) * 4096, 5000),
    m.ClientList(DlockStatus.SUCCESS, (
        m.ClientLine(5, {"pid": 7}, True, False, 3, 1000, True),), 1),
    m.OpenQueuePair(2**24 - 1, 2**24 - 1, GID, 2**16 - 1, 5, 1, 16, 512, 255),
    m.QueuePair(DlockStatus.SUCCESS, 17, 0, GID, 0, 3, 0, 2**15 - 1, 2**16 - 1, 0, 2**64 - 1),
    m.QueuePair(DlockStatus.SERVER_NO_RESOURCE),
    m.DssCall(b"l" * 16, 2**63 - 1, 1, 2**20 - 1, 2**64 - 1, 5, b"i" * 8192, b"o" * 1024),
    m.DssForget(b"l" * 16),
    m.DssAnswer(0, 1, 2**64 - 1, b"owner", 2**63, 999_999),
    m.RecordPut(b"s" * 64, b"k" * 1024, 2**32 - 1, 8 << 20, 1, b"p" * 49152),
    m.RecordDelete(b"s", b""),
    m.RecordList(b"s", True, b"k"),
    m.RecordGet(b"s", b"k", 2**63 - 1, 8 << 20),
    m.RecordAnswer(4095),
    m.RecordLines(0, (m.RecordLine(b"k" * 1024, 1, 8 << 20, b"h" * 49152),
                      m.RecordLine(b"", 2, 0, b"")), True),
    m.RecordPiece(0, b"p" * 49152),
]


END: list[object] = [17, 1, GID, 0, 3, 1, 16, 512, 16]  # of a queue pair, as a client tells it
BAD_ENDS: dict[str, tuple[int, object]] = {
    "queue pair 0": (0, 0),
    "queue pair of 25 bits": (0, 2**24),
    "packet of 25 bits": (1, 2**24),
    "packet below 0": (1, -1),
    "gid of 15 bytes": (2, GID[1:]),
    "gid of 17 bytes": (2, GID + b"x"),
    "gid is text": (2, "0" * 16),
    "lid of 17 bits": (3, 2**16),
    "mtu 0": (4, 0),
    "mtu 6": (4, 6),
    "ethernet 2": (5, 2),
    "ethernet is a bool": (5, True),
    "window without a place for frames": (6, 1),
    "window as long as the count": (6, 2**15),
    "message shorter than a frame": (7, 63),
    "message too long": (7, 2**16),
    "256 reads": (8, 256),
    "reads is nil": (8, None),
}


def with_(end: list[object], at: int, value: object) -> list[object]:
    return [*end[:at], value, *end[at + 1:]]


def wire(value: object) -> bytes:
    body = msgpack.packb(value, use_bin_type=True)
    assert isinstance(body, bytes)
    return body


@pytest.mark.parametrize("message", SAMPLES, ids=lambda one: type(one).__name__)
def test_round_trip(message: m.Message) -> None:
    data = encode(77, message)
    assert struct.unpack("<I", data[:4])[0] == len(data) - 4
    request_id, back = decode(data[4:])
    assert request_id == 77
    assert back == message
    assert type(back) is type(message)


def test_every_message_has_a_sample() -> None:
    assert {type(one) for one in SAMPLES} == set(m.BY_MESSAGE)


def test_decoder_takes_any_cut() -> None:
    stream = b"".join(encode(number, one) for number, one in enumerate(SAMPLES))
    for step in (1, 3, 64, 5000, len(stream)):
        decoder = Decoder()
        got = []
        for at in range(0, len(stream), step):
            decoder.feed(stream[at:at + step])
            while (taken := decoder.take()) is not None:
                got.append(taken)
        assert got == list(enumerate(SAMPLES))
        assert decoder.pending_bytes == 0


BAD_BODIES = {
    "not an array": wire({"a": 1}),
    "empty array": wire([]),
    "no request id": wire([5]),
    "unknown type": wire([99, 0]),
    "type is text": wire(["5", 0]),
    "type is a bool": wire([True, 0, 1, 1, {}]),
    "request id negative": wire([5, -1]),
    "request id too large": wire([5, 2**32]),
    "too many fields": wire([5, 0, 1]),
    "too few fields": wire([8, 0]),
    "lease 0": wire([8, 0, 0]),
    "lease for ever": wire([8, 0, 2**32 - 1]),
    "lease is a float": wire([8, 0, 1.0]),
    "lease is nil": wire([8, 0, None]),
    "no locks": wire([6, 0, []]),
    "32 locks": wire([6, 0, [[b"a", 0, 1]] * 32]),
    "empty descriptor": wire([6, 0, [[b"", 0, 1]]]),
    "long descriptor": wire([6, 0, [[b"a" * 513, 0, 1]]]),
    "descriptor is text": wire([6, 0, [["a", 0, 1]]]),
    "unknown kind": wire([6, 0, [[b"a", 4, 1]]]),
    "lock is short": wire([6, 0, [[b"a", 0]]]),
    "lock is a map": wire([6, 0, [{}]]),
    "lock id 0": wire([7, 0, [0]]),
    "lock id too large": wire([7, 0, [2**31]]),
    "short secret": wire([2, 0, 1, 1, 5, b"x" * 15, 0, 0, 0, {}]),
    "client id 0": wire([2, 0, 1, 1, 0, b"x" * 16, 0, 0, 0, {}]),
    "early is a bool": wire([2, 0, 1, 1, 5, b"x" * 16, 0, 0, True, {}]),
    "early 2": wire([2, 0, 1, 1, 5, b"x" * 16, 0, 0, 2, {}]),
    "waits too long": wire([20, 0, 60_001]),
    "evict 3": wire([21, 0, 3, []]),
    "1025 to evict": wire([21, 0, 2, [1] * 1025]),
    "evict nobody": wire([21, 0, 2, [0]]),
    "info key is a number": wire([1, 0, 1, 1, {1: "a"}]),
    "info value is a list": wire([1, 0, 1, 1, {"a": []}]),
    "info value is negative": wire([1, 0, 1, 1, {"a": -1}]),
    "info value is long": wire([1, 0, 1, 1, {"a": "x" * 257}]),
    "info key is long": wire([1, 0, 1, 1, {"k" * 33: 1}]),
    "info is large": wire([1, 0, 1, 1, {str(number): 1 for number in range(17)}]),
    "no status": wire([128, 0, 5]),
    "value below 0": wire([10, 0, b"o", -1, 1]),
    "text is no utf-8": b"\x95\x01\x00\x01\x01\x81\xa1\xff\x01",
    "trailing bytes": wire([5, 0]) + b"\x00",
    "truncated": wire([8, 0, 1000])[:-1],
    "deep": b"\x91" * 5000 + b"\xc0",
    "extension": b"\x93\x08\x00" + wire(msgpack.Timestamp(1)),
    "reserved byte": b"\xc1",
    "long prefix": wire([16, 0, b"a" * 513, 0, 1, False]),
    "limit 0": wire([16, 0, b"", 0, 0, False]),
    "limit 513": wire([16, 0, b"", 0, 513, False]),
    "a bool is a number": wire([16, 0, b"", 0, 1, 1]),
    "a number is a bool": wire([16, 0, b"", False, 1, False]),
    "a lease left below never": wire(
        [136, 0, 0, 0, 1, 1, [[1, 0, 1, 1, 1, 1, -2, 1, False]], [], 1]),
    "a free entry": wire([136, 0, 0, 0, 1, 1, [[0, 0, 1, 1, 1, 1, -1, 1, False]], [], 1]),
    "513 locks": wire([135, 0, 0, [[b"a", 0, 1, 1, 0, 0, 0]] * 513, 0]),
    "4097 tokens": wire([137, 0, 0, [1] * 4097, 0]),
    **{f"to open: {name}": wire([22, 0, *with_(END, at, value)])
       for name, (at, value) in BAD_ENDS.items()},
    **{f"opened: {name}": wire([140, 0, 0, *with_(END, at, value), 0])
       for name, (at, value) in BAD_ENDS.items()},
    "cells below 0": wire([140, 0, 0, *END, -1]),
    "key of 33 bits": wire([132, 0, 0, 5, 0, 2**32]),
    "verbs 2": wire([129, 0, 0, 1, 5, 0, b"k" * 16, 1, 1, 1, 1, 1, 1, 1, 2]),
}


def test_the_end_of_a_queue_pair_that_the_bad_ones_are_made_of() -> None:
    assert decode(wire([22, 7, *END])) == (7, m.OpenQueuePair(*END))
    assert decode(wire([140, 7, 0, *END, 4096])) == (
        7, m.QueuePair(DlockStatus.SUCCESS, *END, 4096))


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=list(BAD_BODIES))
def test_bad_body(body: bytes) -> None:
    with pytest.raises(m.ProtocolError):
        decode(body)


@pytest.mark.parametrize("length", [0, MESSAGE_BYTES_MAX + 1, 2**32 - 1])
def test_bad_length(length: int) -> None:
    decoder = Decoder()
    decoder.feed(struct.pack("<I", length))
    with pytest.raises(m.ProtocolError, match=str(length)):
        decoder.take()


def test_messages_before_the_bad_one_are_taken() -> None:
    decoder = Decoder()
    decoder.feed(encode(1, m.Heartbeat()) + b"\x01\x00\x00\x00\xc1")
    assert decoder.take() == (1, m.Heartbeat())
    with pytest.raises(m.ProtocolError):
        decoder.take()


@pytest.mark.parametrize("message", [
    m.GetLocks(()),
    m.GetLocks((m.LockSpec(b"", 0),)),
    m.ReleaseLocks((0,)),
    m.ObjectGet(b"x" * 513, 0),
    m.ClientInit(1, 1, {"program": "x" * 257}),
    m.ClientInit(1, 1, {"program": "\ud800"}),
    m.EnterRole(1, 1, "r" * 129, 1, {}),
    m.EnterRole(1, 1, "role", 2, {}),
    m.Describe((m.LabelLine(1, "x" * 129),)),
    m.Describe((m.LabelLine(1, "x"),) * 257),
    m.Describe((), (m.TextLine(b"", b"t"),)),
    m.Describe((), (m.TextLine(b"d", b"t" * 49153),)),
    m.DeclareLease(2**32),
])
def test_the_sender_is_told_first(message: m.Message) -> None:
    with pytest.raises(m.ProtocolError):
        encode(1, message)


def test_a_secret_is_not_shown() -> None:
    assert "kkkk" not in repr(SAMPLES[15])
    assert "ssss" not in repr(SAMPLES[1])


def protocol_row(one: m.Declaration) -> str:
    fields = "; ".join(f"`{name}`: {kind.text}" for name, kind in one.record.fields)
    reply = f"{m.BY_MESSAGE[one.reply].number} {one.reply.__name__}" if one.reply else ""
    return f"| {one.number} | {one.message.__name__} | {fields} | {reply} |"


def test_the_document_shows_this_table() -> None:
    path = Path(__file__).parent.parent / "docs" / "protocol.md"
    control = path.read_text(encoding="utf-8").partition("## Control plane")[2]
    rows = [line for line in control.partition("\n## ")[0].splitlines()
            if line.startswith("| ") and line[2].isdigit()]
    assert rows == [protocol_row(one) for one in m.DECLARATIONS]


CLAIM_KINDS = dict(Record(m.LockClaim).fields)
CLAIM_VALUES = st.one_of(
    st.sampled_from([None, True, 1.0, "1", [], b"", b"x" * 512, b"x" * 513]),
    st.integers(-1, 4), st.sampled_from([2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**64 - 1, 2**64]))


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.integers(0, len(CLAIM_KINDS) - 1), CLAIM_VALUES, max_size=4),
       st.integers(-1, 1))
def test_the_claims_that_pass_in_bulk_are_those_that_pass_field_by_field(
    changes: dict[int, object], more: int
) -> None:
    wire = [*CLAIM, 0][:len(CLAIM) + more]
    for at, value in changes.items():
        if at < len(wire):
            wire[at] = value  # type: ignore[call-overload]
    outcomes = []
    for record in (Record(m.LockClaim), FlatRecord(m.LockClaim)):
        try:
            outcomes.append(Many(record, 1, 3).load([list(CLAIM), list(wire), list(CLAIM)]))
        except m.ProtocolError as problem:
            outcomes.append(str(problem))
    assert outcomes[0] == outcomes[1]
    assert type(outcomes[0]) is type(outcomes[1])


@pytest.mark.parametrize("name", CLAIM_KINDS)
def test_each_limit_of_a_claim_is_checked_in_bulk(name: str) -> None:
    kind = CLAIM_KINDS[name]
    at = list(CLAIM_KINDS).index(name)
    bad: list[object] = [None, True, 1.5]
    bad += [kind.low - 1, kind.high + 1] if isinstance(kind, Integer) else [b"", b"x" * 513]
    for value in bad:
        with pytest.raises(m.ProtocolError, match=f"LockClaim.{name}"):
            Many(FlatRecord(m.LockClaim), 1, 3).load(
                [list(CLAIM), [*CLAIM[:at], value, *CLAIM[at + 1:]], list(CLAIM)])
