"""What may be asked of RDMA devices, and what is told where there is none: no device is needed."""

from __future__ import annotations

import gc
import os

import pytest

from dlock import _core, _owned, _plane, _verbs
from dlock._verbs import VerbsError, Wish, gid_from, gid_text, wish_of

MAPPED = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 1])
WHY = r"RDMA|verbs|device"
# No machine has a device of this name.
ABSENT = wish_of("none_of_ours", None)
PEER = _verbs.Address(17, 5, MAPPED, 0, 3, 1, 16, 512, 16)
PORT = _verbs.Port(
    b"none_of_ours".ljust(64, b"\0"), MAPPED, 1, 1, 2, 1, 1, 1, 1024, 0, 1, 400, 0, 32767, 32767,
    128)


@pytest.mark.parametrize(("written", "gid"), [
    ("192.0.2.1", MAPPED),
    (" ::ffff:192.0.2.1 ", MAPPED),
    ("0000:0000:0000:0000:0000:ffff:c000:0201", MAPPED),
    (MAPPED, MAPPED),
    ("fe80::1%eth0", b"\xfe\x80" + bytes(13) + b"\x01"),
    ("fe80::1", b"\xfe\x80" + bytes(13) + b"\x01"),
])
def test_a_gid_is_written_as_people_write_it(written: str | bytes, gid: bytes) -> None:
    assert gid_from(written) == gid
    assert gid_from(gid_text(gid)) == gid


@pytest.mark.parametrize("written", ["rxe0", "1.2.3", "0.0.0.0", "::", b"short",
                                     bytes(16), bytes(17), " "])
def test_what_is_no_gid_is_refused_in_words(written: str | bytes) -> None:
    with pytest.raises(ValueError, match="GID"):
        gid_from(written)


def test_a_gid_is_shown_as_the_address_that_it_maps() -> None:
    assert gid_text(MAPPED) == "192.0.2.1"
    assert gid_text(b"\xfe\x80" + bytes(13) + b"\x01") == "fe80::1"


def test_nothing_asked_for_is_whatever_is_best() -> None:
    assert wish_of(None, None) == wish_of("", "") == Wish()
    assert wish_of("rxe0", "192.0.2.1") == Wish(b"rxe0", MAPPED)


@pytest.mark.parametrize("name", ["x" * 64, "a\0b"])
def test_what_is_no_name_of_a_device_is_refused(name: str) -> None:
    assert wish_of("x" * 63, None).device == b"x" * 63
    with pytest.raises(ValueError, match="dlock rdma"):
        wish_of(name, None)


def test_a_device_that_is_not_there_is_an_error_in_words() -> None:
    with pytest.raises(VerbsError, match=WHY):
        _verbs.choose(ABSENT)
    with pytest.raises(VerbsError, match=WHY):
        _verbs.QueuePair(PORT)


def test_a_library_that_is_not_there_is_told_in_words() -> None:
    found, reason = _verbs.ports()
    why = _verbs.load()
    if why is not None:
        assert (found, reason) == ([], why)
        assert len(why) > 20


def test_a_port_is_shown_with_what_counts() -> None:
    assert str(PORT) == "none_of_ours port 1 (soft RoCE v2, GID 192.0.2.1)"
    assert str(PORT._replace(soft=0, gid_type=_core.DLK_GID_INFINIBAND)) == (
        "none_of_ours port 1 (InfiniBand, GID 192.0.2.1)")


def test_a_port_goes_to_c_and_back_as_it_is() -> None:
    written = _core.ffi.buffer(_verbs.port_struct(PORT))
    assert _verbs.Port(*_core.layout("dlk_verbs_port", _verbs.Port._fields).unpack(written)) == PORT
    full = PEER._replace(gid=bytes(range(16)), lid=1, cells=2**63)
    assert _verbs.address_from(_verbs.address_struct(full)) == full


def test_a_plane_without_verbs_says_why() -> None:
    plane = _plane.Plane(_plane.PlaneConfig(_core.Limits(16, 4, 64, 4), epoch=1))
    try:
        opened, reason = plane.verbs_open(PORT)
        assert (opened, bool(reason)) == (False, True)
        made = plane.verbs_pair(PEER)
        assert (made.status, bool(made.reason)) == (_core.DLK_STATUS_ERROR, True)
    finally:
        plane.free()


def test_what_is_owned_is_freed_once_and_not_in_a_child() -> None:
    freed: list[int] = []
    owned = _owned.own(_core.ffi.new("int *", 7), lambda one: freed.append(one[0]))
    assert not gc.is_tracked(owned)
    child = os.fork()
    if child == 0:
        del owned
        os._exit(len(freed))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    del owned
    assert freed == [7]
