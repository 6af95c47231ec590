"""``python -m demo``: from nothing to masks. May import every room."""

import sys

if sys.argv[:1] == ["-m"] and not getattr(sys.flags, "safe_path", sys.flags.isolated):
    sys.path[0] = __path__[0].rpartition("/")[0]  # it was the working folder, where anybody's modules may lie
import base  # noqa: F401 - turns ONNX Runtime's telemetry off
