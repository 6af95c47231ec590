"""The machine of a measurement, and the versions of what ran there."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from base.gpu import query_gpus
from repository.manifest import version_of

_PACKAGES: Final = ("locust", "tritonclient", "grpcio", "gevent", "numpy", "onnxruntime")


def describe_machine(packages: Sequence[str] = _PACKAGES) -> dict[str, Any]:
    """Processor, cores, memory, GPU, system and the versions of packages."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": gpu_name() or "none",
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version_of(package) for package in packages},
    }


def gpu_name() -> str | None:
    """Name and driver version of the GPUs, as ``nvidia-smi`` has them; None where there is no such program or GPU."""
    return "; ".join(map(", ".join, query_gpus("name", "driver_version"))) or None


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()
