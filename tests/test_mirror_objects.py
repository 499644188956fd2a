"""64-bit atomic objects (specification, section 6)."""

from __future__ import annotations

import pytest
from mirror_tools import S, Service, until

from dlock import dclient
from dlock.types import AtomicDesc

pytestmark = pytest.mark.data_plane

LEASE_S = 60
U64 = 2**64


def create(client: int, name: bytes, value: int = 0, lease_s: int = LEASE_S) -> int:
    status, obj_id = dclient.umo_atomic64_create(client, AtomicDesc(name, lease_s), value)
    assert status is S.SUCCESS
    return obj_id


def get(client: int, name: bytes, lease_s: int = LEASE_S) -> int:
    status, obj_id = dclient.umo_atomic64_get(client, AtomicDesc(name, lease_s))
    assert status is S.SUCCESS
    return obj_id


def test_create_then_get_then_use(service: Service) -> None:
    one, two = service.client(), service.client()
    obj_id = create(one, b"x", 5)
    assert dclient.umo_atomic64_faa(one, obj_id, 1) == (S.OBJECT_NOT_GET, None)  # only created
    assert get(one, b"x") == get(two, b"x") == get(two, b"x") == obj_id
    assert dclient.umo_atomic64_faa(one, obj_id, 3) == (S.SUCCESS, 5)
    assert dclient.umo_atomic64_get_snapshot(two, obj_id) == (S.SUCCESS, 8)
    assert dclient.umo_atomic64_cas(two, obj_id, 8, 2) == (S.SUCCESS, 2)
    assert dclient.umo_atomic64_cas(one, obj_id, 8, 3) == (S.OBJECT_CAS_FAILED, 2)
    assert dclient.umo_atomic64_get_snapshot(one, obj_id) == (S.SUCCESS, 2)


def test_addition_wraps(service: Service) -> None:
    client = service.client()
    obj_id = create(client, b"x", U64 - 1)
    get(client, b"x")
    assert dclient.umo_atomic64_faa(client, obj_id, 3) == (S.SUCCESS, U64 - 1)
    assert dclient.umo_atomic64_faa(client, obj_id, U64 - 1) == (S.SUCCESS, 2)
    assert dclient.umo_atomic64_get_snapshot(client, obj_id) == (S.SUCCESS, 1)


def test_an_object_exists_once(service: Service) -> None:
    one, two = service.client(), service.client()
    create(one, b"x")
    again = AtomicDesc(b"x", LEASE_S)
    assert dclient.umo_atomic64_create(one, again, 0) == (S.OBJECT_ALREADY_CREATED, None)
    assert dclient.umo_atomic64_create(two, again, 0) == (S.OBJECT_ALREADY_EXISTED, None)
    absent = AtomicDesc(b"y", LEASE_S)
    assert dclient.umo_atomic64_get(two, absent) == (S.OBJECT_NOT_CREATE, None)


@pytest.mark.parametrize(
    ("desc", "value"),
    [
        (None, 0),
        (AtomicDesc(None, 1), 0),
        (AtomicDesc(b"", 1), 0),
        (AtomicDesc(b"x" * 513, 1), 0),
        (AtomicDesc(b"x", 0), 0),
        (AtomicDesc(b"x", -1), 0),
        (AtomicDesc(b"x", 1), None),
        (AtomicDesc(b"x", 1), -1),
        (AtomicDesc(b"x", 1), U64),
    ],
)
def test_impossible_creations(service: Service, desc: AtomicDesc | None, value: int) -> None:
    assert dclient.umo_atomic64_create(service.client(), desc, value) == (S.EINVAL, None)


def test_impossible_operands(service: Service) -> None:
    client = service.client()
    obj_id = create(client, b"x")
    get(client, b"x")
    for operand in (None, -1, U64):
        assert dclient.umo_atomic64_faa(client, obj_id, operand) == (S.EINVAL, None)
        assert dclient.umo_atomic64_cas(client, obj_id, operand, 0) == (S.EINVAL, None)
        assert dclient.umo_atomic64_cas(client, obj_id, 0, operand) == (S.EINVAL, None)
    for call in (dclient.umo_atomic64_get_snapshot, dclient.umo_atomic64_release):
        assert call(client, None) in (S.EINVAL, (S.EINVAL, None))
    assert dclient.umo_atomic64_get_snapshot(client, obj_id) == (S.SUCCESS, 0)


def test_release_ends_the_use(service: Service) -> None:
    client = service.client()
    obj_id = create(client, b"x")
    assert dclient.umo_atomic64_release(client, obj_id) is S.OBJECT_NOT_GET
    get(client, b"x")
    assert dclient.umo_atomic64_release(client, obj_id) is S.SUCCESS
    assert dclient.umo_atomic64_release(client, obj_id) is S.OBJECT_NOT_GET
    assert dclient.umo_atomic64_faa(client, obj_id, 1) == (S.OBJECT_NOT_GET, None)


def test_destroy_belongs_to_the_owner(service: Service) -> None:
    one, two = service.client(), service.client()
    obj_id = create(one, b"x")
    get(two, b"x")
    assert dclient.umo_atomic64_destroy(two, obj_id) is S.OBJECT_INVALID_OWNER
    assert dclient.umo_atomic64_destroy(one, obj_id + 1000) is S.OBJECT_NOT_CREATE
    assert dclient.umo_atomic64_destroy(one, 0) is S.OBJECT_NOT_CREATE
    assert dclient.umo_atomic64_destroy(one, None) is S.EINVAL


def test_a_destroyed_object_is_marked_while_there_are_references(service: Service) -> None:
    one, two = service.client(), service.client()
    obj_id = create(one, b"x", 1)
    get(two, b"x")
    assert dclient.umo_atomic64_destroy(one, obj_id) is S.SUCCESS
    assert dclient.umo_atomic64_destroy(one, obj_id) is S.OBJECT_ALREADY_DESTROYED
    desc = AtomicDesc(b"x", LEASE_S)
    assert dclient.umo_atomic64_get(one, desc) == (S.OBJECT_ALREADY_DESTROYED, None)
    assert dclient.umo_atomic64_create(one, desc, 0) == (S.OBJECT_ALREADY_DESTROYED, None)
    assert get(two, b"x") == obj_id  # it has it: nothing changes
    assert dclient.umo_atomic64_faa(two, obj_id, 1) == (S.SUCCESS, 1)
    assert dclient.umo_atomic64_release(two, obj_id) is S.SUCCESS
    assert dclient.umo_atomic64_get(one, desc) == (S.OBJECT_NOT_CREATE, None)
    create(one, b"x")


def test_without_references_it_goes_at_once(service: Service) -> None:
    client = service.client()
    obj_id = create(client, b"x")
    assert dclient.umo_atomic64_destroy(client, obj_id) is S.SUCCESS
    assert dclient.umo_atomic64_destroy(client, obj_id) is S.OBJECT_NOT_CREATE


def test_a_marked_object_goes_when_its_lease_is_over(service: Service) -> None:
    one, two = service.client(), service.client()
    obj_id = create(one, b"x", 0, lease_s=1)
    get(two, b"x", 0)  # renews nothing
    assert dclient.umo_atomic64_destroy(one, obj_id) is S.SUCCESS
    answers = [dclient.umo_atomic64_faa(two, obj_id, 1)]

    def gone() -> bool:
        answers.append(dclient.umo_atomic64_faa(two, obj_id, 1))
        return answers[-1][0] is not S.SUCCESS

    until(gone)
    assert answers[-1] == (S.OBJECT_NOT_GET, None)
    create(one, b"x")


def test_the_lease_matters_only_once_marked(service: Service) -> None:
    import time

    client = service.client()
    obj_id = create(client, b"x", 0, lease_s=1)
    get(client, b"x", 1)
    time.sleep(1.2)
    assert dclient.umo_atomic64_faa(client, obj_id, 1) == (S.SUCCESS, 0)


def test_a_sessions_end_releases_its_references(service: Service) -> None:
    one, two = service.client(), service.client()
    obj_id = create(one, b"x")
    get(two, b"x")
    assert dclient.umo_atomic64_destroy(one, obj_id) is S.SUCCESS
    assert dclient.client_deinit(two) is S.SUCCESS
    assert dclient.umo_atomic64_get(one, AtomicDesc(b"x", 1)) == (S.OBJECT_NOT_CREATE, None)


def test_too_many_objects_and_still_serving(start_service) -> None:
    service = start_service(max_objects=2)
    client = service.client()
    first, _ = create(client, b"1"), create(client, b"2")
    third = AtomicDesc(b"3", LEASE_S)
    assert dclient.umo_atomic64_create(client, third, 0) == (S.OBJECT_TOO_MANY, None)
    get(client, b"1")
    assert dclient.umo_atomic64_faa(client, first, 1) == (S.SUCCESS, 0)
    assert dclient.umo_atomic64_release(client, first) is S.SUCCESS
    assert dclient.umo_atomic64_destroy(client, first) is S.SUCCESS
    create(client, b"3")


def test_counters(service: Service) -> None:
    client = service.client()
    obj_id = create(client, b"x")
    dclient.umo_atomic64_faa(client, obj_id, 1)
    get(client, b"x")
    dclient.umo_atomic64_cas(client, obj_id, 1, 1)
    dclient.umo_atomic64_faa(client, obj_id, None)
    stats = dclient.get_client_debug_stats(client)[1]
    assert (stats.OBJECT_NOT_GET, stats.OBJECT_CAS_FAILED, stats.EINVAL_LOCK_OP) == (1, 1, 0)


def test_clients_count_together(service: Service, background) -> None:
    clients = [service.client() for _ in range(4)]
    obj_id = create(clients[0], b"x")
    for client in clients:
        get(client, b"x")

    def count(client: int) -> None:
        for _ in range(250):
            assert dclient.umo_atomic64_faa(client, obj_id, 1)[0] is S.SUCCESS

    for counting in [background(count, client) for client in clients]:
        counting.result(timeout=30)
    assert dclient.umo_atomic64_get_snapshot(clients[0], obj_id) == (S.SUCCESS, 1000)
