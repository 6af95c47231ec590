"""How many processors this process may use: of the machine, and of its container."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

_CGROUP: Final = Path("/sys/fs/cgroup")


def usable_cpus(cgroup: Path = _CGROUP) -> int:
    """Processors that may run this process at once, at least 1.

    The affinity does not show a container's bound on processor time: with a thread per core of the machine, each would
    be throttled most of the time.

    Args:
        cgroup: mount point of the process's control group, as in containers (version 2, ``cpu.max``; version 1,
            ``cpu/cpu.cfs_quota_us``).
    """
    cpus = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return max(1, min(cpus, math.ceil(quota))) if quota is not None else cpus


def _quota(cgroup: Path) -> float | None:
    """Processors' worth of time that the control group may use; None if it is not bounded."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max"
        return None
