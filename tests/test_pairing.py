"""How a client comes to a queue pair, or to TCP instead: every branch of the policy, driven by hand
over real C clients. No device is needed; what one would do is the test's part."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from pairing_tools import GID, PORT, THEIRS, PretendPair, World, own_end, welcome

from dlock import _enter, _pairing, _verbs
from dlock._enter import Options, Seen, entering
from dlock._pairing import (
    AVOID_S,
    AVOIDED_MAX,
    Avoided,
    NewEnd,
    NoVerbs,
    OwnEnd,
    pairing,
    unreached,
)
from dlock._session import Attach, Session
from dlock._transport import Transport, Wish
from dlock._verbs import VerbsError
from dlock.address import parse
from dlock.control.link import LinkError
from dlock.control.messages import Heartbeat, OpenQueuePair, QueuePair
from dlock.errors import ConnectError
from dlock.types import DlockStatus as S

AUTO, ONLY, TCP = Wish("auto"), Wish("verbs"), Wish("tcp")
PLACE = "10.0.0.9:21616"
LOG = "dlock.client"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    """Of the servers that are avoided; nothing of it is left for other tests."""
    one = Clock()
    monkeypatch.setattr(_pairing, "avoided", Avoided(one))
    return one


@pytest.fixture
def world() -> World:
    return World()


def begin(wish: Wish, **changed: Any) -> Any:
    return pairing(wish, PLACE, welcome(**changed))


def ended(steps: Any, sent: Any = None) -> Any:
    """What these steps return to this outcome."""
    with pytest.raises(StopIteration) as end:
        steps.send(sent)
    return end.value.value


# ---- The steps of one attempt --------------------------------------------------------------------


def test_who_wants_tcp_asks_for_nothing() -> None:
    assert ended(begin(TCP)) == Transport("tcp", None, "TCP was asked for")


def test_a_server_without_rdma_is_not_asked_and_no_device_is_opened() -> None:
    way = ended(begin(AUTO, verbs=0))
    assert (way.kind, way.device) == ("tcp", None)
    assert "dlock serve" in way.why
    with pytest.raises(NoVerbs, match=r"dlock serve.*auto") as raised:
        next(begin(ONLY, verbs=0))
    assert (raised.value.status, raised.value.here) == (S.SERVER_NO_RESOURCE, False)


def test_without_a_device_it_is_tcp_and_the_server_is_not_asked() -> None:
    steps = begin(AUTO)
    assert next(steps) == NewEnd(AUTO)
    assert ended(steps, "no device here") == Transport("tcp", None, "no device here")
    steps = begin(ONLY)
    next(steps)
    with pytest.raises(NoVerbs, match="no device here") as raised:
        steps.send("no device here")
    assert (raised.value.status, raised.value.here) == (S.ERROR, True)


def test_the_server_is_told_of_this_end_and_its_answer_is_kept() -> None:
    steps, end = begin(AUTO), own_end()
    next(steps)
    (asked,) = steps.send(end)
    assert asked == OpenQueuePair(17, 5, GID, 0, 3, 1, 16, 512, 16)
    assert ended(steps, [THEIRS]) is end
    assert end.peer == THEIRS
    assert end.pair.freed == 0
    assert end.transport == Transport(
        "verbs", "rxe7", "rxe7 port 1 (soft RoCE v2, GID 192.0.2.1) is up")
    assert str(end.transport) == "verbs rxe7"


@pytest.mark.parametrize("status", [S.SERVER_NO_RESOURCE, S.ERROR, S.NOT_READY,
                                    S.CLIENT_REMOVED_BY_SERVER])
def test_a_refused_end_is_freed_and_it_is_tcp_with_the_same_welcome(status: S) -> None:
    steps, end = begin(AUTO), own_end()
    next(steps)
    steps.send(end)
    way = ended(steps, [QueuePair(status)])
    assert way.kind == "tcp"
    assert len(way.why) > 20
    assert end.pair.freed == 1
    steps, end = begin(ONLY), own_end()
    next(steps)
    steps.send(end)
    with pytest.raises(NoVerbs) as raised:
        steps.send([QueuePair(status)])
    assert (raised.value.status, raised.value.here) == (status, False)
    assert end.pair.freed == 1


@pytest.mark.parametrize("wish", [AUTO, ONLY])
def test_an_end_is_freed_if_the_control_link_is_lost_before_the_answer(wish: Wish) -> None:
    steps, end = begin(wish), own_end()
    next(steps)
    steps.send(end)
    with pytest.raises(LinkError):
        steps.throw(LinkError("gone"))
    assert end.pair.freed == 1


def test_an_end_is_freed_if_the_wait_for_the_answer_is_given_up() -> None:
    steps, end = begin(AUTO), own_end()
    next(steps)
    steps.send(end)
    steps.close()
    assert end.pair.freed == 1


# ---- This end ------------------------------------------------------------------------------------


def test_what_was_asked_for_is_chosen(monkeypatch) -> None:
    chosen: list[_verbs.Wish] = []

    def choose(wish: _verbs.Wish) -> _verbs.Port:
        chosen.append(wish)
        return PORT

    monkeypatch.setattr(_verbs, "choose", choose)
    monkeypatch.setattr(_verbs, "QueuePair", lambda _port: PretendPair())
    wish = _verbs.Wish(b"rxe7", GID)
    end = NewEnd(Wish("auto", wish)).make()
    assert isinstance(end, OwnEnd)
    assert (end.port, chosen) == (PORT, [wish])


def test_a_device_that_vanishes_after_it_was_chosen_is_none(monkeypatch) -> None:
    def vanished(_port: _verbs.Port) -> None:
        raise VerbsError("rxe7 is gone")

    monkeypatch.setattr(_verbs, "choose", lambda _wish: PORT)
    monkeypatch.setattr(_verbs, "QueuePair", vanished)
    assert NewEnd(AUTO).make() == "rxe7 is gone"


def test_a_device_that_is_not_there_is_told_in_words() -> None:
    """The real functions: no machine has a device of this name."""
    said = NewEnd(Wish("auto", _verbs.wish_of("none_of_ours", None))).make()
    assert isinstance(said, str)
    assert len(said) > 20


# ---- Who is avoided ------------------------------------------------------------------------------


def test_a_server_that_was_not_reached_is_reached_over_tcp_for_a_minute(clock: Clock) -> None:
    unreached(AUTO, PLACE, own_end())
    way = ended(begin(AUTO))
    assert way.kind == "tcp"
    assert "60 s" in way.why
    clock.now += AVOID_S - 1
    assert ended(begin(AUTO)).kind == "tcp"
    clock.now += 1
    assert isinstance(next(begin(AUTO)), NewEnd)


def test_another_server_or_device_is_not_avoided_with_it() -> None:
    unreached(AUTO, PLACE, own_end())
    assert isinstance(next(pairing(AUTO, "10.0.0.8:21616", welcome())), NewEnd)
    other = Wish("auto", _verbs.Wish(b"mlx5_0"))
    assert isinstance(next(begin(other)), NewEnd)


def test_who_wants_rdma_alone_avoids_nobody() -> None:
    assert not unreached(ONLY, PLACE, own_end()).again
    assert isinstance(next(begin(ONLY)), NewEnd)
    assert unreached(AUTO, PLACE, own_end()).again
    assert isinstance(next(begin(ONLY)), NewEnd)


def test_what_is_avoided_can_be_forgotten() -> None:
    unreached(AUTO, PLACE, own_end()).forget()
    assert isinstance(next(begin(AUTO)), NewEnd)


def test_only_so_many_servers_are_remembered(clock: Clock) -> None:
    avoided = Avoided(clock)
    for number in range(AVOIDED_MAX + 10):
        avoided.add(f"server {number}", AUTO)
    assert sum(avoided.left_s(f"server {number}", AUTO) > 0
               for number in range(AVOIDED_MAX + 10)) == AVOIDED_MAX
    assert avoided.left_s(f"server {AVOIDED_MAX + 9}", AUTO) == AVOID_S


# ---- Entering ------------------------------------------------------------------------------------


class Entering:
    """A client that enters, first and again."""

    def __init__(self, world: World, wish: Wish) -> None:
        self.world = world
        self.options = Options(parse(PLACE), 0, {}, wish)
        self.seen = Seen()
        self.session: Session | None = None

    def enter(self, deadline: float | None = None) -> Session:
        """Until it has a session; a deadline of 0 is over."""
        self.session = self.world.run(entering(self.options, self.seen, self.session, deadline))
        return self.session


@pytest.fixture
def client(world: World) -> Iterator[Any]:
    made: list[Entering] = []

    def one(wish: Wish) -> Entering:
        made.append(Entering(world, wish))
        return made[-1]

    yield one
    for client in made:
        if client.session is not None:
            client.session.end()


def said(caplog, level: int) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == level]


def test_a_session_over_rdma(world: World, client, caplog) -> None:
    caplog.set_level(logging.INFO, LOG)
    session = client(AUTO).enter()
    assert world.log == ["connect", "init", "new end", "open", "attach verbs"]
    assert session.transport.kind == "verbs"
    assert session.transport.device == "rxe7"
    (line,) = said(caplog, logging.INFO)
    assert PLACE in line
    assert "RDMA, device rxe7" in line


def test_it_is_said_once_what_was_taken_and_again_when_that_changes(
    world: World, client, caplog
) -> None:
    caplog.set_level(logging.INFO, LOG)
    one = client(AUTO)
    one.enter()
    one.enter()
    assert len(said(caplog, logging.INFO)) == 1
    world.verbs = 0
    one.enter()
    one.enter()
    (_, line) = said(caplog, logging.INFO)
    assert "over TCP: the server has no RDMA" in line
    assert one.session.transport.kind == "tcp"


def test_who_wants_tcp_is_told_nothing(world: World, client, caplog) -> None:
    caplog.set_level(logging.INFO, LOG)
    assert client(TCP).enter().transport.kind == "tcp"
    assert world.log == ["connect", "init", "attach tcp"]
    assert not caplog.records


def test_a_refused_queue_pair_costs_no_second_welcome(world: World, client) -> None:
    world.pair = QueuePair(S.SERVER_NO_RESOURCE)
    session = client(AUTO).enter()
    assert world.log == ["connect", "init", "new end", "open", "attach tcp"]
    assert "--max-clients" in session.transport.why
    assert world.freed == [1]


def test_a_server_that_is_not_reached_over_rdma_is_entered_over_tcp_at_once(
    world: World, client, caplog
) -> None:
    caplog.set_level(logging.INFO, LOG)
    world.attach["verbs"] = S.BAD_RESPONSE
    session = client(AUTO).enter()
    assert world.log == ["connect", "init", "new end", "open", "attach verbs", "deinit",
                         "connect", "init", "attach tcp"]
    assert session.transport.kind == "tcp"
    assert session.id == 8  # another one: the first was given up
    assert world.freed == [1]
    (warning,) = said(caplog, logging.WARNING)
    assert PLACE in warning
    assert "dlock rdma" in warning
    assert len(said(caplog, logging.INFO)) == 1
    assert _pairing.avoided.left_s(PLACE, AUTO) == AVOID_S


def test_a_server_that_is_not_reached_at_all_says_nothing_of_rdma(world: World, client) -> None:
    world.attach.update(verbs=S.BAD_RESPONSE, tcp=S.BAD_RESPONSE)
    with pytest.raises(ConnectError, match="data port 1 does not answer"):
        client(AUTO).enter(deadline=0)
    assert world.log[-3:] == ["init", "attach tcp", "deinit"]
    assert _pairing.avoided.left_s(PLACE, AUTO) == 0


def test_a_session_goes_on_over_tcp_if_it_is_not_reached_over_rdma_any_more(
    world: World, client
) -> None:
    one = client(AUTO)
    session = one.enter()
    world.attach["verbs"] = S.BAD_RESPONSE
    world.log.clear()
    assert one.enter() is session
    assert world.log == [
        "connect", "reinit", "new end", "open", "attach verbs", "beat",  # which keeps it alive
        "connect", "reinit", "attach tcp", "done"]
    assert session.transport.kind == "tcp"


def test_a_session_names_its_new_link_before_anything_is_answered_over_it(
    world: World, client
) -> None:
    """Other threads wait for that link: one that is answered over it may ask which it was."""
    one = client(AUTO)
    session = one.enter()
    world.attach["verbs"] = S.BAD_RESPONSE
    named = []

    def look(step) -> None:
        if isinstance(step, Attach):
            named.append((step.end is not None, session.transport.kind))

    world.before = look
    one.enter()
    assert named == [(True, "verbs"), (False, "tcp")]


def test_a_session_goes_on_over_rdma_at_a_new_primary(world: World, client) -> None:
    one = client(AUTO)
    session = one.enter()
    world.welcome = {"epoch": 4, "incarnation": 78}
    world.log.clear()
    assert one.enter() is session
    assert world.log == ["connect", "reinit", "new end", "open", "attach verbs", "done"]
    assert session.home == (4, 78)
    assert session.transport.kind == "verbs"


def test_rdma_alone_without_a_device_is_an_error_at_once(world: World, client) -> None:
    world.device = "no RDMA device here"
    with pytest.raises(ConnectError, match=r'no RDMA device here.*"auto"'):
        client(ONLY).enter()
    assert world.log == ["connect", "init", "new end", "deinit"]


def test_rdma_alone_at_a_server_without_is_an_error_when_the_time_is_over(
    world: World, client
) -> None:
    world.verbs = 0
    with pytest.raises(TimeoutError):  # it goes on while there is time
        client(ONLY).enter()
    assert world.log.count("init") == 3
    assert world.log.count("deinit") == 3
    with pytest.raises(ConnectError, match=r"the server has no RDMA.*dlock serve"):
        client(ONLY).enter(deadline=0)


def test_rdma_alone_is_never_tcp(world: World, client, caplog) -> None:
    world.attach["verbs"] = S.BAD_RESPONSE
    with pytest.raises(ConnectError, match="does not answer rxe7"):
        client(ONLY).enter(deadline=0)
    with pytest.raises(TimeoutError):
        client(ONLY).enter()
    assert "attach tcp" not in world.log
    assert world.log.count("attach verbs") == 1 + 3  # each time with a pause before it
    assert set(world.freed) == {1}
    assert len(said(caplog, logging.WARNING)) == 1 + 3


def test_a_session_that_wants_rdma_alone_waits_for_it(world: World, client) -> None:
    """The new primary has no device, or this machine has lost its own: the session lives on, over
    the control plane, and its user is told why nothing is answered."""
    one = client(ONLY)
    session = one.enter()
    for trouble in ({"verbs": 0}, {"device": "rxe7 is gone"}):
        world.__dict__.update({"verbs": 1, "device": None, **trouble})
        world.log.clear()
        with pytest.raises(TimeoutError):
            one.enter()
        assert world.log.count("reinit") == world.log.count("beat") == 3
        assert not session.ended
        assert "RDMA is asked for" in _enter.no_answer(one.options, one.seen, session, False)
    world.device = None
    assert one.enter() is session


def test_a_client_that_is_closed_while_it_attaches_says_nothing_of_rdma(
    world: World, client
) -> None:
    one = client(AUTO)
    session = one.enter()
    world.attach["verbs"] = S.BAD_RESPONSE

    def close(step: Any) -> None:
        if isinstance(step, _enter.Attach):
            session.end()
        if isinstance(step, list) and isinstance(step[0], Heartbeat):
            raise TimeoutError

    world.before = close
    with pytest.raises(TimeoutError):
        one.enter()
    assert _pairing.avoided.left_s(PLACE, AUTO) == 0
    assert world.freed[-1] == 1


def test_what_ends_an_attach_frees_the_end(world: World, client) -> None:
    """A cancelled task, an interrupt: the C client may or may not have got it."""

    def strike(step: Any) -> None:
        if isinstance(step, _enter.Attach):
            raise KeyboardInterrupt

    world.before = strike
    with pytest.raises(KeyboardInterrupt):
        client(AUTO).enter()
    assert world.freed == [1]


def test_the_control_link_is_lost_while_a_queue_pair_is_asked_for(world: World, client) -> None:
    world.pair = LinkError("gone")
    with pytest.raises(ConnectError, match="gone"):
        client(AUTO).enter(deadline=0)
    assert world.freed == [1]
    assert _pairing.avoided.left_s(PLACE, AUTO) == 0
