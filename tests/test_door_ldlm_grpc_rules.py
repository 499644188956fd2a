"""The LDLM door's messages, and gRPC's rules for a call: bytes and values, no connection."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("h2", reason="the extra doors is not installed")
pytest.importorskip("google.protobuf", reason="the extra doors is not installed")

from dlock.doors.ldlm import calls, problems, wire
from dlock.doors.ldlm.calls import Refusal
from dlock.doors.ldlm.keepalive import Keepalive, Look, Strikes
from dlock.doors.ldlm.problems import Answer

GOOD = {
    b":method": b"POST", b":path": b"/ldlm.LDLM/Lock", b"content-type": b"application/grpc",
    b"te": b"trailers",
}


# ---- Messages ------------------------------------------------------------------------------------


def test_what_was_not_said_and_zero_are_two_things() -> None:
    assert wire.lock(b"") == wire.Lock("", None, None, None)
    assert wire.lock(b"\x0a\x01x\x18\0\x20\0\xa0\x06\0") == wire.Lock("x", 0, 0, 0)
    assert wire.try_lock(b"\x0a\x01x\x20\0") == wire.TryLock("x", None, 0)
    assert wire.try_lock(b"\xa0\x06\x05") == wire.TryLock("", 5, None)
    assert wire.renew(b"\x0a\x01x\x12\x01k") == wire.Renew("x", "k", 0)


def test_numbers_are_signed_and_strings_are_utf_8() -> None:
    minus_one = b"\xff" * 9 + b"\x01"
    assert wire.lock(b"\x18" + minus_one).wait_timeout_s == -1
    assert wire.unlock(b"\x0a\x02\xc3\xa4\x12\x01k") == wire.Unlock("ä", "k")


@pytest.mark.parametrize("body", [b"\x0a\x05x", b"\x0a\x02\xff\xfe", b"\x07", b"\x0a"])
def test_bytes_that_are_no_message_are_said_to_be_none(body: bytes) -> None:
    for parse in (wire.lock, wire.try_lock, wire.unlock, wire.renew):
        with pytest.raises(wire.Undecodable):
            parse(body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_said_to_be_none(body: bytes) -> None:
    for parse in (wire.lock, wire.try_lock, wire.unlock, wire.renew):
        try:
            found = parse(body)
        except wire.Undecodable:
            continue
        assert isinstance(found.name, str)


def test_an_answer_has_an_error_only_when_there_is_one() -> None:
    assert wire.lock_response(Answer(True, "n", "k")) == b"\x08\x01\x12\x01n\x1a\x01k"
    assert wire.lock_response(Answer(False, "n", "k")) == b"\x12\x01n\x1a\x01k"
    assert wire.unlock_response(Answer(True, "n")) == b"\x08\x01\x12\x01n"
    refused = wire.unlock_response(Answer(False, "n", error=problems.WRONG_KEY))
    assert refused == b"\x12\x01n\x1a\x14\x08\x02\x12\x10invalid lock key"
    # A code of 0 is not written, but the error is there.
    empty = wire.lock_response(Answer(False, "", error=problems.EMPTY_NAME))
    assert empty == b"\x22\x1b\x12\x19lock name cannot be empty"


def test_the_codes_have_the_names_of_the_protocol() -> None:
    for problem in vars(problems).values():
        if isinstance(problem, problems.Problem):
            assert wire.ERROR_CODES[problem.code] == problem.code_name


# ---- Headers -------------------------------------------------------------------------------------


def routed(**changed: bytes | None) -> calls.Route:
    headers = {**GOOD, **{name.replace("__", ":").replace("_", "-").encode(): value
                          for name, value in changed.items()}}
    return calls.route([(name, value) for name, value in headers.items() if value is not None])


def test_a_good_request() -> None:
    assert routed() == calls.Route("Lock")
    assert routed(authorization=b"secret").authorization == b"secret"
    assert routed(content_type=b"application/grpc+proto").refusal is None


def test_of_two_passwords_the_first_counts() -> None:
    found = calls.route([*GOOD.items(), (b"authorization", b"a"), (b"authorization", b"b")])
    assert found.authorization == b"a"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"/ldlm.LDLM/Foo", "unknown method Foo for service ldlm.LDLM"),
        (b"/ldlm.LDLM/lock", "unknown method lock for service ldlm.LDLM"),
        (b"/ldlm.LDLM/", "unknown method  for service ldlm.LDLM"),
        (b"/a.b.C/Foo", "unknown service a.b.C"),
        (b"/grpc.health.v1.Health/Check", "unknown service grpc.health.v1.Health"),
        (b"Lock", 'malformed method name: "Lock"'),
        (b"/a/ldlm.LDLM/Lock", "unknown service a/ldlm.LDLM"),
    ])
def test_what_is_not_there_is_unimplemented(path: bytes, text: str) -> None:
    assert routed(__path=path).refusal == Refusal(calls.UNIMPLEMENTED, text)


def test_what_is_no_grpc_is_told_so_in_http() -> None:
    get = routed(__method=b"GET").refusal
    assert get is not None
    assert get.http == 405
    html = routed(content_type=b"text/html").refusal
    assert html == Refusal(calls.INTERNAL, 'invalid gRPC request content-type "text/html"', 415)
    assert routed(content_type=b"application/grpcx").refusal is not None
    late = routed(grpc_timeout=b"soon").refusal
    assert late is not None
    assert (late.http, late.text) == (400, 'malformed grpc-timeout: "soon"')


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"1H", 3600.0), (b"2M", 120.0), (b"3S", 3.0), (b"250m", 0.25), (b"5u", 5e-6), (b"1n", 1e-9),
     (b"0S", 0.0), (b"99999999S", 99999999.0), (b"100000000S", None), (b"1", None), (b"S", None),
     (b"-1S", None), (b"1S ", None), (b"", None), ("٣S".encode(), None)])
def test_timeouts(value: bytes, seconds: float | None) -> None:
    assert calls.timeout_of(value) == pytest.approx(seconds)


def test_passwords() -> None:
    assert calls.credentials(None, None) is None
    assert calls.credentials(b"x", None) is None
    assert calls.credentials(b"x", b"x") is None
    assert calls.credentials(None, b"x") == Refusal(calls.UNAUTHENTICATED, "missing credentials")
    for wrong in (b"y", b"", b"x ", b"X"):
        found = calls.credentials(wrong, b"x")
        assert found == Refusal(calls.UNAUTHENTICATED, "invalid credentials")


# ---- Framed messages -----------------------------------------------------------------------------


def framed(message: bytes, flag: int = 0, length: int | None = None) -> bytes:
    size = len(message) if length is None else length
    return bytes((flag,)) + size.to_bytes(4, "big") + message


def test_one_message_is_taken_out_of_its_frame() -> None:
    assert calls.unpacked(framed(b"abc"), b"") == b"abc"
    assert calls.unpacked(framed(b""), b"gzip") == b""


@pytest.mark.parametrize(
    ("body", "encoding", "status", "text"),
    [
        (b"", b"", calls.INTERNAL, "EOF"),
        (b"\0\0\0", b"", calls.INTERNAL, "unexpected EOF"),
        (framed(b"abc", length=4), b"", calls.INTERNAL, "unexpected EOF"),
        (framed(b"abc") + b"x", b"", calls.INTERNAL, "grpc: a unary call has one message"),
        (framed(b"abc", flag=7), b"", calls.INTERNAL,
         "grpc: received unexpected payload format 7"),
        (framed(b"abc", flag=1), b"", calls.INTERNAL,
         "grpc: compressed flag set with identity or empty encoding"),
        (framed(b"abc", flag=1), b"gzip", calls.UNIMPLEMENTED,
         'grpc: Decompressor is not installed for grpc-encoding "gzip"'),
    ])
def test_other_bodies_are_refused(body: bytes, encoding: bytes, status: int, text: str) -> None:
    assert calls.unpacked(body, encoding) == Refusal(status, text)


def test_a_message_of_four_mebibytes_and_one_byte_is_too_large() -> None:
    assert calls.oversized(4194304) is None
    assert calls.oversized(4194305) == Refusal(
        calls.RESOURCE_EXHAUSTED, "grpc: received message larger than max (4194305 vs. 4194304)")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=2000))
def test_the_headers_of_any_refusal_fit_into_one_frame(text: str) -> None:
    block = calls.refusal_block(Refusal(calls.UNIMPLEMENTED, text))
    assert len(block) <= 16_384
    shown = calls.percent_encoded(text)
    assert all(0x20 <= one < 0x7F for one in shown)


# ---- Keepalive -----------------------------------------------------------------------------------


def test_a_silent_peer_is_pinged_and_then_given_up() -> None:
    keepalive = Keepalive(60.0, 10.0, now_s=100.0)
    assert keepalive.look(100.0) == (Look.WAIT, 160.0)
    assert keepalive.look(160.0) == (Look.PING, 170.0)
    assert keepalive.look(165.0) == (Look.WAIT, 170.0)
    assert keepalive.look(170.0) == (Look.END, 170.0)


def test_whatever_a_peer_sends_is_a_sign_of_life() -> None:
    keepalive = Keepalive(60.0, 10.0, now_s=0.0)
    keepalive.heard_s = 30.0
    assert keepalive.look(60.0) == (Look.WAIT, 90.0)
    assert keepalive.look(90.0) == (Look.PING, 100.0)
    keepalive.heard_s = 90.5
    assert keepalive.look(100.0) == (Look.WAIT, 150.5)


def test_a_door_that_slept_reads_before_it_gives_a_peer_up() -> None:
    keepalive = Keepalive(60.0, 10.0, now_s=0.0)
    assert keepalive.look(60.0) == (Look.PING, 70.0)
    assert keepalive.look(300.0) == (Look.WAIT, 300.5)
    keepalive.heard_s = 300.1
    assert keepalive.look(300.5) == (Look.WAIT, 360.1)
    assert keepalive.look(360.1) == (Look.PING, 370.1)
    assert keepalive.look(500.0) == (Look.WAIT, 500.5)
    assert keepalive.look(500.5) == (Look.END, 370.1)


def test_a_second_is_the_shortest_interval_and_nothing_means_long() -> None:
    assert Keepalive(0.01, 1.0, 0.0).look(0.5) == (Look.WAIT, 1.0)
    assert Keepalive(0.0, 0.0, 0.0).interval_s == 7200.0
    assert Keepalive(0.0, 0.0, 0.0).timeout_s == 20.0


def test_the_third_ping_too_soon_is_too_many() -> None:
    strikes = Strikes()
    assert [strikes.ping(at) for at in (0.0, 1.0, 2.0, 3.0)] == [False, False, False, True]


def test_pings_ten_seconds_apart_are_never_too_many() -> None:
    strikes = Strikes()
    assert not any(strikes.ping(10.0 * turn) for turn in range(100))


def test_an_answer_in_between_clears_the_strikes() -> None:
    strikes = Strikes()
    for turn in range(100):
        assert not strikes.ping(0.1 * turn)
        assert not strikes.ping(0.1 * turn + 0.05)
        strikes.sent()
    assert [strikes.ping(20.0 + at) for at in (0.0, 1.0, 2.0, 3.0)] == [False, False, False, True]
