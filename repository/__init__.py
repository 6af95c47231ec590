"""Versions on disk and on a live server: manifests, configurations, promotion, verification, plans.

Imports ``pipeline`` and ``base``.
"""

import os

# ONNX Runtime (from 1.32 on) reports to its maker unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
