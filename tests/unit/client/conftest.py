"""Both clients over both protocols, against small servers on real sockets."""

from __future__ import annotations

import asyncio

import pytest

from client import AsyncSegmentationClient, SegmentationClient
from tests.unit.client.kserve import SERVERS


class Blocking:
    """The asynchronous client, called as the other one is."""

    def __init__(self, *values, **names):
        self._make = lambda: AsyncSegmentationClient(*values, **names)

    def __getattr__(self, method):
        def call(*values, **names):
            async def run():
                async with self._make() as client:
                    return await getattr(client, method)(*values, **names)

            return asyncio.run(run())

        return call

    def close(self):
        pass


@pytest.fixture(params=["grpc", "http"])
def protocol(request):
    return request.param


@pytest.fixture(params=[SegmentationClient, Blocking], ids=["sync", "async"])
def connect(request, protocol):
    opened = []

    def connect(url, **names):
        opened.append(request.param(url, protocol, **names))
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


@pytest.fixture
def stub(protocol):
    with SERVERS[protocol]() as running:
        yield running
