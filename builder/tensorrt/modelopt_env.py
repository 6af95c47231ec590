"""Imports ModelOpt's ONNX side, or says what is missing.

``nvidia-modelopt[onnx]`` must not be installed: it pulls onnxruntime-gpu, which fills the same module as onnxruntime.
What the ONNX quantization and AutoCast import of it, and nothing more, is in ``PACKAGES``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Final

from builder.tensorrt.errors import ToolchainError

_LOGGER: Final = logging.getLogger(__name__)
_LOGGERS: Final = ("modelopt.onnx", "modelopt.onnx.autocast")

PACKAGES: Final = (
    "nvidia-modelopt==0.47.*",
    "onnx-graphsurgeon>=0.6.1",
    "onnxslim>=0.1.76",
    "onnxscript",
    "lief",
    "ml-dtypes",
    "polygraphy>=0.53.4",
)
"""ModelOpt 0.47 and the packages that its ONNX quantization and AutoCast import."""

_PATCHED_MODULES: Final = ("calibrate", "qdq_quantizer", "base_quantizer", "onnx_quantizer", "quantize", "quant_utils")


def import_modelopt(name: str) -> ModuleType:
    """Import a module of ModelOpt.

    Args:
        name: such as ``modelopt.onnx.quantization``.

    Returns:
        The module.

    Raises:
        ToolchainError: ModelOpt or a package that it needs is missing.
    """
    try:
        with _without_stub_package("tensorrt"):
            module = importlib.import_module(name)
            importlib.import_module("polygraphy.comparator")  # AutoCast imports it only when it runs
    except ImportError as error:
        # ModelOpt wraps the missing module's name into a longer text.
        missing = str(error).splitlines()[0] if str(error) else repr(error)
        packages = " ".join(f"'{package}'" for package in PACKAGES)
        raise ToolchainError(
            f"{name} cannot be imported ({missing}). Install what it needs, without the extra [onnx], which would "
            f"replace onnxruntime:\n  pip install {packages}"
        ) from error
    return module


def log_level() -> str:
    """ModelOpt's log level: warnings, and everything when the builder itself logs in detail."""
    return "INFO" if _LOGGER.isEnabledFor(logging.DEBUG) else "WARNING"


@contextmanager
def off_terminal() -> Iterator[None]:
    """Keep ModelOpt off the terminal while it runs.

    It puts a handler on its loggers when it is imported and again in ``quantize``, and prints tables and progress bars
    besides; its log lines also reach the root logger, which is where they belong.
    """
    _take_handlers_off()
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(log_level())
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        _take_handlers_off()


@contextmanager
def own_onnxruntime() -> Iterator[None]:
    """Take back what ModelOpt replaces in ``onnxruntime.quantization``, for all of a process, when it quantizes.

    Otherwise ONNX Runtime's own quantization, which the cpu profile uses, would fail afterwards in the same process.
    """
    modules = [importlib.import_module(f"onnxruntime.quantization.{name}") for name in _PATCHED_MODULES]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    places: list[ModuleType | type] = [
        *modules,
        *(kind for kind in classes if kind.__module__.startswith("onnxruntime")),
    ]
    before = [(place, dict(vars(place))) for place in places]
    try:
        yield
    finally:
        for place, attributes in before:
            for name, value in attributes.items():
                if vars(place).get(name) is not value:
                    setattr(place, name, value)


def _take_handlers_off() -> None:
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)


@contextmanager
def _without_stub_package(name: str) -> Iterator[None]:
    """Hide a package of type stubs from ModelOpt.

    tensorrt-stubs makes ``import tensorrt`` succeed with an empty package, and ModelOpt then calls ``tensorrt.Logger``.
    An entry of None in ``sys.modules`` makes the import fail as if nothing were installed.
    """
    try:
        real = hasattr(importlib.import_module(name), "Logger")
    except ImportError:
        real = True  # nothing to hide
    if real:
        yield
        return
    hidden = sys.modules.pop(name, None)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if hidden is not None:
            sys.modules[name] = hidden
