"""Work on several threads at a time, for code that spends its time outside of Python's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Results of ``work`` in the order of ``items``; few are under way at a time, so that few are in memory.

    Args:
        work: called on other threads.
        items: what it gets.
        threads: how many.

    Raises:
        Exception: what ``work`` raises, when its turn comes.

    Example:
        >>> list(in_order(lambda number: number * number, [1, 2, 3], threads=2))
        [1, 4, 9]
    """
    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[Future[Result]] = deque()
        try:
            for item in items:
                under_way.append(pool.submit(work, item))
                if len(under_way) > threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()
