"""The window: order kept, bounded, clean when left early."""

import asyncio
from contextlib import aclosing

import numpy as np
import pytest

from client.window import as_async, ordered_window


@pytest.mark.parametrize("in_flight", [1, 2, 5, 100])
def test_order_and_bound(in_flight):
    rng = np.random.default_rng(in_flight)
    working, most, taken = 0, 0, 0

    async def source():
        nonlocal taken
        for item in range(40):
            taken += 1
            yield item

    async def work(item):
        nonlocal working, most
        working += 1
        most = max(most, working)
        await asyncio.sleep(rng.random() * 0.01)
        working -= 1
        return item * 10

    async def run():
        given = []
        async with aclosing(ordered_window(source(), work, in_flight)) as results:
            async for item, result in results:
                given.append((item, result))
                assert taken - len(given) < in_flight
        return given

    assert asyncio.run(run()) == [(item, item * 10) for item in range(40)]
    assert most <= in_flight
    if in_flight > 1:
        assert most > 1


def test_left_early_cancels_what_is_in_flight():
    cancelled = []

    async def work(item):
        try:
            await asyncio.sleep(0 if item == 0 else 60)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    async def run():
        async with aclosing(ordered_window(as_async(range(9)), work, 4)) as results:
            async for _ in results:
                break

    asyncio.run(asyncio.wait_for(run(), 10))
    assert cancelled == [1, 2, 3]


def test_a_failure_comes_in_its_turn():
    async def work(item):
        if item == 2:
            raise RuntimeError("item 2")
        await asyncio.sleep(0.01)
        return item

    async def run():
        given = []
        with pytest.raises(RuntimeError, match="item 2"):
            async with aclosing(ordered_window(as_async(range(9)), work, 4)) as results:
                async for item, _ in results:
                    given.append(item)
        return given

    assert asyncio.run(asyncio.wait_for(run(), 10)) == [0, 1]


def test_no_room_is_refused():
    async def run():
        async with aclosing(ordered_window(as_async([1]), asyncio.sleep, 0)) as results:
            async for _ in results:
                pass

    with pytest.raises(ValueError, match="1 or more"):
        asyncio.run(run())
