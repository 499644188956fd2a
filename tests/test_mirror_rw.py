"""Rw locks (specification, section 5): readers or one writer, no lease."""

from __future__ import annotations

import time

import pytest
from mirror_tools import RW, S, Service, ex, sh, until

from dlock import dclient
from dlock.types import RwState

pytestmark = pytest.mark.data_plane

INITIAL = RwState()


def test_readers_share_and_a_writer_is_alone(service: Service) -> None:
    one, two, three = (service.client() for _ in range(3))
    lock_id = service.lock(RW, one, two, three)
    assert dclient.trylock(one, sh(lock_id))[0] is S.SUCCESS
    status, state = dclient.trylock(two, sh(lock_id))
    assert (status, state.client_id, state.rcount) == (S.SUCCESS, two, 2)
    assert dclient.trylock(three, ex(lock_id)) == (S.FAIL, INITIAL)
    assert dclient.unlock(one, lock_id)[0] is S.SUCCESS
    assert dclient.trylock(three, ex(lock_id))[0] is S.FAIL
    assert dclient.unlock(two, lock_id)[0] is S.SUCCESS
    status, state = dclient.trylock(three, ex(lock_id))
    assert (status, state.client_id, state.rcount) == (S.SUCCESS, three, 0)
    assert dclient.trylock(one, sh(lock_id))[0] is S.FAIL


def test_the_other_mode_of_a_held_lock_is_refused(service: Service) -> None:
    client = service.client()
    lock_id = service.lock(RW, client)
    dclient.trylock(client, sh(lock_id))
    assert dclient.trylock(client, ex(lock_id))[0] is S.EINVAL
    assert dclient.lock(client, ex(lock_id))[0] is S.EINVAL
    assert dclient.unlock(client, lock_id)[0] is S.SUCCESS
    dclient.trylock(client, ex(lock_id))
    assert dclient.trylock(client, sh(lock_id))[0] is S.EINVAL


def test_a_waiting_writer_stops_new_readers(service: Service, background) -> None:
    reader, writer, late = (service.client() for _ in range(3))
    lock_id = service.lock(RW, reader, writer, late)
    dclient.trylock(reader, sh(lock_id))
    writing = background(dclient.lock, writer, ex(lock_id))

    def late_reader_is_refused() -> bool:
        status = dclient.trylock(late, sh(lock_id))[0]
        if status is S.SUCCESS:  # the writer was not there yet
            dclient.unlock(late, lock_id)
        return status is S.FAIL

    until(late_reader_is_refused)
    reading = background(dclient.lock, late, sh(lock_id))
    assert dclient.trylock(reader, sh(lock_id))[0] is S.ALREADY_LOCKED  # not a new reader
    dclient.unlock(reader, lock_id)
    dclient.unlock(reader, lock_id)
    assert writing.result(timeout=30)[0] is S.SUCCESS
    assert not reading.done()
    dclient.unlock(writer, lock_id)
    assert reading.result(timeout=30)[0] is S.SUCCESS


def test_there_is_no_lease(service: Service) -> None:
    one, two = service.client(), service.client()
    lock_id = service.lock(RW, one, two)
    status, state = dclient.trylock(one, ex(lock_id, 1))
    assert status is S.SUCCESS
    assert time.time() - 1 <= state.time_out <= time.time() + 2  # for display only
    time.sleep(1.2)
    assert dclient.trylock(two, ex(lock_id))[0] is S.FAIL
    assert dclient.unlock(one, lock_id)[0] is S.SUCCESS


def test_reentry_asks_nothing_and_moves_the_displayed_end(service: Service) -> None:
    client = service.client()
    lock_id = service.lock(RW, client)
    first = dclient.trylock(client, sh(lock_id, 10))[1]
    status, state = dclient.trylock(client, sh(lock_id, 60))
    assert status is S.ALREADY_LOCKED
    assert state.time_out >= first.time_out + 49
