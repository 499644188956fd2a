"""The door's end of an HTTP/2 connection, with h2 as the client at its other end."""

from __future__ import annotations

import pytest

pytest.importorskip("h2", reason="the extra doors is not installed")
pytest.importorskip("google.protobuf", reason="the extra doors is not installed")

from http2_peer import EMPTY_SETTINGS, PREFACE, Pair, frame, framed, headers

from dlock.doors.ldlm import calls
from dlock.doors.ldlm.calls import Refusal
from dlock.doors.ldlm.http2 import Broken, Call, Gone, Http2, Ping, Refused

BOTH = pytest.mark.parametrize("fast", [True, False], ids=["lane", "h2"])
MEBIBYTE = 1024 * 1024


@BOTH
def test_calls_one_after_the_other(fast: bool) -> None:
    pair = Pair(fast)
    for number in range(200):
        method = ("Lock", "TryLock", "Unlock", "Renew")[number % 4]
        seen = pair.call(b"%d" % number, method)
        assert (seen.http, seen.status, seen.ended) == ("200", "0", True)
        assert seen.body == framed(b"<%s %d>" % (method.encode(), number))


def test_the_lane_takes_what_it_knows_by_sight() -> None:
    pair = Pair(fast=True)
    known = {pair.begin(b"1"), pair.begin(b"2")}
    pair.exchange()
    by_sight = {pair.begin(b"x") for _ in range(50)}
    pair.exchange()
    assert not by_sight & set(pair.server._h2.streams), "h2 was not shown these"
    assert all(pair.seen[one].ended for one in known | by_sight)


def test_the_lane_takes_the_calls_of_grpcio_which_make_room_first() -> None:
    server = Http2()
    headers_of = b"\x83\x86" + b"".join(
        b"\x10" + bytes((len(name),)) + name + bytes((len(value),)) + value for name, value in (
            (b":path", b"/ldlm.LDLM/Lock"), (b":authority", b"x"), (b"te", b"trailers"),
            (b"content-type", b"application/grpc")))
    server.receive(PREFACE + EMPTY_SETTINGS + frame(1, 4, 1, headers_of)
                   + frame(0, 1, 1, framed(b"1")))
    room = frame(8, 0, 3, b"\0\0\0\5")
    (call,) = server.receive(frame(1, 4, 3, headers_of) + room + frame(0, 1, 3, framed(b"2")))
    assert call == Call(3, calls.Route("Lock"), b"2")
    assert 3 not in server._h2.streams
    # What the others may do with a window is h2's to judge.
    none = frame(8, 0, 5, bytes(4))
    assert server.receive(frame(1, 4, 5, headers_of)) == []
    with pytest.raises(Broken):
        server.receive(none)


def test_room_that_came_past_h2_is_used() -> None:
    pair = Pair(answers=lambda call: b"y" * 60_000, acknowledges=False)
    first, second = pair.begin(b"1"), pair.begin(b"2")
    pair.exchange()
    pair.client.increment_flow_control_window(100_000)
    pair.exchange()
    assert (pair.seen[first].ended, pair.seen[second].ended) == (True, True)
    with pytest.raises(Broken):
        pair.server.receive(frame(8, 0, 0, b"\x7f\xff\xff\xff"))


@BOTH
def test_three_hundred_that_wait_do_not_delay_the_others(fast: bool) -> None:
    pair = Pair(fast, answers=lambda call: None if call.message == b"wait" else b"at once")
    waiting = [pair.begin(b"wait") for _ in range(300)]
    pair.exchange()
    assert pair.call(b"x").body == framed(b"at once")
    for stream in waiting:
        pair.server.answer(stream, b"late")
    pair.exchange()
    assert {pair.seen[stream].body for stream in waiting} == {framed(b"late")}


@BOTH
def test_a_thousand_more_than_a_client_asks_of_most_servers(fast: bool) -> None:
    pair = Pair(fast, answers=lambda call: None)
    streams = [pair.begin(b"x" * 40) for _ in range(1300)]
    pair.exchange()
    assert sum(isinstance(one, Call) for one in pair.happened) == 1300
    for stream in reversed(streams):
        pair.server.answer(stream, b"y" * 60)
    pair.exchange()
    assert all(pair.seen[stream].ended for stream in streams)


@BOTH
def test_the_largest_name_there_and_back(fast: bool) -> None:
    pair = Pair(fast, answers=lambda call: call.message)
    message = bytes(range(256)) * (4 * MEBIBYTE // 256)
    assert pair.upload(framed(message)).body == framed(message)
    assert pair.call(b"and then").body == framed(b"and then")


@BOTH
def test_one_byte_more_is_refused_before_it_has_come(fast: bool) -> None:
    pair = Pair(fast)
    seen = pair.upload(b"\0" + (4 * MEBIBYTE + 1).to_bytes(4, "big") + b"x" * MEBIBYTE)
    assert (seen.status, seen.text) == (
        "8", "grpc: received message larger than max (4194305 vs. 4194304)")
    assert seen.reset == 0
    assert pair.call(b"the next").status == "0"


@BOTH
def test_a_client_that_gives_little_room_gets_all_in_the_end(fast: bool) -> None:
    pair = Pair(fast, answers=lambda call: b"y" * 200_000, settings={4: 1000})
    streams = [pair.begin(b"x") for _ in range(5)]
    pair.exchange()
    assert all(pair.seen[one].body == framed(b"y" * 200_000) for one in streams)


def test_what_is_set_aside_is_at_most_half_of_the_room() -> None:
    pair = Pair(answers=lambda call: None if call.message == b"wait" else b"y" * 30_000)
    for _ in range(600):
        pair.begin(b"wait")
        pair.exchange()
    assert pair.server._lane.reserved_bytes * 2 <= 65_535
    pair.acknowledges = False
    assert pair.call(b"x").ended, "there is room for what is answered at once"


@BOTH
def test_a_client_that_gives_no_room_keeps_what_it_asked_for(fast: bool) -> None:
    pair = Pair(fast, answers=lambda call: b"y" * 60_000, acknowledges=False)
    first, second = pair.begin(b"1"), pair.begin(b"2")
    pair.exchange()
    assert pair.seen[first].ended
    assert not pair.seen[second].ended
    pair.client.increment_flow_control_window(100_000)
    pair.client.increment_flow_control_window(100_000, second)
    pair.exchange()
    assert pair.seen[second].body == framed(b"y" * 60_000)


@BOTH
def test_each_piece_of_a_long_answer_is_a_word_of_the_server(fast: bool) -> None:
    pair = Pair(fast, answers=lambda call: b"y" * 100_000, acknowledges=False)
    stream = pair.begin(b"x")
    pair.exchange()
    for _ in range(3):
        pair.server.spoke = False
        pair.client.increment_flow_control_window(1000)
        pair.client.increment_flow_control_window(1000, stream)
        pair.exchange()
        assert pair.server.spoke
    pair.server.spoke = False
    pair.client.ping(b"12345678")
    pair.exchange()
    assert not pair.server.spoke


@BOTH
def test_a_cancelled_call_is_gone_and_never_answered(fast: bool) -> None:
    pair = Pair(fast, answers=lambda call: None if call.message == b"wait" else b"")
    pair.call(b"x")
    stream = pair.begin(b"wait")
    pair.exchange()
    pair.client.reset_stream(stream, 8)
    pair.exchange()
    assert pair.happened[-1] == Gone(stream, cancelled=True)
    pair.server.answer(stream, b"late")
    assert pair.server.take_output() == b""
    assert pair.call(b"x").status == "0"


@BOTH
def test_a_cancellation_that_crosses_the_answer_is_told(fast: bool) -> None:
    pair = Pair(fast)
    pair.call(b"x")
    stream = pair.begin(b"y")
    pair._serve(pair.server.receive(pair.client.data_to_send()))
    pair._serve(pair.server.receive(frame(3, 0, stream, b"\0\0\0\x08")))
    assert pair.happened[-1] == Gone(stream, cancelled=True)


@BOTH
def test_pings_are_answered_and_told(fast: bool) -> None:
    pair = Pair(fast)
    pair.client.ping(b"12345678")
    pair.exchange()
    assert pair.pongs == 1
    assert pair.happened == [Ping()]


@BOTH
def test_what_is_not_there_is_refused_without_a_message(fast: bool) -> None:
    pair = Pair(fast)
    seen = pair.call(b"x", "Foo")
    assert (seen.http, seen.status, seen.text, seen.body) == (
        "200", "12", "unknown method Foo for service ldlm.LDLM", b"")
    assert seen.ended
    assert isinstance(pair.happened[-1], Refused)


@BOTH
def test_a_refusal_by_the_service(fast: bool) -> None:
    pair = Pair(fast, answers=lambda call: None)
    for _ in range(3):
        stream = pair.begin(b"x")
        pair.exchange()
        pair.server.refuse(stream, Refusal(calls.UNAVAILABLE, "50 % \n ä"))
        pair.exchange()
        seen = pair.seen[stream]
        assert (seen.status, seen.text, seen.body) == ("14", "50 %25 %0A %C3%A4", b"")


@BOTH
def test_a_request_in_many_frames_and_bytes_one_at_a_time(fast: bool) -> None:
    pair = Pair(fast, chunk_bytes=1)
    for _ in range(3):
        stream = pair.client.get_next_available_stream_id()
        pair.client.send_headers(stream, headers())
        for part in (b"\0\0\0", b"\0\3", b"ab", b"c"):
            pair.client.send_data(stream, part)
        pair.client.end_stream(stream)
        pair.exchange()
        assert pair.seen[stream].body == framed(b"<Lock abc>")
        assert pair.call(b"whole").status == "0"


@BOTH
def test_headers_that_change_the_table_are_never_taken_for_others(fast: bool) -> None:
    pair = Pair(fast)
    for number in range(150):
        pair.call(b"x", "Lock", ("x-number", "n" * (number % 40)))
        pair.call(b"x", "Unlock", ("authorization", str(number % 7)))
        route = pair.happened[-1].route  # type: ignore[union-attr]
        assert (route.method, route.authorization) == ("Unlock", b"%d" % (number % 7))


@BOTH
@pytest.mark.parametrize("size", [0, 100, 65_536])
def test_a_client_that_wants_another_header_table_is_told(fast: bool, size: int) -> None:
    pair = Pair(fast)
    pair.call(b"x")
    pair.client.update_settings({1: size})  # type: ignore[dict-item]
    pair.exchange()
    for _ in range(3):
        assert pair.call(b"x").status == "0"


@BOTH
def test_a_goaway_of_the_client_ends_none_of_its_calls(fast: bool) -> None:
    pair = Pair(fast, answers=lambda call: None)
    streams = [pair.begin(b"x") for _ in range(3)]
    pair.exchange()
    assert pair.server.receive(frame(7, 0, 0, bytes(8))) == []
    for stream in streams:
        pair.server.answer(stream, b"y")
    pair.exchange()
    assert all(pair.seen[stream].ended for stream in streams)


def test_our_goaway_says_why_and_is_the_last() -> None:
    pair = Pair()
    pair.call(b"x")
    stream = pair.begin(b"y")
    pair.server.go_away(11, "too_many_pings")
    pair.client.receive_data(b"")
    for event in pair.client.receive_data(pair.server.take_output()):
        pair._see(event)
    assert (int(pair.goaway.error_code), pair.goaway.additional_data) == (11, b"too_many_pings")
    pair.server.answer(stream, b"late")
    pair.server.ping()
    assert pair.server.take_output() == b""


def test_too_much_at_a_time_on_one_connection_is_refused() -> None:
    pair = Pair()
    body = b"\0" + (4 * MEBIBYTE).to_bytes(4, "big") + b"x" * (4 * MEBIBYTE - 100)
    for _ in range(16):
        stream = pair.client.get_next_available_stream_id()
        pair.client.send_headers(stream, headers())
        for at in range(0, len(body), 16_384):
            pair.client.send_data(stream, body[at:at + 16_384])
            pair.exchange()
    seen = pair.upload(body)
    assert (seen.status, seen.text) == ("8", "too many large messages at a time")
    assert pair.call(b"small").status == "0"
    assert pair.upload(body).status == "8", "the others are still under way"
    for stream in range(1, 33, 2):
        pair.client.reset_stream(stream, 8)
    assert pair.upload(framed(b"x" * 4 * MEBIBYTE)).status == "0"


# ---- What is no HTTP/2 ---------------------------------------------------------------------------

HELLO = PREFACE + EMPTY_SETTINGS


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        PREFACE[:10] + b"x",
        HELLO + frame(0, 0, 1, bytes(16_385)),
        HELLO + b"\xff\xff\xff\0\0\0\0\0\0",
        HELLO + frame(0, 1, 0, b"data of no stream"),
        HELLO + frame(0, 1, 1, b"data of an idle stream"),
        HELLO + frame(1, 4, 2, b"\x82"),
        HELLO + frame(1, 4, 0, b"\x82"),
        HELLO + frame(1, 4, 1, b"\xff\xff\xff\xff\xff\xff\xff"),
        HELLO + frame(1, 4, 1, b"\xbf"),
        HELLO + frame(1, 4, 1, b"\x82"),
        HELLO + frame(1, 4 | 8, 1, b"\xff\x82"),
        HELLO + frame(1, 0, 1, b"\x82") + frame(6, 0, 0, bytes(8)),
        HELLO + frame(9, 4, 1, b"\x82"),
        HELLO + frame(4, 0, 0, b"12345"),
        HELLO + frame(4, 0, 1, b""),
        HELLO + frame(4, 0, 0, b"\0\4\xff\xff\xff\xff"),
        HELLO + frame(6, 0, 0, b"short"),
        HELLO + frame(6, 0, 1, bytes(8)),
        HELLO + frame(8, 0, 0, bytes(4)),
        HELLO + frame(8, 0, 0, b"\x7f\xff\xff\xff"),
        HELLO + frame(3, 0, 0, bytes(4)),
        HELLO + frame(3, 0, 1, b"123"),
        HELLO + frame(5, 4, 1, b"\0\0\0\2\x82"),
        HELLO + frame(7, 0, 0, b"short"),
    ], ids=lambda sent: sent[len(HELLO):len(HELLO) + 14].hex() or sent[:10].hex())
def test_a_fault_ends_the_connection_with_a_goaway(sent: bytes) -> None:
    server = Http2()
    with pytest.raises(Broken):
        server.receive(sent)
    assert server.ended
    out = server.take_output()
    kinds = []
    while out:
        kinds.append(out[3])
        out = out[9 + int.from_bytes(out[:3], "big"):]
    assert kinds[-1] == 7


def test_headers_without_an_end_are_not_kept_for_ever() -> None:
    server = Http2()
    server.receive(HELLO + frame(1, 0, 1, b"\x82"))
    with pytest.raises(Broken):
        server.receive(frame(9, 0, 1, bytes(16_000)) * 1000)
