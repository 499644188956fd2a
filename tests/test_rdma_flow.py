"""The window between two ends, as a function: no end sends too much, and the two never wait for
each other, whatever the order of things."""

from __future__ import annotations

import random
import sys

import pytest

from dlock.rdma.flow import BYE, Flow, FlowError, Results


def test_the_last_place_is_for_messages_without_frames() -> None:
    flow = Flow(4, 4)
    for _ in range(3):
        assert flow.room() > 0
        flow.send()
    assert flow.room() == 0
    assert flow.place()
    flow.send()
    assert not flow.place()


def test_what_was_taken_is_told_and_makes_room() -> None:
    one, other = Flow(4, 4), Flow(4, 4)
    for _ in range(3):
        other.receive(one.send())
    assert not other.owes()
    other.take(2)
    assert other.owes()
    assert one.room() == 0
    assert not one.receive(other.send())
    assert one.room() == 2
    assert not other.owes()


def test_the_last_message_is_told_apart() -> None:
    one, other = Flow(4, 4), Flow(4, 4)
    assert other.receive(one.send(bye=True))
    assert BYE == 0x80000000


def test_more_than_the_window_is_a_fault() -> None:
    one, other = Flow(4, 8), Flow(4, 4)
    for _ in range(4):
        other.receive(one.send())
    with pytest.raises(FlowError, match="room"):
        other.receive(one.send())


def test_credit_for_what_was_never_sent_is_a_fault() -> None:
    flow = Flow(4, 4)
    flow.send()
    with pytest.raises(FlowError, match="more messages"):
        flow.receive(2)


def test_bits_that_mean_nothing_are_a_fault() -> None:
    with pytest.raises(FlowError, match="0x00010000"):
        Flow(4, 4).receive(0x10000)


def test_counts_go_on_past_16_bits() -> None:
    one, other = Flow(4, 4), Flow(4, 4)
    for _ in range(70_000):
        other.receive(one.send())
        other.take()
        one.receive(other.send())
        one.take()
    assert one.room() == 3
    assert other.room() == 2


@pytest.mark.parametrize("seed", range(200))
def test_two_ends_never_wait_for_each_other(seed: int) -> None:
    """Each has so many messages with frames to send, takes what came when it likes, and tells when
    it owes that. Everything arrives."""
    chance = random.Random(seed)
    windows = [chance.randint(4, 16) for _ in range(2)]
    ends = [Flow(windows[0], windows[1]), Flow(windows[1], windows[0])]
    ways: list[list[int]] = [[], []]  # on the way to this end
    untaken = [0, 0]
    left = [chance.randint(0, 300) for _ in range(2)]
    wanted = list(left)
    arrived = [0, 0]
    while any(left) or any(ways) or any(untaken):
        moves = []
        for k in (0, 1):
            if left[k] and ends[k].room():
                moves.append((k, "send"))
            elif ends[k].owes() and ends[k].place():
                moves.append((k, "tell"))
            if ways[k]:
                moves.append((k, "arrive"))
            if untaken[k]:
                moves.append((k, "take"))
        assert moves, f"both wait: {left} left"
        k, move = chance.choice(moves)
        if move == "send":
            left[k] -= 1
            ways[1 - k].append(ends[k].send())
            arrived[1 - k] += 1
        elif move == "tell":
            ways[1 - k].append(ends[k].send())
        elif move == "arrive":
            ends[k].receive(ways[k].pop(0))
            untaken[k] += 1
        else:
            untaken[k] -= 1
            ends[k].take()
    assert arrived == [wanted[1], wanted[0]]


def test_an_operation_that_left_no_result_is_not_taken_for_an_earlier_one() -> None:
    memory = memoryview(bytearray(32))
    results = Results(memory)
    results.expect(2)
    memory[16:24] = (7).to_bytes(8, sys.byteorder)
    assert results.take(2) == 7
    results.expect(2)
    assert results.take(2) is None
    memory[16:24] = bytes(8)
    assert results.take(2) == 0
    assert bytes(memory[:16]) + bytes(memory[24:]) == bytes(24)
