"""The network on a CPU: one image on all cores, or many images with one core each; ONNX Runtime as its engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline import contract

Outputs: TypeAlias = "tuple[NDArray[np.float32], NDArray[np.float16]]"
"""float32 [n, K, 6 + C] candidates and float16 [n, C, H / 4, W / 4] prototypes."""

Engine: TypeAlias = "Callable[[NDArray[np.uint8]], Outputs]"
"""Runs one image, uint8 [1, H, W, 3], RGB. One thread calls it at a time."""

OUTPUT_NAMES = (contract.CANDIDATES.name, contract.PROTOTYPES.name)


def onnx_runtime_engine(model: Path, threads: int) -> Engine:
    """A session of ONNX Runtime.

    Args:
        model: the ``model.onnx``.
        threads: that work on one image. They sleep while they wait.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def run(image: NDArray[np.uint8]) -> Outputs:
        candidates, prototypes = session.run(OUTPUT_NAMES, {contract.IMAGES.name: image})
        return candidates, prototypes

    return run


class CpuNetwork:
    """Runs images on a number of cores.

    Threads that share one image wait for the slowest after every layer; threads with an image each never wait, and take
    about a fifth less processor time per image. So a single image gets all cores, and images that come together get an
    engine of one thread each. Threads sleep while they wait, since the other models of an ensemble need the cores.

    Args:
        path: the ``model.onnx``.
        threads: cores to use.
        max_batch_size: most images that come together.
        open_engine: makes an engine of the file that works with a number of threads.
    """

    def __init__(
        self,
        path: Path,
        threads: int,
        max_batch_size: int,
        open_engine: Callable[[Path, int], Engine] = onnx_runtime_engine,
    ) -> None:
        self._wide = open_engine(path, threads)
        workers = min(threads, max_batch_size)
        self._workers = workers
        self._narrow: SimpleQueue[Engine] = SimpleQueue()
        for _ in range(workers if workers > 1 else 0):
            self._narrow.put(open_engine(path, threads // workers))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="network")

    def run(self, images: Sequence[NDArray[np.uint8]]) -> list[Outputs]:
        """Run the network.

        Args:
            images: uint8 [1, H, W, 3] each, RGB.

        Returns:
            Outputs of one image each, in order.
        """
        shared = self._images_for_all_cores(len(images))
        alone = len(images) - shared
        outputs: Iterator[Outputs] = self._pool.map(self._run_narrow, images[:alone]) if alone else iter(())
        return [*outputs, *map(self._wide, images[alone:])]

    def _images_for_all_cores(self, count: int) -> int:
        """How many of the last images are better off with all cores, one after the other.

        Whole rounds keep every worker busy. In a last round that fills less than half of them, the cores finish
        sooner together.
        """
        if self._workers == 1:
            return count
        rest = count % self._workers
        return rest if rest * 2 <= self._workers else 0

    def _run_narrow(self, image: NDArray[np.uint8]) -> Outputs:
        engine = self._narrow.get()
        try:
            return engine(image)
        finally:
            self._narrow.put(engine)
