"""Versions on disk and on a live server: manifests, configurations, promotion, verification, plans.

Imports ``pipeline`` and ``base``.
"""

import base  # noqa: F401 - turns ONNX Runtime's telemetry off
