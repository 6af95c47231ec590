"""What a profile makes from an export, before it is verified and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import onnx

from repository.network import Network


@dataclass(frozen=True)
class OtherEngine:
    """An engine that may run ``model.onnx`` in place of ONNX Runtime, once the version's gate passed in it."""

    name: str  # in the manifest
    version: str  # of its package; the server takes no other
    open_network: Callable[[], Network]  # makes what runs the network; raises what the engine raises
    runtime: str  # of the artifact, for the tag, where the gate passed

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Artifact:
    """A network in one precision."""

    model: onnx.ModelProto  # grafted network, written as ``model.onnx``
    runtime: str  # for the tag, such as ``ort1.32.0-cpu``
    excluded: tuple[str, ...] = ()  # nodes kept in higher precision
    layers: dict[str, Any] = field(default_factory=dict)  # counts per precision, and where they were read
    plans: dict[str, bytes] = field(default_factory=dict, repr=False)  # file name to TensorRT plan
    # File name to what the plan was built with and for
    plan_facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    toolchain: dict[str, str] = field(default_factory=dict)  # versions of what was used besides the common packages
    attempts: tuple[dict[str, Any], ...] = ()  # builds that were tried, the last one successful
    calibration: dict[str, Any] | None = None  # how ranges were set; None where they were not
    # The Q/DQ network with fp32 around, for ranking its layers; None if the precision is not int8
    quantized: onnx.ModelProto | None = None
    network: Network | None = None  # runs the plan itself; None where that cannot be done on this machine
    other_engine: OtherEngine | None = None  # None where there is none on this machine


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
