"""Queue pairs in the registry: whatever order things happen in, a queue pair is either the plane's
or given back, and a client is told of one that it can use, or to go over TCP.

The engine is real; the device is played: no registry needs one.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from registry_world import SECOND, TTL_MS, World, reinit

from dlock import _core
from dlock._core import Command, Event
from dlock._verbs import Address, Made
from dlock.control import messages as m
from dlock.control.registry_effects import Effect, FreePair, Note, OpenPair
from dlock.control.registry_recovery import RecoveryPlan
from dlock.types import DlockStatus as S

GID = bytes.fromhex("fe800000000000000000000000000001")
ASK = m.OpenQueuePair(17, 2**24 - 1, GID, 3, 4, 1, 16, 512, 128)
OWN = Address(99, 7, GID, 2, 5, 1, 16, 512, 128, 2**47)
FULL = Made(S.SERVER_NO_RESOURCE, OWN, 0, "no room for another queue pair")
BROKEN = Made(S.ERROR, OWN, 0, "the device is gone")


@dataclass
class PairWorld(World):
    """`to_make`: what the loop has not made yet. `pairs`: what every queue pair has come to."""

    refuse_links: bool = False
    fails: Made | None = None
    to_make: deque[OpenPair] = field(default_factory=deque)
    pairs: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.verbs = True
        super().__post_init__()

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, OpenPair):
                self.to_make.append(effect)
            elif isinstance(effect, FreePair):
                assert self.pairs[effect.pair] == "ours", "freed twice, or the plane's"
                self.pairs[effect.pair] = "freed"
        super().take(effects)

    def pair_step(self, seconds: float = 0.0) -> bool:
        """The loop makes one, which takes so long; False: none is to be made."""
        if not self.to_make:
            return False
        began_ns = self.now_ns
        self.now_ns += round(seconds * SECOND)
        made = self.fails or Made(S.SUCCESS, OWN, len(self.pairs) + 1)
        if made.status == S.SUCCESS:
            self.pairs[made.pair] = "ours"
        self.take(self.registry.pair_made(
            self.to_make.popleft().number, made, began_ns, self.now_ns))
        return True

    def plane_step(self) -> bool:
        if not self.commands or self.commands[0].op != _core.DLK_COMMAND_LINK_OPEN:
            return super().plane_step()
        command = self.commands.popleft()
        assert self.pairs[command.value] == "ours"
        if not self.refuse_links:
            self.pairs[command.value] = "the plane's"
        self.events.append(Event(
            _core.DLK_EVENT_DONE,
            _core.DLK_RESULT_NO_RESOURCE if self.refuse_links else _core.DLK_RESULT_DONE,
            command.slot, command.id, command.cookie, 0))
        return True

    def run(self) -> None:
        while self.pair_step() or self.plane_step() or self.event_step():
            pass

    def links_asked(self) -> list[Command]:
        return [one for one in self.of(Command) if one.op == _core.DLK_COMMAND_LINK_OPEN]


@pytest.fixture
def world() -> PairWorld:
    return PairWorld()


def words_of(world: World) -> list[str]:
    return [note.event for note in world.of(Note)]


def test_a_client_is_told_of_its_queue_pair_when_the_plane_has_it(world: PairWorld) -> None:
    welcome = world.init(1)
    assert welcome.verbs == 1
    key = world.send(1, ASK)
    (asked,) = world.to_make
    assert asked.peer == Address(17, 2**24 - 1, GID, 3, 4, 1, 16, 512, 128)
    assert key not in world.answers
    world.pair_step()
    (command,) = world.links_asked()
    assert (command.slot, command.id, command.value) == (
        welcome.session_slot, welcome.client_id, 1)
    assert key not in world.answers
    world.run()
    assert world.answers[key] == m.QueuePair(S.SUCCESS, *OWN)
    assert world.pairs == {1: "the plane's"}
    assert world.stats()["queue_pairs_under_way"] == 0


def test_a_server_without_rdma_says_so_in_the_welcome_and_refuses() -> None:
    world = World()
    assert world.init(1).verbs == 0
    assert world.ask(1, ASK) == m.QueuePair(S.ERROR)
    assert world.stats()["verbs"] == 0
    assert not world.of(OpenPair)


def test_who_has_no_session_gets_none(world: PairWorld) -> None:
    assert world.ask(1, ASK) == m.QueuePair(S.CLIENT_NOT_INIT)
    world.send(1, m.ClientInit(1, 1, {}))
    assert world.ask(1, ASK) == m.QueuePair(S.CLIENT_NOT_INIT), "its Welcome is under way"
    assert not world.pairs


@pytest.mark.parametrize("made", [FULL, BROKEN])
def test_one_that_cannot_be_made_is_refused_with_the_reason_in_the_log(
    world: PairWorld, made: Made
) -> None:
    client_id = world.init(1).client_id
    world.fails = made
    assert world.ask(1, ASK) == m.QueuePair(S(made.status))
    (note,) = [note for note in world.of(Note) if note.event == "no queue pair for a client"]
    assert note.fields == {"client_id": client_id, "reason": made.reason}
    assert world.stats()["QUEUE_PAIRS_REFUSED"] == world.stats()[S(made.status).name] == 1
    world.fails = None
    assert world.ask(1, ASK).status is S.SUCCESS, "it may ask again"


def test_what_fails_takes_only_a_part_of_the_servers_time(world: PairWorld) -> None:
    """A network in which nobody finds the other's address: a second for each attempt."""
    world.init(1)
    world.fails = BROKEN
    for _ in range(3):
        key = world.send(1, ASK)
        world.pair_step(1.0)
        assert world.status(key) is S.ERROR
    began_ns, tried = world.now_ns, 0
    while world.now_ns < began_ns + 100 * SECOND:
        world.now_ns += SECOND // 10
        key = world.send(1, ASK)
        tried += world.pair_step(1.0)
        assert world.status(key) is S.ERROR, "at once: it goes over TCP"
    assert 8 <= tried <= 12, "in a hundred seconds"
    world.now_ns += 60 * SECOND
    world.fails = None
    assert world.ask(1, ASK).status is S.SUCCESS


def test_what_succeeds_may_take_as_long_as_it_takes(world: PairWorld) -> None:
    welcome = world.init(1)
    for _ in range(10):
        key = world.send(1, ASK)
        world.pair_step(1.0)
        world.run()
        assert world.status(key) is S.SUCCESS
        world.reinit(1, welcome)


def test_one_that_the_plane_does_not_take_is_given_back(world: PairWorld) -> None:
    world.init(1)
    world.refuse_links = True
    assert world.ask(1, ASK) == m.QueuePair(S.SERVER_NO_RESOURCE)
    assert world.pairs == {1: "freed"}
    world.refuse_links = False
    assert world.ask(1, ASK).status is S.SUCCESS, "it may ask again"


def test_an_attach_number_gets_one(world: PairWorld) -> None:
    welcome = world.init(1)
    first, second = world.send(1, ASK), world.send(1, ASK)
    assert world.answers[second] == m.QueuePair(S.ERROR), "while the first is under way"
    world.run()
    assert world.status(first) is S.SUCCESS
    assert world.ask(1, ASK) == m.QueuePair(S.ERROR)
    assert len(world.pairs) == 1
    world.reinit(1, welcome)
    assert world.ask(1, ASK).status is S.SUCCESS, "a new Welcome, a new attach number"


def test_a_connection_that_closes_before_it_is_made(world: PairWorld) -> None:
    world.init(1)
    world.send(1, ASK)
    world.take(world.registry.disconnected(1))
    world.run()
    assert world.pairs == {1: "freed"}
    assert not world.links_asked()


def test_a_connection_that_closes_before_it_is_done(world: PairWorld) -> None:
    world.init(1)
    key = world.send(1, ASK)
    world.pair_step()
    world.take(world.registry.disconnected(1))
    world.run()
    assert world.pairs == {1: "the plane's"}, "where nobody attaches it: it ends there"
    assert world.status(key) is S.ERROR, "to a connection that is gone"


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_session_that_is_taken_up_by_another_connection_meanwhile(
    world: PairWorld, steps: int
) -> None:
    welcome = world.init(1)
    key = world.send(1, ASK)
    for step in (world.pair_step, world.plane_step)[:steps]:
        assert step()
    again = world.send(2, reinit(welcome))
    world.run()
    assert world.status(again) is S.SUCCESS
    assert world.status(key) is S.ERROR
    assert world.pairs == {1: "freed" if steps == 0 else "the plane's"}
    assert world.ask(2, ASK).status is S.SUCCESS


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_session_that_is_taken_up_again_by_its_own_connection_meanwhile(
    world: PairWorld, steps: int
) -> None:
    welcome = world.init(1)
    key = world.send(1, ASK)
    for step in (world.pair_step, world.plane_step)[:steps]:
        assert step()
    world.send(1, reinit(welcome))
    world.run()
    assert world.status(key) is S.ERROR, "its attach number is of no use any more"
    assert world.pairs == {1: "freed" if steps == 0 else "the plane's"}
    assert world.ask(1, ASK).status is S.SUCCESS


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_session_that_leaves_meanwhile(world: PairWorld, steps: int) -> None:
    world.init(1)
    key = world.send(1, ASK)
    for step in (world.pair_step, world.plane_step)[:steps]:
        assert step()
    left = world.send(1, m.ClientDeinit())
    world.run()
    assert world.status(left) is S.SUCCESS
    assert world.status(key) is S.CLIENT_REMOVED_BY_SERVER
    assert world.pairs == {1: "freed" if steps == 0 else "the plane's"}


@pytest.mark.parametrize("steps", [0, 1])
def test_a_session_that_expires_meanwhile(world: PairWorld, steps: int) -> None:
    world.init(1)
    key = world.send(1, ASK)
    if steps:
        world.pair_step()
    world.later(TTL_MS / 1000 + 1)
    while world.event_step():
        pass
    world.run()
    assert world.closed == [1]
    assert world.status(key) is S.CLIENT_REMOVED_BY_SERVER
    assert world.pairs == {1: "freed" if steps == 0 else "the plane's"}


def test_a_plane_that_refuses_the_link_of_a_session_that_is_gone(world: PairWorld) -> None:
    world.init(1)
    key = world.send(1, ASK)
    world.pair_step()
    world.refuse_links = True
    world.send(1, m.ClientDeinit())
    world.run()
    assert world.status(key) is S.CLIENT_REMOVED_BY_SERVER
    assert world.pairs == {1: "freed"}


def test_who_comes_back_while_the_server_recovers_gets_one() -> None:
    world = PairWorld(recovery=RecoveryPlan(1_000_000_000_000, TTL_MS, count=2, trusted=True))
    key = world.send(1, m.ClientReinit(1, 1, 5, b"s" * 16, 2, 7, 1, {}))
    world.run()
    assert world.answers[key].verbs == 1  # type: ignore[attr-defined]
    assert world.stats()["ready"] == 0
    assert world.ask(1, ASK).status is S.SUCCESS
    assert world.ask(2, ASK).status is S.NOT_READY


def test_a_client_that_came_over_a_queue_pair_is_listed_so(world: PairWorld) -> None:
    welcome = world.init(1)
    world.init(2)
    world.ask(1, ASK)
    lines = world.ask(2, m.ListClients(0)).clients
    assert [line.verbs for line in lines] == [True, False]
    world.reinit(1, welcome)
    assert not world.ask(2, m.ListClients(0)).clients[0].verbs, "over TCP, until it asks again"


# ---- Keys of objects -----------------------------------------------------------------------------


class KeyWorld(PairWorld):
    """Its plane binds a key to every cell."""

    def plane_step(self) -> bool:
        opens = self.commands and self.commands[0].op == _core.DLK_COMMAND_CELL_OPEN
        stepped = super().plane_step()
        if opens:
            self.events[-1] = self.events[-1]._replace(value=0xFFFF0000 + self.events[-1].id)
        return stepped


def test_the_key_of_an_object_is_told_to_all_who_create_or_get_it() -> None:
    world = KeyWorld()
    world.init(1)
    world.init(2)
    made = world.ask(1, m.ObjectCreate(b"o", 5, 60))
    assert made == m.ObjectId(S.SUCCESS, 1, 0, 0xFFFF0001)
    assert world.ask(2, m.ObjectGet(b"o", 0)) == made
    assert world.ask(2, m.ObjectGet(b"p", 0)) == m.ObjectId(S.OBJECT_NOT_CREATE)


def test_without_rdma_an_object_has_no_key() -> None:
    plain = World()
    plain.init(1)
    assert plain.ask(1, m.ObjectCreate(b"o", 5, 60)) == m.ObjectId(S.SUCCESS, 1, 0, 0)


# ---- What happens to RDMA ------------------------------------------------------------------------


def happened(world: World, what: int, client_id: int = 0, code: int = 0, links: int = 1) -> Note:
    world.take(world.registry.event(
        Event(_core.DLK_EVENT_VERBS, what, 0, client_id, code, links), world.now_ns))
    return world.of(Note)[-1]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("what", "words", "counter", "level"), [
    (_core.DLK_VERBS_PEER_GONE, "does not answer", "VERBS_PEER_GONE", logging.INFO),
    (_core.DLK_VERBS_ACCESS, "key", "VERBS_ACCESS", logging.WARNING),
    (_core.DLK_VERBS_WINDOW_FULL, "more than there is room", "VERBS_WINDOW_FULL", logging.WARNING),
    (_core.DLK_VERBS_PAIR_ERROR, "broken", "VERBS_BROKEN", logging.WARNING),
])
def test_what_ends_a_clients_queue_pair_is_one_line_with_the_client(
    world: PairWorld, what: int, words: str, counter: str, level: int
) -> None:
    client_id = world.init(1).client_id
    note = happened(world, what, client_id, 12)
    assert words in note.event
    assert note.fields == {"client_id": client_id, "info": {"host": "here"},
                           "reason": "IBV_WC_RETRY_EXC_ERR"}
    assert note.level == level
    assert world.stats()[counter] == 1
    assert world.ask(1, m.Heartbeat()).status is S.SUCCESS, "the session lives"


def test_what_verbs_have_no_name_for_is_told_by_its_number(world: PairWorld) -> None:
    client_id = world.init(1).client_id
    assert happened(world, _core.DLK_VERBS_PAIR_ERROR, client_id, 77).fields["reason"] == (
        "IBV_WC_77")
    assert happened(world, _core.DLK_VERBS_PORT_DOWN, 0, 99).fields["reason"] == "IBV_EVENT_99"
    assert "reason" not in happened(world, _core.DLK_VERBS_WINDOW_FULL, client_id).fields


def test_every_event_of_verbs_has_its_line() -> None:
    world = PairWorld()
    before = world.stats()
    for what in range(1, _core.DLK_VERBS_EVENT_COUNT):
        happened(world, what)
    counted = {name for name, count in world.stats().items()
               if name.isupper() and count > before.get(name, 0)}
    assert len(counted) == len(world.of(Note)) == _core.DLK_VERBS_EVENT_COUNT - 1


def test_when_the_device_is_lost_nobody_is_offered_rdma_any_more() -> None:
    world = KeyWorld()
    welcome = world.init(1)
    world.ask(1, m.ObjectCreate(b"o", 5, 60))
    under_way = world.send(1, ASK)
    world.refuse_links = True
    note = happened(world, _core.DLK_VERBS_DEVICE_LOST, 0, 8, 3)
    assert "TCP" in note.event
    assert note.fields == {"reason": "IBV_EVENT_DEVICE_FATAL", "links_ended": 3}
    assert note.level == logging.ERROR
    world.run()
    assert world.status(under_way) is S.SERVER_NO_RESOURCE
    assert world.reinit(1, welcome).verbs == 0
    assert world.ask(1, ASK) == m.QueuePair(S.ERROR)
    assert world.ask(1, m.ObjectGet(b"o", 0)).key == 0
    assert world.stats()["verbs"] == 0


# ---- Every order ---------------------------------------------------------------------------------


class EveryOrder(RuleBasedStateMachine):
    """Two clients on any of six connections; loop, plane and events run as far behind as chance
    has it."""

    def __init__(self) -> None:
        super().__init__()
        self.world = PairWorld()
        self.asked: list[tuple[int, int]] = []
        self.welcomes = [self.world.init(1), self.world.init(2)]
        self.places = [1, 2]  # the newest connection of each
        self.used = 2

    @rule(who=st.integers(0, 1))
    def ask(self, who: int) -> None:
        self.asked.append(self.world.send(self.places[who], ASK))

    @rule(who=st.integers(0, 1))
    def come_again(self, who: int) -> None:
        self.used += 1
        self.places[who] = self.used
        self.world.send(self.used, reinit(self.welcomes[who]))

    @rule(who=st.integers(0, 1))
    def close(self, who: int) -> None:
        self.world.take(self.world.registry.disconnected(self.places[who]))

    @rule(who=st.integers(0, 1))
    def leave(self, who: int) -> None:
        self.world.send(self.places[who], m.ClientDeinit())

    @rule()
    def a_session_time_passes(self) -> None:
        self.world.later(TTL_MS / 1000 + 1)

    @rule(refuse=st.booleans())
    def the_plane_refuses(self, refuse: bool) -> None:
        self.world.refuse_links = refuse

    @rule(made=st.sampled_from([None, FULL, BROKEN]))
    def the_device_fails(self, made: Made | None) -> None:
        self.world.fails = made

    @precondition(lambda self: self.world.to_make)
    @rule()
    def make(self) -> None:
        self.world.pair_step()

    @precondition(lambda self: self.world.commands)
    @rule()
    def carry_out(self) -> None:
        self.world.plane_step()

    @precondition(lambda self: self.world.events)
    @rule()
    def tell(self) -> None:
        self.world.event_step()

    @invariant()
    def only_a_pair_of_the_plane_is_told(self) -> None:
        told = sum(self.world.answers.get(key) == m.QueuePair(S.SUCCESS, *OWN)
                   for key in self.asked)
        assert told <= list(self.world.pairs.values()).count("the plane's")

    def teardown(self) -> None:
        self.world.run()
        assert "ours" not in self.world.pairs.values(), "one is neither the plane's nor freed"
        assert all(key in self.world.answers for key in self.asked)
        assert self.world.stats()["queue_pairs_under_way"] == 0


TestEveryOrder: Any = EveryOrder.TestCase
TestEveryOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
