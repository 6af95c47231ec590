"""The connections that are open: so many at most, and those that wait for nothing make room for new ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web


class Connections:
    """Makes the protocol of every new connection, for ``loop.create_server``.

    Args:
        make: makes the HTTP protocol of a connection.
        most: connections at once.
    """

    def __init__(self, make: Callable[[], asyncio.Protocol], most: int) -> None:
        self._make, self._most = make, most
        self._open: dict[_Connection, None] = {}  # in the order of their last request

    def __call__(self) -> _Connection:
        """The protocol of a new connection."""
        return _Connection(self._make(), self)

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: _Connection) -> bool:
        """Count a new connection in; False if there are too many, and all of them are answered now."""
        if len(self._open) >= self._most:
            idle = next((other for other in self._open if not other.is_busy), None)
            if idle is None:
                return False
            self.remove(idle)
            idle.close()
        self._open[connection] = None
        return True

    def remove(self, connection: _Connection) -> None:
        """Count a connection out."""
        self._open.pop(connection, None)

    def set_busy(self, request: web.BaseRequest, is_busy: bool) -> None:
        """Note that a request is being answered, or has been."""
        connection = request.transport.get_protocol() if request.transport is not None else None
        if isinstance(connection, _Connection) and connection in self._open:
            connection.is_busy = is_busy
            self.remove(connection)
            self._open[connection] = None


class _Connection(asyncio.Protocol):
    """Passes everything on to the HTTP protocol of a connection, if it was admitted.

    Attributes:
        is_busy: whether a request is being answered.
    """

    def __init__(self, inner: asyncio.Protocol, table: Connections) -> None:
        self._inner, self._table = inner, table
        self._transport: asyncio.Transport | None = None
        self._is_admitted = False
        self.is_busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type checker
        self._transport = transport
        self._is_admitted = self._table.admit(self)
        if self._is_admitted:
            self._inner.connection_made(transport)
        else:
            self.close()

    def close(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._is_admitted:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._is_admitted else None

    def connection_lost(self, error: Exception | None) -> None:
        self._table.remove(self)
        if self._is_admitted:
            self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
