"""RF-DETR-seg by ``rfdetr``: a model of random weights that finds dozens of instances, its exports, its own answers.

Random weights give scores near zero everywhere, so the last layer of the classes is scaled by the statistics of its
outputs. Runs in the exporter's environment.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# Before rfdetr is imported: no download.
os.environ["HF_HUB_OFFLINE"] = "1"

import onnxruntime
import torch

_OPERATORS = (
    *("qnms", "qroi_align", "roi_align", "_roi_align_backward", "roi_pool", "_roi_pool_backward", "ps_roi_align"),
    *("_ps_roi_align_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d", "_deform_conv2d_backward"),
)
"""Torchvision does not load beside a torch of another build unless they exist; rfdetr calls none of them."""
_PASSING = 0.08  # share of the pairs of query and class above the confidence

library = torch.library.Library("torchvision", "FRAGMENT")
for _name in _OPERATORS:
    library.define(f"{_name}(Tensor tensor) -> Tensor")


def tiny_rf_detr(classes: int, pictures: torch.Tensor, confidence: float) -> Any:
    """The smallest of rfdetr's segmentation models, with two decoder layers of four.

    Args:
        classes: it is trained on; its logits have one more.
        pictures: float32 [n, 3, height, width] in [0, 1].
        confidence: score that the instances pass.
    """
    from rfdetr import RFDETRSegNano

    torch.manual_seed(0)
    owner = RFDETRSegNano(pretrain_weights=None, num_classes=classes, dec_layers=2)
    model = owner.model.model.eval()
    with torch.no_grad():
        logits = model(_normalized(pictures))["pred_logits"]
        threshold = torch.logit(torch.tensor(confidence))
        scale = 1.0 / logits.std()
        last = model.class_embed
        last.weight *= scale
        last.bias += threshold - torch.quantile(logits * scale, 1 - _PASSING) - last.bias * (1 - scale)
    return owner


def export(owner: Any, file: Path, options: dict[str, Any]) -> Path:
    """Export as its users do: ``model.export(dynamic_batch=True)``."""
    made = owner.export(output_dir=str(file.with_suffix("")), verbose=False, **options)
    return Path(made).rename(file)


def predict(
    file: Path, pictures: torch.Tensor, confidence: float, most: int, batch: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What rfdetr's own steps make of what the file gives, for each picture.

    Returns:
        Rows [n, 6] of x1, y1, x2, y2, score, class; and masks bool [n, H, W].
    """
    from rfdetr.models.postprocess import PostProcess

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    size = torch.tensor([pictures.shape[2:]])
    found = []
    for first in range(0, len(pictures), batch):
        fed = _normalized(pictures[first : first + batch]).numpy()
        outputs = session.run(["dets", "labels", "masks"], {"input": fed})
        for boxes, logits, masks in zip(*map(torch.from_numpy, outputs), strict=True):
            own = {"pred_logits": logits[None], "pred_boxes": boxes[None], "pred_masks": masks[None]}
            (answer,) = PostProcess(num_select=len(boxes))(own, size, confidence)
            rows = torch.cat([answer["boxes"], answer["scores"][:, None], answer["labels"][:, None]], 1)[:most]
            found.append((rows, answer["masks"][:most, 0]))
    return found


def _normalized(pictures: torch.Tensor) -> torch.Tensor:
    from torchvision.transforms import functional

    return functional.normalize(pictures, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
