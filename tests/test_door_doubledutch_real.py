"""The DoubleDutch door and the clients that its users have: requests, curl, many of them at once,
and under them a primary that dies."""

from __future__ import annotations

import json
import random
import resource
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httptools", reason="pip install 'dlock[doors]'")

from cli_tools import dlock
from door_tools import Door, Place, beside, free_port
from doubledutch_tools import (
    KEY,
    WAIT_S,
    Wire,
    ask,
    doubledutch,
    get_lock,
    one_door,
    release_lock,
    self_signed,
    shown,
)
from failover_tools import until

import dlock as dlock_itself

WAITING = 1000
Secure = tuple[str, str, Door]  # URL, path of the certificate


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Door]]:
    with one_door(tmp_path_factory.mktemp("doubledutch")) as made:
        yield made


@pytest.fixture
def door(site: tuple[Place, Door]) -> Door:
    return site[1]


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """As the original is started in its container, but for the paths: HTTPS, the key in a file."""
    folder = tmp_path_factory.mktemp("secure")
    certificate, key = self_signed(folder)
    config = folder / "config.txt"
    config.write_text(f"{KEY}\nanother line\n")
    with beside(folder) as place:
        door = place.door("doubledutch", str(free_port()), "--host", "127.0.0.1", "--cert",
                          certificate, "--key", key, "--config", str(config))
        yield f"https://localhost:{door.address[1]}", certificate, door


# ---- Libraries and tools -------------------------------------------------------------------------


def test_requests_over_https_with_the_key_of_the_file(secure: Secure) -> None:
    requests = pytest.importorskip("requests")
    url, certificate, _ = secure
    with requests.Session() as session:
        session.trust_env = False  # it would have a certificate file of its own
        session.verify = certificate
        words = {"lockname": "a lock/ü", "auth": KEY, "lifetime": 60}
        got = session.get(f"{url}/getlock", params=words, timeout=WAIT_S)
        assert (got.status_code, got.json()["lockacquired"]) == (200, True)
        again = session.get(f"{url}/getlock", params={**words, "timeout": 0.1}, timeout=WAIT_S)
        assert (again.status_code, again.json()["lockacquired"]) == (200, False)
        (lock,) = session.get(f"{url}/status", params={"auth": KEY}, timeout=WAIT_S).json()["locks"]
        assert lock["lockname"] == "a lock/ü"
        token = got.json()["sessiontoken"]
        done = session.delete(f"{url}/releaselock", timeout=WAIT_S,
                              params={"lockname": "a lock/ü", "token": token})
        assert (done.status_code, done.json()["lockreleased"]) == (200, True)
        refused = session.get(f"{url}/status", params={"auth": f"{KEY}\nanother line"},
                              timeout=WAIT_S)
        assert refused.status_code == 401
    with requests.Session() as session, pytest.raises(requests.exceptions.SSLError):
        session.get(f"{url}/status", timeout=WAIT_S)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(secure: Secure) -> None:
    url, certificate, _ = secure

    def curl(*words: str) -> Any:
        done = subprocess.run(["curl", "-sS", "--cacert", certificate, *words],
                              capture_output=True, check=True, timeout=WAIT_S)
        return json.loads(done.stdout)

    got = curl(f"{url}/getlock?lockname=curl&auth={KEY}")
    assert got["lockacquired"] is True
    query = f"lockname=curl&token={got['sessiontoken']}"
    assert curl("-X", "DELETE", f"{url}/releaselock?{query}")["lockreleased"] is True
    assert curl("-X", "DELETE", f"{url}/releaselock?{query}")["lockreleased"] is False
    body = curl("-X", "GET", "-d", "a body that nobody reads", f"{url}/status?auth={KEY}")
    assert body["status"] == "ok"
    assert curl("--http2", "--http1.0", f"{url}/status?auth={KEY}")["status"] == "ok"


def test_what_is_no_tls_is_turned_away(secure: Secure) -> None:
    url, certificate, _ = secure
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), WAIT_S) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"HTTP" not in client.recv(1000)
    context = ssl.create_default_context(cafile=certificate)
    with (socket.create_connection(("127.0.0.1", port), WAIT_S) as client,
          context.wrap_socket(client, server_hostname="localhost") as tls):
        tls.sendall(b"HEAD /nothing HTTP/1.0\r\n\r\n")
        assert tls.recv(1000).startswith(b"HTTP/1.1 404 Not Found\r\n")


def test_who_hangs_up_over_tls_while_waiting_is_never_given_the_lock(secure: Secure) -> None:
    _, certificate, door = secure
    context = ssl.create_default_context(cafile=certificate)

    def opened() -> ssl.SSLSocket:
        plain = socket.create_connection(door.address, WAIT_S)
        return context.wrap_socket(plain, server_hostname="localhost")

    def told(client: ssl.SSLSocket, method: str, target: str) -> Any:
        client.sendall(f"{method} {target} HTTP/1.0\r\n\r\n".encode())
        said = b""
        while piece := client.recv(65536):
            said += piece
        return json.loads(said.partition(b"\r\n\r\n")[2])

    asked = f"/getlock?lockname=tls&auth={KEY}&lifetime=3600"
    with opened() as first:
        token = told(first, "GET", asked)["sessiontoken"]
    ghosts = [opened() for _ in range(5)]
    for ghost in ghosts:
        ghost.sendall(f"GET {asked}&timeout=3600 HTTP/1.1\r\n\r\n".encode())
    until(lambda: door.counters().get("waiting") == len(ghosts))
    for ghost in ghosts:
        ghost.close()
    until(lambda: door.counters().get("waiting") == 0)
    with opened() as second:
        query = f"lockname=tls&token={token}"
        assert told(second, "DELETE", f"/releaselock?{query}")["lockreleased"] is True
    with opened() as third:
        assert told(third, "GET", f"/status?auth={KEY}")["locks"] == []


# ---- Many ----------------------------------------------------------------------------------------


def test_a_thousand_locks_by_thirty_threads_are_never_held_twice(door: Door) -> None:
    names = [f"many {number}" for number in range(1000)]
    guard = threading.Lock()
    inside: Counter[str] = Counter()
    seen: Counter[str] = Counter()

    def work(seed: int) -> None:
        random_ = random.Random(seed)
        with Wire(door) as wire:
            for _ in range(120):
                name = random_.choice(names[:20] if random_.random() < 0.5 else names)
                token = wire.get(name, timeout=random_.choice((0, 20)))
                if token is None:
                    seen["refused"] += 1
                    continue
                with guard:
                    inside[name] += 1
                    assert inside[name] == 1, name
                with guard:
                    inside[name] -= 1
                    seen["held"] += 1
                assert wire.release(name, token)

    with ThreadPoolExecutor(30) as pool:
        list(pool.map(work, range(30)))
    assert seen["held"] > 1000
    assert shown(door) == []


def test_of_thirty_who_ask_for_each_of_many_locks_one_gets_it(door: Door) -> None:
    names = [f"one of {number}" for number in range(100)]

    def work(seed: int) -> list[str]:
        order = random.Random(seed).sample(names, len(names))
        with Wire(door) as wire:
            return [name for name in order if wire.get(name, lifetime=3600) is not None]

    with ThreadPoolExecutor(30) as pool:
        got = [name for names_of_one in pool.map(work, range(30)) for name in names_of_one]
    assert sorted(got) == sorted(names)
    with Wire(door) as wire:
        for lock in shown(door):
            assert wire.release(lock["lockname"], lock["sessiontoken"])


def test_status_is_answered_while_a_thousand_requests_wait(door: Door) -> None:
    token = get_lock(door, "crowd", lifetime=3600)
    assert token is not None
    request = f"GET /getlock?lockname=crowd&auth={KEY}&timeout=3600&lifetime=0 HTTP/1.1\r\n\r\n"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients = []
    try:
        for _ in range(WAITING):
            clients.append(socket.create_connection(door.address, WAIT_S))
            clients[-1].sendall(request.encode())
        until(lambda: door.counters().get("waiting") == WAITING)
        (lock,) = shown(door)
        assert lock["sessiontoken"] == token
        assert get_lock(door, "another", lifetime=0) is not None
        assert door.counters().get("waiting") == WAITING
        assert release_lock(door, "crowd", token)
        for client in clients:
            assert b'"lockacquired":true' in client.recv(65536)
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert shown(door) == []


def test_who_uses_dlock_itself_shares_the_names_of_the_namespace(site: tuple[Place, Door]) -> None:
    place, door = site
    with dlock_itself.connect(place.primary.place) as client, ThreadPoolExecutor(1) as pool:
        lock = client.lock("doubledutch:both")
        assert lock.acquire(timeout=WAIT_S)
        assert get_lock(door, "both") is None
        assert get_lock(door, "both", timeout="0.1") is None
        waits = pool.submit(get_lock, door, "both", timeout=WAIT_S)
        until(lambda: door.counters().get("waiting") == 1)
        lock.release()
        token = waits.result(WAIT_S)
        assert token is not None
        assert not lock.acquire(blocking=False)
        assert release_lock(door, "both", token)
        assert lock.acquire(timeout=WAIT_S)
        lock.release()


def test_operators_see_whose_locks_they_are(site: tuple[Place, Door]) -> None:
    place, door = site
    names = {"shown": "doubledutch:shown", "long " * 1000: f"doubledutch:{'long ' * 1000}"}
    with Wire(door) as wire:
        tokens = {name: wire.get(name, lifetime=3600) for name in names}

        def told() -> bool:
            lines = listed()
            return ([line.get("label") for line in lines] == [wire.address] * len(names)
                    and {line.get("text") or line["name"] for line in lines} == set(names.values()))

        def listed() -> list[dict[str, Any]]:
            lines = dlock("ls", "--json", "--busy", "doubledutch", address=place.primary.place).out
            return [json.loads(line) for line in lines.splitlines()]

        until(told)
        assert {line["role"] for line in listed()} == {"door:doubledutch:doubledutch"}
        assert all(line["since_s"] >= 0 for line in listed())
        for name, token in tokens.items():
            assert token is not None
            assert wire.release(name, token)


# ---- The primary dies ----------------------------------------------------------------------------


def later(pool: ThreadPoolExecutor, call: Callable[..., Any], *words: Any, **more: Any) -> Any:
    return pool.submit(call, *words, **more)


def test_locks_and_waits_outlive_the_primary(tmp_path: Path) -> None:
    with one_door(tmp_path, ttl_s=2.0) as (place, door), ThreadPoolExecutor(16) as pool:
        held = [get_lock(door, f"held {number}", lifetime=3600) for number in range(5)]
        short = get_lock(door, "short", lifetime=3)
        assert None not in held
        assert short is not None
        waits = [later(pool, get_lock, door, f"held {number}", timeout=600, lifetime=3600)
                 for number in range(5)]
        waits_for_short = later(pool, get_lock, door, "short", timeout=600, lifetime=0)
        until(lambda: door.counters().get("waiting", 0) >= 5)
        place.primary.kill()
        try_held = later(pool, get_lock, door, "held 0")
        try_free = later(pool, get_lock, door, "free", lifetime=3600)
        # What no primary is needed for is answered now: the end of a wait, the list, a lifetime.
        assert get_lock(door, "held 1", timeout="0.2") is None
        assert len(shown(door)) >= 5
        until(lambda: "short" not in {one["lockname"] for one in shown(door)})
        assert not release_lock(door, "short", short)
        assert not any(wait.done() for wait in (*waits, try_free))
        place.primary.start()
        assert try_held.result(WAIT_S) is None
        free = try_free.result(WAIT_S)
        assert free is not None
        assert get_lock(door, "free") is None
        assert waits_for_short.result(WAIT_S) is not None
        assert not any(wait.done() for wait in waits)
        for number, token in enumerate(held):
            assert token is not None
            assert release_lock(door, f"held {number}", token)
            own = waits[number].result(WAIT_S)
            assert own is not None
            assert get_lock(door, f"held {number}") is None
            assert release_lock(door, f"held {number}", own)
        assert door.counters().get("lost_holds", 0) == 0


def test_a_release_that_only_the_primary_can_judge_waits_for_it(tmp_path: Path) -> None:
    with one_door(tmp_path, ttl_s=1.0) as (place, door), ThreadPoolExecutor(1) as pool:
        token = get_lock(door, "doubt", lifetime=3600)
        assert token is not None
        place.primary.kill()
        time.sleep(2)  # the session is in doubt by now
        released = later(pool, release_lock, door, "doubt", token)
        until(lambda: shown(door) == [])
        assert not release_lock(door, "doubt", token)
        assert not released.done()
        place.primary.start()
        assert released.result(WAIT_S) is True
        assert get_lock(door, "doubt") is not None


def test_no_lock_is_held_twice_while_primaries_die(tmp_path: Path) -> None:
    ended = threading.Event()
    inside: Counter[str] = Counter()
    rounds: Counter[str] = Counter()
    guard = threading.Lock()
    with one_door(tmp_path, ttl_s=2.0) as (place, door):

        def work(seed: int) -> None:
            random_ = random.Random(seed)
            with Wire(door) as wire:
                while not ended.is_set():
                    name = f"name {random_.randrange(3)}"
                    token = wire.get(name, timeout=random_.choice((0, 60)), lifetime=3600)
                    if token is None:
                        continue
                    with guard:
                        inside[name] += 1
                        assert inside[name] == 1, name
                    time.sleep(random_.random() * 0.01)
                    with guard:
                        inside[name] -= 1
                        rounds[name] += 1
                    assert wire.release(name, token)

        with ThreadPoolExecutor(8) as pool:
            work_done = [pool.submit(work, seed) for seed in range(8)]
            try:
                for _ in range(3):
                    before = sum(rounds.values())
                    until(lambda before=before: sum(rounds.values()) > before + 20)
                    place.primary.restart()
                before = sum(rounds.values())
                until(lambda: sum(rounds.values()) > before + 20)
            finally:
                ended.set()
            for one in work_done:
                one.result(WAIT_S)
        assert shown(door) == []


def test_a_lock_that_an_operator_takes_away_is_unknown_from_then_on(tmp_path: Path) -> None:
    with one_door(tmp_path) as (place, door):
        token = get_lock(door, "broken", lifetime=3600)
        assert token is not None
        with place.primary.admin() as admin:
            assert admin.break_lock("doubledutch:broken")
        until(lambda: door.counters().get("lost_holds") == 1)
        assert shown(door) == []
        assert not release_lock(door, "broken", token)
        assert get_lock(door, "broken") is not None
        assert "doubledutch lock lost name='broken'" in door.said()


def test_the_end_of_the_door_frees_its_locks(tmp_path: Path) -> None:
    with one_door(tmp_path) as (place, door), ThreadPoolExecutor(1) as pool:
        assert get_lock(door, "left", lifetime=3600) is not None
        waits = later(pool, get_lock, door, "left", timeout=600)
        until(lambda: door.counters().get("waiting") == 1)
        assert door.stop() == 0
        assert waits.result(WAIT_S) is None
        after = doubledutch(place, name="after")
        assert ask(after, "GET", f"/status?auth={KEY}").said["locks"] == []
        assert get_lock(after, "left") is not None
