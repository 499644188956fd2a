"""REST sessions of the LDLM door while its primary dies: a delay, and never a lock held twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from door_tools import Door, Place, beside

requests = pytest.importorskip("requests", reason="pip install 'dlock[test-doors]'")
pytest.importorskip("httptools", reason="pip install 'dlock[doors]'")
PATIENCE_S = 60


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with beside(tmp_path) as made:
        yield made


class Client:
    """One REST session."""

    def __init__(self, door: Door) -> None:
        self.url = f"http://{door.listeners[1]}"
        self.session = requests.Session()
        assert self._post("/session", {}).status_code == 201

    def _post(self, path: str, said: dict[str, Any]) -> Any:
        return self.session.post(self.url + path, json=said, timeout=PATIENCE_S)

    def call(self, call: str, /, **said: Any) -> Any:
        answer = self._post(f"/v1/{call}", said)
        assert answer.status_code == 200, answer.text
        return answer.json()


def door_of(place: Place) -> Door:
    return place.door("ldlm", "-l", "127.0.0.1:0", "-r", "127.0.0.1:0", "--ipc_socket_file=")


def test_a_session_goes_on_over_the_death_of_the_primary(place: Place) -> None:
    door = door_of(place)
    one, two = Client(door), Client(door)
    key = one.call("lock", name="held", lock_timeout_seconds=3600)["key"]
    pair = one.call("lock", name="pair", size=2)["key"]
    place.primary.restart()
    assert two.call("lock", name="held")["locked"] is False
    assert two.call("lock", name="pair", size=3)["error"]["code"] == "LockSizeMismatch"
    assert one.call("renew", name="held", key=key, lock_timeout_seconds=100)["locked"]
    assert one.call("unlock", name="held", key=key)["unlocked"]
    assert two.call("unlock", name="pair", key=pair)["unlocked"]
    assert two.call("lock", name="held")["locked"]
    assert door.counters().get("lost_holds", 0) == 0
    assert door.stop() == 0


def test_what_is_asked_while_the_primary_is_away_is_answered_when_it_is_back(place: Place) -> None:
    door = door_of(place)
    clients = [Client(door) for _ in range(4)]
    place.primary.kill()
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda one=one: answers.append(one.call("lock", name="a")))
               for one in clients]
    for thread in threads:
        thread.start()
    place.primary.restart()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(answer["locked"] for answer in answers) == [False, False, False, True]
    assert all("error" not in answer for answer in answers)
    assert door.stop() == 0
