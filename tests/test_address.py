"""Addresses: what may be written, and what it means."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlock import address
from dlock.address import AddressFile, Endpoint, parse


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("node7:5000", [("node7", 5000)]),
        ("node7", [("node7", address.PORT_DEFAULT)]),
        ("10.0.0.1", [("10.0.0.1", address.PORT_DEFAULT)]),
        ("[fe80::1]:5000", [("fe80::1", 5000)]),
        ("[::1]", [("::1", address.PORT_DEFAULT)]),
        ("::1", [("::1", address.PORT_DEFAULT)]),
        ("dlock://node7:5000", [("node7", 5000)]),
        ("dlock://node7:5000/", [("node7", 5000)]),
        ("a:1, b:2,a:1", [("a", 1), ("b", 2)]),
    ],
)
def test_servers(text: str, endpoints: list[tuple[str, int]]) -> None:
    expected = [Endpoint(*one) for one in endpoints]
    assert parse(text).endpoints() == (expected, [])
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    "text",
    ["", ":5000", "node7:", "node7:0", "node7:65536", "node7:x", "a,,b", "[::1", "[::1]x", "a b:1",
     "file:", "node7:\N{ARABIC-INDIC DIGIT ONE}"],
)
def test_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"no HOST:PORT|no address|names no file"):
        parse(text)


def test_without_an_address_the_environment_and_then_the_local_server(monkeypatch) -> None:
    monkeypatch.setenv("DLOCK_ADDRESS", "node7:5000")
    assert parse().places == (Endpoint("node7", 5000),)
    monkeypatch.setenv("DLOCK_ADDRESS", "")
    assert parse().places == (Endpoint("127.0.0.1", 21616),)
    monkeypatch.delenv("DLOCK_ADDRESS")
    assert parse(None).places == (Endpoint("127.0.0.1", 21616),)


def test_an_address_file_is_read_at_each_try(tmp_path: Path) -> None:
    path = tmp_path / "address"
    both = parse(f"{path},node7:1")
    endpoints, problems = both.endpoints()
    assert endpoints == [Endpoint("node7", 1)]
    assert len(problems) == 1
    assert str(path) in problems[0]
    path.write_text("node1:5000\nepoch 3 pid 17\n")
    assert both.endpoints() == ([Endpoint("node1", 5000), Endpoint("node7", 1)], [])
    path.write_text("node2:5000\n")
    assert both.endpoints()[0][0] == Endpoint("node2", 5000)
    path.write_text("\n")
    assert both.endpoints()[0] == [Endpoint("node7", 1)]
    assert "damaged" in both.endpoints()[1][0]


def test_ways_to_name_a_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = AddressFile(str(tmp_path / "address"))
    for way in ("./address", "file:address", f"file:{tmp_path}/address",
                f"file://{tmp_path}/address", Path("address")):
        assert parse(way).places == (here,), way
    text = str(parse("./address"))
    monkeypatch.chdir("/")
    assert parse(text).places == (here,)
