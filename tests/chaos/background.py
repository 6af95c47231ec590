"""Threads that run beside what is tried."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class Background:
    """Runs functions in a thread each, from ``with`` to its end; they return when ``stopped`` is set."""

    def __init__(self, *targets: Callable[[], object]) -> None:
        self.stopped = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self, within_s: float = 60.0) -> list[str]:
        """Stop the threads; returns the names of those that hang."""
        self.stopped.set()
        for thread in self._threads:
            thread.join(within_s)
        return [thread.name for thread in self._threads if thread.is_alive()]
