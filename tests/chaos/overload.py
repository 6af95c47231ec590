"""More requests than the server can answer: who is answered, who is refused, how fast.

``python -m tests.chaos.overload --seconds 120``, and ``--profile cuda --precision fp16`` on a GPU
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from client import AsyncSegmentationClient, RetryPolicy, SegmentationClient, ServerBusyError
from client.errors import SegmentationError
from pipeline import contract
from repository.store import read_config
from scenes.reference import fetch_reference
from serving.server import ServerOptions, TritonServer
from tests.chaos import part

FACTOR: Final = 4.0
RECOVERY_BOUND_S: Final = 5.0
SLACK: Final = 2.0
"""The configured bound is on a prediction, made from requests before: the 99th percentile may be this many times as
long: the load is made on the same cores, and other programs come and go."""

AT_ONCE: Final = 0.5
"""Of the bound: the 95th percentile of refusals, on cores that are all busy."""

LEAST_ANSWERED: Final = 0.5
"""Of what was answered before the burst."""

_CAPACITY_IN_FLIGHT: Final = max(8, 4 * (os.cpu_count() or 1))
_SENDERS: Final = max(1, (os.cpu_count() or 1) // 4)
"""Processes that send the burst. Another one measures the recovery, so that neither slows the other."""

_CAPACITY_S: Final = 8.0
_BASE_REQUESTS: Final = 30
_GIVE_UP_S: Final = 60.0
_NO_RETRY: Final = RetryPolicy(retries=0)


@dataclass(frozen=True)
class Sent:
    """One request of the burst."""

    outcome: str  # ``answered``, ``refused``, or the type of another error
    seconds: float  # from sending it to having its outcome
    text: str = ""  # the server's words, where it was not answered


def run(
    repository: Path,
    out: Path,
    seconds: float = 120.0,
    factor: float = FACTOR,
    seed: int = 0,
    profile: str = "cpu",
    precision: str = "int8",
) -> dict[str, Any]:
    """Send ``factor`` times as many requests as a server can answer.

    Returns:
        The figures, with ``faults``: what was not as promised.
    """
    image = fetch_reference().photographs[0].read_bytes()
    bound_s = configured_bound_s(repository)
    options = ServerOptions(repository, profile, (precision,))
    with TritonServer(options) as server:
        urls = {"grpc": server.grpc_url, "http": server.http_url}
        with SegmentationClient(server.grpc_url, precision=precision, retry=_NO_RETRY) as client:
            capacity = asyncio.run(_capacity(server.grpc_url, image, precision))
            base_s = statistics.median(_timed(client, image) for _ in range(_BASE_REQUESTS))
            with multiprocessing.get_context("spawn").Pool(_SENDERS) as pool:
                rate = factor * capacity / _SENDERS
                shares = [(urls, image, precision, rate, seconds, f"{seed} {sender}") for sender in range(_SENDERS)]
                bursts = pool.starmap_async(_burst, shares).get(seconds + 2 * _GIVE_UP_S)
                sent = [Sent(*each) for burst in bursts for each in burst]
            recovery_s = _recovery_s(client, image, base_s)
        restarted = server.pid is None
    result = _summary(sent, seconds)
    result |= {
        "profile": profile,
        "precision": precision,
        "factor": factor,
        "capacity_images_per_s": capacity,
        "bound_s": bound_s,
        "base_latency_s": base_s,
        "recovery_s": recovery_s,
    }
    result["faults"] = _faults(result, sent) + (["the server ended"] if restarted else [])
    _show(result)
    return part.keep(out, "overload" if profile == "cpu" else f"overload_{profile}", result)


def configured_bound_s(repository: Path) -> float:
    """The bound on the predicted latency, in seconds, out of ``admission/config.pbtxt``."""
    config = read_config(repository / contract.ADMISSION_MODEL / "config.pbtxt")
    return int(config.parameters["max_latency_ms"].string_value) / 1000


def _timed(client: SegmentationClient, image: bytes) -> float:
    started = time.monotonic()
    client.segment(image)
    return time.monotonic() - started


async def _capacity(url: str, image: bytes, precision: str) -> float:
    """Images per second with some requests always in flight.

    The client's own retries are on: of many requests that come at once out of idleness, some are refused where a single
    image takes long by what many take together (docs/reliability.md).
    """
    ends = time.monotonic() + _CAPACITY_S
    done = 0

    async def user(client: AsyncSegmentationClient) -> None:
        nonlocal done
        while time.monotonic() < ends:
            await client.segment(image)
            done += 1

    async with AsyncSegmentationClient(url, precision=precision) as client:
        await asyncio.gather(*(user(client) for _ in range(_CAPACITY_IN_FLIGHT)))
    return done / _CAPACITY_S


def _burst(
    urls: dict[str, str], image: bytes, precision: str, rate: float, seconds: float, seed: str
) -> list[tuple[str, float, str]]:
    """Requests at random moments, without waiting for those before; three of four over gRPC."""
    return asyncio.run(_send_burst(urls, image, precision, rate, seconds, random.Random(seed)))  # noqa: S311 - no secret


async def _send_burst(
    urls: dict[str, str], image: bytes, precision: str, rate: float, seconds: float, chance: random.Random
) -> list[tuple[str, float, str]]:
    async def send(client: AsyncSegmentationClient) -> tuple[str, float, str]:
        started = time.monotonic()
        try:
            await client.segment(image)
        except ServerBusyError as error:
            return "refused", time.monotonic() - started, str(error)
        except SegmentationError as error:
            return type(error).__name__, time.monotonic() - started, str(error)
        return "answered", time.monotonic() - started, ""

    async with (
        AsyncSegmentationClient(urls["grpc"], "grpc", precision, _GIVE_UP_S, _NO_RETRY) as grpc,
        AsyncSegmentationClient(urls["http"], "http", precision, _GIVE_UP_S, _NO_RETRY) as http,
    ):
        tasks = []
        started = at = time.monotonic()
        while at - started < seconds:
            at += chance.expovariate(rate)
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            tasks.append(asyncio.create_task(send(http if chance.random() < 0.25 else grpc)))
        return await asyncio.gather(*tasks)


def _recovery_s(client: SegmentationClient, image: bytes, base_s: float) -> float:
    """Seconds after the burst until three requests in a row are answered as before it (half as long again at most)."""
    started = time.monotonic()
    good = 0
    while time.monotonic() - started < _GIVE_UP_S:
        began = time.monotonic()
        try:
            good = good + 1 if _timed(client, image) <= 1.5 * base_s else 0
        except ServerBusyError:
            good = 0
        if good == 1:
            first = began
        if good == 3:
            return first - started
    return float("inf")


def _summary(sent: Sequence[Sent], seconds: float) -> dict[str, Any]:
    outcomes = sorted({each.outcome for each in sent})
    latencies = {name: np.array([each.seconds for each in sent if each.outcome == name]) for name in outcomes}
    return {
        "seconds": seconds,
        "sent": len(sent),
        "outcomes": {
            name: {
                "requests": len(values),
                "per_s": len(values) / seconds,
                **{f"p{rank}_s": float(np.percentile(values, rank)) for rank in (50, 95, 99)},
                "max_s": float(values.max()),
            }
            for name, values in latencies.items()
        },
    }


def _faults(result: dict[str, Any], sent: Sequence[Sent]) -> list[str]:
    outcomes = result["outcomes"]
    faults = [f"{name}: {entry['requests']}" for name, entry in outcomes.items() if name not in ("answered", "refused")]
    answered, refused = outcomes.get("answered"), outcomes.get("refused")
    if answered is None or answered["per_s"] < LEAST_ANSWERED * result["capacity_images_per_s"]:
        faults.append(f"fewer were answered than {LEAST_ANSWERED:g} of what the server can do")
    if answered is not None and answered["p99_s"] > SLACK * result["bound_s"]:
        faults.append(f"the 99th percentile of the answers is {answered['p99_s']:.2f} s, bound {result['bound_s']:g} s")
    if refused is None:
        faults.append("nothing was refused: it was no overload")
    elif refused["p95_s"] > AT_ONCE * result["bound_s"]:
        faults.append(f"refusals took {refused['p95_s']:.2f} s at the 95th percentile")
    if any("Try again later" not in each.text for each in sent if each.outcome == "refused"):
        faults.append("a refusal did not say to try again")
    if result["recovery_s"] > RECOVERY_BOUND_S:
        faults.append(f"latency was back after {result['recovery_s']:.1f} s; allowed: {RECOVERY_BOUND_S:g} s")
    return faults


def _show(result: dict[str, Any]) -> None:
    table = Table(
        title=f"overload: {result['factor']:g} times {result['capacity_images_per_s']:.1f} images/s for "
        f"{result['seconds']:g} s, bound {result['bound_s']:g} s"
    )
    for column in ("outcome", "requests", "per s", "p50 s", "p95 s", "p99 s", "most s"):
        table.add_column(column, justify="right" if column != "outcome" else "left")
    for name, entry in result["outcomes"].items():
        figures = (entry[key] for key in ("per_s", "p50_s", "p95_s", "p99_s", "max_s"))
        table.add_row(name, str(entry["requests"]), *(f"{figure:.3f}" for figure in figures))
    console = Console()
    console.print(table)
    console.print(f"latency was back at its base ({result['base_latency_s']:.3f} s) after {result['recovery_s']:.2f} s")


if __name__ == "__main__":
    options = {"profile": contract.PROFILES, "precision": ("int8", *contract.PRECISIONS[:2])}
    sys.exit(part.command("overload", run, seconds=120.0, factor=FACTOR, seed=0, **options))
