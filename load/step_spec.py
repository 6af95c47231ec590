"""What one step of a comparison is."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from load.options import UserOptions


@dataclass(frozen=True)
class StepSpec:
    """One load on one precision over one protocol.

    Attributes:
        precision: which ensemble.
        protocol: ``grpc`` or ``http``.
        url: ``host:port``.
        users: closed loop: requests in flight; open loop: sources of arrivals.
        rate: open loop: arrivals per second over all users; None is a closed loop.
        warm_up_s: load before the window that is measured, in seconds.
        duration_s: the window, in seconds.
        payloads: folder that :func:`load.payloads.save` wrote.
        options: how users behave.
        seed: of the order of images and of arrivals.
    """

    precision: str
    protocol: str
    url: str
    users: int
    rate: float | None
    warm_up_s: float
    duration_s: float
    payloads: Path
    options: UserOptions
    seed: int = 0

    def to_json(self) -> str:
        """For ``python -m load.step``."""
        return json.dumps(dataclasses.asdict(self), default=str)
