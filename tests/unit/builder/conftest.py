"""A small network and its Q/DQ twin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from builder.cpu_profile import quantize_for_cpu
from builder.datasets import CalibrationSet
from builder.export import inspect, load_export, run_once
from builder.families.head import find_head
from builder.surgery import graft_ends, make_batch_dynamic
from tests.exports import segmentation_export


@dataclass(frozen=True)
class Networks:
    """A network in fp32 and in int8, their ends grafted, and the export and the images that they were made of."""

    original: onnx.ModelProto
    quantized: onnx.ModelProto
    export: Path
    paths: tuple[Path, ...]


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    folder = tmp_path_factory.mktemp("networks")
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        noise = cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (64, 64))
        cv2.imwrite(str(images / f"{index}.png"), noise)
    path = segmentation_export(folder / "export.onnx")
    export = load_export(path)
    network = make_batch_dynamic(export)
    calibration = CalibrationSet.of([images], "")
    head = find_head(network, export.detections_name)
    quantized = quantize_for_cpu(network, export, calibration, head.decode_nodes, lambda: None)
    return Networks(graft_ends(network, export), graft_ends(quantized, export), path, calibration.paths)


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests write need not survive a power failure."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture(autouse=True)
def first_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save a process per file that these tests make themselves; integration tests are about the process."""
    monkeypatch.setattr("builder.export.first_run", lambda path, size, _: run_once(inspect(path, size), 2))
