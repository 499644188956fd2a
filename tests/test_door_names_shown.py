"""What an operator sees of the locks of doors: door, client, age, and long names whole."""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("httptools", reason="pip install 'dlock[doors]'")

from cli_tools import dlock
from door_tools import Place, beside, free_port
from doubledutch_tools import KEY, doubledutch
from failover_tools import until

from dlock.admin import Admin, LockSummary

LONG = "a-name-that-is-longer-than-any-descriptor/" * 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with beside(Path(tmp_path_factory.mktemp("place"))) as made:
        yield made


def seen(place: Place, prefix: str) -> LockSummary:
    """The one lock whose name begins so, once its client has been told of."""
    found: list[LockSummary] = []

    def told() -> bool:
        with Admin(place.primary.place) as admin:
            found[:] = [one for one in admin.locks(prefix) if one.label and one.text]
        return len(found) == 1

    until(told)
    return found[0]


def test_a_long_name_of_glockd_is_shown_whole(place: Place) -> None:
    door = place.door("glockd", "-host", "127.0.0.1", "-port", str(free_port()),
                      "-pidfile", "glockd.pid")
    with socket.create_connection(door.address) as client, client.makefile("rwb") as stream:
        stream.write(f"g {LONG}\r\n".encode())
        stream.flush()
        assert stream.readline().startswith(b"1 ")
        lock = seen(place, "glockd+long:")
        assert lock.text == f"glockd:{LONG}".encode()
        me = "{}:{}".format(*client.getsockname()[:2])
        assert me in lock.label
        row = next(one for one in dlock("ls", address=place.primary.place).out.splitlines()
                   if "glockd+long:" in one)
        assert LONG in row
        assert re.search(rf"  glockd:glockd  .*{re.escape(me)}", row)
    door.end()


def test_a_long_name_of_doubledutch_is_shown_whole(place: Place) -> None:
    door = doubledutch(place)
    client = http.client.HTTPConnection(*door.address, timeout=20)
    client.request("GET", f"/getlock?lockname={LONG}&auth={KEY}&lifetime=60&timeout=5")
    assert client.getresponse().status == 200
    assert seen(place, "doubledutch+long:").text == f"doubledutch:{LONG}".encode()
    client.close()
    door.end()
