"""A gateway of this process, in front of a server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

from gateway.app import Gateway
from gateway.limits import Limits


@contextlib.contextmanager
def running_gateway(grpc_url: str, limits: Limits | None = None, api_key: bytes | None = None) -> Iterator[str]:
    """Answers on a free port; yields host and port."""
    listener = socket.create_server(("127.0.0.1", 0))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def listen():
        return await Gateway(grpc_url, limits or Limits(), api_key).listen(listener)

    end = asyncio.run_coroutine_threadsafe(listen(), loop).result(20)
    try:
        yield "{}:{}".format(*listener.getsockname())
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(30)
        loop.call_soon_threadsafe(loop.call_later, 0.05, loop.stop)
        thread.join()
        loop.close()
