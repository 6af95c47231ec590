"""Whether a TensorRT plan runs here: its manifest against the TensorRT library and the GPU of this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from base.gpu import Gpu, find_gpu
from base.interpreter import PYTHON
from repository.errors import FlavorError
from repository.flavor import detect_flavor, parse_version

_AMPERE: Final = (8, 0)
"""Least compute capability of hardware compatible plans (TensorRT's ``HardwareCompatibilityLevel.AMPERE_PLUS``)."""

# Run in a separate process: the library is large, and loading a broken one must not end this process.
_READ_LIBRARY: Final = """
import ctypes
for name in ("libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so.8", "libnvinfer.so"):
    try:
        print(ctypes.CDLL(name).getInferLibVersion())
        break
    except (OSError, AttributeError):
        continue
"""


@dataclass(frozen=True)
class Machine:
    """What a plan needs to fit.

    Attributes:
        tensorrt: version numbers of the TensorRT library; None if there is none.
        tensorrt_source: where that was read, or why there is none.
        gpu: the first GPU; None without GPU or driver.
    """

    tensorrt: tuple[int, ...] | None
    tensorrt_source: str
    gpu: Gpu | None

    def __str__(self) -> str:
        version = ".".join(map(str, self.tensorrt)) if self.tensorrt else "unknown"
        gpu = f"{self.gpu.name} (compute capability {self.gpu.compute_capability})" if self.gpu else "none available"
        return f"TensorRT {version} ({self.tensorrt_source}); GPU: {gpu}"


@dataclass(frozen=True)
class Misfit:
    """Why a version's plans do not run here.

    Attributes:
        reason: what differs.
        known: False if it cannot be decided here, for want of a GPU or a TensorRT library.
        addable: a further plan, for the GPU of this machine, would fix it.
    """

    reason: str
    known: bool = True
    addable: bool = False


def find_machine() -> Machine:
    """This machine's GPU and TensorRT: the library, which is what Triton loads, else the Python package."""
    library = _library_version()
    gpu = find_gpu()
    if library is not None:
        return Machine(library, "libnvinfer", gpu)
    try:
        flavor = detect_flavor("tensorrt")
    except FlavorError:
        return Machine(None, "no libnvinfer and no Python package tensorrt is installed", gpu)
    return Machine(flavor.version, "Python package tensorrt", gpu)


def plan_misfit(
    plans: Mapping[str, Mapping[str, Any]], chosen_by_capability: Mapping[str, str], default: str, machine: Machine
) -> Misfit | None:
    """Compare the plan that Triton would load with a machine.

    Args:
        plans: the manifest's, file name to what the plan was built with and for.
        chosen_by_capability: ``cc_model_filenames`` of the model's configuration.
        default: its ``default_model_filename``, for every other compute capability.
        machine: to compare with.

    Returns:
        What does not fit, or cannot be decided; None if the plan fits.
    """
    loadable = {name: facts for name, facts in plans.items() if facts.get("flavor") != "tensorrt-rtx"}
    if not loadable:
        what = "holds only plans of TensorRT-RTX, which Triton does not load" if plans else "holds no TensorRT plan"
        return Misfit(f"the version {what}")
    if machine.gpu is None:
        what = ", ".join(loadable)
        return Misfit(f"no GPU is available (nvidia-smi names none), so {what} cannot be compared", False)
    name = chosen_by_capability.get(machine.gpu.compute_capability, default)
    if name not in loadable:
        return Misfit(
            f"there is no {name}, which Triton takes on {machine.gpu.name} (compute capability "
            f"{machine.gpu.compute_capability}); the version holds {', '.join(loadable)}",
            addable=True,
        )
    return _gpu_misfit(name, loadable[name], machine.gpu) or _version_misfit(name, loadable[name], machine)


def _gpu_misfit(name: str, facts: Mapping[str, Any], gpu: Gpu) -> Misfit | None:
    built_for = facts.get("compute_capability")
    if built_for is None:
        return Misfit(f"the manifest does not say which GPU {name} was built for", False)
    if built_for == gpu.compute_capability:
        return None
    try:
        ampere_or_newer = all(parse_version(text) >= _AMPERE for text in (built_for, gpu.compute_capability))
    except FlavorError:
        ampere_or_newer = False
    if facts.get("hardware_compatible") and ampere_or_newer:
        return None
    return Misfit(
        f"{name} was built for compute capability {built_for} ({facts.get('gpu')}); this machine has {gpu.name} of "
        f"{gpu.compute_capability}"
    )


def _version_misfit(name: str, facts: Mapping[str, Any], machine: Machine) -> Misfit | None:
    text = str(facts.get("tensorrt", ""))
    if machine.tensorrt is None:
        return Misfit(f"{machine.tensorrt_source}, so TensorRT {text} of {name} cannot be compared", False)
    try:
        built = parse_version(text)[:3]
    except FlavorError:
        return Misfit(f"the manifest does not say which TensorRT built {name}", False)
    here = machine.tensorrt[:3]
    if built == here:
        return None
    if facts.get("version_compatible") and built[0] == here[0] and built <= here:
        return None
    return Misfit(f"{name} was built by TensorRT {text}; this machine has {'.'.join(map(str, here))}")


def _library_version() -> tuple[int, ...] | None:
    try:
        answer = subprocess.run(
            [*PYTHON, "-c", _READ_LIBRARY], capture_output=True, text=True, timeout=60, check=True
        ).stdout.strip()
    except (subprocess.SubprocessError, OSError):
        return None
    return library_version(int(answer)) if answer.isdigit() else None


def library_version(number: int) -> tuple[int, int, int]:
    """What ``getInferLibVersion`` means: major, minor and patch.

    From TensorRT 10 on the number is major * 10000 + minor * 100 + patch, before that major * 1000 + minor * 100 +
    patch (``NvInferVersion.h``).
    """
    unit = 10000 if number >= 100000 else 1000
    return number // unit, number % unit // 100, number % 100
