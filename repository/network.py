"""A grafted network, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import contract

Network = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float16]]]
"""Runs images, uint8 [batch, H, W, 3], to candidates [batch, K, 6 + C] and prototypes [batch, C, H/4, W/4]."""


def onnx_network(model: Path | bytes, threads: int | None = None) -> Network:
    """A network run by ONNX Runtime on the CPU.

    Args:
        model: grafted network, as a file or serialized.
        threads: of the session; None takes all cores.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    # Spinning threads would take cores from whatever else the machine does.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Bytes: ONNX Runtime takes no path that is not UTF-8, as one with an é is under the locale C.
    source = model.read_bytes() if isinstance(model, Path) else model
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [contract.CANDIDATES.name, contract.PROTOTYPES.name]

    def run(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        candidates, prototypes = session.run(names, {contract.IMAGES.name: images})
        return candidates, prototypes

    return run
