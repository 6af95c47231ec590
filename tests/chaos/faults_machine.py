"""What the machine lacks: shared memory, a library."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from client import RetryPolicy, SegmentationClient
from client.errors import SegmentationError
from scenes.reference import fetch_reference
from tests.chaos.expected import fingerprint
from tests.chaos.faults_record import LONGEST_S, PRECISION, Record, without_names
from tests.chaos.faults_service import IN_OWN_MOUNTS, Service, into_mounts

_ROOM: Final = "192m"
_SCRIPT: Final = f'mount -t tmpfs -o size={_ROOM} tmpfs /dev/shm; exec "$@"'
_NO_SHARED_MEMORY: Final = r"^ServerError: .*Failed to increase the shared memory pool size"
_MISSING: Final = r"lib\S+: cannot open shared object file: No such file or directory"


def shared_memory_full(repository: Path) -> Record:
    """Fill the server's shared memory from outside, ask for more than is left, then empty it again."""
    wrap = (*IN_OWN_MOUNTS, "sh", "-euc", _SCRIPT, "sh")
    with Service(repository, f"--precisions={PRECISION}", wrap=wrap) as service:
        server = service.server
        filler = Path(f"/proc/{server.pid}/root/dev/shm/filler")
        small = fetch_reference().photographs[0].read_bytes()
        noise = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), np.uint8)
        large = cv2.imencode(".bmp", noise)[1].tobytes()  # 18 MB: more than any request before it
        with SegmentationClient(server.grpc, "grpc", PRECISION, LONGEST_S, RetryPolicy(retries=0)) as client:
            # Each process's share grows with its first request.
            before = [fingerprint(client.segment(small)) for _ in range(8)][-1]
            _fill(filler)
            refusals = [_refusal(client, large), _refusal(client, [small] * 8)]
            others = [_refusal(client, small) for _ in range(4)]
            filler.unlink()
            after = fingerprint(client.segment(small))
            mended = [_refusal(client, large), _refusal(client, [small] * 8)]
        same = service.server.pid == server.pid and not [line for line in service.lines if "died" in line]
    broken = [f"not refused as it should be: {text}" for text in refusals if not _is_refusal(text)]
    broken += [f"refused with room again: {text}" for text in mended if text is not None]
    broken += [f"a small request was refused: {text}" for text in others if text is not None]
    broken += [] if before == after else ["another answer than before"]
    broken += [] if same else ["a process was restarted"]
    return Record(
        fault="shared memory (/dev/shm) is full",
        lost="the requests that need more of it; others are answered",
        callers_see="INTERNAL at once: 'Failed to increase the shared memory pool size', and which option helps",
        recovery="by itself as soon as there is room; to answer such requests at all, give the container more shm_size",
        seconds=0.0,
        evidence={"refusals": refusals, "others_answered": len(others), "answered_with_room_again": len(mended)},
        broken=broken,
    )


def missing_library(repository: Path) -> Record:
    """Take away the shared libraries that OpenCV needs, then kill the server: it cannot come back."""
    libraries = Path(cv2.__file__).parent.parent / "opencv_python_headless.libs"
    if not libraries.is_dir():
        raise RuntimeError(f"{libraries}: missing; this OpenCV finds its libraries elsewhere")
    with Service(
        repository, f"--precisions={PRECISION}", "--restarts=1", "--exit-timeout-s=2", wrap=IN_OWN_MOUNTS
    ) as service:
        pid = service.server.pid
        # An empty folder over theirs, for this server alone.
        subprocess.run([*into_mounts(pid), "mount", "-t", "tmpfs", "tmpfs", str(libraries)], check=True)
        os.kill(pid, signal.SIGKILL)
        status = service.process.wait(60)
        said = service.wait_said("giving up", 5)
        quoted = [line for line in service.lines[service.lines.index(said) :] if re.search(_MISSING, line)]
    with Service(repository, f"--precisions={PRECISION}"):
        pass  # with the libraries in their place, it starts
    return Record(
        fault="a library that OpenCV needs is missing when the server is started again",
        lost="the requests under way",
        callers_see="UNAVAILABLE, or a refused connection, at once",
        recovery="needs a person: `serving run` gives up after its restarts; its log names the library",
        seconds=None,
        evidence={"status": status, "said": said, "quoted": quoted[:1]},
        broken=[] if status == 1 and quoted else [f"status {status}: {service.tail()}"],
    )


def _fill(filler: Path) -> None:
    """Take all that is left of the file system that a file lies in."""
    with filler.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(1 << 16))
        except OSError:
            return


def _refusal(client: SegmentationClient, images: bytes | list[bytes]) -> str | None:
    try:
        client.segment_batch(images if isinstance(images, list) else [images])
    except SegmentationError as error:
        return f"{type(error).__name__}: {without_names(str(error))}"
    return None


def _is_refusal(text: str | None) -> bool:
    return text is not None and re.search(_NO_SHARED_MEMORY, text) is not None
