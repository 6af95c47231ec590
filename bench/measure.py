"""Interleaved measurements: every way of a comparison runs in every round, so that a busy moment slows them all."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import psutil

METHOD: Final = (
    "Every round runs every way once, in an order drawn anew (seed 0). A figure is the median over the rounds, its "
    "spread the middle half of them (quartiles). A ratio is the median of the ratios taken within each round."
)


def interleave(ways: Mapping[str, Callable[[], Any]], rounds: int) -> Iterator[dict[str, list[Any]]]:
    """Call every way once per round, after a warm-up round whose results are dropped.

    Yields:
        After every round, name to the results so far: a later failure loses none.
    """
    order = list(ways)
    shuffle = random.Random(0).shuffle  # noqa: S311 - an order, no secret
    results: dict[str, list[Any]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        shuffle(order)
        for name in order:
            result = ways[name]()
            if number > 0:
                results[name].append(result)
        if number > 0:
            yield results


def milliseconds(work: Callable[[], Any]) -> Callable[[], float]:
    """A call that returns the mean wall time of ``work`` in milliseconds, over as many calls as take about 50 ms."""
    work()
    started = time.perf_counter()
    work()
    repeats = max(1, round(0.05 / max(time.perf_counter() - started, 1e-9)))

    def once() -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - started) * 1e3 / repeats

    return once


def rate(work: Callable[[], Any], images: int, seconds: float) -> float:
    """Images per second of a call that processes ``images``, after one call to warm up."""
    work()
    runs, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        work()
        runs += 1
    return runs * images / elapsed


class ProcessTree:
    """Processor time of a process and of its descendants, such as the stubs of Triton's Python backend."""

    def __init__(self, pid: int) -> None:
        self._names: dict[psutil.Process, str] = {}
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                self._names[process] = _model_of(process.cmdline())

    def cpu_seconds_by_name(self) -> dict[str, float]:
        """User and system time since the start, for ``tritonserver`` and for each model that a stub runs.

        Raises:
            psutil.NoSuchProcess: one of the processes has ended.
        """
        times: dict[str, float] = {}
        for process, name in self._names.items():
            used = process.cpu_times()
            times[name] = times.get(name, 0.0) + used.user + used.system
        return times

    def memory_mib(self) -> float:
        """Memory of all of them, what they share counted once (PSS).

        Raises:
            psutil.NoSuchProcess: one of the processes has ended.
        """
        return sum(process.memory_full_info().pss for process in self._names) / 2**20


def _model_of(command: Sequence[str]) -> str:
    """The model that a stub runs, by the folder of its ``model.py``; else ``tritonserver``."""
    for argument in command[1:]:
        parts = argument.split("/")
        if parts[-1] == "model.py" and len(parts) > 2:
            return parts[-3]
    return "tritonserver"
