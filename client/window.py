"""A bounded amount of work in flight, its results in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def ordered_window(
    items: AsyncIterable[T], work: Callable[[T], Awaitable[R]], in_flight: int
) -> AsyncGenerator[tuple[T, R], None]:
    """Work on several items at once and give them back in order.

    An item is taken only when there is room, so an endless source (a camera) does not fill memory. Iterate inside
    ``contextlib.aclosing``, which cancels what is in flight if the loop ends early.

    Args:
        items: what to work on.
        work: called once per item.
        in_flight: most items in work or waiting for their turn.

    Yields:
        Every item with its result, in the order of ``items``.

    Raises:
        ValueError: ``in_flight`` is below 1.
        Exception: what ``work`` raised, in the item's turn; later work in flight is cancelled.
    """
    if in_flight < 1:
        raise ValueError(f"in_flight is {in_flight}; allowed: 1 or more")
    pending: deque[tuple[T, asyncio.Future[R]]] = deque()
    try:
        async for item in items:
            pending.append((item, asyncio.ensure_future(work(item))))
            if len(pending) == in_flight:
                first, task = pending.popleft()
                yield first, await task
        while pending:
            first, task = pending.popleft()
            yield first, await task
    finally:
        for _, task in pending:
            task.cancel()
        await asyncio.gather(*(task for _, task in pending), return_exceptions=True)


async def as_async(items: Iterable[T]) -> AsyncIterator[T]:
    """The items of an iterable that does not block."""
    for item in items:
        yield item
