"""One way under one load: images per second, latencies, and processor time per image."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from bench.drive import Drivers, Target
from bench.server_meter import ServerMeter, Usage
from load.errors import LoadError

_WINDOWS: Final = (1, 4, 16)  # times the window that was asked for, until something is answered in it


@dataclass(frozen=True)
class Load:
    """What a way did under a load.

    Attributes:
        in_flight: requests in flight.
        images_per_s: answered within the window.
        p50_ms: median latency.
        p99_ms: latency that 99 of 100 requests stayed within.
        max_ms: the longest.
        client_ms: processor time of the client, per image.
        usage: of the server.
        window: when it was measured, by ``time.monotonic``.
    """

    in_flight: int
    images_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    client_ms: float
    usage: Usage
    window: tuple[float, float]

    @property
    def host_ms(self) -> float:
        """Processor time of client, server and session together, per image."""
        return self.client_ms + self.usage.other_ms + self.usage.session_ms

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = asdict(self)
        del values["window"]
        return values


def put_under_load(
    drivers: Drivers, target: Target, meter: ServerMeter, in_flight: int, seconds: float, warm_up_s: float = 0.5
) -> Load:
    """Put load on a target and measure; for longer where a busy machine answers nothing within the window.

    Raises:
        LoadError: a request failed, or nothing is answered; the message gives the first error.
    """
    for longer in _WINDOWS:
        before = meter.read()
        answers = drivers.run(target, in_flight, seconds * longer, warm_up_s)
        after = meter.read()
        if answers.failed:
            raise LoadError(f"{answers.failed} requests to {target.model} failed, the first with {answers.first_error}")
        if answers.latencies_ms:
            break
    else:
        raise LoadError(f"{target.model} answered nothing within {seconds * _WINDOWS[-1]:g} s; give it more --seconds")
    return Load(
        in_flight=in_flight,
        images_per_s=answers.per_second,
        p50_ms=answers.percentile_ms(50),
        p99_ms=answers.percentile_ms(99),
        max_ms=max(answers.latencies_ms),
        client_ms=answers.client_cpu_s / answers.answered * 1e3,
        usage=Usage.between(before, after),
        window=answers.window,
    )
