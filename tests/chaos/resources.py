"""Memory, file descriptors and shared memory of a server's processes over time, and whether they stay flat."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from base.names import SHARED_MEMORY
from tests.chaos.background import Background

SERIES: Final = {
    "memory_mib": "memory of all processes, MiB",
    "file_descriptors": "open files of all processes",
    "shared_memory_regions": "shared memory regions",
    "shared_memory_mib": "shared memory, MiB",
    "processes": "processes",
}
"""Name of a series to what it is."""

ALLOWED_PERCENT: Final = 5.0
"""How far the median of the last quarter may lie above that of the second quarter."""

ALLOWED_PERCENT_SHORT: Final = 20.0
"""The same where the whole run is shorter than :data:`SHORT_S`: pools and allocators still grow to what is needed."""

ALLOWED_MIB_SHORT: Final = 64.0
"""And so much in any case, there: the pools of two processes after their first batch of eight images, which are 1.2 MiB
of pixels and 1.7 MiB of outputs each."""

SHORT_S: Final = 600.0


def used_by(pid: int, shm_prefix: str) -> dict[str, float]:
    """What a process and all below it use, by the names of :data:`SERIES`.

    Raises:
        psutil.NoSuchProcess, OSError: a process or shared memory region ended while it was looked at.
    """
    root = psutil.Process(pid)
    processes = [root, *root.children(recursive=True)]
    regions = [path.stat() for kind in ("*", "*/*") for path in SHARED_MEMORY.glob(f"{shm_prefix}{kind}")]
    return {
        # PSS: what several processes share is counted once.
        "memory_mib": sum(process.memory_full_info().pss for process in processes) / 2**20,
        "file_descriptors": sum(process.num_fds() for process in processes),
        "shared_memory_regions": len(regions),
        "shared_memory_mib": sum(region.st_blocks * 512 for region in regions) / 2**20,
        "processes": len(processes),
    }


class Sampler(Background):
    """Calls :func:`used_by`, whose arguments these are, from ``with`` to its end; ``samples`` have ``at_s``, too."""

    def __init__(self, pid: int, shm_prefix: str, every_s: float) -> None:
        self.samples: list[dict[str, float]] = []
        self._server, self._every_s = (pid, shm_prefix), every_s
        super().__init__(self._run)

    def _run(self) -> None:
        started = time.monotonic()
        while not self.stopped.wait(self._every_s):
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                self.samples.append({"at_s": time.monotonic() - started, **used_by(*self._server)})


def flatness(samples: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Compare the last quarter of the time with the second one; the first is for warming up.

    Returns:
        Per series the medians, the change in percent and the slope per hour; and ``faults``.
    """
    series: dict[str, Any] = {}
    faults = []
    short = not samples or samples[-1]["at_s"] < 0.9 * SHORT_S
    allowed = ALLOWED_PERCENT_SHORT if short else ALLOWED_PERCENT
    for name, values in _columns(samples):
        quarter = len(values) // 4
        if quarter < 2:
            faults.append(f"{name}: {len(values)} samples are too few")
            continue
        at_s = np.array([sample["at_s"] for sample in samples])
        # Medians: while a version is being replaced there are two of them.
        second, last = np.median(values[quarter : 2 * quarter]), np.median(values[-quarter:])
        change = 100 * (last / second - 1)
        series[name] = {
            "second_quarter": float(second),
            "last_quarter": float(last),
            "change_percent": float(change),
            "slope_per_hour": float(np.polyfit(at_s[quarter:], values[quarter:], 1)[0] * 3600),
            "most": float(values.max()),
        }
        within_pools = short and name.endswith("_mib") and last - second <= ALLOWED_MIB_SHORT
        if change > allowed and not within_pools:
            faults.append(f"{name} rose from {second:.1f} to {last:.1f}, {change:.1f} %")
    return {"samples": len(samples), "series": series, "allowed_percent": allowed, "faults": faults}


def draw(samples: Sequence[dict[str, float]], switches_s: Sequence[float], path: Path) -> None:
    """Draw the series over time as a PNG; gray lines are promotions and rollbacks."""
    from matplotlib.figure import Figure

    at_s = [sample["at_s"] for sample in samples]
    figure = Figure(figsize=(9, 2 * len(SERIES)), layout="constrained")
    axes = figure.subplots(len(SERIES), 1, sharex=True)
    for axis, (name, values) in zip(axes, _columns(samples), strict=True):
        axis.plot([at / 60 for at in at_s], values, linewidth=1)
        axis.set_ylabel(SERIES[name], fontsize=7)
        axis.set_ylim(bottom=0)
        for switch in switches_s[1:]:
            axis.axvline(switch / 60, color="0.85", linewidth=0.8, zorder=0)
    axes[-1].set_xlabel("minutes")
    figure.savefig(path, dpi=120)


def _columns(samples: Sequence[dict[str, float]]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    for name in SERIES:
        yield name, np.array([sample[name] for sample in samples])
