"""The bounded HTTP front: parses KServe v2 requests itself and passes them to tritonserver over gRPC.

Imports ``base`` and ``pipeline``.
"""

import sys
from pathlib import Path

if sys.argv[:1] == ["-m"]:  # then the working folder comes first, where modules of the same names may lie
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
