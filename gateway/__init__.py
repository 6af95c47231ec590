"""The bounded HTTP front: parses KServe v2 requests itself and passes them to tritonserver over gRPC.

Imports ``base`` and ``pipeline``.
"""

import os
import sys

if sys.argv[:1] == ["-m"]:
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):
        sys.path[0] = __path__[0].rpartition("/")[0]  # it was the working folder, where anybody's modules may lie
    # Read when grpc is imported. Its older event loop reads a socket in the thread that waits for the answer; the newer
    # one hands every piece from thread to thread, for a tenth of the gateway's processor time.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")
