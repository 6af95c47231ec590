"""The bounded HTTP front: parses KServe v2 requests itself and passes them to tritonserver over gRPC.

Imports ``base`` and ``pipeline``.
"""

import sys

if sys.argv[:1] == ["-m"] and not getattr(sys.flags, "safe_path", sys.flags.isolated):
    sys.path[0] = __path__[0].rpartition("/")[0]  # it was the working folder, where anybody's modules may lie
