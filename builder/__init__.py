"""Turns a YOLOv8-seg or YOLO11-seg ONNX export into verified, tagged versions inside a model repository."""

import serving  # noqa: F401 - switches ONNX Runtime's telemetry off before it is imported
