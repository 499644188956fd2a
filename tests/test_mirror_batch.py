"""Batch calls (specification, section 5): one result an item, as single calls would give it."""

from __future__ import annotations

import pytest
from mirror_tools import ATOMIC, FAIR, RW, S, Service, ex, extend_ex, extend_sh, sh

from dlock import dclient
from dlock.types import AtomicState, LockDesc, LockOp, LockOpResult, LockRequest

BATCHES = [
    dclient.batch_get_lock,
    dclient.batch_release_lock,
    dclient.batch_trylock,
    dclient.batch_lock_extend,
    dclient.batch_unlock,
]


def statuses(answer: tuple[S, list[LockOpResult] | None]) -> list[S]:
    status, results = answer
    assert status is S.SUCCESS
    assert results is not None
    return [result.op_ret for result in results]


@pytest.mark.parametrize("call", BATCHES)
def test_the_size_is_1_to_31(service: Service, call) -> None:
    client = service.client()
    item = LockDesc(b"x") if call is dclient.batch_get_lock else 1
    for items in (None, [], [item] * 32):
        assert call(client, items) == (S.EINVAL, None)
    with pytest.raises(TypeError):
        call(client, item)


@pytest.mark.parametrize("call", BATCHES)
def test_an_unknown_client_is_the_batchs(service: Service, call) -> None:
    item = LockDesc(b"x") if call is dclient.batch_get_lock else ex(1)
    assert call(service.client() ^ 1, [item]) == (S.CLIENT_NOT_INIT, None)


@pytest.mark.data_plane
def test_a_full_batch_of_each_kind(service: Service) -> None:
    client = service.client()
    descs = [LockDesc(b"b%d" % index, index % 3) for index in range(31)]
    status, lock_ids = dclient.batch_get_lock(client, descs)
    assert status is S.SUCCESS
    assert len(set(lock_ids)) == 31
    status, results = dclient.batch_trylock(client, [ex(lock_id) for lock_id in lock_ids])
    assert {result.op_ret for result in results} == {S.SUCCESS}
    tokens = [result.state.token for result in results]
    assert tokens == sorted(set(tokens))
    extended = [extend_ex(lock_id) for lock_id in lock_ids]
    assert statuses(dclient.batch_lock_extend(client, extended)) == [
        S.EINVAL if desc.lock_type == RW else S.SUCCESS for desc in descs
    ]
    assert dclient.batch_release_lock(client, lock_ids) == (S.SUCCESS, [S.ERROR] * 31)
    assert statuses(dclient.batch_unlock(client, lock_ids)) == [S.SUCCESS] * 31
    assert statuses(dclient.batch_unlock(client, lock_ids)) == [S.ALREADY_UNLOCKED] * 31
    assert dclient.batch_release_lock(client, lock_ids) == (S.SUCCESS, [S.SUCCESS] * 31)
    assert dclient.batch_release_lock(client, lock_ids) == (S.SUCCESS, [S.LOCK_NOT_GET] * 31)


@pytest.mark.data_plane
def test_items_are_carried_out_in_order_as_single_calls(service: Service) -> None:
    one, two = service.client(), service.client()
    mine, taken, rw, fair = (
        service.lock(ATOMIC, one),
        service.lock(ATOMIC, one, two),
        service.lock(RW, one),
        service.lock(FAIR, one, two),
    )
    dclient.trylock(two, ex(taken))
    dclient.trylock(two, ex(fair))
    items = [
        (ex(mine), S.SUCCESS),
        (ex(mine), S.ALREADY_LOCKED),
        (ex(mine, 0), S.SUCCESS),
        (sh(mine), S.EINVAL),
        (ex(taken), S.FAIL),
        (sh(rw), S.SUCCESS),
        (sh(rw), S.ALREADY_LOCKED),
        (ex(rw), S.EINVAL),
        (ex(fair), S.EAGAIN),
        (ex(fair), S.EAGAIN),
        (sh(fair), S.ETICKET),
        (ex(999_999), S.LOCK_NOT_GET),
        (LockRequest(mine, LockOp.UNLOCK, 5), S.EINVAL),
        (extend_ex(mine), S.EINVAL),
        (None, S.EINVAL),
        (ex(mine, -1), S.EINVAL),
        (ex(mine, 100_000), S.EINVAL),
        (ex(mine), S.ALREADY_LOCKED),
    ]
    status, results = dclient.batch_trylock(one, [request for request, _ in items])
    assert status is S.SUCCESS
    assert [result.op_ret for result in results] == [expected for _, expected in items]
    assert results[0].state == results[1].state == results[2].state
    assert results[4].state == AtomicState()
    assert results[11].state is None
    assert results[14].state is None

    unlocks = [mine, mine, mine, mine, rw, rw, rw, fair, fair, 999_999, None, -1]
    assert statuses(dclient.batch_unlock(one, unlocks)) == [
        S.ALREADY_LOCKED,
        S.ALREADY_LOCKED,
        S.SUCCESS,
        S.ALREADY_UNLOCKED,
        S.ALREADY_LOCKED,
        S.SUCCESS,
        S.ALREADY_UNLOCKED,
        S.SUCCESS,  # the ticket
        S.ALREADY_UNLOCKED,
        S.LOCK_NOT_GET,
        S.EINVAL,
        S.EINVAL,
    ]


def test_extending_in_a_batch(service: Service) -> None:
    client = service.client()
    held, free, shared = (
        service.lock(ATOMIC, client),
        service.lock(ATOMIC, client),
        service.lock(FAIR, client),
    )
    dclient.trylock(client, ex(held))
    dclient.trylock(client, sh(shared))
    requests = [
        extend_ex(held, 100),
        extend_ex(free),
        extend_sh(shared, 0),
        extend_ex(shared),
        ex(held),
        None,
    ]
    assert statuses(dclient.batch_lock_extend(client, requests)) == [
        S.SUCCESS,
        S.EINVAL,
        S.SUCCESS,
        S.EINVAL,
        S.EINVAL,
        S.EINVAL,
    ]


def test_a_failed_item_of_batch_get_lock_has_id_minus_1(service: Service) -> None:
    one, two = service.client(), service.client()
    mine = service.lock(ATOMIC, one)
    status, got = dclient.batch_get_lock(one, [LockDesc(b"a", ATOMIC), LockDesc(b"b", RW)])
    assert status is S.SUCCESS
    descs = [
        LockDesc(b"a", ATOMIC),  # got already: keeps its id
        LockDesc(b"b", FAIR),  # got already, another type
        LockDesc(b""),
        None,
        LockDesc(b"c", 7),
        LockDesc(b"c", FAIR),
        LockDesc(b"c", FAIR),  # by now got already
    ]
    status, lock_ids = dclient.batch_get_lock(one, descs)
    assert status is S.SUCCESS
    assert lock_ids[:5] == [got[0], -1, -1, -1, -1]
    assert lock_ids[5] == lock_ids[6] not in (-1, mine, *got)
    status, lock_ids = dclient.batch_get_lock(two, [LockDesc(b"a", RW), LockDesc(b"b", RW)])
    assert lock_ids == [-1, got[1]]


def test_releasing_in_a_batch(service: Service) -> None:
    client = service.client()
    free, held = service.lock(ATOMIC, client), service.lock(ATOMIC, client)
    dclient.trylock(client, ex(held))
    assert dclient.batch_release_lock(client, [free, free, held, None, 999_999]) == (
        S.SUCCESS,
        [S.SUCCESS, S.LOCK_NOT_GET, S.ERROR, S.EINVAL, S.LOCK_NOT_GET],
    )
    assert dclient.unlock(client, held)[0] is S.SUCCESS


def test_wrong_types_of_items(service: Service) -> None:
    client = service.client()
    lock_id = service.lock(ATOMIC, client)
    with pytest.raises(TypeError):
        dclient.batch_unlock(client, [lock_id, "1"])
    with pytest.raises(TypeError):
        dclient.batch_trylock(client, [ex(lock_id), lock_id])
    with pytest.raises(TypeError):
        dclient.batch_get_lock(client, [b"name"])
    assert dclient.trylock(client, ex(lock_id))[0] is S.SUCCESS  # nothing was done
