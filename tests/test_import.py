"""What `import dlock` offers, and what is imported for whom: a primary that starts after the death
of another one is waited for, and imports nothing of the client."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

import dlock


def modules_after(program: str) -> set[str]:
    program += "; import json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name for name in json.loads(done.stdout) if name.startswith("dlock")}


@pytest.mark.parametrize("name", dlock.__all__)
def test_every_name_is_there(name: str) -> None:
    assert name in dir(dlock)
    assert modules_after(f"import dlock; dlock.{name}; from dlock import {name}")


def test_modules_are_there_without_being_imported() -> None:
    for name in ("address", "admin", "aio", "dclient", "dserver", "errors", "server", "types"):
        assert f"dlock.{name}" in modules_after(f"import dlock; dlock.{name}")
        assert getattr(dlock, name) is importlib.import_module(f"dlock.{name}")


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="module 'dlock' has no attribute 'conect'"):
        dlock.conect  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from dlock import conect  # type: ignore[attr-defined]  # noqa: F401


def test_a_name_is_looked_for_once() -> None:
    assert dlock.Lock is vars(dlock)["Lock"] is importlib.import_module("dlock.locks").Lock


def test_a_server_imports_nothing_of_the_client() -> None:
    found = modules_after("import dlock.cli.serve")
    assert "dlock.server" in found
    assert not found & {"dlock.client", "dlock.locks", "dlock.admin", "dlock._session", "dlock.aio"}
