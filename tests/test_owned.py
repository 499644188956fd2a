"""A C client is freed with the last reference to it, and not before the finalizers that use it."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from dlock import _mirror_data, _session
from dlock._core import lib


class User:
    """Part of a cycle of garbage, with a finalizer that asks its client, as a handle's does."""

    def __init__(self, client: Any, told: list[int]) -> None:
        self.client = client
        self.told = told
        self.myself = self

    def __del__(self) -> None:
        if not gc.is_tracked(self.client):
            self.told.append(lib.dlk_client_attached(self.client))


def of_the_python_api() -> Any:
    return _session._new_client(0, 0)


def of_the_mirror() -> Any:
    return _mirror_data.new_client(0, 1000)


@pytest.mark.parametrize("make", [of_the_python_api, of_the_mirror])
def test_the_finalizers_of_a_cycle_can_use_the_client(make: Any) -> None:
    told: list[int] = []
    gc.collect()
    for _ in range(50):
        client = make()
        users = [User(client, told) for _ in range(4)]
        del client, users
        gc.collect()
    assert told == [0] * 200
