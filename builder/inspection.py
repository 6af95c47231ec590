"""What a file is, by its behavior: probe images run through it, and what its outputs then show.

Only :mod:`builder.first_run` calls :func:`examine`, in a bounded process. Everything in it goes to people and to JSON.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from builder.errors import ExportError
from builder.export import Inspected, check_batch, inspect, load_metadata, run_once, unreadable
from builder.families import recognize
from builder.families.base import Floats, Layout
from builder.families.end_to_end import MOST_TURNED, turned_share
from builder.families.metadata import facts_of, read_names
from builder.families.yolo import centers_of_cells, corner_share
from builder.onnx_tools import file_session
from builder.source import blobs, box_ious
from builder.source_check import check_ranges

_DEFAULT_SIZE: Final = (640, 640)
_SHIFT: Final = 32
_SHOWN_NAMES: Final = 3
_BEST: Final = 100  # rows that evidence is taken from


@dataclass(frozen=True)
class Evidence:
    """One finding.

    Attributes:
        question: what was asked of the file.
        answer: in a few words.
        evidence: what shows it.
    """

    question: str
    answer: str
    evidence: str


@dataclass
class Findings:
    """What is known of a file.

    Attributes:
        file: its name.
        served: whether the builder takes it.
        family: by its key; empty if unknown.
        title: of the family, or what the file is instead.
        refusal: why it is not taken; empty if it is.
        facts: what reading it shows, such as opset, input, outputs and metadata.
        evidence: what running it shows.
    """

    file: str
    served: bool = False
    family: str = ""
    title: str = ""
    refusal: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    evidence: list[Evidence] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def examine(
    path: Path, input_size: tuple[int, int] | None, family: str | None, names: Sequence[str], threads: int
) -> Findings:
    """Read a file, run probe images through it, and say what it is.

    Args:
        path: the ONNX file.
        input_size: height and width for an export whose input size is dynamic; by default what its metadata says, else
            640 x 640.
        family: named by the user; None recognizes it.
        names: of the classes, where the file has none.
        threads: at most this many.
    """
    findings = Findings(path.name)
    try:
        _read_facts(path, findings)
        sized = input_size if input_size is not None else _size_for(path, findings)
        found = inspect(path, sized)
        outputs = run_once(found, threads)
        findings.facts["precision"] = "half, promoted to float32" if found.is_half else "float32"
        findings.facts["input used"] = f"{found.input_height}x{found.input_width}"
        layout = recognize(found.seen(outputs, len(names)), family)
        findings.family, findings.title = layout.family.key, layout.family.title
        check_batch(path, layout, found.batch)
        standard = _run_probes(found, layout, threads)
        findings.evidence = _evidence(found, layout, standard)
        check_ranges(path, layout, np.stack([standard[name] for name in ("blotches", "moved", "gray")]))
        findings.served = True
    except ExportError as error:
        findings.refusal = str(error)
    return findings


def _read_facts(path: Path, findings: Findings) -> None:
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf and I/O each have their exception types
        raise unreadable(path, error) from error
    metadata = load_metadata(model)
    initializers = {tensor.name for tensor in model.graph.initializer}
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    findings.facts |= {
        "opset": str(opset),
        "exporter": " ".join(filter(None, (model.producer_name, model.producer_version))) or "unknown",
        "inputs": ", ".join(_shown(value) for value in model.graph.input if value.name not in initializers),
        "outputs": ", ".join(_shown(value) for value in model.graph.output),
        **{f"metadata {key}": value for key, value in facts_of(metadata).items()},
    }
    known, fault = read_names(metadata)
    if known is not None:
        more = f", … ({len(known)})" if len(known) > _SHOWN_NAMES else ""
        findings.facts["class names"] = ", ".join(ascii(str(name)) for name in known[:_SHOWN_NAMES]) + more
    elif fault:
        findings.facts["class names"] = fault


def _shown(value: onnx.ValueInfoProto) -> str:
    kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    dims = [str(dim.dim_value) if dim.dim_value else "?" for dim in value.type.tensor_type.shape.dim]
    return f"{value.name[:_BEST]} {kind} {'x'.join(dims)}"


def _size_for(path: Path, findings: Findings) -> tuple[int, int] | None:
    """A size for a file of dynamic input; None if its size is fixed."""
    tensor = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim]
    if len(dims) == 4 and dims[2] and dims[3]:
        return None
    numbers = [int(word) for word in re.findall(r"[0-9]{2,4}", findings.facts.get("metadata imgsz", ""))]
    return (numbers[0], numbers[-1]) if numbers else _DEFAULT_SIZE


def _probes(height: int, width: int) -> dict[str, NDArray[np.uint8]]:
    """Images, uint8 [H, W, 3]: soft blotches, the same moved to the right, and gray."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3))
    blotches = np.kron(coarse, np.ones((16, 16, 1))).astype(np.uint8)[:height, :width]
    return {
        "blotches": blotches,
        "moved": np.roll(blotches, _SHIFT, axis=1),
        "gray": np.full((height, width, 3), 114, np.uint8),
    }


def _run_probes(found: Inspected, layout: Layout, threads: int) -> dict[str, Floats]:
    """What the file, unchanged, makes of each probe, as float64 [4 + classes + C, rows]."""
    session = file_session(found.path, threads)
    half = session.get_inputs()[0].type == "tensor(float16)"
    standard: dict[str, Floats] = {}
    probes = {
        name: next(blobs(found.batch, image[None], layout.family.input))
        for name, image in _probes(found.input_height, found.input_width).items()
    }
    probes["times 255"] = probes["blotches"] * 255
    for name, blob in probes.items():
        fed = blob.astype(np.float16) if half else blob
        outputs = session.run(layout.source_names, {found.input_name: fed})
        raw = {key: output[:1].astype(np.float64) for key, output in zip(layout.source_names, outputs, strict=True)}
        standard[name] = layout.family.standard(raw, layout)[0]
    return standard


def _evidence(found: Inspected, layout: Layout, standard: dict[str, Floats]) -> list[Evidence]:
    scores = standard["blotches"][4 : 4 + layout.num_classes]
    return [
        _box_format(standard["blotches"], found, layout),
        _unit(standard, found, layout),
        _objectness(found, layout),
        _scores(scores, layout),
        _suppression(standard["blotches"], layout),
        _scaling(found, standard, layout),
    ]


def _best(detections: Floats, classes: int) -> NDArray[np.intp]:
    best: NDArray[np.intp] = np.argsort(-detections[4 : 4 + classes].max(axis=0), kind="stable")[:_BEST]
    return best


def _box_format(detections: Floats, found: Inspected, layout: Layout) -> Evidence:
    if layout.family.key in ("end-to-end", "suppressed"):
        share = turned_share(detections[None], layout.num_classes)
        evidence = f"the third and fourth values are less than the first two in {share:.0%} of the likely rows"
        doubt = " by their place; unclear on probes, a build checks it on images" if share > MOST_TURNED else ""
        return Evidence("boxes", f"corners: x1, y1, x2, y2{doubt}", evidence)
    if layout.has_ready_masks:
        share = float((detections[2:4] >= 0).all(axis=0).mean())
        return Evidence("boxes", "centers and sizes: cx, cy, w, h", f"{share:.0%} of the sizes are 0 or more")
    grid = centers_of_cells(found.input_height, found.input_width, layout.num_anchors)
    if grid is None:
        share = float((detections[2:4] >= detections[:2]).all(axis=0).mean())
        return Evidence("boxes", "centers and sizes", f"{share:.0%} of the rows would do as corners")
    share = corner_share(detections, grid)
    return Evidence(
        "boxes",
        "centers and sizes: cx, cy, w, h",
        f"for {1 - share:.0%} of the anchors the first two values are nearer to the cell than the middle of corners is",
    )


def _unit(standard: dict[str, Floats], found: Inspected, layout: Layout) -> Evidence:
    one, other = standard["blotches"], standard["moved"]
    moved = []
    for index in _best(one, layout.num_classes):
        wanted = one[:4, index] + (_SHIFT, 0, 0, 0)
        if wanted[0] < found.input_width:
            nearest = np.abs(other[:4] - wanted[:, None]).max(axis=0).argmin()
            moved.append(other[0, nearest] - one[0, index])
    reach = float(np.abs(one[:4]).max())
    shift = f"; an image moved by {_SHIFT} pixels moves them by {np.median(moved):.1f} in the middle" if moved else ""
    if layout.has_ready_masks:  # then they are already multiplied
        reach /= max(found.input_width, found.input_height)
    unit = "pixels of the network's input" if reach > 2 else "shares of the network's input"
    return Evidence("unit of boxes", unit, f"they reach {reach:.4g}{shift}")


def _objectness(found: Inspected, layout: Layout) -> Evidence:
    names = found.seen({}).num_names
    rows = f"{layout.num_anchors} rows"
    named = f"; the metadata names {names} classes" if names else "; the metadata names no classes"
    if layout.family.key == "yolov5":
        return Evidence("objectness", "yes: score = objectness x class", f"{rows}, three per cell of the grids{named}")
    return Evidence("objectness", "no", f"{rows}; {layout.num_classes} values between box and coefficients{named}")


def _scores(scores: Floats, layout: Layout) -> Evidence:
    low, high = float(scores.min()), float(scores.max())
    if layout.has_ready_masks:
        low, high = (float(np.log(score / (1 - score))) for score in (scores[scores > 0].min(), high))
        return Evidence(
            "scores", "logits; a sigmoid makes scores of them", f"the best rows have {low:.4g} to {high:.4g}"
        )
    inside = low >= -1e-3 and high <= 1 + 1e-3
    answer = "in [0, 1]" if inside else "logits: a sigmoid is missing"
    return Evidence("scores", answer, f"from {low:.4g} to {high:.4g}")


def _suppression(detections: Floats, layout: Layout) -> Evidence:
    best = _best(detections, layout.num_classes)
    centers, half = detections[:2, best].T, detections[2:4, best].T / 2
    corners = np.concatenate([centers - half, centers + half], axis=1)
    classes = detections[4 : 4 + layout.num_classes, best]
    number, score = classes.argmax(axis=0), classes.max(axis=0)
    most = 0.0
    for index in range(len(best)):
        rest = np.flatnonzero((number == number[index]) & (score > 0) & (np.arange(len(best)) > index))
        if score[index] > 0 and len(rest):
            most = max(most, float(box_ious(corners[index], corners[rest]).max()))
    overlap = f"boxes of one class overlap up to IoU {most:.2f}"
    limits = layout.limits
    if layout.family.key == "suppressed":
        inside = f"inside: confidence {limits['least_confidence']:g}, iou {limits['most_iou']:g}"
        return Evidence(
            "suppression", f"{inside}; cut off, and bounds requests", f"NonMaxSuppression in the graph; {overlap}"
        )
    if limits.get("least_iou") == 1:
        return Evidence(
            "suppression", "none needed: a request's iou has no effect", f"{layout.num_anchors} final rows; {overlap}"
        )
    return Evidence("suppression", "not inside: the server does it", overlap)


def _scaling(found: Inspected, standard: dict[str, Floats], layout: Layout) -> Evidence:
    reader = next(node for node in found.model.graph.node if found.input_name in node.input)
    best = {name: array[4 : 4 + layout.num_classes].max() for name, array in standard.items()}
    answer = "RGB in [0, 1], letterboxed"
    if layout.family.input.is_normalized:
        answer = "RGB in [0, 1], less ImageNet's mean, by its deviation; stretched (as its owner's tool does it)"
    return Evidence(
        "input",
        answer,
        f"the first node is {reader.op_type}, without scaling by 255; best score of a probe {best['blotches']:.3g}, "
        f"times 255 {best['times 255']:.3g}, of a gray image {best['gray']:.3g}",
    )
