"""Reads a network's ONNX graph as :mod:`steps.gpu.layers`; what it does not understand stays ONNX.

That is attention, and a head that the kernels do not compute: in as few segments as the graph's order allows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline import contract
from steps.gpu.head import Head, recognized
from steps.gpu.layers import (
    ALIGNED,
    Convolution,
    Enlarge,
    Layer,
    Layers,
    Map,
    Pool,
    Segment,
    Stem,
    Sum,
    UnsupportedNetwork,
    aligned,
    side_by_side,
)

_FLOATS: Final = (TensorProto.FLOAT, TensorProto.FLOAT16)


def layers_of(model: onnx.ModelProto) -> Layers:
    """Layers of a network of this project in halves.

    Raises:
        UnsupportedNetwork: no layers can be made of it.
    """
    return _Reader(model).read()


class _Reader:
    """Reads nodes in their order. Names are those of the graph without its conversions between float types."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        graph = model.graph
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output}
        self._types = _inferred(model)
        self._alias: dict[str, str] = {}
        self._consumers: defaultdict[str, list[onnx.NodeProto | None]] = defaultdict(list)
        for node in graph.node:
            if node.op_type == "Constant":
                self._constants[node.output[0]] = numpy_helper.to_array(helper.get_node_attr_value(node, "value"))
            elif all(name in self._constants for name in node.input) and node.op_type in ("Cast", "Identity"):
                value = self._constants[node.input[0]]
                to = helper.get_node_attr_value(node, "to") if node.op_type == "Cast" else None
                self._constants[node.output[0]] = value.astype(helper.tensor_dtype_to_np_dtype(to)) if to else value
            elif self._is_conversion(node):
                self._alias[node.output[0]] = self._name(node.input[0])
            else:
                for name in node.input:
                    self._consumers[self._name(name)].append(node)
        for output in graph.output:
            self._consumers[self._name(output.name)].append(None)
        self._maps: dict[str, Map] = {}
        self._stages: dict[str, int] = {contract.IMAGES.name: 0}
        self._pictures: dict[str, float] = {contract.IMAGES.name: 1.0}
        self._imported: dict[str, Map] = {}
        self._layers: list[tuple[int, Layer]] = []
        self._fused: set[int] = set()
        self._convolved: set[str] = set()

    def read(self) -> Layers:
        for node in self._model.graph.node:
            known = id(node) in self._fused or node.output[0] in self._constants or node.output[0] in self._alias
            if known or self._picture(node) or self._understand(node):
                continue
            stages = [self._stages[name] for name in self._inputs(node) if name in self._stages]
            if stages:  # the others are made where they are needed
                for name in node.output:
                    self._stages[name] = max(stages) | 1
        if not any(isinstance(layer, Convolution) for _, layer in self._layers):
            raise UnsupportedNetwork("none of its convolutions is in halves")
        prototypes = self._maps.get(self._name(contract.PROTOTYPES.name))
        layers = self._ordered(prototypes, self._recognize_head(prototypes))
        return replace(layers, layers=tuple(side_by_side(layers.layers)))

    # Segments of layers and of ONNX

    def _ordered(self, prototypes: Map | None, head: tuple[Head, tuple[Map, ...]] | None) -> Layers:
        """What the outputs need: layers have even stages, what ONNX Runtime runs between them odd ones."""
        wanted = [] if head else [contract.CANDIDATES.name]
        wanted += [] if prototypes else [contract.PROTOTYPES.name]
        needed = {one.place()[0] for one in (*(head[1] if head else ()), *([prototypes] if prototypes else ()))}
        last = max(self._stages.values())
        kept: list[Layer] = []
        for stage in range(last, -1, -1):
            if stage % 2:
                outputs = {
                    name: one
                    for name, one in self._imported.items()
                    if self._stages[name] == stage and one.place()[0] in needed
                }
                names = [*outputs, *(name for name in wanted if self._stages[self._name(name)] == stage)]
                if names:
                    kept.append(self._segment(names, outputs))
                    needed |= {one.place()[0] for one in kept[-1].inputs}
            else:
                for at, layer in reversed(self._layers):
                    if at == stage and any(one.place()[0] in needed for one in layer.outputs):
                        kept.append(layer)
                        needed |= {one.place()[0] for one in layer.inputs}
        if any(self._stages[self._name(name)] % 2 == 0 for name in wanted):
            raise UnsupportedNetwork("its outputs are not where they are expected")
        return Layers(tuple(reversed(kept)), prototypes, head)

    def _segment(self, names: Sequence[str], outputs: dict[str, Map]) -> Segment:
        stage = max(self._stages[self._name(name)] for name in names)

        def is_input(name: str) -> bool:
            known = self._name(name)
            return known in self._maps or (known in self._imported and self._stages[known] < stage)

        model, inputs = self._extracted(names, is_input)
        maps = tuple(self._maps.get(self._name(name)) or self._imported[self._name(name)] for name in inputs)
        return Segment(
            inputs=maps,
            outputs=tuple(outputs.values()),
            model=model.SerializeToString(),
            input_names=tuple(node.name for node in model.graph.input if node.name != contract.IMAGES.name),
            output_names=tuple(node.name for node in model.graph.output),
        )

    def _extracted(self, outputs: Sequence[str], is_input: Callable[[str], bool]) -> tuple[onnx.ModelProto, list[str]]:
        """The part of the graph between some values, both sides in halves where they are floats inside."""
        inputs: dict[str, None] = {}
        nodes: set[int] = set()
        constants: set[str] = set()
        graph = self._model.graph
        pending = list(outputs)
        while pending:
            name = pending.pop()
            if not name or name == contract.IMAGES.name or name in inputs:
                continue
            if name in self._constants:
                constants.add(name)
            elif is_input(name):
                inputs[name] = None
            elif id(node := self._producers[name]) not in nodes:
                nodes.add(id(node))
                pending += [] if self._asks_batch(node) else node.input
        given = [self._outside(name) for name in inputs]
        converted = [
            helper.make_node("Cast", [outside.name], [name], to=TensorProto.FLOAT)
            for name, outside in zip(inputs, given, strict=True)
            if outside.name != name
        ]
        body = []
        for node in graph.node:
            if id(node) in nodes:
                body.append(onnx.NodeProto())
                body[-1].CopyFrom(node)
                if self._asks_batch(node):
                    body[-1].input[0] = contract.IMAGES.name
                body[-1].output[:] = [f"{name}/again" if name in inputs else name for name in node.output]
        taken = []
        ends = {output.name: output for output in graph.output}
        for name in outputs:
            taken.append(ends.get(name) or self._outside(name))
            if taken[-1].name != name:
                body.append(helper.make_node("Cast", [name], [taken[-1].name], to=TensorProto.FLOAT16))
        if any(contract.IMAGES.name in node.input for node in body):
            given.append(graph.input[0])
        weights = [numpy_helper.from_array(self._constants[name], name) for name in sorted(constants)]
        part = helper.make_graph([*converted, *body], "segment", given, taken, weights)
        model = helper.make_model(part, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        return model, list(inputs)

    def _outside(self, name: str) -> onnx.ValueInfoProto:
        """A value as a segment gives and takes it: in halves."""
        kind, (_, *lengths) = self._types[name]
        outside = f"{name}/half" if kind == TensorProto.FLOAT else name
        return helper.make_tensor_value_info(outside, TensorProto.FLOAT16, [contract.BATCH_DIMENSION, *lengths])

    def _recognize_head(self, prototypes: Map | None) -> tuple[Head, tuple[Map, ...]] | None:
        """The last convolutions before the candidates, if what follows them is what the kernels compute."""
        leaves: dict[str, None] = {}

        def is_leaf(name: str) -> bool:
            known = self._name(name)
            if known in self._convolved:
                leaves[known] = None
                return True
            return False

        shape = self._types[contract.CANDIDATES.name][1]
        if prototypes is None or len(shape) != 3:
            return None
        model, inputs = self._extracted([contract.CANDIDATES.name], is_leaf)
        maps = {name: self._maps[self._name(name)] for name in inputs}
        if len({id(one) for one in maps.values()}) != len(maps):
            return None
        sizes = {name: (one.channels, one.height, one.width) for name, one in maps.items()}
        size = self._types[contract.IMAGES.name][1][1]
        names = [node.name for node in model.graph.input]
        found = recognized(model, dict(zip(names, sizes.values(), strict=False)), size, prototypes.channels)
        if found is None:
            return None
        head, order = found
        outside = dict(zip(names, maps.values(), strict=False))
        return head, tuple(outside[name] for name in order)

    # Nodes

    def _understand(self, node: onnx.NodeProto) -> bool:
        read = getattr(self, f"_read_{node.op_type.lower()}", None)
        return read is not None and bool(read(node, _attributes(node)))

    def _read_conv(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
        weight = self._constants.get(node.input[1])
        bias = self._constants.get(node.input[2]) if len(node.input) > 2 else None
        if weight is None or weight.dtype != np.float16 or (bias is None and len(weight) == 1) or weight.ndim != 4:
            return False
        name, count = self._name(node.input[0]), len(weight)
        scale, x = self._pictures.get(name), self._map(name, imports=True)
        top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
        down, across = attributes.get("strides", (1, 1))
        groups = attributes.get("group", 1)
        plain = attributes.get("auto_pad", b"NOTSET") == b"NOTSET" and {*attributes.get("dilations", ())} <= {1}
        if not plain or (top, left) != (bottom, right) or down != across:
            return False
        bias = np.zeros(count, np.float16) if bias is None else bias.astype(np.float16)
        if scale is not None:
            even = top == left and weight.shape[2] == weight.shape[3]
            if abs(scale * 255 - 1) > 1e-6 or groups != 1 or weight.shape[1] != 3 or not even or down > 2:
                return False
            layer = self._stem(weight, bias, down, top)
        elif x is None:
            return False
        else:
            depthwise = groups == x.channels == count > 1
            if groups != 1 and (not depthwise or x.channels % ALIGNED):
                return False
            height = (x.height + 2 * top - weight.shape[2]) // down + 1
            width = (x.width + 2 * left - weight.shape[3]) // down + 1
            layer = Convolution(
                inputs=(x,),
                outputs=(Map(height, width, count),),
                weight=np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0)) if depthwise else _packed(weight),
                bias=np.pad(bias, (0, aligned(count) - count)),
                stride=down,
                padding=(top, left),
                depthwise=depthwise,
            )
        self._finish(layer, node.output[0], [name])
        return True

    def _stem(self, weight: NDArray[Any], bias: NDArray[Any], stride: int, padding: int) -> Convolution:
        """The first convolution, over blocks of pixels as large as its stride."""
        count, _, size, _ = weight.shape
        _, height, width, _ = self._types[contract.IMAGES.name][1]
        rows, columns = ((length + 2 * padding - size) // stride + 1 for length in (height, width))
        lowest = -padding // stride
        window = (size - 1 - padding) // stride - lowest + 1
        blocks = np.zeros((count, window, window, aligned(stride * stride * 3)), np.float16)
        for y in range(size):
            for x in range(size):
                (row, below), (column, beside) = (divmod(place - padding, stride) for place in (y, x))
                channel = (below * stride + beside) * 3
                blocks[:, row - lowest, column - lowest, channel : channel + 3] = weight[:, :, y, x]
        cut = Map(rows + window - 1, columns + window - 1, stride * stride * 3)
        self._layers.append((0, Stem(outputs=(cut,), block=stride, before=-lowest)))
        return Convolution(
            inputs=(cut,),
            outputs=(Map(rows, columns, count),),
            weight=np.pad(blocks, ((0, aligned(count) - count), (0, 0), (0, 0), (0, 0))),
            bias=np.pad(bias, (0, aligned(count) - count)),
        )

    def _finish(self, layer: Convolution, name: str, inputs: list[str]) -> None:
        """Take the SiLU and the sum that follow, where nobody else needs what lies between."""
        followers = self._consumers[name]
        if [node.op_type if node else "" for node in followers] == ["Sigmoid", "Mul"]:
            sigmoid, product = followers[0], followers[1]
            if sigmoid and product and {self._name(one) for one in product.input} == {name, sigmoid.output[0]}:
                self._fused |= {id(sigmoid), id(product)}
                layer.silu, name = True, product.output[0]
        followers = self._consumers[name]
        if len(followers) == 1 and (node := followers[0]) is not None and node.op_type == "Add":
            others = [one for one in self._inputs(node) if one != name]
            other = self._map(others[0]) if len(others) == 1 else None
            output = layer.outputs[0]
            if other is not None and _shape(other) == _shape(output) and output.channels % ALIGNED == 0:
                self._fused.add(id(node))
                layer.inputs += (other,)
                inputs.append(others[0])
                name = node.output[0]
        self._add(layer, name, inputs)
        self._convolved.add(name)

    def _read_convtranspose(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
        weight, x = self._constants.get(node.input[1]), self._map(self._name(node.input[0]))
        if weight is None or x is None or weight.dtype != np.float16 or weight.ndim != 4:
            return False
        _, count, factor, columns = weight.shape
        strides, plain = attributes.get("strides"), {"kernel_shape", "strides", "dilations", "group", "pads"}
        if list(strides or ()) != [factor, columns] or factor != columns or set(attributes) - plain:
            return False
        if any(attributes.get("pads", ())) or attributes.get("group", 1) != 1 or count % ALIGNED:
            return False
        bias = self._constants[node.input[2]] if len(node.input) > 2 else np.zeros(count, np.float16)
        parts = Map(x.height, x.width, factor * factor * count)
        weight = weight.transpose(2, 3, 1, 0).reshape(factor * factor * count, -1, 1, 1)
        bias = np.tile(bias.astype(np.float16), factor * factor)
        stage = self._even([self._name(node.input[0])])
        self._layers.append((stage, Convolution(inputs=(x,), outputs=(parts,), weight=_packed(weight), bias=bias)))
        y = Map(x.height * factor, x.width * factor, count)
        self._add(Enlarge(inputs=(parts,), outputs=(y,), factor=factor, shuffle=True), node.output[0], node.input[:1])
        return True

    def _read_add(self, node: onnx.NodeProto, _: dict[str, Any]) -> bool:
        names = self._inputs(node)
        if len(names) != 2 or not any(name in self._maps for name in names):
            return False
        one, other = (self._map(name, imports=True) for name in names)
        if one is None or other is None or _shape(one) != _shape(other) or one.channels % ALIGNED:
            return False
        self._add(Sum(inputs=(one, other), outputs=(Map(*_shape(one)),)), node.output[0], names)
        return True

    def _read_concat(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
        names = [self._name(name) for name in node.input]
        maps = [one for one in map(self._map, names) if one is not None]
        if attributes["axis"] != 1 or len(maps) < len(names) or any(one.channels % ALIGNED for one in maps):
            return False
        if len({(one.height, one.width) for one in maps}) != 1:
            return False
        whole = Map(maps[0].height, maps[0].width, sum(one.channels for one in maps))
        first = 0
        while maps:
            count, channels = _tiles(maps, whole)
            if count:
                root = maps[0].place()[0]
                root.parent, root.first = whole, first
            else:  # it lies in another concatenation already
                count, channels = 1, maps[0].channels
                part = Map(whole.height, whole.width, channels, whole, first)
                self._layers.append((self._even(names), Sum(inputs=(maps[0],), outputs=(part,))))
            first += channels
            maps = maps[count:]
        self._maps[node.output[0]], self._stages[node.output[0]] = whole, self._even(names)
        return True

    def _read_split(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
        x = self._map(self._name(node.input[0]))
        if x is None or attributes.get("axis", 0) != 1:
            return False
        sizes = self._constants.get(node.input[1]) if len(node.input) > 1 else attributes.get("split")
        if sizes is None:
            each = -(-x.channels // len(node.output))
            sizes = [min(each, x.channels - first) for first in range(0, x.channels, each)]
        return self._cut(node, x, [0, *np.cumsum(sizes).tolist()])

    def _read_slice(self, node: onnx.NodeProto, _: dict[str, Any]) -> bool:
        x, given = self._map(self._name(node.input[0])), [self._constants.get(name) for name in node.input[1:]]
        if x is None or len(given) < 3 or any(one is None or one.size != 1 for one in given):
            return False
        start, end, axis, *step = (int(one.reshape(())) for one in given if one is not None)
        if axis != 1 or step not in ([], [1]):
            return False
        first, last = (max(0, min(place + x.channels * (place < 0), x.channels)) for place in (start, end))
        return self._cut(node, x, [first, last])

    def _cut(self, node: onnx.NodeProto, x: Map, places: list[int]) -> bool:
        if any(place % ALIGNED for place in places):
            return False
        for name, first, last in zip(node.output, places[:-1], places[1:], strict=True):
            self._maps[name] = Map(x.height, x.width, last - first, x, first)
            self._stages[name] = self._even([self._name(node.input[0])])
        return True

    def _read_maxpool(self, node: onnx.NodeProto, attributes: dict[str, Any], mean: bool = False) -> bool:
        x = self._map(self._name(node.input[0]))
        size, stride = attributes["kernel_shape"], attributes.get("strides", (1, 1))
        padding = attributes.get("pads", (0, 0, 0, 0))
        if x is None or len({*size}) != 1 or len({*stride}) != 1 or len({*padding}) != 1 or x.channels % ALIGNED:
            return False
        if attributes.get("ceil_mode", 0) or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
            return False
        if any(one != 1 for one in attributes.get("dilations", ())) or (mean and padding[0]):
            return False
        height, width = ((length + 2 * padding[0] - size[0]) // stride[0] + 1 for length in (x.height, x.width))
        y = Map(height, width, x.channels)
        layer = Pool(inputs=(x,), outputs=(y,), size=size[0], stride=stride[0], padding=padding[0], mean=mean)
        self._add(layer, node.output[0], node.input[:1])
        return True

    def _read_averagepool(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
        return self._read_maxpool(node, attributes, mean=True)

    def _read_gather(self, node: onnx.NodeProto, _: dict[str, Any]) -> bool:
        """A length that the network asks of a value: dynamic exports lay out their points by it."""
        asked, index = self._producers.get(node.input[0]), self._constants.get(node.input[1])
        if asked is None or asked.op_type != "Shape" or asked.attribute or index is None:
            return False
        shape = self._types.get(asked.input[0], (0, ()))[1]
        places = np.asarray(index)
        if not shape or places.min() < 1 or places.max() >= len(shape) or 0 in shape[1:]:
            return False
        self._constants[node.output[0]] = np.array(shape, np.int64)[places]
        return True

    def _read_resize(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
        x, shape = self._map(self._name(node.input[0])), self._types.get(node.output[0], (0, ()))[1]
        if x is None or len(shape) != 4 or attributes.get("mode", b"nearest") != b"nearest" or x.channels % ALIGNED:
            return False
        way = attributes.get("coordinate_transformation_mode", b"half_pixel"), attributes.get("nearest_mode")
        factor = shape[2] // x.height
        if way[0] != b"asymmetric" or way[1] != b"floor" or factor < 1:
            return False
        if shape[1:] != (x.channels, x.height * factor, x.width * factor):
            return False
        y = Map(*shape[2:], x.channels)
        self._add(Enlarge(inputs=(x,), outputs=(y,), factor=factor, shuffle=False), node.output[0], node.input[:1])
        return True

    # Names and values

    def _picture(self, node: onnx.NodeProto) -> bool:
        """Whether a node only brings the input from bytes to [batch, 3, height, width] in 0 to 1."""
        scale = self._pictures.get(self._name(node.input[0])) if node.input else None
        if scale is None:
            return False
        if node.op_type in ("Div", "Mul"):
            factor = self._constants.get(node.input[1])
            if factor is None or factor.size != 1:
                return False
            scale = scale / float(factor) if node.op_type == "Div" else scale * float(factor)
        elif node.op_type == "Transpose":
            if list(helper.get_node_attr_value(node, "perm")) != [0, 3, 1, 2]:
                return False
        elif node.op_type != "Cast":
            return False
        self._pictures[node.output[0]] = scale
        self._stages[node.output[0]] = 0
        return True

    def _is_conversion(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Identity":
            return True
        types = [self._types.get(name, (0,))[0] for name in (*node.input, *node.output)]
        return node.op_type == "Cast" and all(one in _FLOATS for one in types)

    def _asks_batch(self, node: onnx.NodeProto) -> bool:
        """Whether nothing but the number of images is read from the shape of a map: any other map tells as well."""
        if node.op_type != "Shape" or node.attribute or self._name(node.input[0]) not in self._maps:
            return False
        askers = [one for one in self._consumers[node.output[0]] if one is None or one.output[0] not in self._constants]
        indices = [self._constants.get(one.input[1]) if one and one.op_type == "Gather" else None for one in askers]
        return all(index is not None and np.all(index == 0) for index in indices)

    def _name(self, name: str) -> str:
        return self._alias.get(name, name)

    def _inputs(self, node: onnx.NodeProto) -> list[str]:
        return [self._name(name) for name in node.input if name and name not in self._constants]

    def _map(self, name: str, imports: bool = False) -> Map | None:
        """A map by its name; with ``imports``, also what a segment gives, if it is one."""
        known = self._maps.get(name) or self._imported.get(name)
        kind, shape = self._types.get(name, (0, ()))
        if known or not imports or name not in self._stages or name in self._pictures:
            return known
        if len(shape) != 4 or kind not in _FLOATS or not all(shape) or shape[1] % ALIGNED:
            return None
        self._imported[name] = Map(shape[2], shape[3], shape[1])
        return self._imported[name]

    def _even(self, names: Iterable[str]) -> int:
        stage = max(self._stages[self._name(name)] for name in names)
        return stage + stage % 2

    def _add(self, layer: Layer, name: str, inputs: Iterable[str]) -> None:
        stage = self._even(inputs)
        self._layers.append((stage, layer))
        self._maps[name], self._stages[name] = layer.outputs[0], stage


def _packed(weight: NDArray[Any]) -> NDArray[np.float16]:
    """Weights [outputs, inputs, rows, columns] as [outputs, rows, columns, inputs], padded with zeros."""
    outputs, inputs = (aligned(count) - count for count in weight.shape[:2])
    packed = np.pad(weight.transpose(0, 2, 3, 1), ((0, outputs), (0, 0), (0, 0), (0, inputs)))
    return np.ascontiguousarray(packed, np.float16)


def _tiles(maps: Sequence[Map], whole: Map) -> tuple[int, int]:
    """How many of the first maps are, one behind the other, a whole map with memory; and its channels."""
    root, channels = maps[0].place()[0], 0
    for count, one in enumerate(maps, 1):
        if one.place() != (root, channels) or root is whole:
            break
        channels += one.channels
        if channels == root.channels:
            return count, channels
    return 0, 0


def _shape(one: Map) -> tuple[int, int, int]:
    return one.height, one.width, one.channels


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _inferred(model: onnx.ModelProto) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Element type and shape of the graph's values, for one image; 0 is a length that is not known."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for value in (*single.graph.input, *single.graph.output, *single.graph.value_info):
        for length in value.type.tensor_type.shape.dim:
            if length.dim_param == contract.BATCH_DIMENSION:
                length.dim_value = 1
    graph = onnx.shape_inference.infer_shapes(single, data_prop=True).graph
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            tuple(length.dim_value for length in value.type.tensor_type.shape.dim),
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
