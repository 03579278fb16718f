"""Under which addresses the manager may be reached: all of them, for workers try them side by side."""

from __future__ import annotations

import socket

import psutil

from lfm.errors import ConnectionFailed

ANY = "0.0.0.0"
LOOPBACK = "127.0.0.1"


def of_interface(name: str) -> str:
    """The IPv4 address of a network interface.  ConnectionFailed names those that there are."""
    found = psutil.net_if_addrs()
    for address in found.get(name, ()):
        if address.family == socket.AF_INET:
            return str(address.address)
    raise ConnectionFailed(f"no interface {name!r} with an IPv4 address; there are: {', '.join(sorted(found))}")


def reachable(bound: str, port: int, advertised: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What the connection files name, most likely ones first."""
    if advertised:
        return tuple(_endpoint(address, port) for address in advertised)
    if bound != ANY:
        return (_endpoint(bound, port),)
    up = {name for name, facts in psutil.net_if_stats().items() if facts.isup}
    here = [
        str(address.address)
        for name, addresses in sorted(psutil.net_if_addrs().items())
        for address in addresses
        if name in up and address.family == socket.AF_INET
    ]
    outside = [a for a in here if not a.startswith("127.")]
    return tuple(_endpoint(a, port) for a in dict.fromkeys([*outside, *_names(outside), LOOPBACK]))


def _names(outside: list[str]) -> list[str]:
    """This machine's full name, where it has one that others may know."""
    name = socket.getfqdn() if outside else ""
    if "." not in name or name.startswith("localhost"):
        return []
    try:
        return [name] if socket.getaddrinfo(name, None, socket.AF_INET) else []
    except OSError:
        return []


def _endpoint(address: str, port: int) -> str:
    """An advertised address may bring its own port: a tunnel's other end."""
    address = address.removeprefix("tcp://")
    return f"tcp://{address}" if ":" in address else f"tcp://{address}:{port}"
