"""``python -m bench``: every part of the benchmark as a command."""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from base.errors import OperatorError
from bench.measure import METHOD
from client.errors import SegmentationError
from load.errors import LoadError
from pipeline import command_line, contract
from pipeline.command_line import names, whole
from repository.profiles import GPU_STEPS
from repository.store import SHIPPED_REPOSITORY
from serving.lifetime import end_with
from serving.server import model_environment

PARTS: Final = {
    "postprocess": "masks, against the whole-mask method and ultralytics",
    "preprocess": "decode and letterbox, against the plain way and ultralytics",
    "engines": "the network alone in ONNX Runtime and OpenVINO, in each precision",
    "ensemble": "throughput, latency and CPU time per image under load",
    "gateway": "what plain HTTP costs over gRPC",
}
"""Modules of this package with a function ``run``, and what they measure."""

_FAILURES: Final = (OperatorError, SegmentationError, OSError, psutil.Error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one part, or all.

    Returns:
        0; 1 if it failed (the fault and its remedy are on standard error).
    """
    command_line.prepare()
    options = _parser().parse_args(arguments)
    return command_line.exit_status(lambda: _run(options), _FAILURES)


def _run(options: argparse.Namespace) -> int:
    """Run each part in a new process with the settings of memory and threads that the server gives its models."""
    if options.parts == ("gpu",):
        from bench import gpu

        gpu.run(options)
        return 0
    print(METHOD, flush=True)
    os.environ.update(model_environment(), PYTHONSAFEPATH="1")  # else new processes search the working folder first
    failed = []
    for name in options.parts:
        process = multiprocessing.get_context("spawn").Process(target=_run_part, args=(name, options, os.getpid()))
        process.start()
        process.join()
        if process.exitcode != 0:  # the other parts can still be measured
            failed.append(f"{name}: the benchmark ended with status {process.exitcode}; its message is above")
    if failed:
        raise LoadError(f"{'; '.join(failed)}. What was measured is in {options.out}")
    return 0


def _run_part(name: str, options: argparse.Namespace, parent: int) -> None:
    signal.signal(signal.SIGTERM, _end)
    end_with(parent)
    sys.exit(command_line.exit_status(lambda: importlib.import_module(f"bench.{name}").run(options) or 0, _FAILURES))


def _end(*_: object) -> None:
    """Leave through the context managers, so that the server is stopped; the kernel may send more than one signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog="python -m bench", description="measure against the bare model, the plain ways and ultralytics"
    )
    commands = parser.add_subparsers(required=True, metavar="PART")
    for name, text in {**PARTS, "all": f"the {len(PARTS)} parts above"}.items():
        part = commands.add_parser(name, help=text)
        _add_common(part, in_flight=(1, 4, 16), seconds=3.0)
        part.add_argument("--rounds", type=whole(1), default=5, help="rounds of the comparison (default: 5)")
        part.add_argument(
            "--precision",
            choices=contract.PRECISIONS,
            default="fp32",
            help="ensemble, gateway: of the network (default: fp32)",
        )
        part.set_defaults(parts=tuple(PARTS) if name == "all" else (name,))
    gpu = commands.add_parser("gpu", help="the ensemble on a GPU machine (profile cuda)")
    _add_common(gpu, in_flight=(1, 16, 64, 128, 256), seconds=6.0)
    cores = len(os.sched_getaffinity(0))
    gpu.add_argument(
        "--profile",
        choices=("cuda", GPU_STEPS, "cpu"),
        default="cuda",
        help=f"{GPU_STEPS}: the steps of tensorrt with the network in the Python backend between them; cpu tries this "
        "out without a GPU",
    )
    gpu.add_argument("--precisions", type=names(contract.PRECISIONS), default=("fp16",), help="default: fp16")
    gpu.add_argument("--processes", type=whole(1), default=max(2, min(6, cores // 4)), help="that generate load")
    for model in ("network", contract.PREPROCESS_MODEL, contract.POSTPROCESS_MODEL):
        gpu.add_argument(f"--{model}-instances", type=whole(1), help="processes (default: as configured)")
    gpu.add_argument(
        "--masks-with-network",
        action="store_true",
        help=f"with {GPU_STEPS}: network and masks in one process, so that one tensor is passed between the steps",
    )
    gpu.add_argument("--soak-seconds", type=whole(0), default=0, help="of mixed load afterwards, memory watched")
    gpu.set_defaults(parts=("gpu",))
    return parser


def _add_common(parser: argparse.ArgumentParser, in_flight: tuple[int, ...], seconds: float) -> None:
    parser.add_argument("--repository", type=Path, default=SHIPPED_REPOSITORY, help="built model repository")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder to write to (default: out/bench)")
    listed = ",".join(map(str, in_flight))
    parser.add_argument("--in-flight", type=_counts, default=in_flight, help=f"requests in flight (default: {listed})")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help=f"length of each window under load (default: {seconds:g})"
    )


def _counts(text: str) -> tuple[int, ...]:
    return tuple(map(whole(1), text.split(",")))
