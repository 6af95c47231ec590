"""The error and the advice when a precision does not pass its gate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from builder.datasets import ADVISED_IMAGES
from builder.settings import BuildSettings
from builder.verifier import Verified

_SHOWN_GROUPS = 5


def ways_on(precision: str, verified: Verified, settings: BuildSettings, passed: Sequence[str]) -> list[str]:
    """What can be done, the likeliest first, one sentence each.

    Args:
        precision: the one that does not pass.
        verified: how it compares.
        settings: the build's.
        passed: precisions that this run has finished.
    """
    if not verified.agreement.reference_detections:
        return [
            "verify on images that show what the model was trained on: --verify-images, or more --images",
            f"lower verification.confidence (now {settings.verification.confidence}) in the settings file, if the "
            "model is never more certain",
            "keep fp32: --precisions fp32",
        ]
    if precision == "fp32":
        return ["report it: this plan gives other results than the network in ONNX Runtime"]
    lower = _lower(precision, passed)
    if precision == "fp16":
        return [
            lower,
            "if the model is to run in fp16, train it so (AMP): its values leave what 16 bits hold",
            "if the difference is acceptable, lower gates.fp16 in the settings file",
        ]
    return [*_ways_on_int8(verified, settings), lower, _other(settings.profile)]


def _ways_on_int8(verified: Verified, settings: BuildSettings) -> list[str]:
    calibration = verified.artifact.calibration or {}
    images = calibration.get("images", 0)
    found = [
        f"calibrate on more images of what the model will see: --images ({images} were used"
        + (f"; {ADVISED_IMAGES} or more are advised)" if images < ADVISED_IMAGES else ")")
    ]
    groups = costliest(verified)
    if groups:
        found.append(f"exclude the costliest layers from int8: --exclude {' '.join(groups)}")
    limit = settings.fallback.max_restorations
    if len(verified.ranking) > limit:
        found.append(f"let more layers be restored: raise fallback.max_restorations (now {limit}) in the settings file")
    found.append("see what each group of layers costs: `python -m builder sensitivity` with the same options")
    return found


def costliest(verified: Verified) -> list[str]:
    """Groups to exclude: those of the best step, and the costliest others; half of the convolutions stay in int8."""
    convolutions = {cost.group: cost.convolutions for cost in verified.ranking}
    ranked = [cost.group for cost in verified.ranking if cost.cost > 0]
    found = list(verified.restored)
    for group in ranked:
        if len(found) >= _SHOWN_GROUPS:
            break
        if group not in found and 2 * sum(convolutions[name] for name in (*found, group)) <= sum(convolutions.values()):
            found.append(group)
    return found


def _lower(precision: str, passed: Sequence[str]) -> str:
    """The next higher precision that has passed, else the advice to keep it."""
    kept = next((name for name in ("fp16", "fp32") if name in passed and name != precision), None)
    if kept is not None:
        return f"keep {kept}, which is built: serve segment_{kept}"
    return "keep fp16: --precisions fp32,fp16" if precision == "int8" else "keep fp32: --precisions fp32"


def _other(profile: str) -> str:
    if profile == "tensorrt":
        return "try the other calibration.method (max or entropy), or upgrade TensorRT and ModelOpt"
    return "on a machine with an NVIDIA GPU, --profile tensorrt quantizes in another way and keeps more in fp16"


def gate_message(precision: str, verified: Verified, ways: Sequence[str], report: Path | None) -> str:
    """The error: what failed, what was tried, what to do, and where the report is."""
    lines = [f"{precision} does not pass its gate: {'; '.join(verified.failures)}. No {precision} version was written."]
    steps = verified.trades[1:]
    if steps and verified.restored:
        lines[0] = lines[0].replace("its gate:", f"its gate after restoring {', '.join(verified.restored)}:")
        lines.append(f"{len(steps)} restorations were tried; this is the one that comes closest.")
    elif steps:
        tried = ", ".join(dict.fromkeys(name for step in steps for name in step.restored))
        lines.append(f"It came no closer after restoring {tried}.")
    lines.append("What to do:")
    lines += [f"  - {way}" for way in ways]
    if report is not None:
        lines.append(f"Report, with pictures: {report}")
    return "\n".join(lines)
