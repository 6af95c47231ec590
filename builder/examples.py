"""What ``--help`` shows below the options of each command."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Final

from builder.families import FAMILIES
from builder.settings import Gates

EXAMPLES: Final = {
    "fetch": ("fetch",),
    "build": (
        "build --onnx best.onnx --images photographs/ --repository my_repository",
        "build --onnx dynamic.onnx --input-size 640 --precisions fp32,fp16 --verify-images photographs/",
        "build --profile tensorrt --onnx best.onnx --images photographs/ --max-batch 8 --workspace-mib 4096",
        "build --onnx best.onnx --images photographs/ --exclude model.0 model.22.proto",
    ),
    "inspect": ("inspect best.onnx", "inspect dynamic.onnx --input-size 384x640 --json"),
    "sensitivity": ("sensitivity --onnx best.onnx --images photographs/ --out out/sensitivity",),
    "add-plan": ("add-plan network_int8/2",),
    "list": ("list --repository my_repository",),
    "show": ("show network_int8/2", "show network_int8/2 --json"),
    "promote": ("promote network_int8/2", "promote network_fp32/2 network_fp16/2 network_int8/2 --profile tensorrt"),
    "rollback": ("rollback network_int8",),
    "prune": ("prune --keep 3 --dry-run",),
    "verify": ("verify", "verify network_int8/2", "verify --trusted-keys ~/trusted.pem"),
    "keygen": ("keygen ~/segmentation.key",),
    "sign": ("sign network_int8/2 --key ~/segmentation.key",),
}
"""Command to what can be typed behind ``python -m builder``."""


def add_examples(commands: Mapping[str, argparse.ArgumentParser]) -> None:
    """Put examples, and for builds what is taken and what gates ask, below each command's options.

    Args:
        commands: name to parser.
    """
    for name, parser in commands.items():
        lines = ["examples:", *(f"  python -m builder {example}" for example in EXAMPLES[name])]
        if name == "build":
            lines += ["", "layouts that are taken (`inspect` says which one a file has; --family names it):"]
            lines += [f"  {key:<12}{family.title}" for key, family in FAMILIES.items()]
            lines += ["", "gates against the export's own file (`gates` in the file that --config names):"]
            for precision in ("fp16", "int8"):
                gate = Gates().of(precision)
                lines.append(f"  {precision:<12}F1 {gate.f1}, mask IoU {gate.mask_iou}")
        parser.epilog = "\n".join(lines)
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
