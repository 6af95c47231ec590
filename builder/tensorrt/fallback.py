"""Builds again without the quantizers that TensorRT fails on, a bounded number of times, and records every attempt."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from builder.tensorrt.advice import ways_out
from builder.tensorrt.errors import OnnxParseError, PlanBuildError, TensorRTError
from builder.tensorrt.failures import parse_build_log, parse_problems
from builder.tensorrt.graph_names import GraphNames

Compiled = TypeVar("Compiled")


@dataclass(frozen=True)
class Attempt:
    """One try at building a plan. Holds only what JSON knows.

    Attributes:
        number: from 1.
        excluded: nodes left in higher precision on top of the default exclusions, in topological order.
        succeeded: whether a plan came out.
        duration_s: seconds, preparing the ONNX included.
        error: one line on what failed; empty on success.
        failed_layers: failed layers as TensorRT names them.
        failed_nodes: ONNX nodes in them.
        added: nodes whose quantizers the next attempt leaves out.
    """

    number: int
    excluded: tuple[str, ...]
    succeeded: bool
    duration_s: float
    error: str = ""
    failed_layers: tuple[str, ...] = ()
    failed_nodes: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For the manifest: strings, numbers, booleans and lists of strings."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class FallbackResult(Generic[Compiled]):
    """A plan and the attempts that it took.

    Attributes:
        plan: what the compile step returned.
        onnx_path: the ONNX that it was built from.
        excluded: nodes left in higher precision, in topological order.
        attempts: every attempt, the last one successful.
    """

    plan: Compiled
    onnx_path: Path
    excluded: tuple[str, ...]
    attempts: tuple[Attempt, ...]


class FallbackError(TensorRTError):
    """No attempt gave a plan. The message says what failed and the ways out.

    Attributes:
        attempts: every attempt.
    """

    def __init__(self, message: str, attempts: tuple[Attempt, ...]) -> None:
        super().__init__(message)
        self.attempts = attempts


def build_with_fallback(
    make_onnx: Callable[[frozenset[str]], Path],
    compile_fn: Callable[[Path], Compiled],
    max_attempts: int = 4,
    on_attempt: Callable[[Attempt], None] | None = None,
    *,
    tensorrt: str = "TensorRT",
    workspace_mib: int | None = None,
) -> FallbackResult[Compiled]:
    """Build a plan; after a failed build, leave the failed nodes in higher precision and build again.

    Args:
        make_onnx: makes the quantized ONNX without the quantizers of the given nodes (in addition to its defaults).
        compile_fn: builds the plan; raises ``PlanBuildError`` with the log when TensorRT builds none, and
            ``OnnxParseError`` when its parser refuses the network.
        max_attempts: bound on the number of builds, 1 or more.
        on_attempt: called after every attempt.
        tensorrt: name and version for the message.
        workspace_mib: workspace limit, for the message.

    Returns:
        The plan, and every attempt.

    Raises:
        FallbackError: the bound is met, or a failed build names no further node that carries quantizers.
    """
    excluded: tuple[str, ...] = ()
    attempts: list[Attempt] = []

    def record(started: float, **facts: Any) -> None:
        attempt = Attempt(len(attempts) + 1, excluded, duration_s=time.monotonic() - started, **facts)
        attempts.append(attempt)
        if on_attempt is not None:
            on_attempt(attempt)

    while True:
        started = time.monotonic()
        onnx_path = make_onnx(frozenset(excluded))
        try:
            plan = compile_fn(onnx_path)
        except (PlanBuildError, OnnxParseError) as error:
            graph = GraphNames.from_file(onnx_path)
            if isinstance(error, OnnxParseError):
                failed = parse_problems(error.problems, graph)
            else:
                failed = parse_build_log(error.lines, graph)
            added = tuple(name for name in graph.quantizer_carriers(failed.nodes) if name not in excluded)
            is_last = len(attempts) + 1 == max_attempts
            record(
                started,
                succeeded=False,
                error=failed.reason,
                failed_layers=failed.raw,
                failed_nodes=failed.nodes,
                added=() if is_last else added,
            )
            if not added or is_last:
                why = (
                    f"{len(attempts)} builds failed, which is the bound (max_attempts)"
                    if added
                    else "no further node with quantizers is named in the log, so leaving quantizers out cannot help"
                )
                # What the parser refuses without a quantizer in it, it refuses in every precision.
                in_any = isinstance(error, OnnxParseError) and not added and not excluded
                advice = str(error) if in_any else ways_out(failed, tensorrt, excluded, workspace_mib)
                raise FallbackError(f"{advice}\nStopped because {why}.", tuple(attempts)) from error
            excluded = graph.in_order({*excluded, *added})
            continue
        record(started, succeeded=True)
        return FallbackResult(plan, onnx_path, excluded, tuple(attempts))
