"""On the host: finds or unpacks tritonserver, starts it, watches it and stops it.

Imports ``repository``, ``pipeline`` and ``base``.
"""

import os
import sys
from pathlib import Path

# ONNX Runtime (from 1.32 on) reports to its maker unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if sys.argv[:1] == ["-m"]:
    # ``python -m`` puts the working folder first, where another project's modules of the same names may lie.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
