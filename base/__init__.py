"""What every room on the host needs: fetching and caching, paths, progress, names. Imports nothing of the project."""

import os

# ONNX Runtime (from 1.32 on) reports to its maker unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
