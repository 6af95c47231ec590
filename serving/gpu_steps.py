"""The steps around a TensorRT plan on the GPU: whether this machine and this network allow it, and how they are served.

Their configurations say how they run on the processor; on the GPU only what is here differs.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from base.gpu import query_gpus
from pipeline import contract
from pipeline.letterbox import RESAMPLING
from repository.store import RESAMPLE, ModelRepository, read_config

COUNTS: Final[Mapping[str, int]] = {
    contract.ADMISSION_MODEL: 4,
    contract.PREPROCESS_MODEL: 1,
    contract.POSTPROCESS_MODEL: 2,
}
"""Processes of each step (docs/performance.md)."""

STEPS: Final = (contract.PREPROCESS_MODEL, contract.POSTPROCESS_MODEL)
"""What runs on the GPU besides the network."""

POOL_OPTION: Final = "--cuda-memory-pool-byte-size"

_PROBE_TIMEOUT_S: Final = 120  # the kernels are compiled at the first start
_ROOT: Final = Path(__file__).resolve().parent.parent
_SHARE: Final = 16  # of a GPU's memory for the tensors between the steps, which are 3 MB an image
_INSTALL: Final = "docs/deployment.md says what to install"
_ON_GPU: Final = """
    max_batch_size: 32
    dynamic_batching { max_queue_delay_microseconds: 1000 }
    parameters { key: "device" value { string_value: "gpu" } }
    parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value { string_value: "no" } }
"""


def put_on_gpu(config: Any) -> None:
    """Change a step's configuration to run on the GPU, many requests at a time."""
    config.MergeFrom(text_format.Parse(_ON_GPU, model_config_pb2.ModelConfig()))
    for group in config.instance_group:
        group.kind = model_config_pb2.ModelInstanceGroup.KIND_GPU


def obstacle(repository: ModelRepository, resample: str | None, environment: Mapping[str, str]) -> str | None:
    """Why the steps cannot run on the GPU; None if they can.

    Args:
        repository: with the network's sizes in its configurations.
        resample: how images are resized; None as configured.
        environment: that the server's processes get.
    """
    parameters = read_config(repository.shared_config(contract.PREPROCESS_MODEL)).parameters
    configured = parameters[RESAMPLE].string_value if RESAMPLE in parameters else RESAMPLING[0]
    if (resample or configured) != RESAMPLING[0]:
        return f"the kernel that resizes does not take {RESAMPLE} {resample or configured!r}"
    try:
        probe = subprocess.run(
            [sys.executable, "-m", "steps.gpu"],
            cwd=_ROOT,
            env=dict(environment),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"opening the GPU took more than {_PROBE_TIMEOUT_S} s"
    if probe.returncode == 0:
        return None
    said = (probe.stdout.strip() or probe.stderr.strip()).splitlines()
    return f"{said[-1] if said else f'status {probe.returncode}'} ({_INSTALL})"


def pool_options() -> list[str]:
    """Options for the memory of each GPU that tensors between the steps take; Triton's 64 MB hold 20 images."""
    sizes = [row[0].split()[0] for row in query_gpus("memory.total")]  # such as 81559 MiB; [N/A] for parts of a GPU
    shares = {number: (int(size) // _SHARE) << 20 for number, size in enumerate(sizes) if size.isdigit()}
    return [f"{POOL_OPTION}={number}:{share}" for number, share in shares.items()]
