"""Turns an ONNX export into verified, tagged versions inside a model repository.

Imports ``repository``, ``scenes``, ``pipeline`` and ``base``.
"""

import sys
from pathlib import Path

if sys.argv[:1] == ["-m"]:  # then the working folder comes first, where modules of the same names may lie
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import base  # noqa: F401 - turns ONNX Runtime's telemetry off
