"""A model repository of this project in miniature: Python models that need only NumPy, without a network.

``segment_<precision>`` sends ``image`` through a step that counts its bytes, so that a start takes no build.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipeline import contract

_COUNT_BYTES: Final = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
            sizes = np.array([[len(image)] for image in images.ravel()], np.int32)
            tensor = pb_utils.Tensor("num_detections", sizes)
            responses.append(pb_utils.InferenceResponse(output_tensors=[tensor]))
        return responses
"""


def _config(name: str, versions: str = "") -> str:
    return f"""
name: "{name}"
backend: "python"
max_batch_size: 8
{versions}
input [ {{ name: "image", data_type: TYPE_STRING, dims: [ 1 ] }} ]
output [ {{ name: "num_detections", data_type: TYPE_INT32, dims: [ 1 ] }} ]
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]
"""


def _ensemble(name: str, step: str) -> str:
    return f"""
name: "{name}"
platform: "ensemble"
max_batch_size: 8
input [ {{ name: "image", data_type: TYPE_STRING, dims: [ 1 ] }} ]
output [ {{ name: "num_detections", data_type: TYPE_INT32, dims: [ 1 ] }} ]
ensemble_scheduling {{
  step [ {{
    model_name: "{step}"
    model_version: -1
    input_map {{ key: "image", value: "image" }}
    output_map {{ key: "num_detections", value: "num_detections" }}
  }} ]
}}
"""


def tiny_repository(path: Path, precisions: Sequence[str] = ("int8",), model: str = _COUNT_BYTES) -> Path:
    """Write the repository, with version 1 of these precisions built and promoted for the cpu profile.

    Args:
        path: folder to make.
        precisions: those that can be served; the others have configurations without a version.
        model: text of every ``model.py``.
    """
    for name in contract.SHARED_MODELS:
        _write(path / name / "config.pbtxt", _config(name))
        _write(path / name / "1" / "model.py", model)
    for precision in contract.PRECISIONS:
        name = contract.network_model(precision)
        versions = "versions: [ 1 ]" if precision in precisions else ""
        for place in ("config.pbtxt", "configs/cpu.pbtxt"):
            _write(path / name / place, _config(name, f"version_policy {{ specific {{ {versions} }} }}"))
        if precision in precisions:
            _write(path / name / "1" / "model.py", model)
            _write(path / name / "1" / "model.onnx", "")  # only its presence is looked at
        ensemble = contract.ensemble_model(precision)
        _write(path / ensemble / "config.pbtxt", _ensemble(ensemble, name))
        (path / ensemble / "1").mkdir(parents=True)
    return path


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
