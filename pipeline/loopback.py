"""gRPC channels to a server of this project: message sizes, reconnects, and no proxy on the way to loopback."""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import urlsplit

_MAX_MESSAGE_BYTES: Final = 2**31 - 1  # the server's own limit (core/constants.h, MAX_GRPC_MESSAGE_SIZE)
# gRPC's default back-off grows to two minutes, too long for a client that waits for a server to start. Its
# min_reconnect_backoff_ms keeps its default: it bounds the time to connect.
_GRPC_CHANNEL_ARGS: Final = [
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


def grpc_channel_args(url: str) -> list[tuple[str, int]]:
    """Options of a gRPC channel to a server of this project.

    gRPC uses the proxy that ``grpc_proxy``, ``https_proxy`` or ``http_proxy`` name. A proxy cannot reach this machine's
    loopback, so loopback addresses are called directly.

    Args:
        url: ``host:port``.

    Example:
        >>> ("grpc.enable_http_proxy", 0) in grpc_channel_args("localhost:8001")
        True
    """
    return _GRPC_CHANNEL_ARGS + ([("grpc.enable_http_proxy", 0)] if is_loopback(url) else [])


def is_loopback(url: str) -> bool:
    """Whether ``host`` or ``host:port`` is on this machine's loopback.

    Example:
        >>> is_loopback("[::1]:8001"), is_loopback("192.0.2.1:8001")
        (True, False)
    """
    host = ""
    try:
        host = urlsplit(f"//{url}").hostname or ""
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified  # Linux takes 0.0.0.0 for loopback
