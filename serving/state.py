"""Which servers run on this machine, and the secret that opens their model-control API."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from serving.cache import cache_dir
from serving.errors import ServingError


@dataclass(frozen=True)
class RunningServer:
    """A server that ``python -m serving run`` started.

    Attributes:
        pid: of tritonserver.
        profile: cpu or tensorrt.
        repository: its model repository, absolute.
        http: host and port of its HTTP endpoint.
        grpc: host and port of its gRPC endpoint.
        metrics: host and port of its metrics endpoint.
        admin_secret: value of the header that opens the restricted APIs.
    """

    pid: int
    profile: str
    repository: str
    http: str
    grpc: str
    metrics: str
    admin_secret: str

    def write(self) -> Path:
        """Write the state file, readable by this user alone."""
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"{self.pid}.json"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump(asdict(self), stream, indent=2)
        return path


def running_servers(repository: Path | None = None) -> list[RunningServer]:
    """Servers of this user that are alive, of one repository or of all; files of dead ones are removed."""
    found = []
    for path in sorted(_folder().glob("*.json")):
        try:
            server = RunningServer(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            continue
        if not _is_alive(server.pid):
            path.unlink(missing_ok=True)
        elif repository is None or Path(server.repository) == repository.resolve():
            found.append(server)
    return found


def find_server(repository: Path) -> RunningServer:
    """The one server of a repository.

    Raises:
        ServingError: none runs, or more than one.
    """
    found = running_servers(repository)
    if len(found) != 1:
        raise ServingError(
            f"{len(found)} servers of {repository} run on this machine; expected: 1. Start one with "
            f"`python -m serving run --repository {repository}`"
        )
    return found[0]


def _folder() -> Path:
    return cache_dir() / "servers"


def _is_alive(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"tritonserver" in command
