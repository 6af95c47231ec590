"""Real exports by ultralytics, made once per version of it, and the table of what became of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from base.cache import cache_dir
from pipeline.images import decode_image
from pipeline.letterbox import letterbox
from scenes.reference import fetch_reference
from tests.real_exports.cases import CASES, CONFIDENCE, IOU, MAX_DETECTIONS, NANO, SMALL, SQUARE, WIDE
from tests.real_exports.comparison import Difference
from tests.real_exports.tables import families, inspection, rows_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PICTURES = 4  # as many as the largest fixed batch
REPORT = ROOT / "out" / "exports"


@dataclass(frozen=True)
class Exports:
    """Where the exports lie."""

    folder: Path  # of ``NAME.onnx`` with ``NAME.npz`` or ``NAME.error.txt``
    pictures: Path  # of one folder per input size, whose PNG files are the network's input as it is


@pytest.fixture(scope="session")
def exports() -> Exports:
    """Every case exported, and ultralytics' own prediction on it; kept until the generator or its packages change."""
    if "EXPORTS_AT" in os.environ:  # made by hand, with `python -m tests.real_exports.generate`
        made = Path(os.environ["EXPORTS_AT"])
        return Exports(made, made / "pictures")
    folder = cache_dir() / "exports" / _key()
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(folder.parent, ignore_errors=True)
        _write_pictures(partial / "pictures")
        python = ROOT / os.environ["EXPORTS_VENV"] / "bin" / "python"
        command = [str(python), "-m", "tests.real_exports.generate", str(partial / "pictures"), str(partial)]
        with (folder.parent / "generate.log").open("w") as log:
            done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            pytest.fail(f"the exporter ended with {done.returncode}; see {folder.parent / 'generate.log'}")
        partial.rename(folder)
    return Exports(folder, folder / "pictures")


def _key() -> str:
    """Hash of all that the exports are made of; what is expected of them is left out."""
    asked = [(case.name, case.options, case.input_size) for case in CASES], CONFIDENCE, IOU, MAX_DETECTIONS, PICTURES
    key = hashlib.sha256(repr(asked).encode())
    for path in (HERE / "models.py", HERE / "generate.py", HERE / "rf_detr.py", ROOT / "requirements" / "exports.txt"):
        key.update(path.read_bytes())
    return key.hexdigest()[:16]


def _write_pictures(folder: Path) -> None:
    for size in (SQUARE, SMALL, WIDE, NANO):
        target = folder / "{}x{}".format(*size)
        target.mkdir(parents=True)
        for photograph in fetch_reference().photographs[:PICTURES]:
            out = np.empty((*size, 3), np.uint8)
            letterbox(decode_image(photograph.read_bytes()), out)
            cv2.imwrite(str(target / photograph.with_suffix(".png").name), out[..., ::-1])


_ROWS = pytest.StashKey[dict[str, dict[str, Any]]]()


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Any:
    """Takes what became of a case for the table: ``record(case, outcome, difference, reason)``."""
    rows = request.config.stash.setdefault(_ROWS, {})

    def take(case: Any, outcome: str, difference: Difference | None = None, reason: str | None = None) -> None:
        rows[case.name] = {
            "family": case.label,
            "classes": case.classes,
            "input": "{}x{}".format(*case.input_size),
            "options": case.title,
            "outcome": outcome,
            **(asdict(difference) if difference else {}),
            "reason": reason,
        }

    return take


_RESAMPLING = pytest.StashKey[list[str]]()


@pytest.fixture
def resampling(request: pytest.FixtureRequest) -> Any:
    """Takes how far boxes (in the network's pixels) and scores lie from those of ultralytics' ``predict``."""
    lines = request.config.stash.setdefault(_RESAMPLING, [])

    def take(
        pictures: str, way: str, count: int, boxes: list[float], scores: list[float], missing: int, extra: int
    ) -> None:
        figures = [
            f"{np.mean(found):.4f}, {np.quantile(found, 0.95):.4f}, {np.max(found):.4f}" for found in (boxes, scores)
        ]
        cells = [way, f"{count} of {pictures}", f"{len(scores)}, {missing} missing, {extra} extra", *figures]
        lines.append(f"| {' | '.join(cells)} |")

    return take


_INSPECTED = pytest.StashKey[list[dict[str, Any]]]()


@pytest.fixture
def inspected(request: pytest.FixtureRequest) -> Any:
    """Takes what ``inspect`` says of a file: ``inspected(case, findings)``."""
    found = request.config.stash.setdefault(_INSPECTED, [])
    return lambda case, findings: found.append({"name": f"{case.label}, {case.title}", **findings})


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the tables, and write that of the exports below ``out/exports``."""
    if lines := config.stash.get(_RESAMPLING, []):
        terminalreporter.section("whole pictures against ultralytics' predict(): mean, 95th percentile, largest")
        terminalreporter.write_line("| --resample | pictures | instances | boxes, network pixels | scores |")
        for line in lines:
            terminalreporter.write_line(line)
    found = config.stash.get(_ROWS, {})
    rows = [found[case.name] for case in CASES if case.name in found]
    if not rows:
        return
    REPORT.mkdir(parents=True, exist_ok=True)
    (REPORT / "report.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    table = _table(rows)
    (REPORT / "report.md").write_text("\n".join(table) + "\n")
    if len(rows) == len(CASES):
        (REPORT / "families.md").write_text("\n".join(families(rows_of("\n".join(table)))) + "\n")
        (REPORT / "inspect.md").write_text("\n".join(inspection(config.stash.get(_INSPECTED, []))) + "\n")
    terminalreporter.section("exports by ultralytics, served and compared with its predict()")
    for line in _table(rows):
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"written to {REPORT.relative_to(ROOT)}/report.md and report.json")


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| family | classes | input | options | outcome | instances | box, px | score | mask IoU | exact mask IoU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        figures = ["", "", "", "", ""]
        if "reference" in row:
            count = f"{row['reference']}" + "".join(
                f", {row[kind]} {kind.replace('_', ' ')}"
                for kind in ("missing", "extra", "borderline", "served_empty")
                if row[kind]
            )
            figures = [count, f"{row['box_px']:.4f}", f"{row['score']:.6f}"]
            figures += [f"{row[kind]:.4f}" for kind in ("mask_iou", "exact_mask_iou")]
        cells = [row["family"], str(row["classes"]), row["input"], row["options"], row["outcome"], *figures]
        lines.append("| " + " | ".join(cells) + " |")
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["reason"]:
            reasons.setdefault(row["reason"], []).append(f"{row['family']} {row['options']}")
    lines += ["", *(f"- {', '.join(names)}: {reason}" for reason, names in reasons.items())] if reasons else []
    return lines
