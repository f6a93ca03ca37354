"""The guard of the tests stops connections that leave the machine, and no others."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from network_guard import NetworkUsedError, is_local

OUTSIDE = "host.invalid"  # reserved: resolves nowhere, should the guard ever be broken


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "::1", b"127.0.0.1", "", None])
def test_this_machine_is_local(host: str | bytes | None) -> None:
    assert is_local(host)


@pytest.mark.parametrize("host", [OUTSIDE, "192.0.2.1", "10.0.0.1", "0x7f.example", "2001:db8::1", b"192.0.2.1"])
def test_everything_else_is_not(host: str | bytes) -> None:
    assert not is_local(host)


@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_connecting_outside_raises(method: str) -> None:
    with socket.socket() as client, pytest.raises(NetworkUsedError, match=OUTSIDE):
        getattr(client, method)((OUTSIDE, 80))


def test_looking_up_a_name_raises() -> None:
    with pytest.raises(NetworkUsedError, match=OUTSIDE):
        socket.create_connection((OUTSIDE, 80), timeout=1)


def test_connecting_to_this_machine_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        connection, _ = server.accept()
        with connection:
            client.sendall(b"hello")
            assert connection.recv(5) == b"hello"


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no unix sockets")
def test_unix_sockets_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # a whole path can be longer than such an address may be
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        client.connect("socket")
        connection, _ = server.accept()
        with connection:
            client.sendall(b"hello")
            assert connection.recv(5) == b"hello"


def test_started_programs_are_guarded() -> None:
    code = f"import socket\ntry:\n    socket.create_connection(({OUTSIDE!r}, 80))\nexcept Exception:\n    pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 1
    assert "NetworkUsedError" in done.stderr


def test_the_hub_is_offline() -> None:
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
