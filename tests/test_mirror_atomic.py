"""Atomic locks, and what all lock calls share (specification, section 5)."""

from __future__ import annotations

import time

import pytest
from mirror_tools import (
    ATOMIC,
    FAIR,
    LEASE_S,
    RW,
    S,
    Service,
    ex,
    extend_ex,
    extend_sh,
    get,
    sh,
    until,
)

from dlock import dclient
from dlock.types import AtomicState, DlockType, FairState, LockDesc, RwState

INITIAL = AtomicState()


# ---- getting and releasing -----------------------------------------------------------------------


@pytest.mark.data_plane
def test_the_same_descriptor_is_the_same_lock_for_every_client(service: Service) -> None:
    one, two = service.client(), service.client()
    desc = LockDesc(b"\x00any bytes\xff", ATOMIC)
    assert get(one, desc) == get(two, desc)
    assert get(one, LockDesc(b"another", ATOMIC)) != get(two, LockDesc(b"third", ATOMIC))


def test_a_second_get_and_another_type_are_errors(service: Service) -> None:
    one, two = service.client(), service.client()
    desc = LockDesc(b"name", ATOMIC)
    get(one, desc)
    assert dclient.get_lock(one, desc) == (S.ERROR, None)
    assert dclient.get_lock(two, LockDesc(b"name", RW)) == (S.ERROR, None)


@pytest.mark.parametrize(
    "desc",
    [
        None,
        LockDesc(None),
        LockDesc(b""),
        LockDesc(b"x" * 513),
        LockDesc(b"x", 3),
        LockDesc(b"x", -1),
        LockDesc(b"x", None),  # type: ignore[arg-type]
        LockDesc(b"x", ATOMIC, -1),
    ],
)
def test_impossible_descriptors(service: Service, desc: LockDesc | None) -> None:
    assert dclient.get_lock(service.client(), desc) == (S.EINVAL, None)


def test_the_longest_descriptor(service: Service) -> None:
    get(service.client(), LockDesc(b"x" * 512, ATOMIC))


@pytest.mark.data_plane
def test_release_asks_for_unlock_first(service: Service) -> None:
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    assert dclient.trylock(client, ex(lock_id))[0] is S.SUCCESS
    assert dclient.release_lock(client, lock_id) is S.ERROR
    assert dclient.unlock(client, lock_id)[0] is S.SUCCESS
    assert dclient.release_lock(client, lock_id) is S.SUCCESS
    assert dclient.release_lock(client, lock_id) is S.LOCK_NOT_GET
    assert dclient.trylock(client, ex(lock_id)) == (S.LOCK_NOT_GET, None)


@pytest.mark.data_plane
def test_a_lock_that_no_client_has_got_is_destroyed(service: Service) -> None:
    client = service.client()
    desc = LockDesc(b"name", ATOMIC)
    lock_id = get(client, desc)
    assert dclient.release_lock(client, lock_id) is S.SUCCESS
    assert get(client, LockDesc(b"name", FAIR)) != lock_id  # even of another type


def test_a_released_lock_can_be_got_again(service: Service) -> None:
    one, two = service.client(), service.client()
    desc = LockDesc(b"name", ATOMIC)
    lock_id = get(one, desc)
    get(two, desc)
    assert dclient.release_lock(one, lock_id) is S.SUCCESS
    assert get(one, desc) == lock_id
    assert dclient.trylock(one, ex(lock_id))[0] is S.SUCCESS


# ---- trylock, unlock -----------------------------------------------------------------------------


@pytest.mark.data_plane
def test_trylock_excludes_and_unlock_frees(service: Service) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    before = time.time()
    status, state = dclient.trylock(one, ex(lock_id))
    assert (status, state.client_id) == (S.SUCCESS, one)
    assert int(before) + LEASE_S - 1 <= state.time_out <= time.time() + LEASE_S + 1
    assert state.token > 0
    assert dclient.trylock(two, ex(lock_id)) == (S.FAIL, INITIAL)
    assert dclient.unlock(one, lock_id) == (S.SUCCESS, INITIAL)
    assert dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS


@pytest.mark.data_plane
def test_tokens_only_grow(service: Service) -> None:
    one, two = service.client(), service.client()
    locks = [service.lock(kind, one, two) for kind in (ATOMIC, RW, FAIR)]
    tokens = []
    for lock_id in locks * 2:
        for client in (one, two):
            tokens.append(dclient.trylock(client, ex(lock_id))[1].token)
            dclient.unlock(client, lock_id)
    assert tokens == sorted(set(tokens))
    assert all(0 < token < 2**63 for token in tokens)


@pytest.mark.parametrize("kind", [ATOMIC, RW, FAIR])
@pytest.mark.data_plane
def test_reentry_is_counted_and_keeps_the_token(service: Service, kind: DlockType) -> None:
    client = service.client()
    lock_id = service.lock(kind, client)
    token = dclient.trylock(client, ex(lock_id))[1].token
    for _ in range(2):
        status, state = dclient.trylock(client, ex(lock_id))
        assert (status, state.token) == (S.ALREADY_LOCKED, token)
    assert dclient.lock(client, ex(lock_id))[0] is S.ALREADY_LOCKED
    for _ in range(3):
        assert dclient.unlock(client, lock_id)[0] is S.ALREADY_LOCKED
    assert dclient.unlock(client, lock_id)[0] is S.SUCCESS
    assert dclient.unlock(client, lock_id)[0] is S.ALREADY_UNLOCKED


@pytest.mark.parametrize(
    ("kind", "initial"), [(ATOMIC, AtomicState()), (RW, RwState()), (FAIR, FairState())]
)
def test_expire_time_0_asks_nothing(service: Service, kind: DlockType, initial: object) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(kind, one, two)
    assert dclient.trylock(one, ex(lock_id, 0)) == (S.SUCCESS, initial)
    assert dclient.lock(one, sh(lock_id, 0)) == (S.SUCCESS, initial)  # before the mode
    assert dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS  # it took nothing
    assert dclient.trylock(one, ex(lock_id, 0)) == (S.SUCCESS, initial)
    held = dclient.trylock(two, ex(lock_id, 0))
    assert held[0] is S.SUCCESS
    assert held[1].token > 0
    assert dclient.trylock(two, sh(lock_id, 0)) == held


def test_expire_time_0_is_looked_at_before_the_ticket(service: Service) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(FAIR, one, two)
    dclient.trylock(one, ex(lock_id))
    assert dclient.trylock(two, ex(lock_id))[0] is S.EAGAIN
    assert dclient.trylock(two, sh(lock_id, 0))[0] is S.SUCCESS


@pytest.mark.data_plane
def test_atomic_locks_know_exclusive_only(service: Service) -> None:
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    assert dclient.trylock(client, sh(lock_id)) == (S.EINVAL, INITIAL)
    assert dclient.lock(client, sh(lock_id)) == (S.EINVAL, INITIAL)
    dclient.trylock(client, ex(lock_id))
    assert dclient.lock_extend(client, extend_sh(lock_id))[0] is S.EINVAL


@pytest.mark.data_plane
def test_a_client_that_leaves_frees_everything_at_once(service: Service) -> None:
    one, two = service.client(), service.client()
    locks = [service.lock(kind, one, two) for kind in (ATOMIC, RW, FAIR)]
    for lock_id in locks:
        assert dclient.trylock(one, ex(lock_id))[0] is S.SUCCESS
    assert dclient.client_deinit(one) is S.SUCCESS
    for lock_id in locks:
        assert dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS


# ---- lock ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "late"), [(ATOMIC, S.FAIL), (RW, S.FAIL), (FAIR, S.EAGAIN)])
@pytest.mark.data_plane
def test_lock_waits_as_long_as_configured(start_service, kind: DlockType, late: S) -> None:
    service = start_service(client={"lock_wait": 0.3})
    one, two = service.client(), service.client()
    lock_id = service.lock(kind, one, two)
    dclient.trylock(one, ex(lock_id))
    began = time.monotonic()
    assert dclient.lock(two, ex(lock_id))[0] is late
    assert time.monotonic() - began >= 0.29
    if kind is FAIR:  # the ticket is kept
        assert dclient.release_lock(two, lock_id) is S.TICKET_TO_UNLOCK


@pytest.mark.parametrize("kind", [ATOMIC, RW, FAIR])
@pytest.mark.data_plane
def test_lock_is_handed_over_by_unlock(service: Service, background, kind: DlockType) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(kind, one, two)
    token = dclient.trylock(one, ex(lock_id))[1].token
    waiting = background(dclient.lock, two, ex(lock_id))
    time.sleep(0.05)
    assert not waiting.done()
    dclient.unlock(one, lock_id)
    status, state = waiting.result(timeout=30)
    assert status is S.SUCCESS
    assert state.token > token
    assert dclient.trylock(one, ex(lock_id))[0] is (S.EAGAIN if kind is FAIR else S.FAIL)


@pytest.mark.data_plane
def test_a_waiting_lock_delays_no_other_call_of_its_client(service: Service, background) -> None:
    one, two = service.client(), service.client()
    held, free = service.lock(ATOMIC, one, two), service.lock(ATOMIC, two)
    dclient.trylock(one, ex(held))
    waiting = background(dclient.lock, two, ex(held))
    time.sleep(0.05)
    for _ in range(100):
        assert dclient.trylock(two, ex(free))[0] is S.SUCCESS
        assert dclient.unlock(two, free)[0] is S.SUCCESS
    assert get(two, LockDesc(b"meanwhile", ATOMIC))
    assert not waiting.done()
    dclient.unlock(one, held)
    assert waiting.result(timeout=30)[0] is S.SUCCESS


@pytest.mark.data_plane
def test_a_lease_that_ends_wakes_the_waiter(service: Service) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    dclient.trylock(one, ex(lock_id, 1))
    assert dclient.lock(two, ex(lock_id))[0] is S.SUCCESS
    assert dclient.unlock(one, lock_id) == (S.FAIL, INITIAL)
    assert dclient.unlock(one, lock_id)[0] is S.ALREADY_UNLOCKED


# ---- leases --------------------------------------------------------------------------------------


def test_a_lapsed_lease_is_still_its_holders_until_somebody_wants_it(service: Service) -> None:
    client = service.client()
    for kind in (ATOMIC, FAIR):
        extended, unlocked = service.lock(kind, client), service.lock(kind, client)
        for lock_id in (extended, unlocked):
            assert dclient.trylock(client, ex(lock_id, 1))[0] is S.SUCCESS
        time.sleep(1.1)
        status, state = dclient.lock_extend(client, extend_ex(extended, 60))
        assert status is S.SUCCESS
        assert state.time_out >= time.time() + 40
        assert dclient.unlock(client, unlocked)[0] is S.SUCCESS


@pytest.mark.data_plane
def test_a_lapsed_lease_that_was_taken_is_lost(service: Service) -> None:
    one, two = service.client(), service.client()
    locks = [service.lock(kind, one, two) for kind in (ATOMIC, FAIR) for _ in range(3)]
    for lock_id in locks:
        assert dclient.trylock(one, ex(lock_id, 1))[0] is S.SUCCESS
    time.sleep(1.1)
    for lock_id in locks:
        assert dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS
    for extended, entered, unlocked in (locks[:3], locks[3:]):
        assert dclient.lock_extend(one, extend_ex(extended))[0] is S.FAIL
        status, state = dclient.trylock(one, ex(entered))  # re-entry extends, and finds it lost
        assert (status, state.token, state.time_out) == (S.FAIL, 0, 0)
        assert dclient.unlock(one, unlocked)[0] is S.FAIL
    for lock_id in locks[:3]:
        assert dclient.trylock(one, ex(lock_id)) == (S.FAIL, INITIAL)  # asks anew, for two has it


@pytest.mark.data_plane
def test_reentry_extends_the_lease(service: Service) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(ATOMIC, one, two)
    dclient.trylock(one, ex(lock_id, 1))
    status, state = dclient.trylock(one, ex(lock_id, 60))
    assert status is S.ALREADY_LOCKED
    assert state.time_out >= time.time() + 40
    time.sleep(1.1)
    assert dclient.trylock(two, ex(lock_id))[0] is S.FAIL


def test_a_lease_only_grows(service: Service) -> None:
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    first = dclient.trylock(client, ex(lock_id, 60))[1]
    status, state = dclient.lock_extend(client, extend_ex(lock_id, 10))
    assert (status, state) == (S.SUCCESS, first)
    status, state = dclient.lock_extend(client, extend_ex(lock_id, 0))  # only checks
    assert (status, state) == (S.SUCCESS, first)
    status, state = dclient.lock_extend(client, extend_ex(lock_id, 120))
    assert status is S.SUCCESS
    assert state.time_out >= first.time_out + 58
    assert state.token == first.token


@pytest.mark.data_plane
def test_extend_is_refused_on_rw_unheld_and_in_the_other_mode(service: Service) -> None:
    client = service.client()
    atomic, rw, fair = (service.lock(kind, client) for kind in (ATOMIC, RW, FAIR))
    assert dclient.lock_extend(client, extend_ex(atomic))[0] is S.EINVAL
    assert dclient.lock_extend(client, extend_ex(fair))[0] is S.EINVAL
    dclient.trylock(client, ex(rw))
    assert dclient.lock_extend(client, extend_ex(rw))[0] is S.EINVAL
    dclient.trylock(client, sh(fair))
    assert dclient.lock_extend(client, extend_ex(fair))[0] is S.EINVAL
    assert dclient.lock_extend(client, extend_sh(fair))[0] is S.SUCCESS


def test_max_lease_is_for_kinds_with_leases(start_service) -> None:
    service = start_service(max_lease=100)
    client = service.client()
    for kind in (ATOMIC, FAIR):
        lock_id = service.lock(kind, client)
        assert dclient.trylock(client, ex(lock_id, 101))[0] is S.EINVAL
        assert dclient.lock(client, ex(lock_id, 101))[0] is S.EINVAL
        assert dclient.trylock(client, ex(lock_id, 100))[0] is S.SUCCESS
        assert dclient.lock_extend(client, extend_ex(lock_id, 101))[0] is S.EINVAL
        assert dclient.lock_extend(client, extend_ex(lock_id, 100))[0] is S.SUCCESS
    rw = service.lock(RW, client)
    status, state = dclient.trylock(client, ex(rw, 100_000))
    assert status is S.SUCCESS
    assert state.time_out >= time.time() + 99_000


def test_long_leases_are_declared_to_a_server_that_writes_them_down(
    start_service, tmp_path
) -> None:
    service = start_service(state_dir=str(tmp_path), max_lease=3000)
    client = service.client()
    for expire_s in (1, 5, 70, 2999, 3000):
        lock_id = service.lock(ATOMIC, client)
        assert dclient.trylock(client, ex(lock_id, expire_s))[0] is S.SUCCESS
        assert dclient.unlock(client, lock_id)[0] is S.SUCCESS
    assert dclient.trylock(client, ex(lock_id, 3001))[0] is S.EINVAL


@pytest.mark.data_plane
def test_leased_holds_outlive_the_session_and_others_do_not(start_service) -> None:
    service = start_service(session_ttl=3)
    one, two = service.client(), service.client()
    atomic, rw = service.lock(ATOMIC, one, two), service.lock(RW, one, two)
    dclient.trylock(one, ex(atomic))
    dclient.trylock(one, ex(rw))
    from dlock import _mirror_table

    _mirror_table.clients[one].leave()  # as if its process had died
    until(lambda: dclient.trylock(two, ex(rw))[0] is S.SUCCESS)
    assert dclient.trylock(two, ex(atomic))[0] is S.FAIL
