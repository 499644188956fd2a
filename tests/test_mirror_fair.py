"""Fair locks (specification, section 5): tickets, strict order over both modes."""

from __future__ import annotations

import time

import pytest
from mirror_tools import FAIR, S, Service, ex, sh

from dlock import dclient
from dlock.types import FairState

pytestmark = pytest.mark.data_plane


def test_a_busy_lock_gives_a_ticket_that_is_redeemed_in_turn(service: Service) -> None:
    one, two, three = (service.client() for _ in range(3))
    lock_id = service.lock(FAIR, one, two, three)
    status, state = dclient.trylock(one, ex(lock_id))
    assert (status, state.rms, state.rflag, state.rcnt) == (S.SUCCESS, 0, 1, 1)
    assert (state.n_exclusive, state.m_exclusive, state.n_shared, state.m_shared) == (1, 1, 0, 0)
    status, state = dclient.trylock(two, ex(lock_id))
    assert (status, state.token, state.rflag, state.time_out) == (S.EAGAIN, 0, 0, 0)
    assert (state.n_exclusive, state.m_exclusive) == (1, 2)
    assert dclient.trylock(three, ex(lock_id))[0] is S.EAGAIN
    assert dclient.trylock(two, ex(lock_id))[0] is S.EAGAIN  # not yet
    dclient.unlock(one, lock_id)
    assert dclient.trylock(three, ex(lock_id))[0] is S.EAGAIN  # two is first
    assert dclient.trylock(one, ex(lock_id))[0] is S.EAGAIN  # at the end of the queue
    assert dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS
    dclient.unlock(two, lock_id)
    assert dclient.trylock(three, ex(lock_id))[0] is S.SUCCESS
    dclient.unlock(three, lock_id)
    status, state = dclient.trylock(one, ex(lock_id))
    assert status is S.SUCCESS
    assert state.n_exclusive == state.m_exclusive == 4


def test_the_other_mode_of_a_ticket_is_refused(service: Service) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(FAIR, one, two)
    dclient.trylock(one, ex(lock_id))
    assert dclient.trylock(two, sh(lock_id))[0] is S.EAGAIN
    assert dclient.trylock(two, ex(lock_id))[0] is S.ETICKET
    assert dclient.lock(two, ex(lock_id))[0] is S.ETICKET
    dclient.unlock(one, lock_id)
    status, state = dclient.trylock(two, sh(lock_id))
    assert (status, state.rms, state.rflag) == (S.SUCCESS, 1, 1)


def test_a_held_ticket_is_given_up_by_unlock(service: Service) -> None:
    one, two, three = (service.client() for _ in range(3))
    lock_id = service.lock(FAIR, one, two, three)
    dclient.trylock(one, ex(lock_id))
    dclient.trylock(two, ex(lock_id))
    assert dclient.release_lock(two, lock_id) is S.TICKET_TO_UNLOCK
    assert dclient.unlock(two, lock_id)[0] is S.SUCCESS
    assert dclient.unlock(two, lock_id)[0] is S.ALREADY_UNLOCKED
    dclient.unlock(one, lock_id)
    assert dclient.trylock(three, ex(lock_id))[0] is S.SUCCESS  # nothing of two is in the way
    assert dclient.release_lock(two, lock_id) is S.SUCCESS


def test_readers_that_stand_together_hold_together_and_a_writer_stops_later_ones(
    service: Service,
) -> None:
    writer, first, second, between, late = (service.client() for _ in range(5))
    lock_id = service.lock(FAIR, writer, first, second, between, late)
    dclient.trylock(writer, ex(lock_id))
    for client in (first, second):
        assert dclient.trylock(client, sh(lock_id))[0] is S.EAGAIN
    assert dclient.trylock(between, ex(lock_id))[0] is S.EAGAIN
    assert dclient.trylock(late, sh(lock_id))[0] is S.EAGAIN
    dclient.unlock(writer, lock_id)
    for client in (first, second):
        assert dclient.trylock(client, sh(lock_id))[0] is S.SUCCESS
    assert dclient.trylock(late, sh(lock_id))[0] is S.EAGAIN
    assert dclient.trylock(between, ex(lock_id))[0] is S.EAGAIN
    for client in (first, second):
        dclient.unlock(client, lock_id)
    assert dclient.trylock(late, sh(lock_id))[0] is S.EAGAIN
    assert dclient.trylock(between, ex(lock_id))[0] is S.SUCCESS


def test_a_free_lock_is_taken_and_readers_join_readers(service: Service) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(FAIR, one, two)
    assert dclient.trylock(one, sh(lock_id))[0] is S.SUCCESS
    assert dclient.trylock(two, sh(lock_id))[0] is S.SUCCESS


def test_a_ticket_not_claimed_within_2_s_is_passed_when_it_holds_somebody_up(
    service: Service,
) -> None:
    one, idle, patient, newcomer = (service.client() for _ in range(4))
    in_time = False
    while not in_time:  # the machine may stand still for longer than the 2 s
        queued, empty = (service.lock(FAIR, one, idle, patient, newcomer) for _ in range(2))
        alone = service.lock(FAIR, one, idle)
        for lock_id in (queued, empty, alone):
            dclient.trylock(one, ex(lock_id))
            dclient.trylock(idle, ex(lock_id))
        dclient.trylock(patient, ex(queued))
        began = time.monotonic()
        for lock_id in (queued, empty, alone):
            dclient.unlock(one, lock_id)
        early = [dclient.trylock(patient, ex(queued))[0], dclient.trylock(newcomer, sh(empty))[0]]
        in_time = time.monotonic() - began < 2
    assert early == [S.EAGAIN, S.EAGAIN]
    dclient.unlock(newcomer, empty)
    time.sleep(2.2)
    assert dclient.trylock(patient, ex(queued))[0] is S.SUCCESS
    assert dclient.trylock(newcomer, ex(empty))[0] is S.SUCCESS
    for lock_id in (queued, empty):
        status, state = dclient.trylock(idle, ex(lock_id))
        assert status is S.FAIL  # and the ticket is dropped
        assert (state.n_exclusive, state.m_exclusive, state.token) == (0, 0, 0)
        assert dclient.release_lock(idle, lock_id) is S.SUCCESS
    assert dclient.trylock(idle, ex(alone))[0] is S.SUCCESS  # it held nobody up


def test_behind_a_ticket_the_hold_ends_with_its_lease(service: Service) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(FAIR, one, two)
    dclient.trylock(one, ex(lock_id, 3))
    assert dclient.trylock(two, ex(lock_id))[0] is S.EAGAIN
    time.sleep(3.1)
    assert dclient.unlock(one, lock_id)[0] is S.FAIL
    assert dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS


def test_a_lapsed_holder_is_overtaken_by_a_newcomer(service: Service) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(FAIR, one, two)
    dclient.trylock(one, ex(lock_id, 1))
    time.sleep(1.1)
    assert dclient.trylock(two, ex(lock_id))[0] is S.SUCCESS


def test_lock_redeems_a_ticket_in_its_place(service: Service, background) -> None:
    one, two, three = (service.client() for _ in range(3))
    lock_id = service.lock(FAIR, one, two, three)
    dclient.trylock(one, ex(lock_id))
    dclient.trylock(two, ex(lock_id))
    dclient.trylock(three, ex(lock_id))
    waiting = background(dclient.lock, two, ex(lock_id))
    time.sleep(0.05)
    dclient.unlock(one, lock_id)
    assert waiting.result(timeout=30)[0] is S.SUCCESS
    assert dclient.trylock(three, ex(lock_id))[0] is S.EAGAIN


def test_the_local_state_is_initial_after_fail(service: Service) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(FAIR, one, two)
    dclient.trylock(one, ex(lock_id, 1))
    time.sleep(1.1)
    dclient.trylock(two, ex(lock_id))
    status, state = dclient.unlock(one, lock_id)
    assert (status, state) == (S.FAIL, FairState())
