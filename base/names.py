"""Names that a server, its Python processes and the commands that act on it share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory

SHM_PREFIX: Final = re.compile(r"segmentation_[0-9a-f]{8}_")
"""Start of the names of a server's shared-memory regions, and of its folder there."""

SHM_PREFIX_VARIABLE: Final = "TRITON_SEGMENTATION_SHM_PREFIX"
"""Environment variable that gives this prefix to the Python steps."""

STATE_NAME: Final = "state"
"""After the prefix: the server's folder in shared memory, which only its user can enter."""

STUB_NAME: Final = "triton_python_backend_stub"
"""Program of a Python backend process."""

ADMIN_HEADER: Final = "admin-secret"
"""HTTP header that opens the restricted APIs; over gRPC, metadata ``triton-grpc-protocol-admin-secret``."""
