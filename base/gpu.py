"""The GPUs of this machine, as ``nvidia-smi`` and the device files show them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: such as ``NVIDIA H100 80GB HBM3``.
        compute_capability: such as ``9.0``.
    """

    name: str
    compute_capability: str

    @property
    def architecture(self) -> str:
        """For tags and file names, such as ``sm90``."""
        return f"sm{self.compute_capability.replace('.', '')}"


def find_gpu() -> Gpu | None:
    """The first GPU that the driver lists; None without a GPU or driver."""
    rows = query_gpus("name", "compute_cap")
    return Gpu(*rows[0]) if rows else None


def query_gpus(*fields: str) -> list[list[str]]:
    """Properties of each GPU, by ``nvidia-smi``'s names for them; empty without a GPU or driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (subprocess.SubprocessError, OSError, ValueError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines()]
    return [row for row in rows if len(row) == len(fields)]


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU; a container may have one without ``nvidia-smi``."""
    return find_gpu() is not None or any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
