"""Reads the bodies of requests within bounds of size, chunks and time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus

from aiohttp import web

from gateway.errors import Refusal, refuse
from gateway.limits import Limits
from pipeline.errors import BUSY


class Bodies:
    """The bodies that are held at the moment.

    Args:
        limits: of one body and of all together.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held_bytes = 0

    def check_head(self, request: web.BaseRequest) -> None:
        """Refuse what the headers show to be too much, before the body is read.

        Raises:
            Refusal: the length or the encoding is not allowed.
        """
        encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding != "identity":
            raise Refusal(
                f"Content-Encoding is {encoding[:40]!r}; allowed: none. Images are compressed already",
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            )
        self._check_size(request.content_length or 0)

    @contextlib.asynccontextmanager
    async def read(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        """The body of a request; its bytes count as held until the end of the block.

        Raises:
            Refusal: it is too large, in too many chunks or too slow, or too much is held already.
        """
        self.check_head(request)
        held = [0]
        try:
            with _Pace(request, self._limits) as pace:
                body = await self._read(request, pace, held)
            yield body
        finally:
            self._held_bytes -= held[0]

    async def _read(self, request: web.BaseRequest, pace: _Pace, held: list[int]) -> bytes:
        parts: list[bytes] = []
        size = chunks = 0
        while True:
            try:
                part, is_end_of_chunk = await request.content.readchunk()
            except asyncio.TimeoutError:  # another type than TimeoutError before Python 3.11
                raise Refusal(
                    f"{size} bytes of the body came in {pace.seconds():.0f} s; allowed: after "
                    f"{self._limits.slow_grace_s:g} s, {self._limits.slow_bytes_per_s} a second",
                    HTTPStatus.REQUEST_TIMEOUT,
                ) from None
            # The last two: the caller has hung up, while the body was waited for or before.
            except (web.RequestPayloadError, ConnectionError, RuntimeError) as error:
                refuse(f"the body cannot be read: {str(error)[:200]}")
            if not part and not is_end_of_chunk:
                return b"".join(parts)
            parts.append(part)
            size = pace.received = size + len(part)
            held[0] += len(part)
            self._held_bytes += len(part)
            chunks += is_end_of_chunk
            self._check_size(size)
            if chunks > self._limits.first_chunks + size // self._limits.chunk_bytes:
                refuse(
                    f"the body comes in {chunks} chunks of {size // chunks} bytes on average; allowed: "
                    f"{self._limits.chunk_bytes} bytes, or at most {self._limits.first_chunks} chunks"
                )
            if self._held_bytes > self._limits.all_bodies_bytes:
                raise Refusal(f"{BUSY}: too many bytes are being received; try again", HTTPStatus.SERVICE_UNAVAILABLE)

    def _check_size(self, size: int) -> None:
        if size > self._limits.body_bytes:
            raise Refusal(
                f"the body has {size} bytes or more; allowed: {self._limits.body_bytes}. Send fewer images at a time",
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )


class _Pace:
    """Ends the wait for a body that comes too slowly: the reader gets a TimeoutError.

    One timer that looks at what has come by then, so that a part that comes costs nothing.
    """

    def __init__(self, request: web.BaseRequest, limits: Limits) -> None:
        self._content, self._limits = request.content, limits
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self.received = 0

    def __enter__(self) -> _Pace:
        if not self._content.is_eof():
            self._look()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def seconds(self) -> float:
        """Since the start."""
        return self._loop.time() - self._started

    def _look(self) -> None:
        allowed_s = self._limits.slow_grace_s + self.received / self._limits.slow_bytes_per_s
        if self.seconds() >= allowed_s:
            self._content.set_exception(asyncio.TimeoutError())
        else:
            self._timer = self._loop.call_at(self._started + allowed_s, self._look)
