"""The tensorrt profile: strongly typed plans for Triton's TensorRT backend, precision written into the ONNX."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from base.gpu import Gpu
from base.progress import Steps
from builder.add_plan import architecture, plan_facts, plan_name
from builder.artifact import Artifact
from builder.datasets import CalibrationSet
from builder.export import Export
from builder.quantizers import nodes_to_exclude, quantized_nodes, remove_quantizers
from builder.settings import BuildSettings
from builder.surgery import graft_ends
from builder.tensorrt.advice import ways_out
from builder.tensorrt.autocast import convert_to_fp16
from builder.tensorrt.compile import CompiledPlan, compile_plan
from builder.tensorrt.errors import PlanBuildError, TensorRTError
from builder.tensorrt.failures import parse_build_log
from builder.tensorrt.fallback import Attempt, build_with_fallback
from builder.tensorrt.graph_names import GraphNames
from builder.tensorrt.ptq import QuantizedModel, quantize
from builder.tensorrt.runner import plan_network
from repository.flavor import Flavor
from repository.manifest import toolchain
from repository.network import Network


class TensorRTProfile:
    """Makes plans."""

    name = "tensorrt"

    def __init__(
        self,
        settings: BuildSettings,
        export: Export,
        network: onnx.ModelProto,
        calibration: CalibrationSet,
        flavor: Flavor,
        gpu: Gpu | None,
        steps: Steps,
    ) -> None:
        """Take what all precisions share.

        Args:
            settings: the build's.
            export: what the export holds.
            network: float32 network of dynamic batch, its ends not grafted yet.
            calibration: images for int8; AutoCast uses the first one for fp16.
            flavor: TensorRT to build with.
            gpu: the GPU of this machine.
            steps: where progress is shown.
        """
        self._settings, self._calibration, self._export = settings, calibration, export
        self._flavor, self._gpu, self._steps = flavor, gpu, steps
        self._reference = graft_ends(network, export, settings.top_k)
        self._exclude = nodes_to_exclude(settings.exclude, self._reference)
        self._plan = settings.plan

    @property
    def reference(self) -> onnx.ModelProto:
        """The grafted fp32 network."""
        return self._reference

    def facts(self, precision: str) -> dict[str, Any]:
        """What determines the result."""
        facts: dict[str, Any] = {
            "flavor": self._flavor.name,
            "tensorrt": self._flavor.version_text,
            "gpu": self._gpu.compute_capability if self._gpu else None,
            "plan": self._plan.facts(),
        }
        if precision == "int8":
            facts["calibration"] = self._calibration.sha256
            facts["method"] = self._settings.calibration.method
            facts["exclude"] = sorted(self._exclude)
        return facts

    def make(self, precision: str, exclude: frozenset[str]) -> Artifact:
        """Make one precision; see :class:`builder.artifact.Profile`."""
        with tempfile.TemporaryDirectory(prefix="build-") as name:
            folder = Path(name)
            if precision == "int8":
                return self._int8(folder, exclude)
            return self._fp16(folder) if precision == "fp16" else self._fp32(folder)

    def _fp32(self, folder: Path) -> Artifact:
        path = _save(self._reference, folder / "fp32.onnx")
        return self._artifact(self._reference, self._built("fp32", path))

    def _fp16(self, folder: Path) -> Artifact:
        source = _save(self._reference, folder / "fp32.onnx")
        with self._steps.step("fp16: AutoCast", "ModelOpt"):
            model, excluded = convert_to_fp16(source, self._images[:1])
        path = _save(model, folder / "fp16.onnx")
        return self._artifact(model, self._built("fp16", path), excluded=excluded)

    def _int8(self, folder: Path, exclude: frozenset[str]) -> Artifact:
        quantized = self._quantized
        latest: dict[str, onnx.ModelProto] = {}

        def make_onnx(failed: frozenset[str]) -> Path:
            latest["quantized"] = remove_quantizers(quantized.model, self._reference, exclude | failed)
            if not quantized_nodes(latest["quantized"]):
                raise TensorRTError(
                    "every quantized layer has been taken out of int8, so nothing is left to build; keep fp16, or "
                    "upgrade TensorRT"
                )
            source = _save(latest["quantized"], folder / "quantized.onnx")
            with self._steps.step("int8: AutoCast", "the layers around int8 to fp16"):
                model, _ = convert_to_fp16(source, self._images[:1])
            return _save(model, folder / f"int8-{len(failed)}.onnx")

        def show(attempt: Attempt) -> None:
            if attempt.succeeded:
                self._steps.note(f"int8: attempt {attempt.number} built a plan")
            else:
                remedy = f"; leaving {len(attempt.added)} node(s) in higher precision: {', '.join(attempt.added)}"
                self._steps.warn(
                    f"int8: attempt {attempt.number} failed ({attempt.error}){remedy if attempt.added else ''}"
                )

        result = build_with_fallback(
            make_onnx,
            lambda path: self._built("int8", path),
            self._settings.fallback.max_attempts,
            show,
            tensorrt=str(self._flavor),
            workspace_mib=self._plan.workspace_mib,
        )
        method = f"ModelOpt {self._settings.calibration.method}, int8 per channel weights, Q/DQ"
        return self._artifact(
            onnx.load(result.onnx_path),
            result.plan,
            excluded=(*quantized.excluded, *sorted(exclude), *result.excluded),
            attempts=tuple(attempt.as_dict() for attempt in result.attempts),
            quantized=latest["quantized"],
            calibration={
                **self._calibration.facts(method),
                "default_exclusions": [
                    {"nodes": list(group.nodes), "reason": group.reason, "source": group.source}
                    for group in quantized.exclusions
                ],
            },
        )

    @functools.cached_property
    def _images(self) -> NDArray[np.uint8]:
        """All calibration images: uint8 [n, H, W, 3]."""
        return np.stack(list(self._calibration.letterboxed(*self._export.input_size, stretch=self._export.stretch)))

    @functools.cached_property
    def _quantized(self) -> QuantizedModel:
        if self._calibration.warning:
            self._steps.warn(self._calibration.warning)
        method = self._settings.calibration.method
        with tempfile.TemporaryDirectory(prefix="build-") as folder:
            source = _save(self._reference, Path(folder) / "fp32.onnx")
            with self._steps.step(
                "int8: calibrate and quantize", f"ModelOpt {method}, {len(self._calibration)} images"
            ):
                return quantize(source, self._images, self._exclude, method)

    def _built(self, precision: str, path: Path) -> CompiledPlan:
        batches = f"batch {self._plan.min_batch}..{self._plan.max_batch}"
        with self._steps.step(f"{precision}: build plan", f"{self._flavor}, {batches}"):
            try:
                return compile_plan(path, self._plan, self._flavor)
            except PlanBuildError as error:
                if precision == "int8":  # the fallback reads the log
                    raise
                failed = parse_build_log(error.lines, GraphNames.from_file(path))
                message = ways_out(failed, str(self._flavor), (), self._plan.workspace_mib, precision)
                raise TensorRTError(message) from error

    def _artifact(self, model: onnx.ModelProto, plan: CompiledPlan, **facts: Any) -> Artifact:
        name = plan_name(self._flavor, self._gpu)
        kind = "trtrtx" if self._flavor.is_rtx else "trt"
        return Artifact(
            model=model,
            runtime=f"{kind}{self._flavor.version_text}-{architecture(self._flavor, self._gpu)}",
            layers={
                "source": plan.counts.source,
                "layers": plan.counts.layers,
                "convolutions": plan.counts.convolutions,
            },
            plans={name: plan.plan},
            plan_facts={name: plan_facts(plan, self._plan, self._gpu)},
            toolchain={
                "tensorrt": plan.tensorrt_version,
                "tensorrt_flavor": plan.flavor,
                **toolchain("nvidia-modelopt", "torch"),
            },
            network=self._network(plan),
            **facts,
        )

    def _network(self, plan: CompiledPlan) -> Network | None:
        """The plan itself, where it can run here; says so where it cannot."""
        if not plan.can_run_here:
            return None
        try:
            return plan_network(plan.plan, self._flavor)
        except (TensorRTError, ImportError) as error:
            self._steps.warn(f"the plan is not measured itself, but the ONNX it was built from: {error}")
            return None


def _save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path
