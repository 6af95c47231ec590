"""What every room on the host needs: fetching and caching, paths, progress, names. Imports nothing of the project."""

import os

# ONNX Runtime (from 1.32 on) reports to its maker unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# Processes are forked here to run another program at once. gRPC's handlers, made for children that go on with gRPC,
# abort about one of fifty of them where calls are under way.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
