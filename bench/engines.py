"""The network alone in each engine and precision: one image on all cores, and an image per core."""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.report import PartReport
from bench.synthetic import INPUT_SIZE
from load.photographs import as_jpeg, network_path
from pipeline import contract
from pipeline.preprocess import preprocess
from scenes.reference import fetch_reference
from steps.onnx_cpu import Engine, onnx_runtime_engine
from steps.openvino_cpu import openvino_engine

BASE: Final = "ONNX Runtime"
ENGINES: Final[dict[str, Callable[[Path, int], Engine]]] = {
    BASE: onnx_runtime_engine,
    "OpenVINO f32": functools.partial(openvino_engine, precision="f32"),
    "OpenVINO bf16": functools.partial(openvino_engine, precision="bf16"),
}
"""By name; behind OpenVINO's stands what it computes in that is not int8."""
WAYS: Final = {f"{precision}, {name}": (precision, name) for precision in contract.PRECISIONS for name in ENGINES}
_REPEATS: Final = 2  # of the five photographs, in each window


def run(options: argparse.Namespace) -> None:
    """Measure the versions that the repository serves, on the reference photographs.

    Raises:
        OperatorError: a precision is not served, or the reference photographs are not available.
    """
    cores = len(os.sched_getaffinity(0))
    report = PartReport(
        "engines",
        f"The network alone, per image: one image on all {cores} cores, and {cores} images on one core each. The "
        "ratio is ONNX Runtime's time to the way's, in the same precision: above 1, the way is faster.",
        options.out,
    )
    images = [_pixels(photograph) for photograph in as_jpeg(fetch_reference().photographs)] * _REPEATS
    with ThreadPoolExecutor(cores) as pool:
        for case, count in (("one image on all cores", 1), ("an image per core", cores)):
            ways = {}
            for way, (precision, engine) in WAYS.items():
                path = network_path(options.repository, precision)
                try:
                    engines = [ENGINES[engine](path, cores // count) for _ in range(count)]
                except Exception as error:  # OpenVINO raises its own types
                    print(f"engines: {way} does not run here: {error}")
                    continue
                ways[way] = _window(pool, engines, images)
            report.measure(case, ways, options.rounds, functools.partial(_add, report, case))
    report.draw()


def _pixels(photograph: bytes) -> NDArray[np.uint8]:
    pixels = np.empty((1, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    preprocess(photograph, pixels[0])
    return pixels


def _window(
    pool: ThreadPoolExecutor, engines: Sequence[Engine], images: Sequence[NDArray[np.uint8]]
) -> Callable[[], tuple[float, float]]:
    """A call that has every engine run all images, and returns wall and processor milliseconds per image."""

    def run() -> tuple[float, float]:
        started_s, used_s, count = time.perf_counter(), time.process_time(), len(images) * len(engines)
        list(pool.map(lambda engine: list(map(engine, images)), engines))
        return (time.perf_counter() - started_s) * 1e3 / count, (time.process_time() - used_s) * 1e3 / count

    return run


def _add(report: PartReport, case: str, results: dict[str, list[tuple[float, float]]]) -> None:
    for index, unit in enumerate(("ms wall", "ms CPU")):
        values = {way: [times[index] for times in results[way]] for way in WAYS if way in results}
        for way, each in values.items():
            report.add(case, way, unit, each)
            base = f"{WAYS[way][0]}, {BASE}"
            if way != base:
                report.add_ratio(case, f"{way}, {unit}", values[base], each)
