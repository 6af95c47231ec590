"""Who listens on a port of this machine: nobody else may be sent a secret."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENING: Final = "0A"  # TCP_LISTEN, net/tcp_states.h
_MAPPED: Final = "0000000000000000FFFF0000"  # in front of an IPv4 address as IPv6, as the kernel prints it


def is_ours(address: str) -> bool:
    """Whether this user listens at an address of this machine, and no other user does.

    Args:
        address: host and port, such as ``127.0.0.1:8001``; the host as IPv4 address.

    Returns:
        The answer; True where the kernel does not say.

    Example:
        >>> with socket.create_server(("127.0.0.1", 0)) as server:
        ...     is_ours(f"127.0.0.1:{server.getsockname()[1]}")
        True
    """
    host, _, port = address.rpartition(":")
    own = f"{int.from_bytes(socket.inet_aton(host), 'little'):08X}"
    hosts = (own, "0" * 8, _MAPPED + own, _MAPPED + "0" * 8, "0" * 32)
    places = {f"{each}:{int(port):04X}" for each in hosts}
    tables = [table.read_text() for table in _TABLES if table.exists()]
    lines = [line.split() for table in tables for line in table.splitlines()[1:]]
    owners = {int(line[7]) for line in lines if line[1] in places and line[3] == _LISTENING}
    return owners == {os.geteuid()} or not tables
