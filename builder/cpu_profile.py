"""The cpu profile: ONNX Runtime inside Triton's Python backend."""

from __future__ import annotations

import functools
from typing import Any

import onnx
import onnxruntime as ort

from base.progress import Steps
from builder.artifact import Artifact
from builder.calibration import CalibrationSet
from builder.errors import BuilderError, CalibrationError
from builder.export import Export
from builder.float16 import to_float16
from builder.quantize_cpu import METHOD, Quantization, count_quantized_convolutions, quantize_for_cpu
from builder.quantizers import nodes_to_exclude, remove_quantizers
from builder.settings import BuildSettings
from builder.surgery import PROTOTYPES_NODE, Head, graft_ends


class CpuProfile:
    """Makes networks that ONNX Runtime runs well on processors."""

    name = "cpu"

    def __init__(
        self,
        settings: BuildSettings,
        export: Export,
        network: onnx.ModelProto,
        head: Head,
        calibration: CalibrationSet | None,
        steps: Steps,
    ) -> None:
        """Take what all precisions share.

        Args:
            settings: the build's.
            export: what the export holds.
            network: float32 network of dynamic batch, its ends not grafted yet.
            head: its last convolutions and decoding tail.
            calibration: images for int8.
            steps: where progress is shown.

        Raises:
            BuilderError: the settings exclude something that the network does not have.
        """
        self._settings, self._export, self._network, self._head = settings, export, network, head
        self._calibration, self._steps = calibration, steps
        self._exclude = nodes_to_exclude(settings.exclude, network)

    @functools.cached_property
    def reference(self) -> onnx.ModelProto:
        """The grafted fp32 network."""
        return self._graft(self._network)

    def make(self, precision: str, exclude: frozenset[str]) -> Artifact:
        """Make one precision; see :class:`builder.artifact.Profile`."""
        return {"fp32": self._fp32, "fp16": self._fp16, "int8": self._int8}[precision](exclude)

    def facts(self, precision: str) -> dict[str, Any]:
        """What determines the result."""
        if precision != "int8":
            return {}
        images = self._calibration.sha256 if self._calibration else None
        return {"calibration": images, "method": METHOD, "exclude": sorted(self._exclude)}

    def _fp32(self, exclude: frozenset[str]) -> Artifact:
        del exclude
        _, convolutions = count_quantized_convolutions(self._network)
        return self._artifact(self.reference, layers={"convolutions": {"fp32": convolutions}})

    def _fp16(self, exclude: frozenset[str]) -> Artifact:
        del exclude
        with self._steps.step("fp16: convert", "weights and activations to half"):
            model = to_float16(self._network, self._head.decode_nodes)
        _, convolutions = count_quantized_convolutions(model)
        tail = set(self._head.decode_nodes)
        kept = sum(1 for node in model.graph.node if node.op_type == "Conv" and node.name in tail)
        layers = {"convolutions": {"fp16": convolutions - kept, "fp32": kept}}
        return self._artifact(self._graft(model), excluded=self._head.decode_nodes, layers=layers)

    def _int8(self, exclude: frozenset[str]) -> Artifact:
        quantized = remove_quantizers(self._quantization.model, self._network, exclude)
        done, convolutions = count_quantized_convolutions(quantized)
        if not done:
            raise BuilderError(f"none of the {convolutions} convolutions is left in int8; exclude fewer, or keep fp16")
        calibration = self._calibration
        # ONNX Runtime also rounds the prototypes on their way out, which costs mask accuracy and buys nothing.
        grafted = remove_quantizers(self._graft(quantized), self.reference, {PROTOTYPES_NODE})
        return self._artifact(
            grafted,
            excluded=tuple(dict.fromkeys((*self._default_exclusions, *self._exclude, *sorted(exclude)))),
            layers={"convolutions": {"int8": done, "fp32": convolutions - done}},
            calibration={
                "method": METHOD,
                "images": len(calibration) if calibration else 0,
                "sha256": calibration.sha256 if calibration else None,
                "warning": calibration.warning if calibration else None,
            },
            quantized=grafted,
        )

    @property
    def _default_exclusions(self) -> tuple[str, ...]:
        # Box and score regression is what int8 hurts most: ultralytics' own int8 exports keep these layers in float.
        return (*self._head.output_convolutions, *self._head.decode_nodes)

    @functools.cached_property
    def _quantization(self) -> Quantization:
        calibration = self._calibration
        if calibration is None:
            raise CalibrationError("int8 needs images of what the model will see; give a folder with --images")
        if calibration.warning:
            self._steps.warn(calibration.warning)
        exclude = (*self._default_exclusions, *self._exclude)
        detail = METHOD.split(" (", maxsplit=1)[0]
        with self._steps.step("int8: calibrate and quantize", detail, len(calibration)) as advance:
            return quantize_for_cpu(self._network, self._export, calibration, exclude, advance)

    def _graft(self, model: onnx.ModelProto) -> onnx.ModelProto:
        return graft_ends(model, self._export, self._settings.top_k)

    @staticmethod
    def _artifact(model: onnx.ModelProto, **facts: Any) -> Artifact:
        return Artifact(model=model, runtime=f"ort{ort.__version__}-cpu", **facts)
