"""The GPU of this machine, if there is one."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass


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


def gpu_at_hand() -> Gpu | None:
    """The first GPU that the driver names; None without a GPU or driver."""
    for line in nvidia_smi("name,compute_cap")[:1]:
        name, _, capability = line.rpartition(",")
        return Gpu(name.strip(), capability.strip()) if name else None
    return None


def nvidia_smi(fields: str) -> list[str]:
    """Values of ``nvidia-smi --query-gpu``, a line per GPU; empty without that program, a driver or a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (subprocess.SubprocessError, OSError):
        return []
    return answer.stdout.strip().splitlines()
