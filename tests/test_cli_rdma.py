"""`dlock rdma` as a command, on whatever machine this is; and what becomes of a pyverbs that does
not load, or that would set up the logging of the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import environment, finish, start

from dlock.cli.common import EXIT_CLEAN, EXIT_FAILED, EXIT_USAGE

LOADING = ("import logging, sys\n"
           "from dlock.rdma import binding\n"
           "assert not any(name.partition('.')[0] == 'pyverbs' for name in sys.modules)\n"
           "try:\n    binding.load()\n"
           "except binding.PyverbsError as problem:\n    print(problem)\n"
           "print(logging.root.handlers, logging.root.level)\n")


def test_it_tells_on_any_machine() -> None:
    done = finish(start("rdma"))
    assert done.code in (EXIT_CLEAN, EXIT_FAILED)
    assert done.out.startswith("RDMA can")
    for word in ("host", "libibverbs", "C core", "pyverbs", "locked memory"):
        assert f"\n{word}" in done.out
    assert ("\nMISSING\n" in done.out) == (done.code == EXIT_FAILED)


def test_json_has_all_of_it_and_the_exit_code_tells() -> None:
    done = finish(start("rdma", "--json"))
    report = done.json
    assert done.code == (EXIT_CLEAN if report["usable"] else EXIT_FAILED)
    assert (report["use"] is not None) >= report["usable"]
    assert bool(report["why_not"]) is not report["usable"]
    assert report["locked_bytes"] > report["locked_by_client"] > 0
    blocking = [one for one in report["missing"] if one["blocks"]]
    assert bool(blocking) is not report["usable"]
    assert report["machine"]["kernel"]


def test_memory_is_reckoned_for_as_many_clients() -> None:
    few, many = (finish(start("rdma", "--json", "--clients", number)).json["locked_bytes"]
                 for number in ("10", "10000"))
    assert many > few


def test_a_device_that_is_not_there() -> None:
    done = finish(start("rdma", "--device", "no-such-device"))
    assert done.code == EXIT_FAILED


def test_words_that_are_no_address() -> None:
    done = finish(start("rdma", "--gid", "10.0.0"))
    assert done.code == EXIT_USAGE
    assert "is no GID" in done.err
    assert not done.out


def load_with(folder: Path, *, init: str, inside: str = "") -> list[str]:
    """The lines that a process prints which loads this pyverbs."""
    package = folder / "pyverbs"
    package.mkdir()
    (package / "__init__.py").write_text(init, encoding="utf-8")
    for name in ("addr", "cq", "device", "fork", "mr", "pd", "qp", "wr", "pyverbs_error", "enums"):
        (package / f"{name}.py").write_text(inside, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", LOADING], env=environment(None, PYTHONPATH=str(folder)),
        capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


def test_a_pyverbs_of_another_rdma_core_is_told(tmp_path: Path) -> None:
    words = "libibverbs.so.1: version `IBVERBS_PRIVATE_59' not found (required by device.so)"
    said, logging_after = load_with(tmp_path, init=f"raise ImportError({words!r})")
    assert "does not load" in said
    assert "another rdma-core" in said
    assert words in said
    assert logging_after == "[] 30"


def test_loading_pyverbs_leaves_logging_alone(tmp_path: Path) -> None:
    lines = load_with(tmp_path, init="",
                      inside="import logging\nlogging.basicConfig(level=logging.INFO)\n")
    assert lines == ["[] 30"]


def test_the_names_of_both_versions_are_known(tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    assert load_with(newer, init="")[-1] == "[] 30"
    (newer / "pyverbs/enums.py").rename(newer / "pyverbs/libibverbs_enums.py")
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True,
                          env=environment(None, PYTHONPATH=str(newer)), check=True, timeout=60)
    assert done.stdout.splitlines() == ["[] 30"]
    (newer / "pyverbs/libibverbs_enums.py").unlink()
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True,
                          env=environment(None, PYTHONPATH=str(newer)), check=True, timeout=60)
    assert "neither pyverbs.libibverbs_enums nor pyverbs.enums" in done.stdout


def test_without_pyverbs_that_is_said() -> None:
    if subprocess.run([sys.executable, "-c", "import pyverbs"], capture_output=True,
                      check=False).returncode == 0:
        pytest.skip("pyverbs is installed here")
    done = subprocess.run([sys.executable, "-c", LOADING], env=environment(None),
                          capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["not installed", "[] 30"]
