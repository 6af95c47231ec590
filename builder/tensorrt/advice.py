"""The last word when a plan does not build: what failed, where, and the ways out."""

from __future__ import annotations

from collections.abc import Sequence

from builder.tensorrt.failures import FailedNodes

_SHOWN_NODES = 12


def ways_out(failed: FailedNodes, tensorrt: str, excluded: Sequence[str], workspace_mib: int | None = None) -> str:
    """Say what failed and what can be done.

    Args:
        failed: what the last attempt's log says.
        tensorrt: name and version, such as ``TensorRT 10.3.0``.
        excluded: nodes that were already left in higher precision, in vain.
        workspace_mib: the workspace limit of the build, if known.

    Returns:
        Several lines for people.
    """
    lines = [f"{tensorrt} builds no plan: {failed.reason}."]
    if failed.nodes:
        shown = [f"{name} ({failed.operators.get(name, 'unknown')})" for name in failed.nodes[:_SHOWN_NODES]]
        more = f" and {len(failed.nodes) - _SHOWN_NODES} more" if len(failed.nodes) > _SHOWN_NODES else ""
        lines.append(f"Failed nodes: {', '.join(shown)}{more}.")
    elif failed.unresolved:
        lines.append(f"Failed layers without an ONNX name: {', '.join(failed.unresolved[:_SHOWN_NODES])}.")
    if excluded:
        names = list(excluded)
        more = f" and {len(names) - _SHOWN_NODES} more" if len(names) > _SHOWN_NODES else ""
        lines.append(f"Left in higher precision already: {', '.join(names[:_SHOWN_NODES])}{more}.")
    lines.append("Ways out:")
    if failed.insufficient_workspace:
        now = f" (now {workspace_mib} MiB)" if workspace_mib is not None else ""
        lines.append(f"  - raise workspace_mib{now}; the log blames it")
    if failed.nodes:
        lines.append(
            f"  - exclude these layers from int8 yourself: exclude: [{', '.join(failed.nodes[:_SHOWN_NODES])}]"
        )
    lines.append("  - calibrate with more images (500 or more) of what the network will see, and build again")
    lines.append("  - keep fp16: --precisions fp32,fp16")
    lines.append(
        "  - upgrade TensorRT: what INT8 of these networks fails on in 8.6 builds in 10.3 and newer, and in 11"
    )
    return "\n".join(lines)
