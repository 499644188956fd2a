"""What a client of glockd sees, to the byte, over TCP and the unix socket: every command."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from failover_tools import until
from glockd_tools import Glockd, Wire, glockd, leave_alone

from dlock.doors.glockd.protocol import LINE_MAX

_numbers = itertools.count()


@pytest.fixture(scope="module")
def shared_door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glockd]:
    with glockd(tmp_path_factory.mktemp("glockd"), "-host", "") as door:
        yield door


@pytest.fixture
def door(shared_door: Glockd) -> Iterator[Glockd]:
    """One door for all tests; none of their connections is left."""
    yield shared_door
    leave_alone(shared_door)


@pytest.fixture
def name() -> bytes:
    """A lock that no other test knows."""
    return b"lock%d" % next(_numbers)


@pytest.fixture(params=["tcp", "unix"])
def client(request: pytest.FixtureRequest, door: Glockd) -> Callable[[], Wire]:
    """Makes clients of one kind."""
    made: Callable[[], Wire] = getattr(door, request.param)
    return made


# ---- Exclusive locks -----------------------------------------------------------------------------


def test_exclusive_locks(client: Callable[[], Wire], name: bytes) -> None:
    one, other = client(), client()
    assert one.ask(b"i " + name) == b"0 Lock Not Locked: %b\r\n" % name
    assert one.ask(b"g " + name) == b"1 Lock Get Success: %b\r\n" % name
    assert one.ask(b"g " + name) == b"1 Lock Get Success: %b\n" % name
    assert other.ask(b"g " + name) == b"0 Lock Get Failure: %b\r\n" % name
    assert one.ask(b"i " + name) == b"1 Lock Is Locked: %b\n" % name
    assert other.ask(b"i " + name) == b"1 Lock Is Locked: %b\r\n" % name
    assert other.ask(b"r " + name) == b"0 Lock Release Failure: %b\n" % name
    assert one.ask(b"r " + name) == b"1 Lock Release Success: %b\n" % name
    assert one.ask(b"r " + name) == b"0 Lock Release Failure: %b\n" % name
    assert other.ask(b"i " + name) == b"0 Lock Not Locked: %b\r\n" % name
    assert other.ask(b"g " + name) == b"1 Lock Get Success: %b\r\n" % name


def test_shared_locks_are_counted(client: Callable[[], Wire], name: bytes) -> None:
    one, other = client(), client()
    assert one.ask(b"si " + name) == b"0 Shared Lock Not Locked: %b\r\n" % name
    assert one.ask(b"sg " + name) == b"1 Shared Lock Get Success: %b\r\n" % name
    assert other.ask(b"sg " + name) == b"2 Shared Lock Get Success: %b\r\n" % name
    assert one.ask(b"sg " + name) == b"2 Shared Lock Get Success: %b\r\n" % name
    assert one.ask(b"si " + name) == b"2 Shared Lock Is Locked: %b\r\n" % name
    assert one.ask(b"sr " + name) == b"1 Shared Lock Release Success: %b\r\n" % name
    assert one.ask(b"sr " + name) == b"0 Shared Lock Release Failure: %b\r\n" % name
    assert one.ask(b"si " + name) == b"1 Shared Lock Is Locked: %b\r\n" % name
    assert other.ask(b"sr " + name) == b"1 Shared Lock Release Success: %b\r\n" % name
    assert other.ask(b"si " + name) == b"0 Shared Lock Not Locked: %b\r\n" % name


def test_the_fifth_client_hears_five(door: Glockd, name: bytes) -> None:
    counts = [door.tcp().ask(b"sg " + name).split()[0] for _ in range(5)]
    assert counts == [b"1", b"2", b"3", b"4", b"5"]


def test_a_name_may_be_exclusive_and_shared(door: Glockd, name: bytes) -> None:
    one, other = door.tcp(), door.unix()
    assert one.ask(b"g " + name).startswith(b"1 ")
    assert other.ask(b"sg " + name) == b"1 Shared Lock Get Success: %b\r\n" % name
    assert one.ask(b"sr " + name).startswith(b"0 ")
    assert other.ask(b"r " + name).startswith(b"0 ")


@pytest.mark.parametrize(
    "line",
    [b"g  two   words ", b"  g two words", b"g two words\r", b"g two\twords",
     b"g \x0btwo \x0cwords"],
)
def test_blanks_are_made_even(door: Glockd, line: bytes) -> None:
    assert door.tcp().ask(line) == b"1 Lock Get Success: two words\r\n"


@pytest.mark.parametrize(
    "odd",
    [b"", b"\xff\xfe\x00\x01", b"\x00", b"\xc3\xa4", b"%s %d {}", b"x" * 505, b"y" * 65_000],
    ids=["empty", "bytes", "nul", "utf8", "format", "longest whole", "64 KiB"],
)
def test_a_name_may_be_anything(door: Glockd, odd: bytes) -> None:
    one, other = door.tcp(), door.unix()
    assert one.ask(b"g " + odd) == b"1 Lock Get Success: %b\r\n" % odd
    assert other.ask(b"g " + odd) == b"0 Lock Get Failure: %b\r\n" % odd
    assert other.ask(b"g " + odd + b"!") == b"1 Lock Get Success: %b!\r\n" % odd
    assert other.ask(b"i " + odd) == b"1 Lock Is Locked: %b\r\n" % odd
    assert other.ask(b"sg " + odd) == b"1 Shared Lock Get Success: %b\r\n" % odd
    assert one.ask(b"r " + odd) == b"1 Lock Release Success: %b\n" % odd
    assert one.ask(b"i " + odd) == b"0 Lock Not Locked: %b\r\n" % odd


# ---- Listings ------------------------------------------------------------------------------------


def test_d_and_sd_say_who_holds_what(door: Glockd) -> None:
    one, other = door.tcp(), door.unix()
    me, unix = one.called, other.ask(b"me").split()[1]
    assert one.all(b"d") + one.all(b"sd") + one.all(b"d x") + one.all(b"sd x") == b""
    for command in (b"g b", b"g a c", b"sg s", b"sg t"):
        one.ask(command)
    other.ask(b"g z")
    other.ask(b"sg s")
    assert other.all(b"d") == b"b: %b\na c: %b\nz: %b\n" % (me, me, unix)
    assert other.all(b"d  a   c ") == b"a c: %b\n" % me
    assert other.all(b"d a") == b""
    assert other.all(b"sd") == b"s: %b\ns: %b\nt: %b\n" % (me, unix, me)
    assert other.all(b"sd s") == b"s: %b\ns: %b\n" % (me, unix)
    assert other.all(b"sd b") == b""
    one.ask(b"sr s")
    one.ask(b"sg s")  # back, behind the other
    assert other.all(b"sd s") == b"s: %b\ns: %b\n" % (unix, me)


def test_dump_shows_the_tables_as_go_does(door: Glockd) -> None:
    one, other = door.tcp(), door.unix()
    me, unix = one.called, other.ask(b"me").split()[1]
    assert one.ask(b"dump") == one.ask(b"dump shared") == b"map[]\n"
    one.ask(b"iam somebody")  # never seen in a dump
    for command in (b"g zz", b"g b c", b"sg s", b"sg a"):
        one.ask(command)
    other.ask(b"g m")
    other.ask(b"sg s")
    assert one.ask(b"dump") == b"map[b c:%b m:%b zz:%b]\n" % (me, unix, me)
    assert one.ask(b"dump x") == one.ask(b"dump")
    assert one.ask(b"dump shared") == b"map[a:[%b] s:[%b %b]]\n" % (me, me, unix)


# ---- Names of connections ------------------------------------------------------------------------


def test_me_says_address_and_name(door: Glockd) -> None:
    one = door.tcp()
    assert one.ask(b"me") == b"1 %b %b\n" % (one.called, one.called)
    assert one.ask(b"me and more") == one.ask(b"me")
    assert one.ask(b"iam  a  worker") == b"1 ok\n"
    assert one.ask(b"me") == b"1 %b a worker\n" % one.called
    assert one.ask(b"iam") == b"1 ok\n"
    assert one.ask(b"me") == b"1 %b %b\n" % (one.called, one.called)


def test_an_ipv6_peer_is_shown_in_brackets(door: Glockd) -> None:
    try:
        one = door.tcp("::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert one.called.startswith(b"[::1]:")
    assert one.ask(b"me") == b"1 %b %b\n" % (one.called, one.called)


def test_clients_of_the_unix_socket_are_counted(door: Glockd) -> None:
    first, second = (int(door.unix().ask(b"me").split()[1].split(b":")[1]) for _ in range(2))
    assert second == first + 1


def test_registered_names_stand_in_the_listings(door: Glockd) -> None:
    one, other = door.tcp(), door.tcp()
    one.ask(b"g lock")
    one.ask(b"sg lock")
    one.ask(b"iam me")
    assert other.all(b"d") == other.all(b"sd lock") == b"lock: me\n"
    one.ask(b"iam")
    assert other.all(b"d lock") == b"lock: %b\n" % one.called


def test_who_lists_those_with_names(door: Glockd) -> None:
    one, other, third = door.tcp(), door.tcp(), door.tcp()
    assert one.all(b"who") == b""
    one.ask(b"iam me")
    other.ask(b"iam someone else")
    third.ask(b"iam me")
    rows = {b"%b: me\n" % one.called, b"%b: me\n" % third.called}
    assert set(other.all(b"who me").splitlines(True)) == rows
    assert set(other.all(b"who").splitlines(True)) == {
        *rows, b"%b: someone else\n" % other.called}
    assert other.all(b"who nobody") == b""
    third.close()
    until(lambda: one.all(b"who me") == b"%b: me\n" % one.called)


# ---- q -------------------------------------------------------------------------------------------


ALWAYS = (
    *("command_d", "command_dump", "command_g", "command_i", "command_q", "command_r"),
    *("command_sd", "command_sg", "command_si", "command_sr", "connections", "invalid_commands"),
    *("locks", "orphans", "shared_locks", "shared_orphans"),
)


def test_q_begins_at_nothing(tmp_path: Path) -> None:
    with glockd(tmp_path) as door:
        one = door.tcp()
        one.send(b"q\n")
        got = b"".join(one.line() for _ in ALWAYS)
        first = {"command_q": 1, "connections": 1}
        assert got == "".join(f"{key}: {first.get(key, 0)}\n" for key in ALWAYS).encode()
        for command in (b"iam x", b"who y"):
            one.all(command)
        keys = list(one.statistics())
        assert keys == sorted([*ALWAYS, "command_iam", "command_me", "command_who"])


def test_q_counts_every_command_and_itself(door: Glockd, name: bytes) -> None:
    one, other = door.tcp(), door.unix()
    before = one.statistics()
    one.send(b"g %b\ng %b\nr %b\nr %b\nd\nd x\nsd\ndump\nsg %b\nsi %b\nsr %b\n"
             b"i %b\niam\nwho\nnonsense\n\nG x\nq now\n" % ((name,) * 8))
    while not one.line().startswith(b"shared_orphans"):
        pass
    other.ask(b"g " + name)
    after = one.statistics()
    grown = {key: after[key] - before.get(key, 0) for key in after}
    assert {key: by for key, by in grown.items() if by} == {
        "command_g": 3, "command_r": 2, "command_d": 2, "command_sd": 1, "command_dump": 1,
        "command_sg": 1, "command_si": 1, "command_sr": 1, "command_i": 1, "command_iam": 1,
        "command_who": 1, "command_q": 2, "command_me": 1, "invalid_commands": 3, "locks": 1,
    }


def test_q_counts_names_not_holders(door: Glockd, name: bytes) -> None:
    one, other = door.tcp(), door.tcp()
    before = one.statistics()
    for wire in (one, other):
        wire.ask(b"sg " + name)
        wire.ask(b"g %b %b" % (name, wire.called))
    after = one.statistics()
    assert after["shared_locks"] - before["shared_locks"] == 1
    assert after["locks"] - before["locks"] == 2
    assert after["connections"] == before["connections"]


def test_unknown_commands_get_no_answer(door: Glockd) -> None:
    one = door.tcp()
    before = one.statistics()["invalid_commands"]
    one.send(b"stats\n\n   \ng\tx\nGET / HTTP/1.1\r\n\r\nquit\n\x00\n")
    assert one.ask(b"me") == b"1 %b %b\n" % (one.called, one.called)
    assert one.statistics()["invalid_commands"] == before + 8


# ---- The stream ----------------------------------------------------------------------------------


def test_every_line_of_one_read_is_answered_in_order(door: Glockd, name: bytes) -> None:
    one = door.tcp()
    one.send(b"".join(b"g %b\nr %b\nsg %b\nsr %b\n" % ((name,) * 4) for _ in range(200)))
    assert one.read(200 * len(
        b"1 Lock Get Success: %b\r\n1 Lock Release Success: %b\n1 Shared Lock Get Success: %b\r\n"
        b"1 Shared Lock Release Success: %b\r\n" % ((name,) * 4)
    )) == 200 * (
        b"1 Lock Get Success: %b\r\n1 Lock Release Success: %b\n1 Shared Lock Get Success: %b\r\n"
        b"1 Shared Lock Release Success: %b\r\n" % ((name,) * 4)
    )


def test_a_command_may_come_in_pieces(door: Glockd, name: bytes) -> None:
    one = door.tcp()
    for byte in b"g %b\nme" % name:
        one.send(bytes([byte]))
    assert one.line() == b"1 Lock Get Success: %b\r\n" % name
    one.send(b"\n")
    assert one.line() == b"1 %b %b\n" % (one.called, one.called)


def test_a_line_that_is_too_long_ends_the_connection(door: Glockd) -> None:
    one = door.tcp()
    one.ask(b"g kept")
    before = door.door.counters().get("long_lines", 0)
    one.send(b"q" * 1000)
    for _ in range(LINE_MAX // 65536 + 1):
        try:
            one.send(b"q" * 65536)
        except OSError:
            break
    assert one.rest() == b""
    assert door.door.counters()["long_lines"] == before + 1
    assert door.tcp().ask(b"g kept") == b"1 Lock Get Success: kept\r\n"


def test_keepalive_is_on(door: Glockd) -> None:
    """As seen from the outside: the kernel names the timer of the door's end of the connection."""
    one = door.tcp()
    one.ask(b"me")
    ours = one.socket.getsockname()[1]
    until(lambda: timer(door.port, ours) == KEEPALIVE)


KEEPALIVE = "02"


def timer(local: int, remote: int) -> str | None:
    """Which timer runs for the connection between these ports, as /proc/net/tcp has it."""
    with open("/proc/net/tcp") as v4, open("/proc/net/tcp6") as v6:
        rows = [row.split() for row in [*v4, *v6]]
    for row in rows:
        if row[1].endswith(f":{local:04X}") and row[2].endswith(f":{remote:04X}"):
            return row[5].split(":")[0]
    return None


def test_the_door_listens_on_all_addresses(door: Glockd) -> None:
    assert door.tcp("127.0.0.2").ask(b"me").startswith(b"1 127.0.0.1:")
