"""When what died is started again: growing pauses, the same for the server, its processes and its gateway."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

_MOST_DOUBLINGS: Final = 30


@dataclass(frozen=True)
class RestartPolicy:
    """When a server that died is restarted.

    Attributes:
        restarts: how often, one after the other; 0 never, None without end: nobody who can crash a server ends it.
        first_s: upper bound of the pause before the first restart, in seconds; it doubles from restart to restart.
        most_s: upper bound of any pause, in seconds.
        steady_s: a server that stayed up this long starts with a count of zero again, in seconds.
    """

    restarts: int | None = None
    first_s: float = 1.0
    most_s: float = 30.0
    steady_s: float = 60.0

    def pause_s(self, restart: int) -> float:
        """The pause before a restart, in seconds: half of its bound or more, at random.

        Args:
            restart: 1 for the first.
        """
        bound = min(self.most_s, self.first_s * 2 ** min(restart - 1, _MOST_DOUBLINGS))
        return float(bound * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
