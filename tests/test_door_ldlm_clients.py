"""The LDLM door and clients of other languages: a program on grpc-go and one on grpc-js
(tests/clients/), which do what the examples of LDLM's own clients do."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("h2", reason="the extra doors is not installed")
pytest.importorskip("grpc", reason="grpcio is not installed")
pytest.importorskip("ldlm", reason="py-ldlm is not installed")

from door_tools import Door, beside, free_port
from ldlm_tools import ldlm_door, make_certificates

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "tests" / "clients"
BUILD = ROOT / "build" / "clients"
GO_CODE = Path("/usr/share/gocode")
MODULES = ROOT / "build" / "npm" / "node_modules"
GO_TOOLS = ("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc")

pytestmark = pytest.mark.timeout(900)  # to compile gRPC for Go takes its time, once


@dataclass(frozen=True)
class Program:
    """A client: how it is started, and how it writes a status."""

    command: tuple[str, ...]
    environment: dict[str, str]
    go: bool

    def start(self, door: Door, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.command, "--address", "{}:{}".format(*door.address), *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **self.environment})

    def run(self, door: Door, *words: str) -> str:
        """What it printed."""
        process = self.start(door, *words)
        try:
            said, _ = process.communicate(timeout=300)
        finally:
            process.kill()
        return said

    def status(self, grpc_name: str) -> str:
        if not self.go:
            return grpc_name
        return "".join(word.capitalize() for word in grpc_name.split("_"))


def go_program() -> Program:
    missing = [tool for tool in GO_TOOLS if shutil.which(tool) is None]
    if missing or not (GO_CODE / "src" / "google.golang.org" / "grpc").is_dir():
        pytest.skip(f"Go with gRPC and protobuf is not installed: {' '.join(missing) or GO_CODE}")
    source = BUILD / "go" / "src" / "ldlm"
    (source / "client").mkdir(parents=True, exist_ok=True)
    shutil.copy(SOURCES / "ldlm.go", source / "client")
    into = str(source.parent)
    subprocess.run(["protoc", f"-I{SOURCES}", f"--go_out={into}", f"--go-grpc_out={into}",
                    str(SOURCES / "ldlm.proto")], check=True)
    binary = BUILD / "ldlm-go"
    subprocess.run(
        ["go", "build", "-p", "2", "-o", str(binary), "ldlm/client"], check=True,
        env={**os.environ, "GO111MODULE": "off", "GOFLAGS": "", "GOPATH": f"{BUILD / 'go'}:"
             f"{GO_CODE}", "GOCACHE": str(BUILD / "go-cache")})
    return Program((str(binary),), {}, go=True)


def node_program() -> Program:
    if shutil.which("node") is None or not (MODULES / "@grpc" / "grpc-js").is_dir():
        pytest.skip("grpc-js is not installed: make node-clients")
    return Program(("node", str(SOURCES / "ldlm.js")), {
        "NODE_PATH": str(MODULES), "NODE_NO_WARNINGS": "1"}, go=False)


@pytest.fixture(scope="module", params=["go", "node"])
def program(request: pytest.FixtureRequest) -> Program:
    return go_program() if request.param == "go" else node_program()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with beside(tmp_path_factory.mktemp("door")) as place:
        yield ldlm_door(place)


def test_every_call_and_its_refusals(program: Program, door: Door) -> None:
    said = program.run(door, "calls")
    assert said.endswith("all good\n"), said
    assert not door.counters().get("grpc_protocol_errors")
    assert not door.counters().get("grpc_too_many_pings")


def test_the_password(program: Program, tmp_path: Path) -> None:
    with beside(tmp_path) as place:
        door = ldlm_door(place, "--password", "sesame")
        refused = program.status("UNAUTHENTICATED")
        assert program.run(door, "try", "x") == f"status {refused} missing credentials\n"
        wrong = program.run(door, "--password", "Sesame", "try", "x")
        assert wrong == f"status {refused} invalid credentials\n"
        assert program.run(door, "--password", "sesame", "try", "x") == "locked true\n"


def test_tls_and_client_certificates(program: Program, tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    words = ("--tls_cert", made.path("server.pem"), "--tls_key", made.path("server.key"))
    trusting = ("--ca", made.path("ca.pem"))
    showing = ("--cert", made.path("client.pem"), "--key", made.path("client.key"))
    unavailable = f"status {program.status('UNAVAILABLE')} "
    with beside(tmp_path) as place:
        door = ldlm_door(place, *words)
        assert program.run(door, *trusting, "try", "x") == "locked true\n"
        assert program.run(door, "--skip-verify", "try", "x") == "locked true\n"
        assert program.run(door, "try", "x").startswith(unavailable)
        checking = ldlm_door(place, *words, "--client_ca", made.path("ca.pem"),
                             name="checking", namespace="checking")
        assert program.run(checking, *trusting, *showing, "try", "x") == "locked true\n"
        assert program.run(checking, *trusting, "try", "x").startswith(unavailable)


def test_a_client_goes_on_when_the_door_comes_back(program: Program, tmp_path: Path) -> None:
    with beside(tmp_path) as place:
        door = ldlm_door(place, port=free_port())
        process = program.start(door, "keep", "x")
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            assert [process.stdout.readline() for _ in range(2)] == ["ok lock\n", "held\n"]
            door.restart()
            process.stdin.write("\n")
            said, _ = process.communicate(timeout=200)
            assert said == "held again\n"
        finally:
            process.kill()
