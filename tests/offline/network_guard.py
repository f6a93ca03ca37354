"""Cuts the network for this process: any connection that leaves the machine raises instead.

Used by the tests (see conftest.py) and, through the `sitecustomize` beside it, by programs that tests start and by CI.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

_LOCAL_NAMES = {"", "localhost"}
_real_connect = socket.socket.connect
_real_connect_ex = socket.socket.connect_ex
_real_getaddrinfo = socket.getaddrinfo


class NetworkUsedError(BaseException):
    """Something tried to leave this machine. Not an `Exception`: no retry and no fallback may swallow it."""


def is_local(host: str | bytes | None) -> bool:
    """Whether a host's name or address is this machine's own."""
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host or ""
    if name in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _check(family: int, address: Any) -> None:
    if family == getattr(socket, "AF_UNIX", None):
        return
    host = address[0] if isinstance(address, tuple) else address
    if not is_local(host):
        raise NetworkUsedError(f"the network is cut, but something connects to {address!r}")


def _guarded_connect(self: socket.socket, address: Any) -> None:
    _check(self.family, address)
    _real_connect(self, address)


def _guarded_connect_ex(self: socket.socket, address: Any) -> int:
    _check(self.family, address)
    return _real_connect_ex(self, address)


def _guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
    if not is_local(host):
        raise NetworkUsedError(f"the network is cut, but something looks up {host!r}")
    return _real_getaddrinfo(host, *args, **kwargs)


def cut_network() -> None:
    """Guard every socket of this process from now on."""
    socket.socket.connect = _guarded_connect  # type: ignore[method-assign, assignment]  # that is what a guard does
    socket.socket.connect_ex = _guarded_connect_ex  # type: ignore[method-assign, assignment]  # likewise
    socket.getaddrinfo = _guarded_getaddrinfo
