"""Names of an ONNX graph: the order of nodes, what feeds them, and which nodes carry quantizers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx

from builder.onnx_tools import QUANTIZERS


@dataclass(frozen=True)
class GraphNode:
    """One ONNX node.

    Attributes:
        name: its name.
        operator: its operator, such as ``Conv``.
        inputs: tensors that it reads.
        outputs: tensors that it writes.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class GraphNames:
    """An ONNX graph without its weights.

    Attributes:
        nodes: in topological order.
        initializers: names of the weights.
    """

    nodes: tuple[GraphNode, ...]
    initializers: frozenset[str] = field(default=frozenset())

    @classmethod
    def from_model(cls, model: onnx.ModelProto) -> GraphNames:
        """Read the names of a model, whose nodes ONNX keeps in topological order."""
        graph = model.graph
        nodes = tuple(GraphNode(node.name, node.op_type, tuple(node.input), tuple(node.output)) for node in graph.node)
        return cls(nodes, frozenset(tensor.name for tensor in graph.initializer))

    @classmethod
    def from_file(cls, path: Path) -> GraphNames:
        """Read the names of an ONNX file."""
        return cls.from_model(onnx.load(path, load_external_data=False))

    @cached_property
    def by_name(self) -> Mapping[str, GraphNode]:
        """Nodes by name; nodes without one are left out."""
        return {node.name: node for node in self.nodes if node.name}

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """Place of every node in topological order."""
        return {node.name: index for index, node in enumerate(self.nodes) if node.name}

    @cached_property
    def producers(self) -> Mapping[str, GraphNode]:
        """The node that writes a tensor."""
        return {tensor: node for node in self.nodes for tensor in node.outputs if tensor}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[GraphNode, ...]]:
        """The nodes that read a tensor."""
        found: dict[str, list[GraphNode]] = {}
        for node in self.nodes:
            for tensor in node.inputs:
                found.setdefault(tensor, []).append(node)
        return {tensor: tuple(nodes) for tensor, nodes in found.items()}

    def in_order(self, names: Iterable[str]) -> tuple[str, ...]:
        """Names sorted topologically, each once; unknown ones are left out."""
        known = {name for name in names if name in self.positions}
        return tuple(sorted(known, key=self.positions.__getitem__))

    def between(self, first: str, last: str) -> tuple[str, ...]:
        """Nodes from ``first`` to ``last`` in topological order, both included, whichever comes first."""
        start, stop = sorted((self.positions[first], self.positions[last]))
        return tuple(node.name for node in self.nodes[start : stop + 1] if node.name)

    def behind_quantizers(self, tensor: str) -> tuple[GraphNode, ...]:
        """Nodes that read a tensor, looking through QuantizeLinear and DequantizeLinear."""
        found: list[GraphNode] = []
        for node in self.consumers.get(tensor, ()):
            if node.operator in QUANTIZERS and node.inputs[:1] == (tensor,):
                found.extend(self.behind_quantizers(node.outputs[0]))
            elif node.operator not in QUANTIZERS:
                found.append(node)
        return tuple(found)

    def before_quantizers(self, tensor: str) -> GraphNode | None:
        """The node that makes a tensor, looking through QuantizeLinear and DequantizeLinear."""
        node = self.producers.get(tensor)
        while node is not None and node.operator in QUANTIZERS:
            node = self.producers.get(node.inputs[0])
        return node

    def is_quantized(self, name: str) -> bool:
        """Whether a node reads a dequantized tensor, so that it may run in int8."""
        node = self.by_name.get(name)
        if node is None or node.operator in QUANTIZERS:
            return False
        return any(
            producer is not None and producer.operator == "DequantizeLinear"
            for producer in map(self.producers.get, node.inputs)
        )

    def quantizer_carriers(self, names: Iterable[str]) -> tuple[str, ...]:
        """Of failed nodes, those whose quantizers can be taken away.

        A fused layer may hold no such node and still fail, because its output is quantized for the nodes behind it;
        then those are the carriers.

        Args:
            names: nodes of failed layers.

        Returns:
            Names in topological order.
        """
        names = tuple(names)
        carriers = [name for name in names if self.is_quantized(name)]
        if not carriers:
            for name in names:
                for tensor in self.by_name[name].outputs if name in self.by_name else ():
                    carriers.extend(
                        node.name for node in self.behind_quantizers(tensor) if self.is_quantized(node.name)
                    )
        return self.in_order(carriers)
