"""Interleaved measurements: every way of a comparison runs in every round, so that a busy moment hits them all."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

METHOD: Final = (
    "Every round runs every way once, in an order drawn anew (seed 0). A figure is the median over the rounds, its "
    "spread the middle half of them (quartiles). A ratio is the median of the ratios taken within each round."
)


@dataclass(frozen=True)
class Summary:
    """Median and spread of repeated measurements.

    Attributes:
        median: the middle value.
        low: first quartile.
        high: third quartile.
        count: how many values.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Summary:
        """Summarize at least one value.

        Raises:
            ValueError: no values.
        """
        ordered = sorted(values)
        if not ordered:
            raise ValueError("nothing was measured; at least one round is needed")
        if len(ordered) == 1:
            return cls(ordered[0], ordered[0], ordered[0], 1)
        low, median, high = statistics.quantiles(ordered, n=4, method="inclusive")
        return cls(median, low, high, len(ordered))

    def to_json(self) -> dict[str, float | int]:
        """Plain values."""
        return {"median": self.median, "low": self.low, "high": self.high, "rounds": self.count}

    def __str__(self) -> str:
        return f"{_short(self.median)} [{_short(self.low)} to {_short(self.high)}]"


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Summary:
    """Ratios of two ways, round by round.

    Raises:
        ValueError: the two have different numbers of rounds.
    """
    return Summary.of(above / below for above, below in zip(numerator, denominator, strict=True))


def interleave(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm_up: int = 1,
    after_round: Callable[[dict[str, list[Any]]], None] | None = None,
) -> dict[str, list[Any]]:
    """Call every way once per round.

    Args:
        ways: name to a call that measures itself and returns what it measured.
        rounds: how many results to keep of each.
        warm_up: rounds before those, whose results are dropped.
        after_round: gets the results so far after every round that is kept, so that a later failure loses none.

    Returns:
        Name to results, in the order of the rounds.
    """
    order = list(ways)
    shuffle = random.Random(0).shuffle  # noqa: S311 - an order, no secret
    results: dict[str, list[Any]] = {name: [] for name in ways}
    for index in range(-warm_up, rounds):
        shuffle(order)
        for name in order:
            result = ways[name]()
            if index >= 0:
                results[name].append(result)
        if index >= 0 and after_round is not None:
            after_round(results)
    return results


def cpu_milliseconds(work: Callable[[], Any], repeats: int = 1) -> float:
    """CPU time of this process (all its threads) for one call of ``work``, in milliseconds.

    CPU time is what a step costs a host; on a machine that is shared it is far steadier than wall time.
    """
    started = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - started) * 1e3 / repeats


def repeats_for(work: Callable[[], Any], seconds: float = 0.05) -> int:
    """How often ``work`` runs in about ``seconds``, at least once; ``work`` is called twice."""
    work()
    started = time.perf_counter()
    work()
    return max(1, round(seconds / max(time.perf_counter() - started, 1e-9)))


class ProcessTree:
    """Processor time of a process and of all its children, the Python backend's stubs among them.

    Read from Linux's ``/proc`` (proc_pid_stat(5)).
    """

    def __init__(self, pid: int) -> None:
        self._names: dict[int, str] = {}
        waiting = [pid]
        while waiting:
            process = waiting.pop()
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it, or a thread, ended meanwhile
                command = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
                self._names[process] = _what_runs(command)
                for thread in Path(f"/proc/{process}/task").iterdir():
                    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                        waiting += map(int, (thread / "children").read_text().split())

    def cpu_seconds_by_name(self) -> dict[str, float]:
        """User and system time since the start, by what runs: ``tritonserver``, or the model of a stub.

        Raises:
            OSError: one of the processes has ended.
        """
        times: dict[str, float] = {}
        for process, name in self._names.items():
            times[name] = times.get(name, 0.0) + _cpu_seconds(process)
        return times


def _cpu_seconds(pid: int) -> float:
    # The command's name, in brackets, may hold spaces; utime and stime are the 14th and 15th fields.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _what_runs(command: Sequence[str]) -> str:
    """``tritonserver``, or of a stub the name of its model's folder."""
    for argument in command[1:]:
        parts = argument.split("/")
        if parts[-1] == "model.py" and len(parts) > 2:
            return parts[-3]
    return "tritonserver"


def _short(value: float) -> str:
    """Three significant digits, no exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"
