"""The tooz driver, where tooz' own tests do not look (those are in test_tooz_suite.py)."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from lock_tools import Service, fresh_name, serving, until

tooz = pytest.importorskip("tooz", reason="no tooz: pip install 'dlock[tooz]'")

from tooz import coordination  # noqa: E402

import dlock  # noqa: E402
from dlock.tooz_driver import DlockDriver, DlockLock  # noqa: E402

TTL_MS = 3000
Start = Callable[..., DlockDriver]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving(session_ttl_ms=TTL_MS) as one:
        yield one


@pytest.fixture
def start(service: Service) -> Iterator[Start]:
    """Starts a coordinator, which stops after the test."""
    started: list[DlockDriver] = []

    def begin(member: bytes = b"one", path: str = "", options: str = "") -> DlockDriver:
        found = coordination.get_coordinator(
            f"dlock://{service.address}/{path}?executor=synchronous{options}", member)
        assert isinstance(found, DlockDriver)
        found.start()
        started.append(found)
        return found

    yield begin
    for one in started:
        if one.is_started:
            one.stop()


@pytest.fixture
def group() -> bytes:
    return fresh_name().encode()


# ---- Its life ------------------------------------------------------------------------------------


def test_it_says_what_it_keeps(start: Start) -> None:
    wanted = (coordination.Characteristics.DISTRIBUTED_ACROSS_HOSTS,)
    assert set(wanted) <= set(start().CHARACTERISTICS)
    with pytest.raises(coordination.ToozDriverChosenPoorly):
        coordination.get_coordinator(
            "dlock://", b"one", characteristics=[coordination.Characteristics.LINEARIZABLE])


def test_what_is_not_started_is_refused(service: Service) -> None:
    idle = coordination.get_coordinator(f"dlock://{service.address}", b"one")
    for call in (idle.get_groups, lambda: idle.get_lock(b"x"), idle.heartbeat, idle.stop):
        with pytest.raises(tooz.ToozError):
            call()


def test_no_address_and_no_server_are_told(tmp_path: Path) -> None:
    nowhere = coordination.get_coordinator("dlock://host:none/", b"one")
    with pytest.raises(tooz.ToozError, match="HOST:PORT"):
        nowhere.start()
    absent = tmp_path / "address"
    late = coordination.get_coordinator(
        f"dlock://?connect_timeout=0.1&address_file={absent}", b"one")
    with pytest.raises(coordination.ToozConnectionError, match=str(absent)):
        late.start()


def test_an_address_file_will_do(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "address"
    file.write_text(f"{service.address}\n", encoding="utf-8")
    one = coordination.get_coordinator(f"dlock://?address_file={file}", b"one")
    one.start()
    assert one.get_groups().get() is not None
    one.stop()


def test_a_heartbeat_says_how_long_it_lasts_or_that_the_server_is_silent() -> None:
    with serving(session_ttl_ms=TTL_MS) as short:
        one = coordination.get_coordinator(
            f"dlock://{short.address}?executor=synchronous", b"one")
        one.start()
        assert one.requires_beating
        assert 0 < one.heartbeat() <= TTL_MS / 1000
        short.server.stop()

        def silent() -> bool:
            try:
                one.heartbeat()
            except coordination.ToozConnectionError:
                return True
            return False

        until(silent)
        with pytest.raises(coordination.ToozConnectionError):
            one.get_lock(b"x").acquire(blocking=False)
        one.stop()


def test_stopping_frees_everything(start: Start, group: bytes) -> None:
    one, two = start(b"one"), start(b"two")
    held, shared = one.get_lock(group), one.get_lock(group + b" read")
    assert held.acquire()
    assert shared.acquire(shared=True)
    one.join_group_create(group)
    one.watch_elected_as_leader(group, lambda event: None)
    one.run_watchers()
    assert two.get_leader(group).get() == b"one"
    one.stop()
    assert two.get_lock(group).acquire(blocking=False)
    assert two.get_lock(group + b" read").acquire(blocking=False)
    assert group not in two.get_groups().get()
    assert two.get_leader(group).get() is None
    one.start()
    assert not one.get_lock(group).acquire(blocking=False)


# ---- Locks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [{"blocking": 0.02}, {"blocking": "0.02"}, {"timeout": 0.02},
                                  {"blocking": False}, {"blocking": False, "timeout": 60}])
def test_ways_to_wait(start: Start, group: bytes, wait: dict[str, Any]) -> None:
    one, two = start(b"one").get_lock(group), start(b"two").get_lock(group)
    assert one.acquire(**wait)
    assert not two.acquire(**wait)
    assert not two.acquire(shared=True, **wait)
    assert one.release()
    assert two.acquire(shared=True, **wait)
    assert one.acquire(shared=True, **wait)


def test_operators_see_names_that_can_be_read(
    start: Start, service: Service, group: bytes
) -> None:
    start(b"one", "some/space").get_lock(b"a b/\xff").acquire()
    (seen,) = service.admin.locks("tooz/some%2Fspace/")
    assert seen.name == "tooz/some%2Fspace/lock/a%20b%2F%FF"
    view = service.view(seen.name)
    assert view is not None
    assert view.holders[0].program == "tooz one"


def test_namespaces_do_not_meet(start: Start, group: bytes) -> None:
    one, two = start(b"one", "left"), start(b"one", "right")
    assert one.get_lock(group).acquire(blocking=False)
    assert two.get_lock(group).acquire(blocking=False)
    one.create_group(group).get()
    assert group not in two.get_groups().get()


def test_breaking_is_known_to_the_holder_before_it_returns(start: Start, group: bytes) -> None:
    holder, breaker = start(b"one").get_lock(group), start(b"two").get_lock(group)
    assert not breaker.break_()
    assert holder.acquire()
    assert holder.is_still_owner()
    assert breaker.break_()
    assert not holder.is_still_owner()
    assert not holder.release()
    assert not holder.release()


def test_a_lock_stays_held_when_nobody_refers_to_it(start: Start, group: bytes) -> None:
    one, two = start(b"one"), start(b"two")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one.get_lock(group).acquire()
        gc.collect()
    assert not two.get_lock(group).acquire(blocking=False)


def test_a_released_lock_is_forgotten(start: Start, group: bytes) -> None:
    one = start()
    lock = one.get_lock(group)
    assert lock.acquire(shared=True)
    assert lock.acquire(shared=True)
    assert lock.release()
    assert one._acquired == {lock}
    assert lock.release()
    assert not one._acquired


def test_a_wait_that_would_never_end_is_refused(start: Start, group: bytes) -> None:
    lock = start().get_lock(group)
    assert isinstance(lock, DlockLock)
    with lock, pytest.raises(tooz.ToozError, match="cycle") as refused:
        lock.acquire()
    assert isinstance(refused.value.cause, dlock.Deadlock)


# ---- Groups --------------------------------------------------------------------------------------

MEMBER = """
import sys
from tooz import coordination
one = coordination.get_coordinator(sys.argv[1], b"killed")
one.start()
one.join_group_create(sys.argv[2].encode(), {"has": "joined"})
one.watch_elected_as_leader(sys.argv[2].encode(), lambda event: None)
one.run_watchers()
print("joined", flush=True)
sys.stdin.read()
"""


def test_a_member_that_is_killed_leaves_when_its_session_ends(
    start: Start, service: Service, group: bytes
) -> None:
    one = start(b"one")
    one.create_group(group).get()
    left: list[Any] = []
    process = subprocess.Popen(
        [sys.executable, "-c", MEMBER, f"dlock://{service.address}", group.decode()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "joined\n"
        one.watch_leave_group(group, left.append)
        one.watch_elected_as_leader(group, left.append)
        assert one.get_members(group).get() == {b"killed"}
        assert one.get_leader(group).get() == b"killed"
        about = one.get_member_info(group, b"killed").get()
        assert (about["pid"], about["host"]) == (process.pid, os.uname().nodename)
        assert about["capabilities"] == {"has": "joined"}
        one.run_watchers()
        assert not left
        process.send_signal(signal.SIGKILL)
        process.wait()
        until(lambda: bool(one.run_watchers()) or len(left) > 1)
        until(lambda: bool(one.run_watchers()) or len(left) > 1)
    finally:
        process.kill()
        process.communicate()
    assert {type(event).__name__ for event in left} == {"MemberLeftGroup", "LeaderElected"}
    assert one.get_members_with_capabilities(group).get() == {}


def test_a_group_lives_as_long_as_those_who_created_or_joined_it(
    start: Start, group: bytes
) -> None:
    creator, member, other = start(b"one"), start(b"two"), start(b"three")
    creator.create_group(group).get()
    member.join_group(group).get()
    creator.stop()
    assert group in other.get_groups().get()
    member.leave_group(group).get()
    assert other.get_members(group).get() == set()
    member.stop()
    assert group not in other.get_groups().get()
    with pytest.raises(coordination.GroupNotCreated):
        other.get_members(group).get()


def test_a_deleted_group_can_be_created_again_by_anybody(start: Start, group: bytes) -> None:
    one, two = start(b"one"), start(b"two")
    one.create_group(group).get()
    two.delete_group(group).get()
    assert group not in one.get_groups().get()
    one.create_group(group).get()
    one.join_group(group).get()
    assert two.get_members(group).get() == {b"one"}


def test_ids_may_have_any_characters(start: Start) -> None:
    group, member = "a/b %2F\xff".encode(), "\x00/member/\u20ac".encode()
    one = start(member)
    one.join_group_create(group, {"x": [1, {"y": b"z"}]})
    assert group in one.get_groups().get()
    assert one.get_members_with_capabilities(group).get() == {member: {"x": [1, {"y": b"z"}]}}


def test_capabilities_beyond_a_name_are_refused_and_nothing_is_left(
    start: Start, group: bytes
) -> None:
    one = start()
    one.create_group(group).get()
    with pytest.raises(tooz.ToozError, match="more than fit"):
        one.join_group(group, {"x": "y" * 512}).get()
    assert one.get_members(group).get() == set()
    one.join_group(group, {"x": "y" * 100}).get()
    with pytest.raises(tooz.ToozError, match="more than fit"):
        one.update_capabilities(group, {"x": "y" * 512}).get()
    assert one.get_member_capabilities(group, b"one").get() == {"x": "y" * 100}
    one.update_capabilities(group, {}).get()
    assert one.get_member_capabilities(group, b"one").get() == {}


def test_who_is_put_out_takes_its_capabilities_along(
    start: Start, service: Service, group: bytes
) -> None:
    one, again, other = start(b"one"), start(b"one"), start(b"two")
    one.join_group_create(group, {"from": "the first"})
    one.update_capabilities(group, {"from": "the first, later"}).get()
    again.leave_group(group).get()
    assert other.get_members(group).get() == set()
    with pytest.raises(coordination.MemberNotJoined):
        one.update_capabilities(group, {"from": "nobody"}).get()
    again.join_group(group, {"from": "the second"}).get()
    with pytest.raises(coordination.MemberNotJoined):
        one.leave_group(group).get()
    assert other.get_members_with_capabilities(group).get() == {b"one": {"from": "the second"}}
    # An operator breaks only the membership: what the member said of itself goes with it.
    assert service.admin.break_lock(f"tooz/default/group/{quote(group)}/member/one")
    until(lambda: not other.get_members(group).get())
    start(b"one").join_group(group).get()
    assert other.get_members_with_capabilities(group).get() == {b"one": {}}


def test_a_leader_that_is_broken_stands_for_election_again(
    start: Start, service: Service, group: bytes
) -> None:
    one, two = start(b"one"), start(b"two")
    elected: list[bytes] = []
    one.create_group(group).get()
    for each in (one, two):
        each.watch_elected_as_leader(group, lambda event: elected.append(event.member_id))
        each.run_watchers()
    assert elected == [b"one"]
    name = f"tooz/default/group/{quote(group)}/leader"
    assert service.admin.break_lock(name)
    until(lambda: service.holders(name) == 0)
    assert two.get_leader(group).get() is None
    two.run_watchers()
    one.run_watchers()
    assert elected == [b"one", b"two"]
    assert one.get_leader(group).get() == b"two"
    assert two.stand_down_group_leader(group)
    assert not two.stand_down_group_leader(group)
    one.run_watchers()
    assert elected == [b"one", b"two", b"one"]
    assert two.get_leader(group).get() == b"one"


@pytest.mark.parametrize("change", ["create_group", "join_group", "delete_group"])
def test_changes_of_a_group_follow_one_another(
    start: Start, service: Service, group: bytes, change: str
) -> None:
    start(b"two").create_group(group).get()
    one = coordination.get_coordinator(f"dlock://{service.address}", b"one")  # with a thread
    one.start()
    name = f"tooz/default/group/{quote(group)}/change"
    with service.client().lock(name):
        changed = getattr(one, change)(group)
        until(lambda: service.waiters(name) == 1)
        assert not changed.done()
        with pytest.raises(coordination.OperationTimedOut):
            changed.get(timeout=0.01)
    try:
        changed.get(timeout=30)
    except coordination.GroupAlreadyExist:
        assert change == "create_group"
    one.stop()


def test_many_join_at_once(service: Service, group: bytes) -> None:
    members = [coordination.get_coordinator(f"dlock://{service.address}", f"m{number}".encode())
               for number in range(12)]
    for member in members:
        member.start()
    joining = [member.join_group_create for member in members]
    for join in joining:
        join(group, {"n": 1})
    assert len(members[0].get_members(group).get()) == 12
    leaving = [member.leave_group(group) for member in members]
    for result in leaving:
        result.get(timeout=30)
        assert result.done()
    assert members[3].get_members(group).get() == set()
    for member in members:
        member.heart.stop()
        member._client.close()  # quicker than stop, whose threads idle for a second each
