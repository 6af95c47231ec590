"""``python -m bench``: every part of the benchmark as a command."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import grpc

from base.errors import OperatorError
from bench.report import Comparison, Keep, draw_parts
from client.errors import SegmentationError
from load.errors import LoadError
from pipeline import command_line, contract
from repository.store import SHIPPED_REPOSITORY
from serving.lifetime import end_with
from serving.server import model_environment


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one part, or all.

    Returns:
        0; 1 if it failed (the fault and its remedy are on standard error).
    """
    command_line.prepare()
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="measure against the bare model, the plain ways and other packages"
    )
    parts = parser.add_subparsers(required=True, metavar="PART")
    helps = {
        "postprocess": "masks, against the whole-mask method and other packages",
        "preprocess": "decode and letterbox, against the plain way and ultralytics",
        "ensemble": "throughput, latency and CPU time per image under load",
        "precision": "fp32, fp16 and int8 through the ensemble",
        "all": "the four parts above",
    }
    for name, text in helps.items():
        part = parts.add_parser(name, help=text)
        _add_common(part)
        part.add_argument("--rounds", type=int, default=5, help="rounds of the comparison (default: 5)")
        part.add_argument("--seconds", type=float, default=3.0, help="length of each window under load (default: 3)")
        part.add_argument("--in-flight", type=_numbers, default=(1, 4, 16), help="ensemble: default 1,4,16")
        part.add_argument(
            "--precision", choices=contract.PRECISIONS, default="fp32", help="ensemble: of the network (default: fp32)"
        )
        part.set_defaults(run=_run_parts, parts=tuple(_PARTS) if name == "all" else (name,))
    _add_gpu(parts)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except (OperatorError, SegmentationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run_parts(options: argparse.Namespace) -> int:
    from bench.measure import METHOD

    _say(METHOD)
    failed = []
    for name in options.parts:
        try:
            _in_server_conditions(_PARTS[name], options)
        except LoadError as error:  # the other parts can be measured all the same
            failed.append(f"{name}: {error}")
    if failed:
        raise LoadError(f"{'; '.join(failed)}. What was measured is in {options.out}")
    return 0


def _in_server_conditions(part: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> None:
    """Run a part in a new process with the settings of memory and threads that the server gives its models.

    Raises:
        LoadError: the part failed; it has said why.
    """
    os.environ.update(model_environment())
    process = multiprocessing.get_context("spawn").Process(target=_run_part, args=(part, options, os.getpid()))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise LoadError(f"the benchmark ended with status {process.exitcode}; its message is above")


def _end(*_: object) -> None:
    """Leave through the context managers, so that the server is stopped; the kernel may send more than one signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def _run_part(part: Callable[[argparse.Namespace], None], options: argparse.Namespace, parent: int) -> None:
    signal.signal(signal.SIGTERM, _end)
    end_with(parent)
    try:
        part(options)
    except (OperatorError, grpc.RpcError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _postprocess(options: argparse.Namespace) -> None:
    from bench.postprocess import run

    _write(run(options.repository, options.rounds, _keep(options)), options)


def _preprocess(options: argparse.Namespace) -> None:
    from bench.preprocess import run

    _write(run(options.repository, options.rounds, _keep(options)), options)


def _ensemble(options: argparse.Namespace) -> None:
    from bench.ensemble import EnsembleSettings, overhead_parts, run

    settings = EnsembleSettings(
        options.repository, options.precision, options.in_flight, options.seconds, options.rounds
    )
    comparison = run(settings, _keep(options))
    _write(comparison, options)
    picture = options.out / "ensemble-parts.png"
    draw_parts(overhead_parts(comparison), picture, "Where the time outside of the network goes, per image")
    _say(f"written: {picture}")


def _precision(options: argparse.Namespace) -> None:
    from bench.precision import run

    _write(run(options.repository, options.seconds, options.rounds, _keep(options)), options)


_PARTS: Final = {
    "postprocess": _postprocess,
    "preprocess": _preprocess,
    "ensemble": _ensemble,
    "precision": _precision,
}


def _keep(options: argparse.Namespace) -> Keep:
    """Writes figures as they come, so that whatever fails later loses none, and prints each case that is complete."""

    def keep(comparison: Comparison, case: str) -> None:
        comparison.write_data(options.out)
        if case:
            _say(comparison.lines_of(case))

    return keep


def _write(comparison: Comparison, options: argparse.Namespace) -> None:
    data, picture = comparison.write(options.out)
    _say(f"written: {data} {picture}")


def _say(text: str) -> None:
    print(text, flush=True)


def _add_gpu(parts: Any) -> None:
    gpu = parts.add_parser("gpu", help="the ensemble on a GPU machine (profile cuda)")
    _add_common(gpu)
    cores = len(os.sched_getaffinity(0))
    gpu.add_argument("--profile", choices=("cuda", "cpu"), default="cuda", help="cpu tries this out without a GPU")
    gpu.add_argument("--in-flight", type=_numbers, default=(1, 16, 64, 128), help="default: 1,16,64,128")
    gpu.add_argument("--seconds", type=float, default=6.0, help="length of each window (default: 6)")
    gpu.add_argument("--precisions", type=_precisions, default=("fp32", "fp16"), help="default: fp32,fp16")
    gpu.add_argument("--processes", type=int, default=max(2, min(6, cores // 2)), help="that generate load")
    gpu.add_argument("--preprocess-instances", type=int, default=max(2, cores // 2), help="default: half of the cores")
    gpu.add_argument("--postprocess-instances", type=int, default=max(1, cores // 4), help="default: a quarter")
    gpu.add_argument("--network-instances", type=int, help="default: as configured")
    gpu.add_argument("--network-kind", choices=("cpu", "gpu"), help="instance kind (default: as configured)")
    gpu.set_defaults(run=_run_gpu)


def _run_gpu(options: argparse.Namespace) -> int:
    from bench.gpu import GpuSettings, run
    from bench.variant import Variant

    variant = Variant(
        preprocess_instances=options.preprocess_instances,
        postprocess_instances=options.postprocess_instances,
        network_instances=options.network_instances,
        network_kind=options.network_kind,
    )
    return run(
        GpuSettings(
            repository=options.repository,
            out=options.out,
            profile=options.profile,
            precisions=options.precisions,
            in_flight=options.in_flight,
            seconds=options.seconds,
            processes=options.processes,
            variant=variant,
        )
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repository", type=Path, default=SHIPPED_REPOSITORY, help="built model repository")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder to write to (default: out/bench)")


def _numbers(text: str) -> tuple[int, ...]:
    values = tuple(int(part) for part in text.split(","))
    if any(value < 1 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: whole numbers from 1, comma-separated")
    return values


def _precisions(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    unknown = [part for part in chosen if part not in contract.PRECISIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}; allowed: {', '.join(contract.PRECISIONS)}")
    return chosen
