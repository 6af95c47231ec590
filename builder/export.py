"""Reads an ONNX export and checks that the builder can serve it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, version_converter

from base.files import sha256_of
from builder.errors import ExportError
from builder.families import NAMES, end_to_end, recognize, suppressed
from builder.families.base import PROTOTYPE_STRIDE, Layout, Seen, Selection, Shape, Suppression
from builder.families.metadata import EXPORT_COMMAND, class_names, count_names, facts_of, model_name
from builder.first_run import Limits, first_run
from builder.onnx_tools import (
    WEIGHTED,
    all_tensors,
    constant_tensors,
    file_session,
    first_line,
    label,
    quiet_session,
    set_nodes,
)

MIN_OPSET: Final = 11  # the first one with the Resize that these networks need
WORKING_OPSETS: Final = range(13, 23)
"""What the builder works with. Split and Unsqueeze take sizes and axes as inputs since 13; the tools behind the builder
do not support opsets above 22. Older and newer graphs are converted to the nearest one by onnx's converter."""
_ADVISED_OPSET: Final = 17
_STRIDE: Final = 32  # of the coarsest scale that all families of dynamic input have
_MOST_BYTES: Final = 2**31 - 2**24  # what protobuf holds in one message, less what the ends may add
_SCALED: Final = 100  # a greater divisor of the input makes [0, 1] of bytes
_MOST_NAME: Final = 100  # characters of a name for tags
_EXPORT_AGAIN: Final = f"Export again with opset={_ADVISED_OPSET} (`{EXPORT_COMMAND} opset={_ADVISED_OPSET}`)"

_QUANTIZED: Final = re.compile(
    r"(Dynamic)?QuantizeLinear|DequantizeLinear|QLinear\w+|QAttention|QGemm|ConvInteger|MatMulInteger\w*|MatMulNBits"
    r"|DynamicQuantizeMatMul|FakeQuant\w*|TRT_\w*(Quantize|DequantizeLinear)\w*"
)
_UNBOUNDED: Final = frozenset({"Clip", "Max", "Min", "Pad", "Where"})
"""Operators that may have an infinite operand."""
_SIZED: Final = {
    **dict.fromkeys(("ConstantOfShape", "NonZero", "Range", "Unique"), 0),
    **dict.fromkeys(("Compress", "Expand", "OneHot", "Pad", "Reshape", "Resize", "Slice", "Split"), 1),
    **dict.fromkeys(("CenterCropPad", "Col2Im", "Tile", "TopK", "Upsample"), 1),
}
"""Operators whose output's size depends on the values of their inputs, and the first such input."""


@dataclass(frozen=True)
class Export:
    """A segmentation export: the file, what it holds, and its graph.

    Attributes:
        path: the ONNX file.
        files: name to SHA-256, hexadecimal, of every file of the model: the ONNX file, and those beside it with its
            weights.
        sha256: over all of them; of the ONNX file if it is the only one.
        name: a short name for tags, in lower case letters, digits, ``-`` and ``_``.
        opset: version of the default operator set in the file.
        batch: the batch that the file is made for; None if it takes any.
        input_name: name of the image input, float32 or float16 [batch, 3, height, width].
        input_height: in pixels.
        input_width: in pixels.
        layout: what its outputs mean.
        is_half: whether its weights are in half precision; those of ``model`` are float32 all the same.
        class_names: one name per class.
        facts: what its metadata says of it: ``task``, ``stride``, ``version`` and ``description``, as far as it does.
        notes: what of the file is ignored or changed, and why.
        model: the graph in float32, the input size fixed, in an opset of :data:`WORKING_OPSETS`, without suppression.
    """

    path: Path
    files: dict[str, str]
    sha256: str
    name: str
    opset: int
    batch: int | None
    input_name: str
    input_height: int
    input_width: int
    layout: Layout
    is_half: bool
    class_names: tuple[str, ...]
    facts: dict[str, str]
    notes: tuple[str, ...]
    model: onnx.ModelProto = field(repr=False, compare=False)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input."""
        return self.input_height, self.input_width

    @property
    def stretch(self) -> bool:
        """Whether an image fills the input; else it is letterboxed."""
        return self.layout.family.input.stretch

    @property
    def detections_name(self) -> str:
        """The detections in the graph, as :attr:`layout` explains them."""
        return self.layout.detections_name

    @property
    def prototypes_name(self) -> str:
        """Output [batch, C, height / 4, width / 4], of prototypes or ready masks."""
        return self.layout.prototypes_name

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.layout.num_classes

    @property
    def num_coefficients(self) -> int:
        """Mask coefficients per detection (32 in these families)."""
        return self.layout.num_coefficients

    @property
    def num_anchors(self) -> int:
        """Rows of detections."""
        return self.layout.num_anchors

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.name}: {self.layout.family.title}; input {self.input_width}x{self.input_height}, "
            f"{self.num_classes} class(es), "
            f"{self.num_anchors} anchors, {self.num_coefficients} mask coefficients, opset {self.opset}"
        )


@dataclass(frozen=True)
class Inspected:
    """What a file holds, as far as reading it shows.

    Attributes:
        path, files, opset, batch, input_name, input_height, input_width, is_half, model: as in :class:`Export`.
        metadata: the file's properties.
        suppression: that was cut off the graph.
        selection: likewise.
    """

    path: Path
    files: dict[str, str]
    opset: int
    batch: int | None
    input_name: str
    input_height: int
    input_width: int
    is_half: bool
    metadata: dict[str, str]
    suppression: Suppression | None
    selection: Selection | None
    model: onnx.ModelProto = field(repr=False)

    def seen(self, outputs: Mapping[str, Shape], num_names: int = 0) -> Seen:
        """The same with the outputs of a run, for :func:`builder.families.recognize`."""
        names = num_names or count_names(self.metadata)
        tail = self.suppression, self.selection
        return Seen(outputs, self.metadata, self.input_height, self.input_width, names, *tail)


def load_export(
    path: Path,
    name: str | None = None,
    input_size: tuple[int, int] | None = None,
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
    family: str | None = None,
    names: Sequence[str] = (),
) -> Export:
    """Read and check an export, after a bounded process has done so and has run it once.

    Args:
        path: the ONNX file.
        name: name for tags; by default the metadata's model name, else the file's name.
        input_size: height and width for an export whose input size is dynamic.
        limits: of the bounded process.
        family: a key of :data:`builder.families.FAMILIES`; None recognizes it.
        names: of the classes, where the file has none; those of the file count otherwise.

    Raises:
        ExportError: the file is no export of a known family, or goes beyond a limit; the message says what is wrong.
    """
    if not path.is_file():
        raise ExportError(f"{path}: no such file; give an ONNX export with --onnx PATH")
    outputs = first_run(path, input_size, limits)
    found = inspect(path, input_size)
    layout = recognize(found.seen(outputs, len(names)), family)
    check_batch(path, layout, found.batch)
    shown, note = class_names(found.metadata, layout.num_classes, names)
    notes = [note] if note else []
    if found.is_half:
        notes.append(
            "the export is in half precision; its weights are promoted to float32, exactly, and the network computes "
            "in float32: results differ from the file's by the rounding that it does"
        )
    if found.suppression is not None:
        notes.append(_bounded_by(layout))
    if layout.limits.get("least_iou") == 1.0:
        notes.append("the network's end needs no suppression: a request's iou has no effect")
    return Export(
        path=path,
        files=found.files,
        sha256=_digest(found.files),
        name=slug(name or model_name(found.metadata) or path.stem),
        opset=found.opset,
        batch=found.batch,
        input_name=found.input_name,
        input_height=found.input_height,
        input_width=found.input_width,
        layout=layout,
        is_half=found.is_half,
        class_names=shown,
        facts=facts_of(found.metadata),
        notes=tuple(notes),
        model=found.model,
    )


def check_batch(path: Path, layout: Layout, batch: int | None) -> None:
    """Refuse a fixed batch that cannot be taken out of the graph.

    Raises:
        ExportError: says how to export a dynamic one.
    """
    if layout.family.needs_dynamic_batch and batch is not None:
        raise ExportError(
            f"{path}: the export of {layout.family.title} is made for {batch} image(s) at a time, and the server needs "
            f"any number. Export again with a dynamic batch (`{layout.family.needs_dynamic_batch}`)"
        )


def _bounded_by(layout: Layout) -> str:
    limits = layout.limits
    return (
        f"suppression is inside the export and was cut off; its thresholds bound every request: confidence "
        f"{limits['least_confidence']:g} or more, iou {limits['most_iou']:g} or less, at most "
        f"{limits['most_detections']:g} detections"
    )


def inspect(path: Path, input_size: tuple[int, int] | None) -> Inspected:
    """Read a file and check what can be checked without running it; see :func:`load_export`."""
    try:
        return _inspected(path, input_size)
    except (ExportError, MemoryError):
        raise
    except Exception as error:  # names that are no UTF-8 come as bytes, unknown types as numbers, and so on
        raise unreadable(path, error) from error


def _inspected(path: Path, input_size: tuple[int, int] | None) -> Inspected:
    model, opset, files = _read(path)
    metadata = load_metadata(model)
    is_half = promote(model)
    suppression = suppressed.cut(model, metadata)
    if is_half and suppression is not None:
        raise ExportError(
            "the export is in half precision and has suppression inside: which boxes it drops depends on its rounding. "
            f"Export again without half=True (`{EXPORT_COMMAND} nms=True`) or without nms=True"
        )
    input_name, batch, height, width = _check_input(model, input_size)
    _check_sizes(model, input_name)
    # In half precision the file's own choice is kept: its reference is made of the same graph.
    selection = end_to_end.cut(model) if suppression is None and not is_half else None
    if opset not in WORKING_OPSETS:
        model = _converted(model, path, opset)
    tail = suppression, selection
    return Inspected(path, files, opset, batch, input_name, height, width, is_half, metadata, *tail, model)


def load_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The properties of a file."""
    # Text that is no UTF-8 comes as bytes.
    return {_text(entry.key): _text(entry.value) for entry in model.metadata_props}


def slug(text: str) -> str:
    """Lower case letters, digits, ``-`` and ``_`` of a name; never empty, and short enough for a file's name."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower())[:_MOST_NAME].strip("-") or "model"


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _digest(files: Mapping[str, str]) -> str:
    if len(files) == 1:
        return next(iter(files.values()))
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()


def unreadable(path: Path, error: Exception) -> ExportError:
    """What is said of a file that onnx does not read."""
    return ExportError(
        f"{path}: not a readable ONNX model ({first_line(error)}); export it again, "
        "for example `yolo export model=yolov8n-seg.pt format=onnx`"
    )


def _read(path: Path) -> tuple[onnx.ModelProto, int, dict[str, str]]:
    """The graph, its opset, and name to SHA-256 of its files."""
    files = {path.name: sha256_of(path)}
    try:
        model = onnx.load(path, load_external_data=False)
        for tensor in all_tensors(model.graph):
            for entry in tensor.external_data:
                beside = path.parent / entry.value
                # What lies outside the folder, or is missing, is refused below, when the weights are read.
                if entry.key == "location" and entry.value not in files and beside.is_file():
                    files[entry.value] = sha256_of(beside)
        onnx.load_external_data_for_model(model, str(path.parent))
    except MemoryError:
        raise
    except Exception as error:  # protobuf, onnx and I/O each have their exception types
        raise unreadable(path, error) from error
    _check_length(path, model)
    if not model.graph.node or not model.graph.output:
        raise ExportError(f"{path}: the ONNX model has no graph; export it again")
    _check_control_flow(model)
    _check_precision(model)
    _check_finite(model)
    opset = next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    newest = onnx.defs.onnx_opset_version()
    if not MIN_OPSET <= opset <= newest:
        raise ExportError(f"{path}: the export uses opset {opset}; allowed: {MIN_OPSET} to {newest}. {_EXPORT_AGAIN}")
    try:
        _sort_nodes(model.graph)
        onnx.checker.check_model(model)
    except Exception as error:
        raise unreadable(path, error) from error
    return model, opset, files


def _converted(model: onnx.ModelProto, path: Path, opset: int) -> onnx.ModelProto:
    target = _ADVISED_OPSET if opset < WORKING_OPSETS.start else WORKING_OPSETS.stop - 1
    try:
        converted = version_converter.convert_version(model, target)
    except Exception as error:  # the converter has its exception types
        raise ExportError(
            f"{path}: its opset {opset} cannot be converted to {target} ({first_line(error)}). {_EXPORT_AGAIN}"
        ) from error
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    return converted


def _sort_nodes(graph: onnx.GraphProto) -> None:
    """Put nodes behind those whose outputs they read; converters to half precision leave them in another order."""
    made = {name for node in graph.node for name in node.output}
    ready = {""}
    waiting = list(graph.node)
    ordered: list[onnx.NodeProto] = []
    while waiting:
        left = []
        for node in waiting:
            if all(name in ready or name not in made for name in _read_by(node)):
                ordered.append(node)
                ready.update(node.output)
            else:
                left.append(node)
        if len(left) == len(waiting):
            raise ValueError(f"its nodes form a circle around {label(left[0])}")
        waiting = left
    if any(one is not other for one, other in zip(ordered, graph.node, strict=True)):
        set_nodes(graph, ordered)


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, those inside its subgraphs too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read_by(inner)


def _check_length(path: Path, model: onnx.ModelProto) -> None:
    """Graph and weights in one message: no tool behind the builder takes more."""
    size = sum(tensor.ByteSize() for tensor in all_tensors(model.graph))
    if size >= _MOST_BYTES:
        raise ExportError(
            f"{path}: its weights have {size / 1e9:.2f} GB; allowed: less than {_MOST_BYTES / 1e9:.2f} GB, which is "
            "what an ONNX model in one message can hold. Export a smaller model"
        )


def _check_control_flow(model: onnx.ModelProto) -> None:
    """No Loop, If, Scan or the like: no family has them, and a loop may have any number of rounds."""
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise ExportError(
                    f"the export has control flow (node {label(node)}, operator {node.op_type}), which no export of "
                    f"{NAMES} has. Export the model again (`{EXPORT_COMMAND}`), or do not use the file"
                )


def _check_sizes(model: onnx.ModelProto, input_name: str) -> None:
    """No tensor's size may depend on pixels: the first run would say nothing about the next image."""
    from_pixels = {input_name}
    for node in model.graph.node:
        if not from_pixels.intersection(node.input):
            continue
        first = _SIZED.get(node.op_type, len(node.input))
        if from_pixels.intersection(node.input[first:]):
            raise ExportError(
                f"the size of a tensor depends on the image's pixels (node {label(node)}, operator {node.op_type}), "
                f"which is so in no export of {NAMES}. Export the model again (`{EXPORT_COMMAND}`), or do "
                "not use the file"
            )
        if node.op_type not in ("Shape", "Size"):
            from_pixels.update(node.output)


def _check_precision(model: onnx.ModelProto) -> None:
    """Only floating-point weights: the others have lost what fp32 is made of."""
    quantized = [node for node in model.graph.node if _QUANTIZED.fullmatch(node.op_type)]
    if quantized:
        kinds = ", ".join(sorted({node.op_type for node in quantized}))
        raise ExportError(
            f"the export is quantized already: {len(quantized)} nodes of the kind {kinds}, the first is "
            f"{label(quantized[0])}. The builder needs the float32 weights and makes int8 "
            "itself, gated and with a fallback. Export again without quantize=8 or int8=True "
            f"(`{EXPORT_COMMAND}`)"
        )
    constants = constant_tensors(model.graph)
    for node in model.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        for name in node.input:
            if name in constants and constants[name].data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
                kind = TensorProto.DataType.Name(constants[name].data_type)
                raise ExportError(
                    f"the export's weights are {kind} (node {label(node)}); "
                    "expected: FLOAT or FLOAT16. The builder needs the weights and makes fp16 and int8 itself. Export "
                    f"again without int8=True or quantize=… (`{EXPORT_COMMAND}`)"
                )


def promote(model: onnx.ModelProto) -> bool:
    """Turn half precision into single, exactly; the graph is changed.

    Returns:
        Whether the graph had any half precision.
    """
    graph, half = model.graph, False
    for tensor in all_tensors(graph):
        if tensor.data_type == TensorProto.FLOAT16:
            half = True
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            half = True
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    if not half:
        return False
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
    del graph.value_info[:]  # it still says float16
    _drop_idle_casts(model)
    return True


def _drop_idle_casts(model: onnx.ModelProto) -> None:
    """Remove casts of float32 to float32."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats |= {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    outputs = {value.name for value in graph.output}
    same: dict[str, str] = {}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT and node.input[0] in floats:
            same[node.output[0]] = same.get(node.input[0], node.input[0])
        else:
            nodes.append(node)
    # An output keeps its name: what made the cast's input makes it now.
    renamed = {source: name for name, source in same.items() if name in outputs}
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                source = same.get(name, name)
                names[index] = renamed.get(source, source)
    set_nodes(model.graph, nodes)


def _check_finite(model: onnx.ModelProto) -> None:
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for tensor in model.graph.initializer:
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            continue
        try:
            values = numpy_helper.to_array(tensor)
        except ValueError as error:
            shape = "x".join(map(str, tensor.dims))
            raise ExportError(
                f"the weights {tensor.name!r} do not fill their shape {shape} ({first_line(error)}): the file is "
                "damaged. Export it again"
            ) from error
        nan, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        if nan or (infinite and not readers.get(tensor.name, set()) <= _UNBOUNDED):
            raise ExportError(
                f"the weights {tensor.name!r} hold {nan} NaN and {infinite} infinite values of {values.size}: the "
                "checkpoint is damaged, or training diverged. Export a working checkpoint"
            )


def _check_input(model: onnx.ModelProto, input_size: tuple[int, int] | None) -> tuple[str, int | None, int, int]:
    """Name, batch, height and width of the input, whose size is fixed in the graph."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    if len(inputs) != 1:
        raise ExportError(
            f"the export has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}); expected: 1 image"
        )
    tensor = inputs[0].type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim]
    if len(dims) != 4 or dims[1] not in (3, None):
        shown = "x".join("?" if dim is None else str(dim) for dim in dims)
        raise ExportError(f"the input {inputs[0].name!r} has shape {shown}; expected: batch x 3 x height x width")
    if tensor.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise ExportError(
            f"the input {inputs[0].name!r} is {kind}; expected: FLOAT or FLOAT16. Export again without int8=True or "
            f"quantize=… (`{EXPORT_COMMAND}`): the builder makes fp16 and int8 itself"
        )
    if (dims[2] is None or dims[3] is None) and input_size is None:
        size = load_metadata(model).get("imgsz", "")[:_MOST_NAME]
        raise ExportError(
            "the export's input size is dynamic; choose one with --input-size, such as 640 or 384x640"
            f"{f' (its metadata says imgsz={size})' if size else ''}"
        )
    height, width = dims[2] or 0, dims[3] or 0
    multiple = _STRIDE if None in dims[2:] else PROTOTYPE_STRIDE  # only YOLO's exports leave the size open
    if input_size is not None:
        if (height and height != input_size[0]) or (width and width != input_size[1]):
            raise ExportError(
                f"--input-size {input_size[0]}x{input_size[1]} was given, but the export's input is fixed at "
                f"{height}x{width}; leave the option out or export again with imgsz={input_size[0]},{input_size[1]}"
            )
        height, width = input_size
    if height % multiple or width % multiple or not height or not width:
        raise ExportError(f"the input size {height}x{width} is not a multiple of {multiple}")
    _check_scaling(model, inputs[0].name)
    tensor.shape.dim[2].dim_value, tensor.shape.dim[3].dim_value = height, width
    return inputs[0].name, dims[0], height, width


def _check_scaling(model: onnx.ModelProto, input_name: str) -> None:
    """The network must take [0, 1]: one that divides by 255 itself would see nothing."""
    constants = constant_tensors(model.graph)
    names = {input_name}
    for node in model.graph.node:
        if node.op_type in ("Cast", "Transpose", "Identity") and names.intersection(node.input):
            names.update(node.output)
        elif node.op_type in ("Div", "Mul") and names.intersection(node.input):
            factors = [numpy_helper.to_array(constants[name]) for name in node.input if name in constants]
            for factor in factors:
                scale = float(np.max(factor)) if node.op_type == "Div" else 1 / max(float(np.max(factor)), 1e-9)
                if factor.size in (1, 3) and scale > _SCALED:
                    raise ExportError(
                        f"the export scales its input by 1/{scale:g} itself (node {label(node)}, operator "
                        f"{node.op_type}); the builder feeds RGB in [0, 1]. Export it without its preprocessing "
                        f"(`{EXPORT_COMMAND}`)"
                    )


def run_once(export: Inspected, threads: int) -> dict[str, tuple[int, ...]]:
    """Run an export on empty images, in its batch; only :mod:`builder.first_run` does, in a bounded process.

    Args:
        export: the file.
        threads: at most this many.

    Returns:
        Shapes of the outputs, by name.

    Raises:
        ExportError: it does not run, or an output is not float32.
    """
    shape = (export.batch or 1, 3, export.input_height, export.input_width)
    found: dict[str, tuple[int, ...]] = {}
    # The build runs the file as it is, too, with what was cut off.
    for whole in (True, False) if export.suppression or export.selection else (False,):
        try:
            session = (
                file_session(export.path, threads)
                if whole
                else quiet_session(export.model.SerializeToString(), threads)
            )
            feed = session.get_inputs()[0]
            kind = np.float16 if feed.type == "tensor(float16)" else np.float32
            arrays = session.run(None, {feed.name: np.zeros(shape, kind)})
        except MemoryError:
            raise
        except Exception as error:  # ONNX Runtime has one exception type per status
            raise ExportError(f"the export does not run in ONNX Runtime: {first_line(error)}") from error
        for output, array in zip(session.get_outputs(), arrays, strict=True):
            if array.dtype not in (np.float32, np.float16):
                raise ExportError(f"the output {output.name!r} is {array.dtype}; expected: float32")
            found[output.name] = tuple(array.shape)
    return found
