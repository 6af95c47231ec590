"""Options of the simulated users, shared by Locust's own command line and ``python -m load``."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from client.errors import RequestError
from client.parameter_options import add_parameter_arguments, parameters_given
from client.request import Parameters, parameters_of
from client.transport import DEFAULT_URLS, checked_url
from pipeline import contract
from pipeline.parameters import RequestParameters

DEFAULT_TOLERANCE: Final = 0.25
"""Share of the expected detections by which an answer may differ, rounded down: with one to three, by none."""


@dataclass(frozen=True)
class UserOptions:
    """How every simulated user behaves.

    Raises:
        ValueError: a value out of range.
    """

    images: Path | None = None  # a folder or file to send; None sends the reference photographs as JPEG
    # Sizes to which the images are scaled, each image in each size; empty keeps their own
    megapixels: tuple[float, ...] = ()
    batch_sizes: tuple[int, ...] = (1,)  # images per request, drawn in turn
    # Least and most seconds between an answer and a closed-loop user's next request
    think_time_s: tuple[float, float] = (0.0, 0.0)
    timeout_s: float = 30.0  # bound on one answer, in seconds
    parameters: Parameters | None = None  # KServe request parameters of every request
    tolerance: float = DEFAULT_TOLERANCE  # share of the expected detections by which an answer may differ, rounded down

    def __post_init__(self) -> None:
        if not self.batch_sizes or not all(1 <= size <= contract.MAX_REQUEST_BATCH for size in self.batch_sizes):
            raise ValueError(f"batch sizes are {self.batch_sizes}; allowed: 1 to {contract.MAX_REQUEST_BATCH} each")
        if not 0 <= self.think_time_s[0] <= self.think_time_s[1] < math.inf:
            raise ValueError(f"think time is {self.think_time_s} s; allowed: two numbers from 0, the lower one first")
        if not 0 < self.timeout_s < math.inf:
            raise ValueError(f"timeout is {self.timeout_s} s; allowed: more than 0")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance is {self.tolerance}; allowed: a number from 0")
        if not all(0 < size <= 100 for size in self.megapixels):
            raise ValueError(f"megapixels are {self.megapixels}; allowed: more than 0, up to 100 each")
        RequestParameters.parse(self.parameters or {})  # raises a ValueError that names parameter and range

    @classmethod
    def of(cls, namespace: argparse.Namespace) -> UserOptions:
        """Read them from arguments that :func:`add_user_arguments` declared.

        Raises:
            ValueError: a value out of range.
        """
        return cls(
            images=Path(namespace.images) if namespace.images else None,
            megapixels=numbers(namespace.megapixels, float),
            batch_sizes=numbers(namespace.batch_sizes, int),
            think_time_s=_think_time(namespace.think_time_s),
            timeout_s=float(namespace.request_timeout_s),
            parameters=parameters_of(**parameters_given(namespace)),
            tolerance=float(namespace.tolerance),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the report."""
        return {
            "images": str(self.images) if self.images else "reference photographs, as JPEG",
            "megapixels": list(self.megapixels) or "as they are",
            "batch_sizes": list(self.batch_sizes),
            "think_time_s": list(self.think_time_s),
            "timeout_s": self.timeout_s,
            "parameters": self.parameters or {},
            "tolerance": self.tolerance,
        }


def add_user_arguments(parser: Any) -> None:
    """Declare the options of :class:`UserOptions` on a parser of argparse or of Locust."""
    parser.add_argument("--images", default="", help="image or folder of your own (default: the reference photographs)")
    parser.add_argument("--megapixels", default="", help="sizes to send each image in, such as 0.3,2")
    parser.add_argument("--batch-sizes", default="1", help="images per request, drawn in turn, such as 1,4")
    parser.add_argument("--think-time-s", default="0", help="pause after each answer: 0.5, or 0.5,2 for between them")
    parser.add_argument("--request-timeout-s", type=float, default=30.0, help="bound on one answer (default: 30)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=DEFAULT_TOLERANCE,
        help="detections may differ from fp32's by this share, rounded down (default: 0.25)",
    )
    add_parameter_arguments(parser)


def add_url_arguments(parser: Any, defaults: bool) -> None:
    """Declare where a server listens; by default, if wanted, on the ports of ``python -m serving run``."""
    for protocol, url in DEFAULT_URLS.items():
        parser.add_argument(
            f"--url-{protocol}",
            default=url if defaults else "",
            help=f"HOST:PORT of a server that runs, such as {url}",
        )


def numbers(text: str, kind: type[Any]) -> tuple[Any, ...]:
    """Comma-separated numbers.

    Raises:
        ValueError: a part is no number.
    """
    try:
        return tuple(kind(part) for part in str(text).split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{text!r}; allowed: numbers with commas between them, such as 1,2,4") from None


def _think_time(text: str) -> tuple[float, float]:
    """``0.5`` or ``0.5,2`` as least and most seconds."""
    values = numbers(text, float)
    if len(values) not in (1, 2):
        raise ValueError(f"think time {text!r}; allowed: one number of seconds, or two with a comma between them")
    return values[0], values[-1]


def checked_url_of(protocol: str, url: str) -> str:
    """A url of the form ``host:port``.

    Raises:
        ValueError: it has another form; names the option.
    """
    try:
        return checked_url(url)
    except RequestError as error:
        raise ValueError(f"--url-{protocol}: {error}") from None
