"""Which TensorRT is installed: 10.3 or newer, 11, or TensorRT-RTX."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Final, Literal

from repository.errors import FlavorError

Family = Literal["tensorrt", "tensorrt-rtx"]

FAMILIES: Final[tuple[Family, ...]] = ("tensorrt", "tensorrt-rtx")
MIN_TENSORRT: Final = (10, 3)
KNOWN_MAJORS: Final = (10, 11)
KNOWN_RTX_MAJORS: Final = (1,)

_MODULES: Final[dict[Family, tuple[str, ...]]] = {
    "tensorrt": ("tensorrt",),
    # The tensorrt_rtx package wraps the bindings; the wheels named *-bindings hold only the bindings.
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}

# https://github.com/NVIDIA/TensorRT/issues/4555 (8.6, YOLOv8n-seg), https://github.com/NVIDIA/Model-Optimizer/issues/50
# (8.6, "TensorRT 10 has this bug fixed").
_OLD_ADVICE: Final = (
    "INT8 builds of YOLO segmentation networks fail there with 'Could not find any implementation for node'. Upgrade "
    "TensorRT to 10.3 or newer, or to 11 (for example the container nvcr.io/nvidia/tensorrt of the same release as "
    "your Triton container); an old TensorRT that has to stay can only serve another build's fp16 model"
)
# https://github.com/ultralytics/ultralytics/pull/24368: every 10.x but 10.2.0 builds working INT8 plans.
_BAD_102_ADVICE: Final = "TensorRT 10.2.0 builds INT8 plans that are known to be bad. " + _OLD_ADVICE

INSTALL_COMMANDS: Final = (
    "  TensorRT (for Triton, needs NVIDIA's package index):  pip install 'tensorrt>=10.3,<12'\n"
    "  TensorRT-RTX (RTX machines, or building without a GPU):  "
    "pip install tensorrt-rtx-cu13-libs==1.7.1.* tensorrt-rtx-cu13-bindings==1.7.1.*\n"
    "  or run the builder in NVIDIA's TensorRT container: builder/Dockerfile"
)


@dataclass(frozen=True)
class Flavor:
    """An installed TensorRT.

    Attributes:
        family: ``tensorrt`` or ``tensorrt-rtx``.
        version: release numbers, such as (10, 13, 0, 35).
        module: the Python module with ``Builder``, ``OnnxParser`` and the rest.
    """

    family: Family
    version: tuple[int, ...]
    module: ModuleType

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX, whose plans Triton's TensorRT backend cannot load."""
        return self.family == "tensorrt-rtx"

    @property
    def name(self) -> str:
        """Name for the manifest: ``tensorrt-10``, ``tensorrt-11`` or ``tensorrt-rtx``."""
        return self.family if self.is_rtx else f"{self.family}-{self.version[0]}"

    @property
    def version_text(self) -> str:
        """The version with dots."""
        return ".".join(map(str, self.version))

    @property
    def plan_suffix(self) -> str:
        """File suffix of its plans. Triton looks for ``model.plan``, so a TensorRT-RTX plan never has that name."""
        return ".rtxplan" if self.is_rtx else ".plan"

    def __str__(self) -> str:
        return f"TensorRT{'-RTX' if self.is_rtx else ''} {self.version_text}"


def detect_flavor(
    prefer: Family | None = None, import_module: Callable[[str], ModuleType] = importlib.import_module
) -> Flavor:
    """Find the TensorRT to build with.

    Args:
        prefer: family to use; by default ``tensorrt`` if it is installed, else ``tensorrt-rtx``. An installed
            ``tensorrt`` that is too old is refused, never ignored silently.
        import_module: imports a module by name.

    Returns:
        The flavor.

    Raises:
        FlavorError: none is installed, it is too old, or it is not known to work; the message says what to install.
    """
    if prefer is not None and prefer not in FAMILIES:
        raise FlavorError(f"unknown TensorRT family {prefer!r}; allowed: {', '.join(FAMILIES)}")
    reasons: list[str] = []
    for family in (prefer,) if prefer else FAMILIES:
        for name in _MODULES[family]:
            module = _import(name, import_module, reasons)
            if module is not None:
                flavor = Flavor(family, parse_version(str(module.__version__)), module)
                _check_version(flavor)
                return flavor
    wanted = prefer or " or ".join(FAMILIES)
    raise FlavorError(f"no usable {wanted} is installed ({'; '.join(reasons)}). Install one:\n{INSTALL_COMMANDS}")


def parse_version(text: str) -> tuple[int, ...]:
    """Release numbers of a version: ``10.13.0.35`` and ``10.0.0b6`` give (10, 13, 0, 35) and (10, 0, 0).

    Raises:
        FlavorError: the text starts with no number.
    """
    match = re.match(r"[0-9]{1,9}(?:\.[0-9]{1,9})*(?![0-9])", text)
    if match is None:
        raise FlavorError(
            f"TensorRT reports the version {text[:40]!r}, which is not a version number; install it again"
        )
    return tuple(map(int, match.group().split(".")))


def _import(name: str, import_module: Callable[[str], ModuleType], reasons: list[str]) -> ModuleType | None:
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        reasons.append(f"{name}: not installed" if error.name == name else f"{name}: {error}")
        return None
    except (ImportError, OSError) as error:  # one of its libraries is missing or of another CUDA
        reasons.append(f"{name}: does not load ({error})")
        return None
    # tensorrt-stubs makes a folder of type stubs that imports as an empty package.
    if not hasattr(module, "Builder") or not hasattr(module, "__version__"):
        reasons.append(f"{name}: only type stubs, no library")
        return None
    return module


def _check_version(flavor: Flavor) -> None:
    major = flavor.version[0]
    if flavor.is_rtx:
        if major not in KNOWN_RTX_MAJORS:
            raise FlavorError(
                f"{flavor} is installed; known to work: TensorRT-RTX {_majors(KNOWN_RTX_MAJORS)}\n{INSTALL_COMMANDS}"
            )
        return
    if flavor.version[:2] == (10, 2):
        raise FlavorError(f"{flavor} is installed. {_BAD_102_ADVICE}")
    if flavor.version[:2] < MIN_TENSORRT:
        raise FlavorError(f"{flavor} is installed; needed: 10.3 or newer. {_OLD_ADVICE}")
    if major not in KNOWN_MAJORS:
        raise FlavorError(f"{flavor} is installed; known to work: TensorRT {_majors(KNOWN_MAJORS)}\n{INSTALL_COMMANDS}")


def _majors(majors: tuple[int, ...]) -> str:
    return ", ".join(f"{major}.x" for major in majors)
