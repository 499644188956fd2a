"""dlock/doors/http_parse.py and http_answer.py: bytes into requests, however they are cut."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("httptools", reason="pip install 'dlock[doors]'")

from dlock.doors.http_answer import Response, Writer, plain
from dlock.doors.http_parse import CONTINUE, Limits, Message, Reader, RequestError, parse_query

LIMITS = Limits(head_bytes=512, body_bytes=100)


def read(pieces: list[bytes], limits: Limits = LIMITS) -> list[Any]:
    """What comes of these bytes: requests as tuples, CONTINUE, and at the end perhaps a refusal;
    then whether something unfinished is left."""
    reader = Reader(limits, Message)
    found: list[Any] = []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (one := reader.next()) is not None:
                if isinstance(one, Message):
                    found.append((one.method, one.path, one.query, one.headers, one.body,
                                  one.keep_alive, one.version))
                else:
                    assert one is CONTINUE
                    found.append("continue")
    except RequestError as refusal:
        return [*found, (refusal.status, refusal.counter)]
    return [*found, reader.in_body or reader.ahead_bytes > 0]


def only(text: bytes, limits: Limits = LIMITS) -> Message:
    reader = Reader(limits, Message)
    reader.feed(text)
    found = reader.next()
    assert isinstance(found, Message)
    assert reader.next() is None
    return found


def refused(text: bytes) -> int:
    """The status that the bytes are refused with; the requests before it count for nothing."""
    last = read([text])[-1]
    assert isinstance(last, tuple), f"not refused: {last}"
    return int(last[0])


def test_a_request_is_what_the_client_wrote() -> None:
    found = only(b"GET /getlock?lockname=a%20b+c%2F&x HTTP/1.1\r\n"
                 b"Host: h\r\nA: 1\r\na:  2 \r\n\r\n")
    assert (found.method, found.path) == ("GET", "/getlock")
    assert found.target == "/getlock?lockname=a%20b+c%2F&x"
    assert found.query == {"lockname": "a b c/", "x": ""}
    assert found.headers == {"host": "h", "a": "1, 2"}
    assert found.keep_alive
    assert found.body == b""


def test_of_repeated_names_the_first_counts_and_names_are_case_sensitive() -> None:
    assert parse_query("a=1&a=2&A=3&b=&b=4&%61=5&=6&&c") == {"a": "1", "A": "3", "b": "", "c": ""}
    assert parse_query("a%3Db=c%26d%3D%25&e=1=2") == {"a=b": "c&d=%", "e": "1=2"}
    assert parse_query("a=%zz%4&b=%") == {"a": "%zz%4", "b": "%"}
    assert parse_query("") == {}


def test_bytes_that_are_no_utf_8_are_kept() -> None:
    raw = only(b"GET /p?n=\xc3\xa4\xff HTTP/1.1\r\n\r\n").query["n"]
    written = only(b"GET /p?n=%C3%A4%fF HTTP/1.1\r\n\r\n").query["n"]
    mixed = only(b"GET /p?n=%C3\xa4%fF HTTP/1.1\r\n\r\n").query["n"]
    assert raw == written == mixed == "ä\udcff"
    assert raw.encode("utf-8", "surrogateescape") == b"\xc3\xa4\xff"


def test_a_target_may_be_what_a_proxy_is_sent() -> None:
    assert only(b"GET http://h:80/status?a=1 HTTP/1.1\r\n\r\n").path == "/status"
    assert only(b"GET http://h HTTP/1.1\r\n\r\n").path == "/"


def test_when_a_connection_goes_on() -> None:
    def goes_on(line: bytes, header: bytes = b"A: b") -> bool:
        return only(b"GET / " + line + b"\r\n" + header + b"\r\n\r\n").keep_alive

    assert goes_on(b"HTTP/1.1")
    assert not goes_on(b"HTTP/1.1", b"Connection: close")
    assert not goes_on(b"HTTP/1.0")
    assert goes_on(b"HTTP/1.0", b"Connection: keep-alive")
    assert not goes_on(b"HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: h2c")


def test_bodies_come_whole() -> None:
    sized = b"PUT / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab\ncd"
    chunked = (b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
               b"3;x=y\r\nab\n\r\n2\r\ncd\r\n0\r\nTrailer: t\r\n\r\n")
    for text in (sized, chunked):
        found = read([text + b"GET /next HTTP/1.1\r\n\r\n"])
        assert [one[4] for one in found[:2]] == [b"ab\ncd", b""]
        assert found[1][1] == "/next"
        assert found[2] is False


def test_who_asks_first_is_told_to_go_on() -> None:
    head = b"PUT / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    assert read([head]) == ["continue", True]
    assert [type(one) for one in read([head + b"ab"])] == [str, tuple, bool]
    assert refused(head.replace(b"100-continue", b"miracles")) == 417
    assert read([head.replace(b"HTTP/1.1", b"HTTP/1.0")]) == [True]
    assert refused(head.replace(b"Length: 2", b"Length: 101")) == 413


@pytest.mark.parametrize(("text", "status"), [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
    (b"GET\r\n\r\n", 400),
    (b"GET /\r\n\r\n", 400),
    (b"GET / HTTP/1.1 x\r\n\r\n", 400),
    (b"FETCH / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/2.0\r\n\r\n", 505),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    (b"GET / HTTP/1.1\nHost: h\n\n", 400),
    (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n", 400),
    (b"GET /\x00 HTTP/1.1\r\n\r\n", 400),
    (b"PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
    (b"PUT / HTTP/1.1\r\nContent-Length: 1x\r\n\r\n", 400),
    (b"PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    (b"PUT / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (b"PUT / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
    (b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n", 400),
    (b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", 400),
    (b"PUT / HTTP/1.1\r\nContent-Length: 101\r\n\r\n", 413),
    (b"PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999999999\r\n\r\n", 400),
    (b"PUT / HTTP/1.1\r\nContent-Length: 9999999999999999999\r\n\r\n", 413),
    (b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n" + b"a" * 101 + b"\r\n", 413),
    (b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 2000, 413),
    (b"GET /" + b"a" * 600 + b" HTTP/1.1\r\n\r\n", 414),
    (b"GET / HTTP/1.1\r\nA: " + b"a" * 600 + b"\r\n\r\n", 431),
    (b"GET / HTTP/1.1\r\nA: " + b"a" * 600, 431),
])
def test_what_is_refused(text: bytes, status: int) -> None:
    assert refused(text) == status
    assert refused(b"GET /good HTTP/1.1\r\n\r\n" + text) == status


def test_a_head_may_be_as_long_as_its_limit() -> None:
    head = b"GET / HTTP/1.1\r\nA: %b\r\n\r\n"
    exactly = head % (b"a" * (LIMITS.head_bytes - len(head % b"")))
    assert read([exactly])[-1] is False
    assert refused(exactly.replace(b"A: ", b"A: a")) == 431


WORDS = [
    b"GET ", b"PUT ", b"DELETE ", b"/", b"?a=1&b=%20", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"\r\n",
    b"\r\n\r\n", b"\n", b"\r", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"5\r\n",
    b"0\r\n\r\n", b"Connection: close\r\n", b"Connection: keep-alive\r\n",
    b"Expect: 100-continue\r\n",
    b"hello", b"\xff\xc3\xa4", b"\x00", b": ", b"Upgrade: x\r\nConnection: upgrade\r\n", b"a" * 120,
    b"GET /a HTTP/1.1\r\n\r\n", b"PUT /b HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    b"PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
]


def cut(random_: random.Random, text: bytes) -> list[bytes]:
    places = sorted(random_.randrange(len(text) + 1) for _ in range(random_.randrange(12)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]



@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_mean_the_same_however_they_are_cut(seed: int) -> None:
    random_ = random.Random(seed)
    for _ in range(150):
        words = random_.choices(WORDS, k=random_.randrange(1, 14))
        text = b"".join(words)
        if random_.random() < 0.3:
            place = random_.randrange(len(text))
            text = text[:place] + random_.randbytes(random_.randrange(4)) + text[place + 1 :]
        whole = read([text])
        assert read([bytes([one]) for one in text]) == whole, text
        assert read(cut(random_, text)) == whole, text


def test_answers_say_what_they_are() -> None:
    writer = Writer("Name/1")
    told = writer.encode(Response(200, b"{}"), "", True, 0.5).split(b"\r\n")
    assert told == [b"HTTP/1.1 200 OK", b"Server: Name/1", b"Date: Thu, 01 Jan 1970 00:00:00 GMT",
                    b"Content-Type: application/json", b"Content-Length: 2", b"", b"{}"]
    assert b"00:00:02 GMT" in writer.encode(Response(200, b"{}"), "", True, 2.5)
    without = writer.encode(Response(200, b"{}"), "close", False, 2.5)
    assert without.endswith(b"Connection: close\r\nContent-Type: application/json\r\n"
                            b"Content-Length: 2\r\n\r\n")
    assert plain(405).body == b"405 Method Not Allowed\n"


def test_no_answer_breaks_its_lines() -> None:
    with pytest.raises(ValueError, match="line break"):
        Writer(None).encode(Response(200, b"", headers=(("A", "b\r\nC: d"),)), "", True, 0)
