"""Load tests: Locust users, the comparison of precisions with its report, and benchmarks."""

import serving  # noqa: F401 - switches ONNX Runtime's telemetry off before it is imported
