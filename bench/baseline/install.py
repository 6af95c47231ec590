"""Puts the plain ensemble, with the reference export, into a model repository of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import onnx

from builder.export import load_export
from builder.surgery import make_batch_dynamic

MODEL: Final = "plain_segment"
"""The plain ensemble's name; loading it loads its steps too."""

_STEPS: Final = ("plain_preprocess", "plain_segmentation", "plain_postprocess")
_SOURCE: Final = Path(__file__).resolve().parent / "model_repository"


def install(export_path: Path, repository: Path) -> tuple[str, ...]:
    """Write the plain models into ``repository``.

    Args:
        export_path: the export; its batch axis is made dynamic and nothing else.
        repository: a folder that does not exist yet.

    Returns:
        Arguments for tritonserver that serve them beside other models.
    """
    shutil.copytree(_SOURCE, repository, ignore=shutil.ignore_patterns("__pycache__"))
    network = make_batch_dynamic(load_export(export_path))
    onnx.save(network, str(repository / "plain_segmentation" / "1" / "model.onnx"))
    models = (*_STEPS, MODEL)
    return (f"--model-repository={repository}", *(f"--load-model={model}" for model in models))
