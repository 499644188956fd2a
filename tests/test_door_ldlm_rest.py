"""The REST gateway of the LDLM door, with `requests` and plain sockets: every row of its table."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httptools", reason="pip install 'dlock[doors]'")

from door_tools import Door, Place, beside
from failover_tools import until
from ldlm_service_tools import is_key

requests = pytest.importorskip("requests", reason="pip install 'dlock[test-doors]'")
PASSWORD = "pa:ss wörd"
NOT_FOUND = {"code": 5, "message": "Not Found", "details": []}
NOT_ALLOWED = {"code": 12, "message": "Method Not Allowed", "details": []}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with beside(tmp_path_factory.mktemp("ldlm")) as made:
        yield made


@pytest.fixture(scope="module")
def door(place: Place) -> Door:
    return place.door("ldlm", *FLAGS)


FLAGS = ("-l", "127.0.0.1:0", "-r", "127.0.0.1:0", "--ipc_socket_file=")


def rest_address(door: Door) -> tuple[str, int]:
    host, _, port = door.listeners[1].rpartition(":")
    return host, int(port)


class Client:
    """One REST client; `session` keeps its cookies."""

    def __init__(self, door: Door, password: str | None = None) -> None:
        host, port = rest_address(door)
        self.url = f"http://{host}:{port}"
        self.session = requests.Session()
        if password is not None:
            said = base64.b64encode(f"anybody:{password}".encode()).decode()
            self.session.headers["Authorization"] = f"Basic {said}"

    def begin(self) -> str:
        answer = self.ask("POST", "/session")
        assert answer.status_code == 201
        return str(answer.json()["session_id"])

    def ask(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        if isinstance(body, (str, bytes)):
            return self.session.request(method, self.url + path, data=body, timeout=20, **options)
        return self.session.request(method, self.url + path, json=body, timeout=20, **options)

    def lock(self, name: str, **said: Any) -> dict[str, Any]:
        return self._called("lock", {"name": name, **said})

    def unlock(self, name: str, key: str) -> dict[str, Any]:
        return self._called("unlock", {"name": name, "key": key})

    def renew(self, name: str, key: str, seconds: int) -> dict[str, Any]:
        return self._called("renew", {"name": name, "key": key, "lock_timeout_seconds": seconds})

    def _called(self, call: str, said: dict[str, Any]) -> dict[str, Any]:
        answer = self.ask("POST", f"/v1/{call}", said)
        assert answer.status_code == 200
        return dict(answer.json())

    def close(self) -> None:
        self.session.close()


@pytest.fixture
def client(door: Door) -> Iterator[Client]:
    made = Client(door)
    made.begin()
    yield made
    made.ask("DELETE", "/session")
    made.close()


@pytest.fixture
def other(door: Door) -> Iterator[Client]:
    made = Client(door)
    made.begin()
    yield made
    made.ask("DELETE", "/session")
    made.close()


# ---- Sessions ------------------------------------------------------------------------------------


def test_a_session_is_a_cookie_and_a_body(door: Door) -> None:
    client = Client(door)
    before_s = time.time()
    answer = client.ask("POST", "/session")
    assert answer.status_code == 201
    assert answer.headers["Content-Type"] == "application/json"
    session_id = answer.json()["session_id"]
    assert re.fullmatch(r"[0-9a-f]{32}", session_id)
    said = re.fullmatch(r"ldlm-session=([0-9a-f]{32}); Path=/; Expires=(.* GMT)",
                        answer.headers["Set-Cookie"])
    assert said is not None
    assert said[1] == session_id
    assert before_s + 599 <= parsedate_to_datetime(said[2]).timestamp() <= time.time() + 601


def test_the_end_of_a_session_releases_its_locks(door: Door, other: Client) -> None:
    client = Client(door)
    client.begin()
    assert client.lock("of a session")["locked"]
    assert not other.lock("of a session")["locked"]
    answer = client.ask("DELETE", "/session")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == {"session_id": ""}
    assert answer.headers["Set-Cookie"] == "ldlm-session=; Path=/"
    assert other.lock("of a session")["locked"]


def test_the_end_of_no_session(door: Door) -> None:
    client = Client(door)
    answer = client.ask("DELETE", "/session")
    assert (answer.status_code, answer.text) == (500, '{"error":"http: named cookie not present"}')
    assert answer.headers["Content-Type"].startswith("text/plain")
    answer = client.ask("DELETE", "/session", cookies={"ldlm-session": "0" * 32})
    assert (answer.status_code, answer.text) == (409, '{"error": "session not found"}')
    assert answer.headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize(("method", "path"), [
    ("POST", "/v1/lock"), ("GET", "/v1/lock"), ("GET", "/session"), ("POST", "/"), ("PUT", "/x")])
def test_without_a_cookie_there_is_nothing(door: Door, method: str, path: str) -> None:
    answer = Client(door).ask(method, path)
    assert answer.status_code == 401
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.text == ('{"error": "session cookie not found. create a new session at '
                           '/session"}')


def test_with_a_bad_cookie_neither(door: Door) -> None:
    answer = Client(door).ask("POST", "/v1/lock", cookies={"ldlm-session": "0" * 32})
    assert answer.status_code == 401
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.text == ('{"error": "session cookie invalid or expired. create a new session at '
                           '/session"}')


def test_the_cookie_is_found_among_others(door: Door) -> None:
    client = Client(door)
    session_id = client.begin()
    bare = Client(door)
    for cookie in (f"a=b; ldlm-session={session_id}; c=d", f'ldlm-session="{session_id}"'):
        answer = bare.ask("POST", "/v1/lock", {}, headers={"Cookie": cookie})
        assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/", "/v1/nothing", "/v1/lock/", "/v1", "/session"])
def test_unknown_paths_of_a_session(client: Client, path: str) -> None:
    answer = client.ask("GET", path)
    assert (answer.status_code, answer.json()) == (404, NOT_FOUND)
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("path", ["/v1/lock", "/v1/unlock", "/v1/renew"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_wrong_methods_of_a_session(client: Client, method: str, path: str) -> None:
    answer = client.ask(method, path)
    assert (answer.status_code, answer.json()) == (501, NOT_ALLOWED)
    assert answer.headers["Content-Type"] == "application/json"


# ---- Locks ---------------------------------------------------------------------------------------


def test_lock_only_tries(client: Client, other: Client) -> None:
    answer = client.ask("POST", "/v1/lock", {"name": "tried"})
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == {"locked": True, "name": "tried", "key": answer.json()["key"]}
    assert is_key(answer.json()["key"])
    refused = other.lock("tried", wait_timeout_seconds=100)
    assert refused == {"locked": False, "name": "tried", "key": refused["key"]}
    assert client.unlock("tried", answer.json()["key"]) == {"unlocked": True, "name": "tried"}
    assert other.lock("tried")["locked"]


def test_unlock_and_renew_from_another_session(client: Client, other: Client) -> None:
    key = client.lock("shared key", lock_timeout_seconds=100)["key"]
    assert other.renew("shared key", key, 50) == {
        "locked": True, "name": "shared key", "key": key}
    assert other.unlock("shared key", key)["unlocked"]


def test_errors_of_locks_are_answers(client: Client) -> None:
    key = client.lock("errors", size=2)["key"]
    mismatch = client.lock("errors", size=3)
    assert mismatch.pop("key") != key
    assert mismatch == {"locked": False, "name": "errors", "error": {
        "code": "LockSizeMismatch", "message": "lock size mismatch"}}
    assert client.unlock("errors", "wrong") == {"unlocked": False, "name": "errors", "error": {
        "code": "InvalidLockKey", "message": "invalid lock key"}}
    assert client.unlock("no such lock", "") == {
        "unlocked": False, "name": "no such lock", "error": {
            "code": "LockDoesNotExist", "message": "a lock by that name does not exist"}}
    assert client.renew("errors", key, 10) == {
        "locked": False, "name": "errors", "key": key, "error": {
            "code": "LockDoesNotExistOrInvalidKey",
            "message": "lock does not exist or invalid key"}}
    assert client.renew("errors", key, 0) == {
        "locked": False, "name": "errors", "key": "", "error": {
            "code": "Unknown", "message": "lock timeout must be greater than 0"}}
    assert client.lock("errors", lock_timeout_seconds=-1)["error"]["code"] == "Unknown"
    assert client.lock("errors", size=0)["error"]["code"] == "InvalidLockSize"


@pytest.mark.parametrize("kind", [
    "application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8", ""])
def test_the_type_of_a_body_does_not_matter(client: Client, kind: str) -> None:
    answer = client.ask("POST", "/v1/lock", b'{"name": "typed", "size": 100}',
                        headers={"Content-Type": kind})
    assert answer.status_code == 200
    assert answer.json()["locked"]


def test_an_empty_body_is_an_empty_message(client: Client) -> None:
    answer = client.ask("POST", "/v1/lock", b"").json()
    assert answer.pop("key")
    assert answer == {"locked": False, "name": "",
                      "error": {"code": "Unknown", "message": "lock name cannot be empty"}}
    assert client.ask("POST", "/v1/unlock", b"").json()["error"]["code"] == "LockDoesNotExist"


def test_names_are_any_text(client: Client) -> None:
    for name in ("ü☃", "a\nb", "\x00", '"', "/", "x" * 100_000):
        answer = client.lock(name)
        assert answer["locked"]
        assert answer["name"] == name
        assert client.unlock(name, answer["key"])["unlocked"]


@pytest.mark.parametrize("body", [
    b"{", b'{"name":', b'{"name": 5}', b'{"size": 1.5}', b'{"size": "many"}', b"[]", b"5", b'""',
    b"null", b'{"size": 2147483648}', b"\xff", b'{"name": "\\ud800"}', b'{"name": true}',
    b'{"name": "a", "name": "b"}', b"{'name': 'a'}", b"[" * 50_000,
    b'{"x": ' + b"[" * 150 + b"]" * 150 + b"}",
], ids=lambda body: repr(body[:20]))
def test_bad_bodies_are_refused(client: Client, body: bytes) -> None:
    answer = client.ask("POST", "/v1/lock", body)
    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "application/json"
    said = answer.json()
    assert said["message"]
    assert {**said, "message": ""} == {"code": 3, "message": "", "details": []}


def test_a_body_may_have_four_mebibytes(client: Client) -> None:
    fits = b'{"name": "big", "pad": "' + b"x" * 4_000_000 + b'"}'
    assert client.ask("POST", "/v1/lock", fits).json()["locked"]
    too_big = b'{"name": "big", "pad": "' + b"x" * 4_200_000 + b'"}'
    assert client.ask("POST", "/v1/lock", too_big).status_code == 413
    assert client.lock("after that")["locked"]


# ---- Idle sessions, order, password --------------------------------------------------------------


def test_every_request_renews_the_session(place: Place) -> None:
    door = place.door("ldlm", *FLAGS, "--rest_session_timeout", "4s", namespace="idle",
                      name="idle")
    client = Client(door)
    session_id = client.begin()
    assert client.lock("idle")["locked"]
    end_s = time.monotonic() + 5
    while time.monotonic() < end_s:  # longer than its time, never idle
        answer = client.ask("POST", "/v1/nothing")
        assert answer.status_code == 404
        assert answer.headers["Set-Cookie"].startswith(f"ldlm-session={session_id}; Path=/; Exp")
        time.sleep(0.1)
    other = Client(door)

    def expired() -> bool:
        other.session.cookies.clear()
        other.begin()
        return bool(other.lock("idle")["locked"])

    until(expired)  # its locks are released
    # requests drops a cookie that its own clock calls expired, so it is shown by hand.
    answer = Client(door).ask("POST", "/v1/lock", {}, cookies={"ldlm-session": session_id})
    assert answer.status_code == 401
    assert "invalid or expired" in answer.text
    door.stop()


def test_requests_of_a_session_are_carried_out_in_their_order(door: Door, client: Client) -> None:
    session_id = client.session.cookies["ldlm-session"]
    body = b'{"name": "in order"}'
    request = (b"POST /v1/lock HTTP/1.1\r\nHost: a\r\nCookie: ldlm-session="
               + session_id.encode() + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    with socket.create_connection(rest_address(door), 20) as link:
        link.sendall(request * 50)
        received = b""
        while received.count(b"HTTP/1.1 200") < 50 or not received.endswith(b"}"):
            received += link.recv(65536)
    answers = re.findall(rb'"locked":(true|false)', received)
    assert answers == [b"true"] + [b"false"] * 49


def test_one_session_from_many_connections(door: Door, client: Client) -> None:
    cookies = {"ldlm-session": client.session.cookies["ldlm-session"]}
    granted: list[int] = []

    def work() -> None:
        mine = Client(door)
        for _ in range(20):
            answer = mine.ask("POST", "/v1/lock", {"name": "crowd"}, cookies=cookies).json()
            if answer["locked"]:
                granted.append(1)
                mine.ask("POST", "/v1/unlock", {"name": "crowd", "key": answer["key"]},
                         cookies=cookies)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert granted
    assert client.lock("crowd")["locked"]


def test_the_password_is_asked_for_before_all_else(place: Place) -> None:
    door = place.door("ldlm", *FLAGS, "--password", PASSWORD, namespace="secret", name="secret")
    right = Client(door, PASSWORD)
    right.begin()
    assert right.lock("secret")["locked"]
    for client in (Client(door), Client(door, "wrong"), Client(door, "")):
        for method, path in (("POST", "/session"), ("DELETE", "/session"), ("GET", "/nothing")):
            answer = client.ask(method, path)
            assert (answer.status_code, answer.content) == (401, b"")
            assert answer.headers["WWW-Authenticate"] == 'Basic realm="Restricted"'
    for said in ("Basic", "Basic !", "Bearer x", "Basic " + base64.b64encode(b"no colon").decode()):
        assert Client(door).ask("POST", "/session",
                                headers={"Authorization": said}).status_code == 401
    assert door.counters()["wrong_passwords"] == 13
    door.stop()


# ---- Slow, half-closed and vanished clients ------------------------------------------------------


def test_a_client_that_closes_its_side_gets_its_answer(door: Door) -> None:
    with socket.create_connection(rest_address(door), 20) as link:
        link.sendall(b"POST /session HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        link.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: link.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 201 Created\r\n")


@pytest.mark.parametrize("sent", [
    b"", b"POST", b"POST /session HTTP/1.1\r\n", b"\x00\xff\r\n\r\n", b"POST /session\r\n\r\n",
    b"POST /v1/lock HTTP/1.1\r\nContent-Length: 100\r\n\r\n{",
    b"POST /v1/lock HTTP/1.1\r\nContent-Length: x\r\n\r\n"])
def test_a_client_that_vanishes_hinders_nobody(door: Door, client: Client, sent: bytes) -> None:
    for _ in range(5):
        with socket.create_connection(rest_address(door), 20) as link:
            link.sendall(sent)
    assert client.lock(f"after {sent!r}")["locked"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_does_what_the_guide_shows(door: Door, tmp_path: Path) -> None:
    host, port = rest_address(door)
    jar = str(tmp_path / "cookies.txt")
    url = f"http://{host}:{port}"

    def curl(*words: str) -> Any:
        done = subprocess.run(["curl", "-sS", "-c", jar, "-b", jar, *words], capture_output=True,
                              timeout=60, check=True)
        return json.loads(done.stdout)

    assert re.fullmatch(r"[0-9a-f]{32}", curl("-X", "POST", f"{url}/session")["session_id"])
    locked = curl(f"{url}/v1/lock", "-d", '{"name": "My lock", "lock_timeout_seconds": 120}')
    assert locked["locked"]
    said = f'{{"name": "My lock", "lock_timeout_seconds": 120, "key": "{locked["key"]}"}}'
    assert curl(f"{url}/v1/renew", "-d", said)["locked"]
    assert curl(f"{url}/v1/unlock", "-d", said) == {"unlocked": True, "name": "My lock"}
    assert curl("-X", "DELETE", f"{url}/session") == {"session_id": ""}
