"""Locks of the LDLM door that are kept over a restart (-s), of the door, the primary, or both."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httptools", reason="pip install 'dlock[doors]'")

from aio_tools import connected, run, turns, until
from cli_tools import finish, start
from door_tools import Door, Place, beside
from failover_tools import until as until_true
from ldlm_service_tools import Paper, free, granted, refused, service_of, serving_ldlm, waiting
from lock_tools import Service, serving

from dlock.doors.ldlm import problems, records
from dlock.doors.ldlm.service import LdlmService, Rules, ShutDown

requests = pytest.importorskip("requests", reason="pip install 'dlock[test-doors]'")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(state_dir=tmp_path_factory.mktemp("state")) as started:
        yield started


@contextlib.asynccontextmanager
async def keeping(
    server: Service, space: str, rules: Rules | None = None
) -> AsyncIterator[LdlmService]:
    """A service that writes into this space, with what is there taken."""
    async with connected(server) as client:
        service = service_of(client, rules, records=client.records(space))
        await service.restore()
        yield service
        await service.stop()


async def written(service: LdlmService, space: str) -> dict[str, records.Record]:
    """What is on disk, by key."""
    found = await service.client.records(space).all()
    return {key.decode(): records.decode(key, value) for key, value in found.items()}


# ---- Within one process --------------------------------------------------------------------------


def test_a_key_is_written_before_it_is_given_out_and_struck_before_its_unlock(
    server: Service,
) -> None:
    async def program() -> None:
        async with keeping(server, "before") as service:
            session = service.open("one")
            for number in range(20):
                key = granted(await session.try_lock("a", None, 3), "a")
                (record,) = (await written(service, "before")).values()
                assert (record.name, record.size, record.key) == ("a", 3, key), number
                assert (await session.unlock("a", key)).ok
                assert await written(service, "before") == {}

    run(program())


def test_nothing_is_answered_before_it_is_on_disk(server: Service) -> None:
    async def program() -> None:
        async with connected(server) as client:
            paper = Paper()
            service = service_of(client, records=paper)
            session = service.open("one")
            paper.gate.clear()
            asked = session.try_lock("slow", None, None)
            await until(lambda: paper.calls == 1)
            await turns(20)
            assert not asked.done()
            paper.gate.set()
            key = granted(await asked, "slow")
            paper.gate.clear()
            unlocked = session.unlock("slow", key)
            await until(lambda: paper.calls == 2)
            await turns(20)
            assert not unlocked.done()
            paper.gate.set()
            assert (await unlocked).ok
            assert paper.written == {}
            await service.stop()

    run(program())


def test_a_lock_that_was_lost_while_it_was_written_is_not_given_out(server: Service) -> None:
    async def program() -> None:
        async with connected(server) as client:
            paper = Paper()
            service = service_of(client, records=paper)
            paper.gate.clear()
            asked = service.open("one").try_lock("slow", None, None)
            await until(lambda: paper.calls == 1)
            server.admin.break_lock("ldlm:slow")
            await until(lambda: service.counters["lost_holds"] == 1)
            paper.gate.set()
            answer = await asked
            assert not answer.ok
            assert answer.error is not None
            assert "lost" in answer.error.message
            await until(lambda: paper.written == {})
            await free(service.open("two"), "slow")
            await service.stop()

    run(program())


def test_a_key_that_nobody_got_is_struck_out_when_the_door_stops(server: Service) -> None:
    async def program() -> None:
        async with connected(server) as client:
            paper = Paper()
            service = service_of(client, records=paper)
            paper.gate.clear()
            asked = service.open("one").try_lock("slow", None, None)
            await until(lambda: paper.calls == 1)
            stopping = asyncio.ensure_future(service.stop())
            await turns()
            paper.gate.set()
            await stopping
            with pytest.raises(ShutDown):
                await asked
            assert paper.written == {}

    run(program())


def test_whatever_ends_a_lock_strikes_it_out(server: Service) -> None:
    async def program() -> None:
        async with keeping(server, "ends") as service:
            one, two = service.open("one"), service.open("two")
            granted(await one.try_lock("timed", 1, None), "timed")
            granted(await one.try_lock("session", None, None), "session")
            granted(await two.try_lock("lost", None, None), "lost")
            granted(await two.try_lock("forced", None, None), "forced")
            assert len(await written(service, "ends")) == 4
            one.close()
            server.admin.break_lock("ldlm:lost")
            assert (await service.force_unlock("forced")).ok
            await until(lambda: not service.list())
            while await written(service, "ends"):
                await asyncio.sleep(0.01)

    run(program())


def test_locks_are_taken_again_with_their_keys_and_sizes(server: Service) -> None:
    async def program() -> None:
        async with keeping(server, "again") as service:
            session = service.open("one")
            keys = {name: granted(await session.try_lock(name, None, None), name)
                    for name in ("x", "y", "z")}
            pair = [granted(await session.try_lock("pair", 3600, 2), "pair") for _ in range(2)]
            before = service.list()
        rules = Rules(default_lock_timeout_s=3600)
        async with keeping(server, "again", rules) as service:
            assert sorted(service.list()) == sorted(before)
            stranger = service.open("stranger")
            for held in service.table.held():  # each has the default timer, whatever it had
                assert held.deadline_s is not None
                assert held.deadline_s <= service.loop.time() + 3600
            refused(await stranger.try_lock("x", None, None), "x", None)
            refused(await stranger.try_lock("pair", None, 2), "pair", None)
            refused(await stranger.try_lock("pair", None, 3), "pair", problems.SIZE_MISMATCH)
            assert (await stranger.renew("x", keys["x"], 50)).ok
            assert (await stranger.unlock("x", keys["x"])).ok
            assert (await stranger.unlock("pair", pair[0])).ok
            assert (await service.force_unlock("y")).ok
            stranger.close()
        async with keeping(server, "again") as service:
            assert sorted(service.list()) == sorted(
                [("z", keys["z"], 1), ("pair", pair[1], 2)])
            for name in ("z", "pair"):
                assert (await service.force_unlock(name)).ok

    run(program())


def test_a_lock_taken_again_is_free_when_the_default_timeout_is_over(server: Service) -> None:
    async def program() -> None:
        async with keeping(server, "default") as service:
            granted(await service.open("one").try_lock("d", None, None), "d")
        async with keeping(server, "default", Rules(default_lock_timeout_s=0.5)) as service:
            session = service.open("two")
            granted(await session.lock("d", None, None, None), "d")
            assert service.counters["lock_timeouts"] == 1
            session.close()
        async with keeping(server, "default"):
            pass

    run(program())


def test_a_lock_that_somebody_has_by_now_is_dropped(server: Service) -> None:
    async def program() -> None:
        async with keeping(server, "taken") as service:
            granted(await service.open("one").try_lock("busy", None, None), "busy")
            granted(await service.open("one").try_lock("otherwise", None, None), "otherwise")
        async with connected(server) as other:
            busy, otherwise = other.lock("ldlm:busy"), other.semaphore("ldlm:otherwise", 5)
            async with busy, otherwise, keeping(server, "taken") as service:
                assert service.list() == []
                assert service.counters["records_refused"] == 2
                while await written(service, "taken"):
                    await asyncio.sleep(0.01)
                refused(await service.open("two").try_lock("otherwise", None, 1), "otherwise",
                        problems.SIZE_MISMATCH)

    run(program())


def test_of_two_records_of_a_lock_the_later_stands(server: Service) -> None:
    async def program() -> None:
        async with keeping(server, "two") as service:
            session = service.open("one")
            first = granted(await session.try_lock("t", None, None), "t")
            record = (await written(service, "two"))[first]
            assert (await session.unlock("t", first)).ok
            second = granted(await session.try_lock("t", None, None), "t")
            # As if the door had died before the first one was struck out.
            await service.client.records("two").put(
                first.encode(), records.encode("t", 1, record.token))
        async with keeping(server, "two") as service:
            assert service.list() == [("t", second, 1)]
            assert (await service.force_unlock("t")).ok

    run(program())


@pytest.mark.parametrize("pause", range(8))
def test_who_gives_up_while_his_key_is_written_leaves_nothing(
    server: Service, pause: int
) -> None:
    async def program() -> None:
        async with keeping(server, f"up{pause}") as service:
            one, two = service.open("one"), service.open("two")
            await free(one, "g")
            request = one.lock("g", None, None, None)
            await asyncio.sleep(pause * 0.0005)
            if not request.cancel():
                assert (await one.unlock("g", request.result().key)).ok
            await free(two, "g")
            await until(lambda: not service.list())
        async with keeping(server, f"up{pause}") as service:
            assert service.list() == []

    run(program())


def test_locks_that_outlive_their_session_outlive_the_door_too(server: Service) -> None:
    async def program() -> None:
        async with keeping(server, "both", Rules(outlive=True)) as service:
            session = service.open("one")
            key = granted(await session.try_lock("b", None, None), "b")
            session.close()
            assert service.list() == [("b", key, 1)]
        async with keeping(server, "both", Rules(outlive=True)) as service:
            assert (await service.open("two").unlock("b", key)).ok

    run(program())


def test_a_store_that_refuses_gives_no_lock() -> None:
    async def program() -> None:
        with serving() as bare:  # no state directory: nothing is durable there
            async with serving_ldlm(bare) as plain:
                service = service_of(plain.client, records=plain.client.records("none"))
                session = service.open("one")
                answer = await session.try_lock("n", None, None)
                assert not answer.ok
                assert answer.error is not None
                assert answer.error.message.startswith("the lock could not be written down: ")
                await free(plain.open("two"), "n")
                await service.stop()

    run(program())


def test_waits_go_on_while_keys_are_written(server: Service) -> None:
    async def program() -> None:
        async with keeping(server, "line") as service:
            sessions = [service.open(str(number)) for number in range(20)]
            key = granted(await sessions[0].try_lock("l", None, None), "l")
            waits = [session.lock("l", None, None, None) for session in sessions]
            await waiting(server, "l", 20)
            for wait in waits:
                assert (await sessions[0].unlock("l", key)).ok
                key = granted(await wait, "l")
            assert list(await written(service, "line")) == [key]
            assert (await service.force_unlock("l")).ok

    run(program())


# ---- Processes that are killed -------------------------------------------------------------------


FLAGS = ("-l", "127.0.0.1:0", "-r", "127.0.0.1:0", "-s", "state.db")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with beside(tmp_path) as made:
        yield made


def door_of(place: Place, *words: str) -> Door:
    return place.door("ldlm", *FLAGS, "--ipc_socket_file", str(place.folder / "ipc.sock"), *words)


class Rest:
    """A REST client of a door; one session after the other."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.begin()

    def begin(self) -> None:
        self._session = requests.Session()
        assert self._ask("/session").status_code == 201

    def _ask(self, path: str, **said: Any) -> Any:
        return self._session.post(f"http://{self.door.listeners[1]}{path}", json=said, timeout=60)

    def call(self, call: str, /, **said: Any) -> Any:
        return self._ask(f"/v1/{call}", **said).json()

    def lock(self, name: str, **said: Any) -> str:
        answer = self.call("lock", name=name, **said)
        assert answer["locked"]
        return str(answer["key"])


def listed(place: Place) -> str:
    done = finish(start("door", "ldlm-lock", "-s", str(place.folder / "ipc.sock"), "list"))
    assert done.code == 0, done.err
    return done.out


@pytest.mark.parametrize("killed", ["door", "primary", "both"])
def test_locks_survive_kill_9(place: Place, killed: str) -> None:
    door = door_of(place)
    client = Rest(door)
    key = client.lock("kept", lock_timeout_seconds=3600)
    pair = client.lock("pair", size=2)
    gone = client.lock("gone")
    assert client.call("unlock", name="gone", key=gone)["unlocked"]
    if killed != "primary":
        door.kill()
    if killed != "door":
        place.primary.restart()
    if killed != "primary":
        door.start()
        client.begin()
    assert sorted(listed(place).splitlines()) == sorted([
        f"{{Name: kept, Key: {key}, Size: 1}}", f"{{Name: pair, Key: {pair}, Size: 2}}"])
    other = Rest(door)
    assert not other.call("lock", name="kept")["locked"]
    assert other.call("lock", name="pair", size=1)["error"]["code"] == "LockSizeMismatch"
    second = other.lock("pair", size=2)
    assert not other.call("lock", name="pair", size=2)["locked"]
    assert other.call("renew", name="kept", key=key, lock_timeout_seconds=100)["locked"]
    assert other.call("unlock", name="kept", key=key)["unlocked"]
    for one in (pair, second):
        assert other.call("unlock", name="pair", key=one)["unlocked"]
    assert listed(place) == "No locks found\n"
    assert other.lock("kept")
    assert door.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_that_stops_the_door_clears_nothing(place: Place, number: int) -> None:
    door = door_of(place)
    key = Rest(door).lock("kept")
    assert door.stop(number) == 0
    door.start()
    assert key in listed(place)
    assert door.stop() == 0


def test_locks_taken_again_have_the_default_lock_timeout(place: Place) -> None:
    door = door_of(place, "-d", "2s")
    Rest(door).lock("kept")
    door.restart()
    assert "Loaded lock" in door.said()
    until_true(lambda: listed(place) == "No locks found\n")
    assert door.stop() == 0


def test_without_a_state_file_a_door_begins_with_nothing(place: Place) -> None:
    door = place.door("ldlm", *FLAGS[:4], "--ipc_socket_file", str(place.folder / "ipc.sock"))
    client = Rest(door)
    client.lock("forgotten")
    door.restart()
    assert listed(place) == "No locks found\n"
    client.begin()
    client.lock("forgotten")
    assert door.stop() == 0


def test_each_namespace_and_each_file_is_a_set_of_its_own(place: Place) -> None:
    flags = ("-l", "127.0.0.1:0", "-r", "127.0.0.1:0", "--ipc_socket_file=")
    doors = [
        place.door("ldlm", *flags, "-s", "one", namespace="a", name="a1"),
        place.door("ldlm", *flags, "-s", "one", namespace="b", name="b1"),
    ]
    keys = [Rest(door).lock("same name") for door in doors]
    for door in doors:
        door.restart()
    for door, key in zip(doors, keys, strict=True):
        client = Rest(door)
        assert not client.call("lock", name="same name")["locked"]
        assert client.call("unlock", name="same name", key=key)["unlocked"]
    for door in doors:
        assert door.stop() == 0


def test_a_primary_that_keeps_nothing_is_refused(tmp_path: Path) -> None:
    with serving() as bare:
        door = Door(tmp_path, bare.address, "ldlm", *FLAGS, "--ipc_socket_file=", wait=False)
        assert door.process.wait(60) == 1
        said = door.said().splitlines()[-1]
    assert said.startswith("net.Run() error starting server: the locks of the state file state.db "
                           "cannot be read: ")
