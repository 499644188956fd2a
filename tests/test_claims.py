"""What a session tells a new primary, and what it makes of the answers: the steps, driven by hand
over a real C client. The primary's part is played by the test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from session_tools import ATOMIC, RW, SEMAPHORE, ByHand, key

from dlock import _claims, _core, _enter
from dlock._calls import look
from dlock._core import lib
from dlock._session import Attach, Refusal, Settle
from dlock._transport import Wish
from dlock.control.link import LinkError
from dlock.control.messages import (
    BATCH_MAX,
    LockClaim,
    ReinitDone,
    Statuses,
    UpdateLocks,
    Welcome,
)
from dlock.server import Server, ServerConfig
from dlock.types import DlockStatus as S


@pytest.fixture
def hand() -> Iterator[ByHand]:
    server = Server(ServerConfig(port=0, wait_mode="block"))
    one = ByHand(server)
    yield one
    one.close()
    server.stop()


class Telling:
    """Claims of a session under way: `claims` are those of the last exchange."""

    def __init__(self, hand: ByHand) -> None:
        self._steps = _claims.claiming(hand.session)
        self.over = False
        self.claims: list[LockClaim] = []
        self.exchanges: list[int] = []
        self._go(None)

    def _go(self, replies: Any) -> None:
        try:
            asked = self._steps.send(replies)
        except StopIteration:
            self.over = True
            return
        assert isinstance(asked, list)
        self.batches = [len(one.claims) for one in asked]
        self.claims = [claim for one in asked for claim in one.claims]
        self.exchanges.append(len(self.claims))

    def answer(self, statuses: Sequence[S]) -> None:
        """One status a claim, in the batches in which they were asked."""
        replies, left = [], list(statuses)
        for count in self.batches:
            replies.append(Statuses(S.SUCCESS, tuple(left[:count])))
            del left[:count]
        self._go(replies)

    def fail(self, problem: Exception) -> None:
        self._steps.throw(problem)


def as_tuple(claim: LockClaim, *fields: str) -> tuple[object, ...]:
    return tuple(getattr(claim, field) for field in fields)


def test_every_name_is_claimed_and_what_is_held_of_it(hand: ByHand) -> None:
    held = hand.take(key("held"))
    slots = [hand.take(key("slots", SEMAPHORE, 3)) for _ in range(2)]
    reader = hand.take(key("book", RW))
    reader.acquire.mode = _core.DLK_MODE_SHARED
    hand.take(key("idle")).name.table.give_back(hand.take(key("idle")))
    for handle in (held, *slots, reader):
        assert hand.lock(handle) == S.SUCCESS
    telling = Telling(hand)
    claims = {(one.descriptor, one.owner): one for one in telling.claims}
    assert len(telling.claims) == 5
    fields = ("size", "kind", "state", "mode", "token", "lapsed", "leased", "count")
    entry = _core.DLK_ENTRY_HELD
    assert as_tuple(claims[b"held", held.owner], *fields) == (
        1, ATOMIC, entry, 0, held.acquire.token, 0, 0, 1)
    for slot in slots:
        assert as_tuple(claims[b"slots", slot.owner], *fields) == (
            3, SEMAPHORE, entry, 0, slot.acquire.token, 0, 0, 1)
    assert as_tuple(claims[b"book", reader.owner], *fields) == (
        1, RW, entry, 1, reader.acquire.token, 0, 0, 1)
    idle = next(one for one in telling.claims if one.descriptor == b"idle")
    assert as_tuple(idle, "size", "kind", "state", "token") == (1, ATOMIC, _core.DLK_ENTRY_FREE, 0)
    names = {name.key[0]: name for name in hand.session.names.known().values()}
    for one in telling.claims:
        name = names[one.descriptor]
        assert (one.lock_id, one.slot) == (name.lock_id, name.slot)
    telling.answer([S.SUCCESS] * 5)
    assert telling.over
    assert len(hand.session.names.known()) == 4


def test_a_primary_that_knows_everything_is_not_told_again(hand: ByHand) -> None:
    """The link was lost before the ReinitDone was answered. What that primary has granted by then
    would be refused as a claim, and lost."""
    hand.take(key("a"))
    epoch = hand.session.epoch + 1
    welcome, later = (
        Welcome(S.SUCCESS, 1, hand.session.id, 0, hand.session.secret, 2, 1, one, 77, 10_000,
                10_000, 10_000) for one in (epoch, epoch + 1))
    steps = _enter._take_up(hand.session, Wish(), "127.0.0.1", welcome)
    (update,) = next(steps)
    assert isinstance(update, UpdateLocks)
    assert isinstance(steps.send([Statuses(S.SUCCESS, (S.SUCCESS,))]), Attach)  # the data link
    assert isinstance(steps.send(S.SUCCESS), Settle)  # debts
    (done,) = steps.send(S.SUCCESS)
    assert isinstance(done, ReinitDone)
    with pytest.raises(LinkError):
        steps.throw(LinkError("lost"))
    assert isinstance(next(_enter._take_up(hand.session, Wish(), "127.0.0.1", welcome)), Attach)
    (update,) = next(_enter._take_up(hand.session, Wish(), "127.0.0.1", later))
    assert isinstance(update, UpdateLocks)


def test_what_is_not_taken_over_is_gone(hand: ByHand) -> None:
    handles = {name: hand.take(key(name)) for name in ("kept", "lost", "unknown", "idle")}
    for name in ("kept", "lost", "unknown"):
        assert hand.lock(handles[name]) == S.SUCCESS
    hand.session.names.give_back(handles["idle"])
    telling = Telling(hand)
    answers = {b"kept": S.SUCCESS, b"lost": S.FAIL}
    telling.answer([answers.get(one.descriptor, S.LOCK_NOT_GET) for one in telling.claims])
    assert telling.over
    names = hand.session.names
    assert [name.key[0] for name in names.known().values()] == [b"kept"]
    assert look(handles["kept"]).token == handles["kept"].acquire.token
    for name in ("lost", "unknown"):
        assert look(handles[name]).token == 0
        assert names.take(key(name), 0) is None  # to be resolved again
    assert names.take(key("idle"), 0) is None


def test_a_handle_that_was_taken_before_names_nothing_afterwards(hand: ByHand) -> None:
    """Its lock id may be another lock's by now."""
    handle = hand.take(key("a"))
    hand.session.names.give_back(handle)
    taken = hand.session.names.take(key("a"), 0)
    assert taken is handle
    Telling(hand).answer([S.LOCK_NOT_GET])
    assert hand.lock(handle) == S.LOCK_NOT_GET
    hand.session.names.give_back(handle)
    assert hand.session.names.take(key("a"), 7) is None
    assert not hand.session.names._rebind(handle, 7)


def test_many_claims_go_in_batches_and_windows(hand: ByHand, monkeypatch) -> None:
    monkeypatch.setattr(_claims, "WINDOW", 2 * BATCH_MAX)
    keys = [key(f"name {number}") for number in range(5 * BATCH_MAX)]
    handles = [hand.take(one) for one in keys]
    for handle in handles:
        assert hand.lock(handle) == S.SUCCESS
    telling = Telling(hand)
    seen = list(telling.claims)
    assert telling.batches == [BATCH_MAX] * 2
    while not telling.over:
        telling.answer([S.SUCCESS] * len(telling.claims))
        seen += [] if telling.over else telling.claims
    assert telling.exchanges == [2 * BATCH_MAX, 2 * BATCH_MAX, BATCH_MAX]
    assert sorted(one.descriptor for one in seen) == sorted(one[0] for one in keys)
    assert not any(one.lapsed for one in seen)


def test_what_ends_before_its_claim_is_sent_is_not_claimed_as_live(
    hand: ByHand, monkeypatch
) -> None:
    monkeypatch.setattr(_claims, "WINDOW", 2)
    handles = [hand.take(key(f"name {number}")) for number in range(6)]
    for number, handle in enumerate(handles):
        handle.acquire.lease_ms = 3_000_000 if number % 2 else 0
        assert hand.lock(handle) == S.SUCCESS
    telling = Telling(hand)
    first = list(telling.claims)
    assert all(one.lapsed == 0 for one in first)
    late = handles[2:]
    for handle in late[:2]:
        lib.dlk_client_call(handle.client, handle.release)  # no link: it is owed
    telling.answer([S.SUCCESS] * 2)
    assert [as_tuple(one, "lapsed", "remaining_ms") for one in telling.claims] == [(1, 0)] * 2
    telling.answer([S.SUCCESS] * 2)
    assert [one.lapsed for one in telling.claims] == [0, 0]
    assert 2_000_000 < max(one.remaining_ms for one in telling.claims) <= 3_000_000


def test_it_can_be_begun_anew(hand: ByHand) -> None:
    handle = hand.take(key("a"))
    assert hand.lock(handle) == S.SUCCESS
    token = handle.acquire.token
    for problem in (LinkError("it broke"), Refusal(S.NOT_READY)):
        telling = Telling(hand)
        with pytest.raises(type(problem)):
            telling.fail(problem)
        assert look(handle).token == token
    refused = Telling(hand)
    with pytest.raises(Refusal):
        refused._go([Statuses(S.SERVER_NO_RESOURCE)])
    short = Telling(hand)
    with pytest.raises(LinkError):
        short._go([Statuses(S.SUCCESS, ())])
    telling = Telling(hand)
    telling.answer([S.SUCCESS])
    assert telling.over
    assert look(handle).token == token


def test_names_of_the_former_primary_that_come_late_are_not_entered(hand: ByHand) -> None:
    session = hand.session
    resolving = session.resolve([key("late")])
    requests = next(resolving)
    replies = hand.link.exchange(requests, 10)
    session.epoch += 1  # a new primary has welcomed it meanwhile
    with pytest.raises(StopIteration):
        resolving.send(replies)
    assert key("late") not in session.names


def test_names_that_were_let_go_are_remembered_if_the_new_primary_has_them(hand: ByHand) -> None:
    names = hand.session.names
    handle = hand.take(key("a"))
    names.parting.update({key("b"): 1000, key("c"): 1001})
    telling = Telling(hand)
    names.keep({handle.name.lock_id, 1000})
    assert names.parting == {key("b"): 1000}
    telling.answer([S.SUCCESS])
    assert names.parting == {}
