"""Work in flight at once, bounded, its results in the order in which it came."""

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

    An item is taken only when there is room for it, so that a source that never ends (a camera) fills no memory.
    Iterate inside ``contextlib.aclosing``, so that what is in flight is cancelled where the loop is left early.

    Args:
        items: what to work on.
        work: called once per item.
        in_flight: most items that are worked on, or wait for their turn to be given back, at once.

    Yields:
        Every item with its result, in the order of ``items``.

    Raises:
        ValueError: ``in_flight`` is below 1.
        Exception: what ``work`` raised, in the item's turn; what is in flight behind it is cancelled.
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
    """Give the items of an iterable that does not block."""
    for item in items:
        yield item
