"""YOLOv8n-seg and YOLO11n-seg with random weights, exported to ONNX: real graphs of any class count and input size.

Written from the published architectures; convolutions stand without batch normalization, as after fusing.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

REG_MAX = 16
COEFFICIENTS = 32
STRIDES = (8, 16, 32)


class Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, add: bool, expansion: float = 0.5):
        super().__init__()
        hidden = int(outputs * expansion)
        self.cv1, self.cv2 = Conv(inputs, hidden, 3), Conv(hidden, outputs, 3)
        self.add = add and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C3k(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        hidden = outputs // 2
        self.cv1, self.cv2, self.cv3 = Conv(inputs, hidden), Conv(inputs, hidden), Conv(2 * hidden, outputs)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, True, 1.0) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C2f(nn.Module):
    """C2f, and with ``kind`` other than ``plain`` YOLO11's C3k2."""

    def __init__(self, inputs: int, outputs: int, n: int, add: bool, kind: str = "plain", expansion: float = 0.5):
        super().__init__()
        self.hidden = int(outputs * expansion)
        self.cv1, self.cv2 = Conv(inputs, 2 * self.hidden), Conv((2 + n) * self.hidden, outputs)
        inner = {
            "plain": lambda: Bottleneck(self.hidden, self.hidden, add, 1.0),
            "c3k2": lambda: Bottleneck(self.hidden, self.hidden, True, 0.5),
            "c3k": lambda: C3k(self.hidden, self.hidden),
        }[kind]
        self.m = nn.ModuleList(inner() for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.hidden, self.hidden), 1))
        for block in self.m:
            y.append(block(y[-1]))
        return self.cv2(torch.cat(y, 1))


class SPPF(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels // 2), Conv(channels * 2, channels)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        for _ in range(3):
            y.append(self.m(y[-1]))
        return self.cv2(torch.cat(y, 1))


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads, self.size = heads, channels // heads
        self.key = self.size // 2
        self.qkv = Conv(channels, channels + 2 * self.key * heads, act=False)
        self.proj, self.pe = (
            Conv(channels, channels, act=False),
            Conv(channels, channels, 3, groups=channels, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.heads, self.key * 2 + self.size, h * w)
        q, k, v = qkv.split([self.key, self.key, self.size], dim=2)
        weights = ((q.transpose(-2, -1) @ k) * self.key**-0.5).softmax(dim=-1)
        y = (v @ weights.transpose(-2, -1)).view(b, c, h, w) + self.pe(v.reshape(b, c, h, w))
        return self.proj(y)


class PSABlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.attn = Attention(channels, max(1, channels // 64))
        self.ffn = nn.Sequential(Conv(channels, channels * 2), Conv(channels * 2, channels, act=False))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.ffn(x)


class C2PSA(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.hidden = channels // 2
        self.cv1, self.cv2 = Conv(channels, channels), Conv(channels, channels)
        self.m = nn.Sequential(PSABlock(self.hidden))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).split((self.hidden, self.hidden), 1)
        return self.cv2(torch.cat((a, self.m(b)), 1))


class Proto(nn.Module):
    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.cv1, self.cv2, self.cv3 = Conv(inputs, hidden, 3), Conv(hidden, hidden, 3), Conv(hidden, COEFFICIENTS)
        self.upsample = nn.ConvTranspose2d(hidden, hidden, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(self.cv2(self.upsample(self.cv1(x))))


class DFL(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(REG_MAX, 1, 1, bias=False)
        self.conv.weight.data = torch.arange(REG_MAX, dtype=torch.float).view(1, REG_MAX, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, a = x.shape
        return self.conv(x.view(b, 4, REG_MAX, a).transpose(2, 1).softmax(1)).view(b, 4, a)


class Segment(nn.Module):
    def __init__(self, classes: int, channels: Sequence[int], depthwise: bool):
        super().__init__()
        self.classes = classes
        box, score, mask = max(16, channels[0] // 4, 64), max(channels[0], min(classes, 100)), max(channels[0] // 4, 32)

        def scores(c: int) -> nn.Sequential:
            last = nn.Conv2d(score, classes, 1)
            if not depthwise:
                return nn.Sequential(Conv(c, score, 3), Conv(score, score, 3), last)
            first = nn.Sequential(Conv(c, c, 3, groups=c), Conv(c, score))
            second = nn.Sequential(Conv(score, score, 3, groups=score), Conv(score, score))
            return nn.Sequential(first, second, last)

        self.cv2 = nn.ModuleList(
            nn.Sequential(Conv(c, box, 3), Conv(box, box, 3), nn.Conv2d(box, 4 * REG_MAX, 1)) for c in channels
        )
        self.cv3 = nn.ModuleList(scores(c) for c in channels)
        self.cv4 = nn.ModuleList(
            nn.Sequential(Conv(c, mask, 3), Conv(mask, mask, 3), nn.Conv2d(mask, COEFFICIENTS, 1)) for c in channels
        )
        self.dfl, self.proto = DFL(), Proto(channels[0], 64)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        b = features[0].shape[0]
        prototypes = self.proto(features[0])
        masks = torch.cat([cv(x).view(b, COEFFICIENTS, -1) for cv, x in zip(self.cv4, features, strict=True)], 2)
        heads = [torch.cat((self.cv2[i](x), self.cv3[i](x)), 1) for i, x in enumerate(features)]
        raw = torch.cat([x.view(b, 4 * REG_MAX + self.classes, -1) for x in heads], 2)
        distances, scores = raw.split((4 * REG_MAX, self.classes), 1)
        points, strides = _anchors([tuple(int(side) for side in x.shape[2:]) for x in features])
        before, after = self.dfl(distances).chunk(2, 1)
        first, second = points - before, points + after
        boxes = torch.cat(((first + second) / 2, second - first), 1) * strides
        return torch.cat((boxes, scores.sigmoid(), masks), 1), prototypes


def _anchors(shapes: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    points, strides = [], []
    for (height, width), stride in zip(shapes, STRIDES, strict=True):
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        points.append(torch.stack((x, y), -1).view(-1, 2))
        strides.append(torch.full((int(height) * int(width),), float(stride)))
    return torch.cat(points).T[None], torch.cat(strides)[None, None]


class Yolo(nn.Module):
    def __init__(self, family: str, classes: int):
        super().__init__()
        up = nn.Upsample(scale_factor=2.0, mode="nearest")
        if family == "yolov8n-seg":
            layers = [
                Conv(3, 16, 3, 2), Conv(16, 32, 3, 2), C2f(32, 32, 1, True), Conv(32, 64, 3, 2), C2f(64, 64, 2, True),
                Conv(64, 128, 3, 2), C2f(128, 128, 2, True), Conv(128, 256, 3, 2), C2f(256, 256, 1, True), SPPF(256),
                up, nn.Identity(), C2f(384, 128, 1, False), up, nn.Identity(), C2f(192, 64, 1, False),
                Conv(64, 64, 3, 2), nn.Identity(), C2f(192, 128, 1, False), Conv(128, 128, 3, 2), nn.Identity(),
                C2f(384, 256, 1, False), Segment(classes, (64, 128, 256), False),
            ]  # fmt: skip
            self.joins, self.outputs = {11: 6, 14: 4, 17: 12, 20: 9}, (15, 18, 21)
        else:
            layers = [
                Conv(3, 16, 3, 2), Conv(16, 32, 3, 2), C2f(32, 64, 1, True, "c3k2", 0.25), Conv(64, 64, 3, 2),
                C2f(64, 128, 1, True, "c3k2", 0.25), Conv(128, 128, 3, 2), C2f(128, 128, 1, True, "c3k"),
                Conv(128, 256, 3, 2), C2f(256, 256, 1, True, "c3k"), SPPF(256), C2PSA(256),
                up, nn.Identity(), C2f(384, 128, 1, True, "c3k2"), up, nn.Identity(), C2f(256, 64, 1, True, "c3k2"),
                Conv(64, 64, 3, 2), nn.Identity(), C2f(192, 128, 1, True, "c3k2"), Conv(128, 128, 3, 2), nn.Identity(),
                C2f(384, 256, 1, True, "c3k"), Segment(classes, (64, 128, 256), True),
            ]  # fmt: skip
            self.joins, self.outputs = {12: 6, 15: 4, 18: 13, 21: 10}, (16, 19, 22)
        self.model = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        for index, layer in enumerate(self.model[:-1]):
            x = torch.cat((x, kept[self.joins[index]]), 1) if index in self.joins else layer(x)
            kept.append(x)
        return self.model[-1]([kept[index] for index in self.outputs])


@torch.no_grad()
def _initialize(network: Yolo, size: tuple[int, int]) -> None:
    """Give random weights the scale of trained ones, so that scores spread, boxes differ and masks have edges.

    Every convolution is scaled to an output of unit variance on one image of noise (layer-sequential unit variance,
    Mishkin and Matas, 2016), the last ones of the head to what a head gives.
    """
    head = network.model[-1]
    wanted = {cv[-1]: (std, mean) for cvs, std, mean in ((head.cv2, 2, 0), (head.cv3, 2, -5)) for cv in cvs}

    def scale(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        std, mean = wanted.get(layer, (1, 0))
        factor = std / output.std()
        layer.weight.mul_(factor)
        layer.bias.mul_(factor).add_(mean)
        return output * factor + mean

    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))]
    hooks = [layer.register_forward_hook(scale) for layer in layers if layer is not head.dfl.conv]
    network(torch.rand(1, 3, *size))
    for hook in hooks:
        hook.remove()


def export(
    path: Path, family: str, classes: int, size: tuple[int, int], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write an export of batch 1 as ultralytics does: opset 17, metadata, the size fixed.

    Args:
        path: file to write.
        family: ``yolov8n-seg`` or ``yolo11n-seg``.
        classes: number of classes.
        size: height and width.
        metadata: the file's properties; None takes those of ultralytics, the classes called ``thing 0`` and so on.
    """
    torch.manual_seed(0)
    network = Yolo(family, classes).eval()
    _initialize(network, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.rand(1, 3, *size),),
            str(path),
            opset_version=17,
            input_names=["images"],
            output_names=["output0", "output1"],
            dynamo=False,
        )
    model = onnx.load(path)
    if metadata is None:
        names = {index: f"thing {index}" for index in range(classes)}
        title = f"Ultralytics {family.replace('yolo', 'YOLO')} model trained on coco.yaml"
        metadata = {"names": str(names), "task": "segment", "description": title}
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)
    return path
