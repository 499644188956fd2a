"""The laws of a primary, of calls and of the end, on events that are made by hand: each lets pass
what is right, and sees what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sim_company import (
    ATOMIC,
    BOOK,
    EPOCH,
    EXCLUSIVE,
    LOCK,
    SHARED,
    Company,
    Diary,
    Node,
    Server,
    Told,
    held,
    later,
    token,
    waits,
)

from dlock import _core
from dlock.control import messages as m
from dlock.control.registry_restoring import Phase

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sim.laws import Laws
from sim.scene import MS_NS, SECOND_NS, LawBroken


@pytest.fixture
def company() -> Company:
    return Company()


@pytest.fixture
def server(company: Company) -> Server:
    return Server()


def test_a_queue_is_served_in_order(server: Server) -> None:
    server.shows(held(token(1), 1), waits(token(2), 2), waits(token(3), 3))
    server.shows(held(token(4), 2), waits(token(3), 3), waits(token(5), 4))
    server.shows(held(token(6), 3), waits(token(5), 4))
    assert server.granted == [token(1), token(4), token(6)]


def test_who_overtakes_is_seen(server: Server) -> None:
    server.shows(held(token(1), 1), waits(token(2), 2), waits(token(3), 3))
    with pytest.raises(LawBroken, match="stamp 3:2 waits since before"):
        server.shows(held(token(4), 3), waits(token(2), 2))


def test_who_comes_and_is_not_queued_is_seen_too(server: Server) -> None:
    server.shows(held(token(1), 1, mode=SHARED), waits(token(2), 2), key=BOOK)
    with pytest.raises(LawBroken, match="stamp 3:2 waits since before"):
        server.shows(held(token(1), 1, mode=SHARED), held(token(3), 4, mode=SHARED),
                     waits(token(2), 2), key=BOOK)


def test_who_waits_for_longer_stands_before(server: Server) -> None:
    with pytest.raises(LawBroken, match="stamp 3:2 stands behind 3:3"):
        server.shows(held(token(1), 1), waits(token(3), 3), waits(token(2), 2))


def test_what_was_claimed_is_no_grant(server: Server) -> None:
    server.shows(waits(token(9, EPOCH - 1), 2))
    server.shows(held(token(5, EPOCH - 1), 1), waits(token(9, EPOCH - 1), 2))


def test_tokens_grow(server: Server) -> None:
    server.shows(held(token(5), 1))
    with pytest.raises(LawBroken, match="token 3:4 was granted after 3:5"):
        server.shows(held(token(4), 2))


def believe(
    company: Company, server: Server, number: int, left_ms: int = 500, **options: Any
) -> Told:
    company.beliefs.newest = server.view
    return company.takes(company.anna, LOCK, EXCLUSIVE, number, left_ms, **options)


def client_id_of(company: Company) -> int:
    return company.anna.node.now_ns() % 97


def test_what_is_believed_is_so_at_the_server(company: Company, server: Server) -> None:
    server.shows(held(token(1), client_id_of(company)))
    believe(company, server, token(1))


def test_a_belief_that_the_server_does_not_share_is_seen(company: Company, server: Server) -> None:
    server.shows()
    with pytest.raises(LawBroken, match="is believed, and north, which is ready, does not have it"):
        believe(company, server, token(1))


def test_a_belief_in_what_is_somebody_elses_is_seen(company: Company, server: Server) -> None:
    server.shows(held(token(1), client_id_of(company) + 1))
    with pytest.raises(LawBroken, match="says that it is of client"):
        believe(company, server, token(1))


@pytest.mark.parametrize("what", ["session_end_ns", "end_ns"])
def test_a_belief_that_lasts_longer_than_the_hold_is_seen(
    company: Company, server: Server, what: str
) -> None:
    server.shows(held(token(1), client_id_of(company), **{what: Node.time_ns + 498 * MS_NS}))
    with pytest.raises(LawBroken, match=r"is believed for 1\.000 ms longer"):
        believe(company, server, token(1))


def give_up_with_its_session(company: Company, hold: Told) -> None:
    hold.lost = hold.handle.name.table.ended = True
    company.now(hold, 0, 0)


def test_a_lease_may_be_given_up_with_its_session(company: Company, server: Server) -> None:
    server.shows(held(token(1), client_id_of(company)))
    hold = believe(company, server, token(1), leased=True)
    company.beliefs.breaks.add(LOCK[0])  # which changes nothing
    give_up_with_its_session(company, hold)
    assert company.seen["leases given up with their session"] == 1


def test_a_lease_that_the_server_gave_up_first_is_seen(company: Company, server: Server) -> None:
    server.shows(held(token(1), client_id_of(company)))
    hold = believe(company, server, token(1), leased=True)
    server.shows()
    with pytest.raises(LawBroken, match="is believed, and north, which is ready, does not have it"):
        give_up_with_its_session(company, hold)


def test_a_session_that_is_over_before_its_holds_are_is_seen(
    company: Company, server: Server
) -> None:
    server.shows(held(token(1), client_id_of(company)))
    hold = believe(company, server, token(1))
    with pytest.raises(LawBroken, match="is gone while it was believed"):
        give_up_with_its_session(company, hold)


def test_a_primary_that_recovers_grants_nothing_beside_a_belief(
    company: Company, server: Server
) -> None:
    server.world.registry._restoring.phase = Phase.RECOVERING
    server.shows(held(token(8, EPOCH - 1), 50))  # a claim that another may displace
    hold = believe(company, server, token(1, EPOCH - 1))
    server.shows(held(token(1), 50))
    with pytest.raises(LawBroken, match="north has granted token 3:1 to client 50"):
        company.beliefs.check_engine(LOCK)
    company.gives_back(hold)
    company.beliefs.check_engine(LOCK)


def test_a_real_engine_is_looked_at(company: Company, server: Server) -> None:
    world = server.world
    world.take(world.registry.request(1, 1, m.ClientInit(1, 1, {}), world.now_ns))
    world.run()
    lock = m.GetLocks((m.LockSpec(b"lock", ATOMIC, 1),))
    world.take(world.registry.request(1, 2, lock, world.now_ns))
    world.run()
    answer: Any = world.answers[1, 2]
    got = answer.results[0]
    assert server.view.look() == []
    world.engine.step([_core.Request(
        op=_core.DLK_OP_LOCK, lock_id=got.lock_id, slot=got.slot, owner=9)], world.now_ns)
    assert server.view.look() == [LOCK]
    assert server.granted == [token(1)]
    assert "'lock': held by client" in server.view.describe()
    assert server.view.look() == []


# ---- A new primary -------------------------------------------------------------------------------


class Place:
    """A world without people."""

    seed, session_ttl_ms, healing = 1, 1000, False
    primary = None
    clients = ()

    @property
    def now_ns(self) -> int:
        return Node.time_ns

    def say(self, actor: str, text: str) -> None:
        pass


def laws_with_a_hold(company: Company) -> tuple[Laws, Told]:
    laws = Laws(Place())
    diary = laws.diary(company.anna.node)
    hold = Told(diary, LOCK, EXCLUSIVE, token(1, EPOCH - 1), 500)
    diary.holds[hold.serial] = hold
    diary.fresh.append(hold)
    laws.after_step(diary.node)
    return laws, hold


def test_a_new_primary_waits_for_all_who_believe(company: Company, server: Server) -> None:
    laws, hold = laws_with_a_hold(company)
    entry = SimpleNamespace(client_id=hold.handle.name.table.session.id)
    server.primary.recovery = SimpleNamespace(reread=False, anybody=False, roster=(entry,))
    laws.primary_changed(server, server)


@pytest.mark.parametrize("plan", [None, SimpleNamespace(reread=False, anybody=False, roster=())])
def test_one_that_does_not_is_seen(company: Company, server: Server, plan: Any) -> None:
    laws, _ = laws_with_a_hold(company)
    server.primary.recovery = plan
    with pytest.raises(LawBroken, match="does not wait for its client"):
        laws.primary_changed(server, server)


def test_the_dead_believe_nothing(company: Company, server: Server) -> None:
    laws, _ = laws_with_a_hold(company)
    laws.crashed(company.anna.node)
    laws.primary_changed(server, server)


def test_epochs_grow(company: Company, server: Server) -> None:
    laws = Laws(Place())
    laws.primary_changed(None, server)
    with pytest.raises(LawBroken, match="begins with epoch 3, and there was 3 before"):
        laws.primary_changed(server, server)


# ---- Calls and the end ---------------------------------------------------------------------------


def run(laws: Laws, diary: Diary) -> None:
    for _ in range(1000):
        laws.after_step(diary.node)


def test_a_call_that_does_not_end_in_its_time_is_seen(company: Company) -> None:
    laws = Laws(Place())
    diary = laws.diary(company.anna.node)
    patient = diary.begins("a wait for ever", None)
    hasty = diary.begins("a wait for a second", SECOND_NS)
    later(1000 + laws.late_ns // MS_NS)
    run(laws, diary)
    later(1)
    with pytest.raises(LawBroken, match="a wait for a second should have ended"):
        run(laws, diary)
    diary.ends(hasty)
    run(laws, diary)
    diary.ends(patient)


def test_what_is_left_in_the_end_is_seen(company: Company, server: Server) -> None:
    laws = Laws(Place())
    laws.primary_changed(None, server)
    laws.at_end()
    world = server.world
    world.take(world.registry.request(1, 1, m.ClientInit(1, 1, {}), world.now_ns))
    world.run()
    with pytest.raises(LawBroken, match="everybody has left, and north has 1 clients"):
        laws.at_end()


def test_who_never_gives_back_is_seen_in_the_end(company: Company, server: Server) -> None:
    laws, _ = laws_with_a_hold(company)
    with pytest.raises(LawBroken, match="everybody has left, and anna has anna: lock"):
        laws.at_end()


def test_what_people_meet_breaks_the_next_step(company: Company) -> None:
    laws = Laws(Place())
    laws.broken_by(LawBroken("met by a user"))
    with pytest.raises(LawBroken, match="met by a user"):
        laws.after_step(company.anna.node)
