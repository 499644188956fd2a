"""Ten thousand owners and many holds on one client: all of it is had, and given back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from aio_tools import connected, run, until
from lock_tools import Service, serving

from dlock.aio import FOREVER, Hold, keys
from dlock.errors import DlockError

OWNERS = 10_000
SHARED = 4  # names that each of them holds together with all others
LIMIT_S = 240.0


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(session_ttl_ms=120_000) as started:
        yield started


def test_ten_thousand_owners_hold_and_wait(service: Service) -> None:
    async def program() -> None:
        async with connected(service) as client:
            owners = [client.owner(f"owner {number}") for number in range(OWNERS)]
            wanted = [keys.shared(f"shared {number}") for number in range(SHARED)]
            busy = keys.exclusive("busy")
            shared: list[Hold | DlockError | None] = []
            tokens: list[int] = []

            def turn(hold: Hold | DlockError | None) -> None:
                """It goes from one to the next, in their order."""
                assert isinstance(hold, Hold)
                tokens.append(hold.token)
                assert hold.release()

            for owner in owners:
                for key in wanted:
                    owner.ask(key, shared.append, FOREVER)
                owner.ask(busy, turn, FOREVER)
            await until(lambda: len(shared) + len(tokens) == OWNERS * (SHARED + 1), LIMIT_S)
            assert all(isinstance(one, Hold) for one in shared)
            assert sum(len(owner.holds) for owner in owners) == len(shared)
            assert tokens == sorted(set(tokens))
            assert len(tokens) == OWNERS
            for owner in owners:
                owner.close()
            await until(lambda: not any(
                service.holders(key.descriptor) for key in (*wanted, busy)), LIMIT_S)

    run(program(), 2 * LIMIT_S)
