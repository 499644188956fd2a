"""The DoubleDutch door, one promise of docs/door-doubledutch.md a test, against a real primary."""

from __future__ import annotations

import json
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("httptools", reason="pip install 'dlock[doors]'")

from door_tools import Door, Place
from doubledutch_tools import (
    KEY,
    ask,
    doubledutch,
    get_lock,
    one_door,
    release_lock,
    shown,
)
from failover_tools import until

SERVER = "DoubleDutch/v0.3.0"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Door]]:
    with one_door(tmp_path_factory.mktemp("doubledutch")) as made:
        yield made


@pytest.fixture
def door(site: tuple[Place, Door]) -> Iterator[Door]:
    """The door without locks."""
    yield site[1]
    for lock in shown(site[1]):
        release_lock(site[1], lock["lockname"], lock["sessiontoken"])


# ---- What is checked, in which order -------------------------------------------------------------


@pytest.mark.parametrize(("target", "status", "fields"), [
    ("/getlock", 400, {"error": "no lockname supplied"}),
    ("/getlock?auth=wrong", 400, {"error": "no lockname supplied"}),
    ("/getlock?Lockname=a&auth=K", 400, {"error": "no lockname supplied"}),
    ("/getlock?lockname=a", 401, {"error": "no api key supplied"}),
    ("/getlock?lockname=a&Auth=secret", 401, {"error": "no api key supplied"}),
    ("/getlock?lockname=a&auth=", 401, {"error": "invalid api key"}),
    ("/getlock?lockname=a&auth=wrong&timeout=x", 401, {"error": "invalid api key"}),
    ("/getlock?lockname=a&auth=wrong&auth=secret", 401, {"error": "invalid api key"}),
    ("/getlock?lockname=a&auth=%ff%00", 401, {"error": "invalid api key"}),
    *((f"/getlock?lockname=a&auth=secret&{name}={value}", 400, {"error": f"invalid {name}"})
      for name in ("timeout", "lifetime")
      for value in ("", "x", "1x", "nan", "inf", "-inf", "1e999", "1_0", "0x10", "%D9%A1")),
    ("/status", 400, {"status": "no api key"}),
    ("/status?auth=wrong", 401, {"status": "invalid key"}),
    ("/status?auth=", 401, {"status": "invalid key"}),
])
def test_what_is_refused_on_get(
    door: Door, target: str, status: int, fields: dict[str, str]
) -> None:
    heard = ask(door, "GET", target)
    assert heard.status == status
    assert heard.said == {**fields, "servername": SERVER}
    assert heard.headers["Content-Type"] == "application/json"
    assert heard.headers["Server"] == SERVER


@pytest.mark.parametrize(("target", "status", "fields"), [
    ("/releaselock", 400, {"error": "invalid params"}),
    ("/releaselock?lockname=a", 400, {"error": "invalid params"}),
    ("/releaselock?token=a&auth=wrong", 400, {"error": "invalid params"}),
    ("/releaselock?lockname=a&token=b&auth=wrong", 401, {"error": "invalid key"}),
    ("/releaselock?lockname=a&token=b&auth=", 401, {"error": "invalid key"}),
    ("/releaselock?lockname=a&token=b", 400, {"lockname": "a", "lockreleased": False}),
    ("/releaselock?lockname=a&token=b&auth=secret", 400, {"lockname": "a", "lockreleased": False}),
    ("/releaselock?lockname=a&token=", 400, {"lockname": "a", "lockreleased": False}),
])
def test_what_is_refused_on_delete(
    door: Door, target: str, status: int, fields: dict[str, object]
) -> None:
    heard = ask(door, "DELETE", target)
    assert heard.status == status
    assert heard.said == {**fields, "servername": SERVER}


@pytest.mark.parametrize(("method", "target"), [
    ("POST", "/getlock?lockname=a&auth=secret"), ("DELETE", "/getlock"), ("PUT", "/status"),
    ("DELETE", "/status?auth=secret"), ("GET", "/releaselock?lockname=a&token=b"),
    ("HEAD", "/releaselock"), ("OPTIONS", "/status"),
])
def test_another_method_is_not_allowed(door: Door, method: str, target: str) -> None:
    heard = ask(door, method, target)
    assert heard.status == 405
    assert heard.body == (b"" if method == "HEAD" else b"405 Method Not Allowed\n")
    assert heard.headers["Allow"] in ("GET, HEAD", "DELETE")


@pytest.mark.parametrize("target", [
    "/", "/status/", "/getlock/?lockname=a&auth=secret", "/Status", "/releaselock%20", "/x?auth=1",
])
def test_another_path_is_not_found(door: Door, target: str) -> None:
    for method in ("GET", "DELETE", "POST"):
        heard = ask(door, method, target)
        assert (heard.status, heard.body) == (404, b"404 Not Found\n")


# ---- Locks ---------------------------------------------------------------------------------------


def test_a_lock_is_acquired_once_and_released_by_its_token(door: Door) -> None:
    heard = ask(door, "GET", f"/getlock?lockname=once&auth={KEY}")
    assert heard.status == 200
    token = heard.said["sessiontoken"]
    assert heard.said == {"lockname": "once", "lockacquired": True, "sessiontoken": token,
                          "servername": SERVER}
    assert re.fullmatch("[0-9A-Za-z]{32}", token)
    heard = ask(door, "GET", f"/getlock?lockname=once&auth={KEY}")
    assert heard.status == 200
    assert heard.said == {"lockname": "once", "lockacquired": False, "sessiontoken": "",
                          "servername": SERVER}
    assert not release_lock(door, "other", token)
    assert not release_lock(door, "once", token[:-1])
    heard = ask(door, "DELETE", f"/releaselock?lockname=once&token={token}")
    assert heard.status == 200
    assert heard.said == {"lockname": "once", "lockreleased": True, "servername": SERVER}
    assert not release_lock(door, "once", token)
    again = get_lock(door, "once")
    assert again not in (None, token)
    assert again is not None
    assert ask(door, "DELETE", f"/releaselock?lockname=once&token={again}&auth={KEY}").status == 200


def test_status_lists_what_is_held_in_the_order_of_acquisition(door: Door) -> None:
    names = ["st-b", "st-c", "st-a"]
    tokens = [get_lock(door, name, lifetime=life)
              for name, life in zip(names, (1209600, 100, 200), strict=True)]
    assert get_lock(door, "st-gone", lifetime=0) is not None
    heard = ask(door, "GET", f"/status?auth={KEY}")
    assert heard.status == 200
    assert set(heard.said) == {"status", "locks", "servername"}
    locks = heard.said["locks"]
    assert [one["lockname"] for one in locks] == names
    assert [one["sessiontoken"] for one in locks] == tokens
    assert all(set(one) == {"lockname", "sessiontoken", "remaining"} for one in locks)
    assert locks[0]["remaining"] == 1.2096e6
    assert b'"remaining":1.2096e+06' in heard.body
    assert 0 < locks[1]["remaining"] <= 100 < locks[2]["remaining"] <= 200
    for name, token in zip(names, tokens, strict=True):
        assert token is not None
        assert release_lock(door, name, token)
    assert b'"locks":[]' in ask(door, "GET", f"/status?auth={KEY}").body


def test_what_is_over_is_not_listed(door: Door) -> None:
    assert get_lock(door, "over", lifetime="0.4") is not None
    left: list[float] = []

    def gone() -> bool:
        left.extend(one["remaining"] for one in shown(door))
        return shown(door) == []

    until(gone)
    assert all(0 < one <= 0.4 for one in left)


def test_head_is_answered_where_get_is(door: Door) -> None:
    heard = ask(door, "HEAD", f"/status?auth={KEY}")
    assert (heard.status, heard.body) == (200, b"")
    assert int(heard.headers["Content-Length"]) > 0
    assert ask(door, "HEAD", "/status?auth=wrong").status == 401
    assert ask(door, "HEAD", "/getlock").status == 400
    assert ask(door, "HEAD", f"/getlock?lockname=head&auth={KEY}").status == 200
    assert get_lock(door, "head") is None


def test_the_default_lifetime_is_thirty_seconds(door: Door) -> None:
    token = get_lock(door, "default")
    (lock,) = shown(door)
    assert 1 < lock["remaining"] <= 30
    assert token is not None
    assert release_lock(door, "default", token)


@pytest.mark.parametrize("name", [
    "", " ", "a b+c&d=e%", 'quote"back\\slash/', "ünïcödé ☃ 😀", "\x00\x01\n", "x" * 500,
    "y" * 30_000, "../status?auth=1#", "\u2028",
])
def test_names_are_kept_whole(door: Door, name: str) -> None:
    token = get_lock(door, name)
    assert token is not None
    assert get_lock(door, name) is None
    assert get_lock(door, name + "x", lifetime=0) is not None
    assert [one["lockname"] for one in shown(door)] == [name]
    assert release_lock(door, name, token)


def test_bytes_that_are_no_utf_8_are_names_too(door: Door) -> None:
    first = ask(door, "GET", f"/getlock?lockname=%ff&auth={KEY}").said
    assert (first["lockname"], first["lockacquired"]) == ("\ufffd", True)
    assert ask(door, "GET", f"/getlock?lockname=%FF&auth={KEY}").said["lockacquired"] is False
    other = ask(door, "GET", f"/getlock?lockname=%fe&auth={KEY}").said
    assert other["lockacquired"] is True
    for name, said in (("%fF", first), ("%fe", other)):
        token = said["sessiontoken"]
        assert ask(door, "DELETE", f"/releaselock?lockname={name}&token={token}").status == 200


def test_of_repeated_parameters_the_first_counts(door: Door) -> None:
    said = ask(door, "GET", f"/getlock?lockname=r1&lockname=r2&auth={KEY}&auth=no"
                            "&lifetime=0&lifetime=50").said
    assert (said["lockname"], said["lockacquired"]) == ("r1", True)
    assert get_lock(door, "r1", lifetime=0) is not None


def test_a_giant_name_is_refused_and_the_door_goes_on(door: Door) -> None:
    assert ask(door, "GET", "/getlock?lockname=" + "z" * 70_000).status == 414
    assert ask(door, "GET", f"/status?auth={KEY}").status == 200


# ---- Lifetimes and waits -------------------------------------------------------------------------


@pytest.mark.parametrize("lifetime", ["0", "-1", "-1e300", "0.0"])
def test_a_lifetime_that_is_no_time_is_over_at_once(door: Door, lifetime: str) -> None:
    for _ in range(3):
        token = get_lock(door, "none", lifetime=lifetime)
        assert token is not None
        assert not release_lock(door, "none", token)
    assert shown(door) == []


@pytest.mark.parametrize("lifetime", ["1e300", "5e9", "31536000"])
def test_a_lifetime_may_be_of_any_length(door: Door, lifetime: str) -> None:
    token = get_lock(door, "long", lifetime=lifetime)
    assert token is not None
    (lock,) = shown(door)
    assert lock["remaining"] == pytest.approx(float(lifetime), rel=1e-4)
    assert release_lock(door, "long", token)


@pytest.mark.parametrize("lifetime", ["0.3", "3e-1", "+.3"])
def test_a_lock_ends_with_its_lifetime(door: Door, lifetime: str) -> None:
    start = time.monotonic()
    token = get_lock(door, "short", lifetime=lifetime)
    assert token is not None
    assert get_lock(door, "short", timeout=20) is not None  # its default lifetime is 30 s
    assert time.monotonic() - start >= 0.3
    assert not release_lock(door, "short", token)
    (lock,) = shown(door)
    assert release_lock(door, "short", lock["sessiontoken"])


def test_a_timeout_that_is_no_time_does_not_wait(door: Door) -> None:
    token = get_lock(door, "negative", timeout="-5")
    assert token is not None
    assert get_lock(door, "negative", timeout="-1e300") is None
    assert get_lock(door, "negative", timeout="0") is None
    assert release_lock(door, "negative", token)


@pytest.mark.parametrize("timeout", ["0.2", "5e-1", "1"])
def test_a_wait_lasts_at_least_its_timeout(door: Door, timeout: str) -> None:
    token = get_lock(door, "wait", lifetime=3600)
    start = time.monotonic()
    assert get_lock(door, "wait", timeout=timeout) is None
    assert time.monotonic() - start >= float(timeout)
    assert token is not None
    assert release_lock(door, "wait", token)


@pytest.mark.parametrize("precision", ["333", "0"])
def test_a_lease_ends_before_a_wait_that_ends_with_it(
    site: tuple[Place, Door], precision: str
) -> None:
    """As the original's own test has it, many at a time."""
    door = doubledutch(site[0], "p", precision, namespace=f"p{precision}", name=f"p{precision}")

    def pair(number: int) -> bool:
        name = f"together {number}"
        first = get_lock(door, name, lifetime=1)
        second = get_lock(door, name, timeout=1, lifetime=0)
        return first is not None and second is not None

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(pair, range(64)))


def test_who_waits_gets_it_in_the_order_of_arrival(door: Door) -> None:
    token = get_lock(door, "line", lifetime=60)
    assert token is not None
    served: list[int] = []

    def wait(number: int) -> None:
        own = get_lock(door, "line", timeout=60, lifetime=60)
        assert own is not None
        served.append(number)
        assert release_lock(door, "line", own)

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        until(lambda number=number: door.counters().get("waiting") == number + 1)
    assert release_lock(door, "line", token)
    for thread in threads:
        thread.join(60)
    assert served == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("how", ["close", "shut"])
def test_who_hangs_up_while_waiting_is_never_given_the_lock(door: Door, how: str) -> None:
    token = get_lock(door, "ghost", lifetime=60)
    assert token is not None
    request = f"GET /getlock?lockname=ghost&auth={KEY}&timeout=60&lifetime=60 HTTP/1.1\r\n\r\n"
    ghosts = [socket.create_connection(door.address) for _ in range(20)]
    for ghost in ghosts:
        ghost.sendall(request.encode())
    until(lambda: door.counters().get("waiting") == len(ghosts))
    for ghost in ghosts:
        if how == "close":
            ghost.close()
        else:
            ghost.shutdown(socket.SHUT_WR)
            ghost.settimeout(60)
            assert b'"lockacquired":false' in ghost.recv(65536)
            ghost.close()
    until(lambda: door.counters().get("waiting") == 0)
    assert release_lock(door, "ghost", token)
    assert get_lock(door, "ghost", lifetime=0) is not None
    assert shown(door) == []


def test_who_shuts_its_side_is_still_answered_what_needs_no_wait(door: Door) -> None:
    for _ in range(10):
        with socket.create_connection(door.address, 60) as client:
            client.sendall(f"GET /getlock?lockname=shut&auth={KEY}&lifetime=0 HTTP/1.1\r\n\r\n"
                           .encode() * 3)
            client.shutdown(socket.SHUT_WR)
            said = b""
            while piece := client.recv(65536):
                said += piece
            assert said.count(b'"lockacquired":true') == 3


def test_a_lock_is_not_tied_to_its_connection(door: Door) -> None:
    token = get_lock(door, "untied")  # its connection is closed by now
    assert get_lock(door, "untied") is None
    assert token is not None
    assert release_lock(door, "untied", token)


# ---- Flags and neighbours ------------------------------------------------------------------------


def test_the_name_of_the_server_is_a_flag(site: tuple[Place, Door]) -> None:
    place, _ = site
    door = doubledutch(place, "name", "Mine", "p", "5", "t", "2", namespace="flags", name="flags")
    heard = ask(door, "GET", f"/status?auth={KEY}")
    assert heard.said["servername"] == heard.headers["Server"] == "Mine"


def test_doors_share_names_only_where_they_share_a_namespace(
    site: tuple[Place, Door], door: Door
) -> None:
    place, _ = site
    other = doubledutch(place, namespace="other", name="other")
    assert get_lock(door, "mine", lifetime=600) is not None
    token = get_lock(other, "mine", lifetime=600)
    assert token is not None
    assert not release_lock(door, "mine", token)
    (lock,) = shown(door)
    assert release_lock(door, "mine", lock["sessiontoken"])


def test_two_acquisitions_never_have_the_same_token(door: Door) -> None:
    tokens = {get_lock(door, f"t{number}", lifetime=0) for number in range(500)}
    assert len(tokens) == 500


# ---- Anything ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_asked_is_answered_as_it_is_written(door: Door, seed: int) -> None:
    random_ = random.Random(seed)
    words = [b"lockname", b"auth", b"token", b"timeout", b"lifetime", b"=", b"=", b"&", b"&", b"?",
             KEY.encode(), b"0", b"-1", b"1e", b".5", b"%", b"%00", b"%ff", b"+", b"%2B", b"\xc3",
             b"\xff", b"%ED%A0%80", b'"', b"\\", b"a", b"nan"]
    for _ in range(400):
        path = random_.choice((b"/getlock", b"/releaselock", b"/status", b"/x"))
        method = random_.choice((b"GET", b"GET", b"DELETE", b"POST"))
        query = b"".join(random_.choices(words, k=random_.randrange(14)))
        if random_.random() < 0.5:
            query = b"lockname=" + query + b"&auth=" + KEY.encode() + b"&lifetime=0"
        heard = exchange(door, method + b" " + path + b"?" + query + b" HTTP/1.0\r\n\r\n")
        status = int(heard.split()[1])
        assert status in (200, 400, 401, 404, 405), heard
        if b"application/json" in heard:
            said = json.loads(heard.partition(b"\r\n\r\n")[2])
            assert said["servername"] == SERVER
    assert shown(door) == []


def exchange(door: Door, request: bytes) -> bytes:
    """All that is said to this."""
    with socket.create_connection(door.address, 60) as client:
        client.sendall(request)
        said = b""
        while piece := client.recv(65536):
            said += piece
        return said
