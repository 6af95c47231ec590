"""Verifies networks of one build against the export's file; the reference is computed once, when first needed."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

import onnx

from base.cpus import usable_cpus
from base.progress import Steps
from builder.artifact import Artifact
from builder.datasets import VerificationSet
from builder.export import Export
from builder.sensitivity import GroupCost, Subject, Trade, int8_size_bytes
from builder.settings import BuildSettings, Gate, Verification
from builder.source import SourceNetwork
from builder.source_check import Differences
from builder.verification import (
    Agreement,
    compare,
    detection_differences,
    mask_map,
    sample_warnings,
    segment_set,
    segment_source,
)
from pipeline.postprocess import ImageSegmentation
from repository.network import onnx_network


@dataclass(frozen=True)
class Verified:
    """An artifact and how it compares.

    Attributes:
        artifact: the network.
        agreement: with the export's file.
        differences: of boxes and scores, over the matched detections.
        measured: what was run to compare it, in words.
        found: its detections, one entry per verification image.
        gate: what it must reach.
        is_gated: False where neither the reference nor fp32 finds anything: nothing speaks against fp32.
        ranking: groups of layers by what they cost; empty if the gate held at once.
        trades: the steps of the restoration, the first with nothing restored; empty likewise.
        restored: groups that this artifact has out of int8.
    """

    artifact: Artifact
    agreement: Agreement
    differences: Differences
    measured: str
    found: list[ImageSegmentation] = field(repr=False)
    gate: Gate
    is_gated: bool = True
    ranking: tuple[GroupCost, ...] = ()
    trades: tuple[Trade, ...] = ()
    restored: tuple[str, ...] = ()

    @property
    def failures(self) -> list[str]:
        """What of the gate is not reached, in words; empty if it is passed."""
        return self.agreement.failures(self.gate) if self.is_gated else []

    @property
    def missing(self) -> float:
        """How far the gate is missed."""
        return self.agreement.missing(self.gate) if self.is_gated else 0.0

    def trade(self, restored: tuple[str, ...]) -> Trade:
        """This network as a step of the restoration."""
        artifact = self.artifact
        return Trade(
            restored=restored,
            int8_convolutions=int(artifact.layers.get("convolutions", {}).get("int8", 0)),
            size_bytes=int8_size_bytes(artifact.quantized) if artifact.quantized is not None else 0,
            agreement=self.agreement,
            failures=tuple(self.failures),
        )


@dataclass(frozen=True)
class Reference:
    """What the export's file finds.

    Attributes:
        found: detections, one entry per verification image.
        cut_images: images with more candidates than ``top_k``.
        weaknesses: what makes a comparison with it weak evidence, in words.
    """

    found: list[ImageSegmentation]
    cut_images: int
    weaknesses: tuple[str, ...]


def _within(verification: Verification, export: Export) -> Verification:
    """Thresholds that the export's own end can answer: its file is what everything is compared with."""
    limits = export.layout.limits
    confidence = max(verification.confidence, limits.get("least_confidence", 0.0))
    iou = limits.get("most_iou", verification.iou)
    return verification.model_copy(update={"confidence": confidence, "iou": iou})


class Verifier:
    """Compares networks with the export's file on the verification images."""

    def __init__(self, settings: BuildSettings, export: Export, images: VerificationSet, steps: Steps) -> None:
        self.images = images
        self._settings = settings.model_copy(update={"verification": _within(settings.verification, export)})
        self._export, self._steps = export, steps
        self.thresholds = self._settings.verification

    @functools.cached_property
    def reference(self) -> Reference:
        """Detections of the export's file; warns of weak evidence."""
        total = len(self.images.paths)
        settings = self._settings
        file = self._export.path.name
        with self._steps.step("reference", f"{file}, unchanged, on {total} images", total) as advance:
            found, cut = segment_source(
                SourceNetwork(self._export, threads=1),
                self.images.paths,
                self._export.input_size,
                settings.verification,
                settings.top_k,
                advance,
                self.images.annotations is not None,
                stretch=self._export.stretch,
                threads=usable_cpus(),
            )
        weaknesses = tuple(sample_warnings(compare(found, found, settings.verification.confidence)))
        for text in weaknesses:
            self._steps.warn(text)
        if cut:
            self._steps.warn(
                f"{cut} of {total} verification images have more candidates than top_k ({settings.top_k}): detections "
                "may be lost there; raise top_k"
            )
        return Reference(found, cut, weaknesses)

    def verify(self, precision: str, artifact: Artifact) -> Verified:
        """Compare an artifact: the plan where it can run on this machine, else its ONNX."""
        if artifact.network is not None:
            threads = 1
            network, measured = artifact.network, "the plan, run by TensorRT on this machine"
        else:
            network, threads = onnx_network(artifact.model.SerializeToString(), threads=1), usable_cpus()
            measured = "model.onnx, run by ONNX Runtime on the CPU"
        images, settings = self.images, self._settings.verification
        total, size = len(images.paths), self._export.input_size
        with self._steps.step(f"{precision}: verify", f"against the export on {total} images", total) as advance:
            found = segment_set(
                network,
                images.paths,
                size,
                settings,
                advance,
                images.annotations is not None,
                stretch=self._export.stretch,
                threads=threads,
            )
        reference = self.reference.found
        agreement = compare(reference, found, settings.confidence, self._export.class_names)
        if images.annotations is not None:
            map50_95, map50 = mask_map(found, images.paths, images.annotations)
            agreement = replace(agreement, map50_95=map50_95, map50=map50)
        differences = detection_differences(reference, found, size, settings.confidence, stretch=self._export.stretch)
        is_gated = precision != "fp32" or agreement.reference_detections + agreement.detections > 0
        gate = self._settings.gates.of(precision)
        verified = Verified(artifact, agreement, differences, measured, found, gate, is_gated)
        outcome = "; ".join(verified.failures) or ("gate passed" if is_gated else "nothing to compare")
        self._steps.note(f"{precision}: {agreement.summary()}: {outcome}")
        self._steps.note(f"{precision}: {differences.summary()}")
        return verified

    def subject(self, quantized: onnx.ModelProto, original: onnx.ModelProto) -> Subject:
        """An int8 network and its fp32 original, with what is needed to examine single groups of layers."""
        paths = self.images.paths[: self._settings.fallback.sensitivity_images]
        reference = self.reference.found[: len(paths)]
        settings = self._settings.verification
        return Subject(quantized, original, paths, reference, self._export.input_size, settings, self._export.stretch)
