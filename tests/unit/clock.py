"""A clock that a test sets."""

from __future__ import annotations


class Clock:
    """Stands in for the module ``time``; a pause ends at once, and is kept."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now, self.pauses = now, []

    def monotonic(self):
        return self.now

    def monotonic_ns(self):
        return int(self.now * 1e9)

    def time_ns(self):
        return int(self.now)

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds
