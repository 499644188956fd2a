"""The wheel, in an empty virtual environment, from another folder, without the source tree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.packaging, pytest.mark.timeout(400)]

PIP_OPTIONS = ("--quiet", "--no-build-isolation", "--no-deps")
SERVE_OPTIONS = ("--listen", "127.0.0.1:0", "--state-dir", "state", "--address-file", "address")

ROUND_TRIP = """
import sys
import dlock
from dlock import dclient
from dlock.types import ClientCfg, DlockStatus, DlockType, LockDesc, LockOp, LockRequest

host, port = sys.argv[1].rsplit(":", 1)
assert dclient.dclient_lib_init(ClientCfg(primary_port=int(port))) == DlockStatus.SUCCESS
status, client = dclient.client_init(host)
assert status == DlockStatus.SUCCESS, status
status, lock_id = dclient.get_lock(client, LockDesc(b"wheel", DlockType.FAIR, 5))
assert status == DlockStatus.SUCCESS, status
status, state = dclient.trylock(client, LockRequest(lock_id, LockOp.LOCK_EXCLUSIVE, 5))
assert status == DlockStatus.SUCCESS and state.token > 0, (status, state)
status, state = dclient.unlock(client, lock_id)
assert status == DlockStatus.SUCCESS, status
assert dclient.client_deinit(client) == DlockStatus.SUCCESS
assert dclient.dclient_lib_deinit() == DlockStatus.SUCCESS
print(dlock.__file__)
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sdist")
    build = f"from scikit_build_core.build import build_sdist; build_sdist({str(target)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
    (built,) = target.glob("dlock-*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the source distribution alone, which proves that nothing is missing in it."""
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            *PIP_OPTIONS,
            "--wheel-dir",
            str(target),
            str(sdist),
        ],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    (built,) = target.glob("dlock-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a new virtual environment that holds the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run(
        [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", str(wheel)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return folder


def bare(environment: Path) -> dict[str, str]:
    """Nothing of the caller's environment but what every login has."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    return {**kept, "PATH": f"{environment / 'bin'}:/usr/bin:/bin"}


def run(environment: Path, folder: Path, *command: str) -> str:
    program = str(environment / "bin" / command[0])
    done = subprocess.run(
        [program, *command[1:]],
        cwd=folder,
        env=bare(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_source_distribution_holds_no_products(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"pyproject.toml", "CMakeLists.txt", "native/dlock_abi.h", "LICENSE"} <= set(names)
    products = (".so", ".o", ".pyc", ".whl")
    assert not [name for name in names if name.endswith(products) or name.startswith("build/")]


def test_the_wheel_holds_what_it_should(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert len(tops) == 2, tops
    assert all(top == "dlock" or top.endswith(".dist-info") for top in tops)
    assert any(name.startswith("dlock/_native") and name.endswith(".so") for name in names)
    assert "dlock/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    shipped = {str(path.relative_to(ROOT)) for path in (ROOT / "dlock").rglob("*.py")}
    assert shipped <= set(names)


def test_the_command_helps(environment: Path, tmp_path: Path) -> None:
    for words in (["--help"], ["serve", "--help"], ["bench", "--help"], ["run", "--help"]):
        assert "usage" in run(environment, tmp_path, "dlock", *words).lower()


def test_what_needs_an_extra_says_so(environment: Path, tmp_path: Path) -> None:
    """The wheel alone brings neither rich nor shtab."""
    done = subprocess.run(
        [str(environment / "bin" / "dlock"), "completion", "bash"], cwd=tmp_path, text=True,
        env=bare(environment), stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
        check=False)
    assert (done.returncode, done.stdout) == (72, "")
    assert "pip install 'dlock[cli]'" in done.stderr


def test_a_client_and_a_server_meet(environment: Path, tmp_path: Path) -> None:
    address_file = tmp_path / "address"
    server = subprocess.Popen(
        [str(environment / "bin" / "dlock"), "serve", *SERVE_OPTIONS],
        cwd=tmp_path,
        env=bare(environment),
        stdin=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not address_file.exists():
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server wrote no address"
            time.sleep(0.02)
        address = address_file.read_text(encoding="utf-8").splitlines()[0]
        where = run(environment, tmp_path, "python", "-c", ROUND_TRIP, address).strip()
        assert Path(where).is_relative_to(environment), where
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
