"""When requests that a busy server rejected are sent again."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter.

    After Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    Only a rejection for overload is retried, because the server did no work on it. After a lost connection, a timeout
    or any other error the work may still go on, and a second request would add to the load.

    Attributes:
        retries: how often a request is sent again, 0 or more.
        first_s: upper bound of the first pause, in seconds; it doubles from pause to pause.
        most_s: upper bound of any pause, in seconds.
    """

    retries: int = 6
    first_s: float = 0.1
    most_s: float = 2.0

    def pauses(self, timeout_s: float) -> Iterator[float]:
        """Pauses between the attempts of one request, in seconds.

        Args:
            timeout_s: no pause ends later than this after the first attempt began.
        """
        deadline = time.monotonic() + timeout_s
        bound = min(self.first_s, self.most_s)
        for _ in range(self.retries):
            pause = random.uniform(0, bound)  # noqa: S311 - no secret
            if time.monotonic() + pause > deadline:
                return
            yield pause
            bound = min(2 * bound, self.most_s)
