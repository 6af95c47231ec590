"""Which engine runs a version on a CPU: the fastest that this machine has and that the version's gate passed in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from steps.onnx_cpu import CpuNetwork
from steps.openvino_cpu import NAME, EngineError, openvino_engine, usable_openvino

ENGINE_VARIABLE: Final = "TRITON_SEGMENTATION_CPU_ENGINE"
ENGINES: Final = ("auto", "onnxruntime", NAME)
"""Values of the variable: the fastest, or always one. ``openvino`` makes an fp16 version fail to load rather than run
in ONNX Runtime; the other precisions have no other engine."""


def cpu_network(path: Path, threads: int, max_batch_size: int) -> tuple[CpuNetwork, str]:
    """A version's network in the engine that this machine and the version allow.

    Args:
        path: the ``model.onnx``, its ``manifest.json`` beside it.
        threads: see :class:`steps.onnx_cpu.CpuNetwork`.
        max_batch_size: likewise.

    Returns:
        The network, and what runs it, for the log: ``OpenVINO 2026.4.1 in bfloat16``.

    Raises:
        ValueError: the variable has another value than :data:`ENGINES`.
        EngineError: it asks for OpenVINO, which cannot run this fp16 version here; the text says why.
        Exception: ONNX Runtime cannot run it either.
    """
    wanted = os.environ.get(ENGINE_VARIABLE) or ENGINES[0]
    if wanted not in ENGINES:
        raise ValueError(f"{ENGINE_VARIABLE} is {wanted!r}; allowed: {', '.join(ENGINES)}")
    text = f"ONNX Runtime {ort.__version__}"
    precision, gated = _gated(path.parent)
    if precision == "fp16" and wanted != "onnxruntime":
        try:
            version = usable_openvino()
            if version != gated:
                passed = f"in {gated}" if gated else "in ONNX Runtime alone"
                raise EngineError(f"its gate passed {passed}, here is {version}; build it on a machine like this one")
            return CpuNetwork(path, threads, max_batch_size, openvino_engine), f"OpenVINO {version} in bfloat16"
        except Exception as error:  # whatever OpenVINO raises, the version can be served without it
            if wanted == NAME:
                raise EngineError(f"{ENGINE_VARIABLE} is {NAME}, which cannot run this version: {error}") from error
            text += f", not OpenVINO: {' '.join(str(error).split())[:300]}"
    return CpuNetwork(path, threads, max_batch_size), text


def _gated(folder: Path) -> tuple[str, str | None]:
    """Precision of a version, and the OpenVINO that its accuracy gate passed in; None where there is none."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "", None
    record = ((manifest.get("verification") or {}).get("engines") or {}).get(NAME) or {}
    return str(manifest.get("precision")), str(record["version"]) if record.get("passed") is True else None
