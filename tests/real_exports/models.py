"""Ultralytics models of tiny width whose random weights find dozens of instances. Runs in the exporter's environment.

Random weights give the same score everywhere, and boxes and masks of one size. So the batch statistics are taken from
pictures, and the last convolutions of the head are scaled by the statistics of their outputs. Then a few dozen
anchors per picture pass the threshold, with boxes of many sizes, most of them large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
from ultralytics.nn.tasks import SegmentationModel, YOLOESegModel, yaml_model_load

_APART = (("v8", 0.0625, 256), ("11", 0.125, 1024), ("26", 0.125, 1024))
"""With ``nms=True`` ultralytics moves classes apart by the input's size before it compares boxes, and these models give
boxes twice as large: so only every second class is found."""
FAMILIES: Final = {
    "v8": ("yolov8-seg.yaml", 0.0625, 256),
    "v9c": ("yolov9c-seg.yaml", 0.0625, 256),
    "11": ("yolo11-seg.yaml", 0.125, 1024),  # attention has no head in anything narrower
    "12": ("yolo12-seg.yaml", 0.25, 256),
    "26": ("yolo26-seg.yaml", 0.125, 1024),
    "26-end-to-end": ("yolo26-seg.yaml", 0.125, 1024),
    **{f"{family}-apart": (f"yolo{family}-seg.yaml", width, most) for family, width, most in _APART},
    "v8-p6": ("yolov8-seg-p6.yaml", 0.0625, 256),
    "e-11": ("yoloe-11-seg.yaml", 0.125, 1024),
}
"""Ultralytics' own configuration, the share of its channels that is kept, and the most before that."""

_ANCHORS_PER_PICTURE: Final = (6, 12, 22, 12)
"""Anchors that pass the threshold on average, of the strides 8, 16, 32 and 64; suppression leaves half of them."""


def tiny_model(family: str, classes: int, pictures: torch.Tensor, confidence: float) -> SegmentationModel:
    """A model that finds dozens of instances in each picture.

    Args:
        family: a key of :data:`FAMILIES`.
        classes: how many classes.
        pictures: float32 [n, 3, height, width] in [0, 1].
        confidence: score that the instances pass.
    """
    torch.manual_seed(0)
    kind = YOLOESegModel if family.startswith("e-") else SegmentationModel
    model = kind(_config(family, classes), nc=classes, verbose=False)
    model.names = {index: f"thing {index}" for index in range(classes)}
    model.task = "segment"
    model.args = {"data": "things.yaml", "imgsz": 640, "task": "segment"}
    with torch.no_grad():
        if kind is YOLOESegModel:  # without the text encoder that embeds the names
            embedded = torch.nn.functional.normalize(torch.randn(1, classes, 512), dim=-1)
            model.set_classes(list(model.names.values()), embedded)
        _take_batch_statistics(model, pictures)
        if kind is YOLOESegModel:
            model.model[-1].fuse(embedded)
        _shape_head(model, pictures, confidence, family)
    return model


def _config(family: str, classes: int) -> dict[str, Any]:
    file, width, most_channels = FAMILIES[family]
    config: dict[str, Any] = yaml_model_load(file)
    config |= {"nc": classes, "scale": "t", "scales": {"t": [0.33, width, most_channels]}}
    for _, _, module, arguments in config["backbone"] + config["head"]:
        if module in ("RepNCSPELAN4", "SPPELAN"):  # their inner channels are not scaled
            arguments[1:3] = [max(8, int(channels * width)) for channels in arguments[1:3]]
        elif family.startswith(("11", "26", "e-11")) and module in (
            "Conv",
            "C3k2",
        ):  # only attention needs as much as it has
            arguments[0] = min(arguments[0], 256)
    return config


def _take_batch_statistics(model: SegmentationModel, pictures: torch.Tensor) -> None:
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
    model.train()
    model(pictures)
    model.eval()


def _shape_head(model: SegmentationModel, pictures: torch.Tensor, confidence: float, family: str) -> None:
    head = model.model[-1]
    every_second = family.endswith("-apart")
    branches = head.one2many
    if getattr(head, "one2one_cv2", None) is not None:
        end_to_end = family.endswith("end-to-end")
        model.end2end = end_to_end  # False: as in an export that leaves suppression to the server
        branches = head.one2one if end_to_end else branches
    boxes, scores, masks = ([branch[-1] for branch in branches[kind]] for kind in ("box_head", "cls_head", "mask_head"))
    outputs = _outputs({id(conv): conv for conv in (*boxes, *scores, *masks)}, model, pictures)
    for level, anchors in zip(range(len(boxes)), _ANCHORS_PER_PICTURE, strict=False):
        best = _standardize(scores[level], outputs[id(scores[level])])[:: 1 + every_second].amax(0)
        threshold = best.sort().values[-anchors * len(pictures)]
        scores[level].bias += math.log(confidence / (1 - confidence)) - threshold
        if every_second:
            scores[level].bias[1::2] -= 100
        if head.reg_max > 1:
            # Logits of the distances 0, 1, 2, ... in strides: far ones are likelier.
            likelier_far = 0.2 * torch.arange(head.reg_max, dtype=torch.float32).repeat(4)
            _standardize(boxes[level], outputs[id(boxes[level])], 2.0, likelier_far)
        else:
            _standardize(boxes[level], outputs[id(boxes[level])], 2.5, torch.tensor(8.0))
        # Prototypes are mostly positive: masks that fill most of their boxes, with holes.
        _standardize(masks[level], outputs[id(masks[level])], 1.0, torch.tensor(0.5))


def _outputs(
    convolutions: Mapping[int, torch.nn.Conv2d], model: SegmentationModel, pictures: torch.Tensor
) -> dict[int, torch.Tensor]:
    """What each convolution gives, as float32 [channels, values]."""
    outputs: dict[int, torch.Tensor] = {}
    hooks = [
        conv.register_forward_hook(lambda _, __, out, key=key: outputs.update({key: out.transpose(0, 1).flatten(1)}))
        for key, conv in convolutions.items()
    ]
    model(pictures)
    for hook in hooks:
        hook.remove()
    return outputs


def _standardize(
    conv: torch.nn.Conv2d, output: torch.Tensor, deviation: float = 1.0, mean: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """Give every output channel of a convolution a mean and a deviation; returns its new output."""
    old_mean, old_deviation = output.mean(1), output.std(1) + 1e-6
    factor = deviation / old_deviation
    conv.weight *= factor[:, None, None, None]
    conv.bias.copy_((conv.bias - old_mean) * factor + mean)
    return (output - old_mean[:, None]) * factor[:, None] + torch.as_tensor(mean).reshape(-1, 1)
