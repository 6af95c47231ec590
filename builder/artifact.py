"""What a profile makes from an export, before it is verified and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import onnx

from repository.network import Network


@dataclass(frozen=True)
class OtherEngine:
    """An engine that may run ``model.onnx`` in place of ONNX Runtime, once the version's gate passed in it.

    Attributes:
        name: in the manifest.
        version: of its package; the server takes no other.
        open_network: makes what runs the network; raises what the engine raises.
        runtime: of the artifact, for the tag, where the gate passed.
    """

    name: str
    version: str
    open_network: Callable[[], Network]
    runtime: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Artifact:
    """A network in one precision.

    Attributes:
        model: grafted network, written as ``model.onnx``.
        excluded: nodes kept in higher precision.
        layers: counts per precision, and where they were read.
        plans: file name to TensorRT plan.
        plan_facts: file name to what the plan was built with and for.
        toolchain: versions of what was used besides the common packages.
        attempts: builds that were tried, the last one successful.
        calibration: how ranges were set; None where they were not.
        quantized: the Q/DQ network with fp32 around, for ranking its layers; None if the precision is not int8.
        network: runs the plan itself; None where that cannot be done on this machine.
        runtime: for the tag, such as ``ort1.32.0-cpu``.
        other_engine: None where there is none on this machine.
    """

    model: onnx.ModelProto
    runtime: str
    excluded: tuple[str, ...] = ()
    layers: dict[str, Any] = field(default_factory=dict)
    plans: dict[str, bytes] = field(default_factory=dict, repr=False)
    plan_facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    toolchain: dict[str, str] = field(default_factory=dict)
    attempts: tuple[dict[str, Any], ...] = ()
    calibration: dict[str, Any] | None = None
    quantized: onnx.ModelProto | None = None
    network: Network | None = None
    other_engine: OtherEngine | None = None


class Profile(Protocol):
    """Makes networks for one way of serving them."""

    name: str

    def make(self, precision: str, exclude: frozenset[str]) -> Artifact:
        """Make one precision.

        Args:
            precision: fp32, fp16 or int8.
            exclude: nodes to take out of int8, besides the profile's own choice.

        Raises:
            BuilderError: it cannot be made.
        """
        ...

    def facts(self, precision: str) -> dict[str, Any]:
        """All that determines what :meth:`make` gives, as JSON knows it."""
        ...

    @property
    def reference(self) -> onnx.ModelProto:
        """The grafted fp32 network that everything is compared with."""
        ...
