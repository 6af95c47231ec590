"""The layout of YOLOv5-seg's and YOLOv7-seg's exports, rebuilt: their repositories cannot be installed as packages.

Written from the description of the layout: three anchors per cell, boxes by sigmoids around the cell and the anchor's
size, objectness, rows of all scales one after another. Runs in the exporter's environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from ultralytics.nn.modules import Conv, Proto

COEFFICIENTS = 32
_ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
_PER_PICTURE = (1, 6, 30)


class YoloV5Seg(nn.Module):
    """Narrow, with the scales 8, 16 and 32."""

    def __init__(self, classes: int, with_maps: bool) -> None:
        """Make it.

        Args:
            classes: how many.
            with_maps: give each scale's raw map too, before the prototypes, as YOLOv7 does.
        """
        super().__init__()
        self.classes, self.with_maps = classes, with_maps
        self.values = 5 + classes + COEFFICIENTS
        self.stem = nn.Sequential(Conv(3, 8, 3, 2), Conv(8, 16, 3, 2), Conv(16, 24, 3, 2))
        self.down = nn.ModuleList([Conv(24, 32, 3, 2), Conv(32, 48, 3, 2)])
        self.heads = nn.ModuleList([nn.Conv2d(channels, 3 * self.values, 1) for channels in (24, 32, 48)])
        self.proto = Proto(24, 16, COEFFICIENTS)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Rows [n, anchors, 5 + classes + C], each scale's map if wanted, and prototypes [n, C, H/4, W/4]."""
        features = [self.stem(images)]
        for down in self.down:
            features.append(down(features[-1]))
        rows, maps = [], []
        for level, (feature, head) in enumerate(zip(features, self.heads, strict=True)):
            found = head(feature)
            height, width = found.shape[2:]
            found = found.view(images.shape[0], 3, self.values, height, width).permute(0, 1, 3, 4, 2)
            maps.append(found)
            y, x = torch.meshgrid(
                torch.arange(height, dtype=torch.float32), torch.arange(width, dtype=torch.float32), indexing="ij"
            )
            sizes = torch.tensor(_ANCHORS[level], dtype=torch.float32).view(1, 3, 1, 1, 2)
            center, size, scores, coefficients = found.split((2, 2, 1 + self.classes, COEFFICIENTS), 4)
            center = (center.sigmoid() * 2 - 0.5 + torch.stack((x, y), 2)) * 8 * 2**level
            size = (size.sigmoid() * 2) ** 2 * sizes
            decoded = torch.cat((center, size, scores.sigmoid(), coefficients), 4)
            rows.append(decoded.reshape(images.shape[0], -1, self.values))
        return (torch.cat(rows, 1), *(maps if self.with_maps else ()), self.proto(features[0]))


def tiny_yolov5(classes: int, pictures: torch.Tensor, confidence: float, with_maps: bool) -> YoloV5Seg:
    """A model that finds dozens of instances in each picture; see :func:`tests.real_exports.models.tiny_model`."""
    torch.manual_seed(0)
    model = YoloV5Seg(classes, with_maps)
    with torch.no_grad():
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        model.train()
        model(pictures)
        model.eval()
        features = [model.stem(pictures)]
        for down in model.down:
            features.append(down(features[-1]))
        for head, feature, wanted in zip(model.heads, features, _PER_PICTURE, strict=True):
            values = head(feature).transpose(0, 1).flatten(1)
            mean, deviation = values.mean(1), values.std(1) + 1e-6
            offset = torch.zeros(3, model.values)
            offset[:, 2:4] = 3.0  # boxes larger than the anchors
            offset[:, 5 + classes :] = 1.5  # prototypes are mostly positive: masks that fill most of their boxes
            offset = offset.flatten()
            spread = torch.ones(3, model.values)
            spread[:, 2:4] = 0.3
            factor = spread.flatten() / deviation
            head.weight *= factor[:, None, None, None]
            head.bias.copy_((head.bias - mean) * factor + offset)
            values = ((values - mean[:, None]) * factor[:, None] + offset[:, None]).view(3, model.values, -1)
            objectness, best = values[:, 4].sigmoid(), values[:, 5 : 5 + classes].amax(1)
            # The classes' common bias at which so many products pass the threshold.
            low, high = -20.0, 20.0
            for _ in range(40):
                middle = (low + high) / 2
                passing = (objectness * (best + middle).sigmoid() > confidence).sum()
                low, high = (low, middle) if passing > wanted * len(pictures) else (middle, high)
            head.bias.view(3, model.values)[:, 5 : 5 + classes] += low
    return model


def export(model: YoloV5Seg, file: Path, input_size: tuple[int, int], options: dict[str, Any]) -> Path:
    """Write the model as YOLOv5's exporter does: opset 12, and stride and names as metadata."""
    maps = [f"map{level}" for level in range(3)] if model.with_maps else []
    names = ["output0", *maps, "output1"]
    axes = {"images": {0: "batch", 2: "height", 3: "width"}, "output0": {0: "batch", 1: "anchors"}}
    axes["output1"] = {0: "batch", 2: "mask_height", 3: "mask_width"}
    example = torch.zeros(options.get("batch", 1), 3, *input_size)
    torch.onnx.export(
        model,
        (example,),
        str(file),
        opset_version=12,
        input_names=["images"],
        output_names=names,
        dynamic_axes=axes if options.get("dynamic") else None,
        dynamo=False,
    )
    made = onnx.load(file)
    named = {index: f"thing {index}" for index in range(model.classes)}
    onnx.helper.set_model_props(made, {"stride": "32", "names": str(named)})
    onnx.save(made, file)
    return file


def predict(
    file: Path, images: torch.Tensor, classes: int, confidence: float, iou: float, most: int, batch: int
) -> Any:
    """What the file gives behind YOLOv5's suppression: score = objectness x best class.

    Yields:
        Of each image rows [n, 6 + C] of x1, y1, x2, y2, score, class, coefficients, and prototypes [C, H/4, W/4].
    """
    import onnxruntime
    from ultralytics.utils import nms

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for first in range(0, len(images), batch):
        rows, planes = (
            torch.from_numpy(array)
            for array in session.run(["output0", "output1"], {"images": images[first : first + batch].numpy()})
        )
        box, objectness, scores, coefficients = rows.split((4, 1, classes, COEFFICIENTS), 2)
        standard = torch.cat((box, objectness * scores, coefficients), 2).transpose(1, 2)
        found = nms.non_max_suppression(standard, confidence, iou, max_det=most, nc=classes)
        yield from zip(found, planes, strict=True)
