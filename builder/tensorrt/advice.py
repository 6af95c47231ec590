"""The message when a plan does not build: what failed, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from builder.tensorrt.failures import FailedNodes

_SHOWN_NODES: Final = 12
_LOWER: Final = {"int8": "keep fp16: --precisions fp32,fp16", "fp16": "keep fp32: --precisions fp32"}


def memory_ways_out(
    said: str, of_the_gpu: bool, tensorrt: str, batches: tuple[int, int, int], workspace_mib: int
) -> str:
    """Say that memory did not suffice for a plan, and what can be done.

    Args:
        said: the log's line.
        of_the_gpu: whether the log blames the GPU's memory; else it is the workspace limit.
        tensorrt: name and version, such as ``TensorRT-RTX 1.7.1``.
        batches: smallest, preferred and largest batch.
        workspace_mib: the workspace limit of the build.

    Returns:
        Several lines for people.
    """
    smallest, preferred, largest = batches
    half = max(largest // 2, smallest)
    change = f"--max-batch {half}" + (f" --opt-batch {half}" if half < preferred else "")
    smaller = [f"  - a smaller largest batch: {change}"] if half < largest else []
    lines = [
        f"{tensorrt} builds no plan: out of memory ({said}).",
        f"The workspace limit is {workspace_mib} MiB, and the plan is for batches of up to {largest}: what the layers "
        "need grows with the largest batch.",
        "Ways out:",
    ]
    if of_the_gpu:
        lines += ["  - stop other programs that use the GPU (nvidia-smi lists them)", *smaller]
        lines.append(f"  - a smaller workspace: --workspace-mib {max(workspace_mib // 2, 16)}")
    else:
        lines += smaller
        lines.append(
            f"  - a larger workspace: --workspace-mib {2 * workspace_mib}, and double it again while this repeats (the "
            "size in the log is that of the workspace, not what is needed)"
        )
    return "\n".join(lines)


def ways_out(
    failed: FailedNodes,
    tensorrt: str,
    excluded: Sequence[str],
    workspace_mib: int | None = None,
    precision: str = "int8",
) -> str:
    """Say what failed and what can be done.

    Args:
        failed: what the last attempt's log says.
        tensorrt: name and version, such as ``TensorRT 10.3.0``.
        excluded: nodes that were already left in higher precision, without success.
        workspace_mib: the workspace limit of the build, if known.
        precision: fp32, fp16 or int8; what is advised fits it.

    Returns:
        Several lines for people.
    """
    lines = [f"{tensorrt} builds no {precision} plan: {failed.reason}."]
    if failed.nodes:
        shown = [f"{name} ({failed.operators.get(name, 'unknown')})" for name in failed.nodes[:_SHOWN_NODES]]
        more = f" and {len(failed.nodes) - _SHOWN_NODES} more" if len(failed.nodes) > _SHOWN_NODES else ""
        lines.append(f"Failed nodes: {', '.join(shown)}{more}.")
    elif failed.unresolved:
        lines.append(f"Failed layers without an ONNX name: {', '.join(failed.unresolved[:_SHOWN_NODES])}.")
    if excluded:
        more = f" and {len(excluded) - _SHOWN_NODES} more" if len(excluded) > _SHOWN_NODES else ""
        lines.append(f"Left in higher precision already: {', '.join(excluded[:_SHOWN_NODES])}{more}.")
    lines.append("Ways out:")
    if failed.insufficient_workspace:
        now = f" (now {workspace_mib} MiB)" if workspace_mib is not None else ""
        lines.append(f"  - raise the workspace{now} with --workspace-mib, or lower --max-batch; the log blames it")
    if failed.nodes and precision == "int8":
        lines.append(f"  - exclude these layers from int8 yourself: --exclude {' '.join(failed.nodes[:_SHOWN_NODES])}")
    if precision in _LOWER:
        lines.append(f"  - {_LOWER[precision]}")
    if precision == "int8":
        lines.append(
            "  - upgrade TensorRT: what INT8 of these networks fails on in 8.6 builds in 10.3 and newer, and in 11"
        )
    else:
        lines.append("  - upgrade TensorRT, or export again with another opset (17 is the one most used)")
    return "\n".join(lines)
