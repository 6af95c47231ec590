"""Finds or unpacks tritonserver, starts it, waits until it is ready, and stops it."""

import os

# ONNX Runtime (from 1.32 on) reports to its maker unless this is set before it is imported. Here, because every package
# that runs it imports this one first; processes that they start inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
