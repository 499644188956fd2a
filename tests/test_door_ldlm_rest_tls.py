"""The REST gateway of the LDLM door over TLS: its certificate, those of clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httptools", reason="pip install 'dlock[doors]'")

from door_tools import Place, beside

requests = pytest.importorskip("requests", reason="pip install 'dlock[test-doors]'")
tools = pytest.importorskip("ldlm_tools", reason="pip install 'dlock[test-doors]'")
FLAGS = ("-l", "127.0.0.1:0", "-r", "127.0.0.1:0", "--ipc_socket_file=",
         "--tls_cert", "server.pem", "--tls_key", "server.key")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("ldlm")
    tools.make_certificates(folder)
    with beside(folder) as made:
        yield made


def begun(address: str, folder: Path, **options: Any) -> int:
    """The status of a new session; the server is verified."""
    answer = requests.post(f"https://{address}/session", verify=str(folder / "ca.pem"), timeout=20,
                           **options)
    return int(answer.status_code)


def test_rest_over_tls(place: Place) -> None:
    door = place.door("ldlm", *FLAGS)
    address = door.listeners[1]
    assert "Loaded TLS configuration" in door.said()
    assert begun(address, place.folder) == 201
    with pytest.raises(requests.exceptions.SSLError):
        requests.post(f"https://{address}/session", timeout=20)  # nobody vouches for the server
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.post(f"http://{address}/session", timeout=20)
    assert door.stop() == 0


def test_clients_must_show_a_certificate_of_the_authority(place: Place) -> None:
    door = place.door("ldlm", *FLAGS, "--client_ca", "ca.pem", name="clients")
    address = door.listeners[1]
    own = (str(place.folder / "client.pem"), str(place.folder / "client.key"))
    assert begun(address, place.folder, cert=own) == 201
    with pytest.raises(requests.exceptions.RequestException):
        begun(address, place.folder)
    assert door.stop() == 0


def test_no_certificate_of_the_system_is_ours(place: Place) -> None:
    door = place.door("ldlm", *FLAGS, "--client_cert_verify", name="system")
    own = (str(place.folder / "client.pem"), str(place.folder / "client.key"))
    for options in ({}, {"cert": own}):
        with pytest.raises(requests.exceptions.RequestException):
            begun(door.listeners[1], place.folder, **options)
    assert door.stop() == 0
