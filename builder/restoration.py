"""When int8 does not pass its gate: groups of layers leave int8, one after another, and the best step is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from base.progress import Steps
from builder.artifact import Artifact
from builder.errors import BuilderError
from builder.sensitivity import GroupCost, Trade, int8_size_bytes
from builder.settings import Gate
from builder.verification import Comparison
from pipeline.postprocess import ImageSegmentation


@dataclass(frozen=True)
class Verified:
    """An artifact and how it compares.

    Attributes:
        artifact: the network.
        comparison: with the fp32 reference.
        measured: what was run to compare it, in words.
        found: its detections, one entry per verification image.
        gate: what it must reach.
        is_gated: False where the fp32 reference finds nothing and fp32 itself is judged: nothing speaks against it.
        ranking: groups of layers by what they cost; empty if the gate held at once.
        trades: the steps of the restoration, the first with nothing restored; empty likewise.
        restored: groups that this artifact has out of int8.
    """

    artifact: Artifact
    comparison: Comparison
    measured: str
    found: list[ImageSegmentation] = field(repr=False)
    gate: Gate
    is_gated: bool = True
    ranking: tuple[GroupCost, ...] = ()
    trades: tuple[Trade, ...] = ()
    restored: tuple[str, ...] = ()

    @property
    def failures(self) -> list[str]:
        """What of the gate is not reached, in words; empty if it is passed."""
        return self.comparison.failures(self.gate) if self.is_gated else []

    @property
    def missing(self) -> float:
        """How far the gate is missed."""
        return self.comparison.missing(self.gate) if self.is_gated else 0.0


def restore(
    first: Verified,
    ranking: Sequence[GroupCost],
    make: Callable[[frozenset[str]], Verified],
    max_restorations: int,
    steps: Steps,
) -> Verified:
    """Take the costliest groups out of int8 until the gate is passed.

    A group whose restoration brings the network further from its gate goes back to int8 before the next one is tried.
    Groups without convolutions are not tried: nearly all of the work and of the weights is in those.

    Args:
        first: the network with all its layers in int8.
        ranking: groups, the costliest first.
        make: makes and verifies the network without the quantizers of some nodes.
        max_restorations: how many groups are tried.
        steps: where progress is shown.

    Returns:
        The first network that passes, else the one that comes closest, with all steps.
    """
    best, kept_missing = first, first.missing
    kept: tuple[GroupCost, ...] = ()
    trades = [_trade(first, ())]
    candidates = [cost for cost in ranking if cost.convolutions]
    in_int8 = sum(cost.convolutions for cost in candidates)
    for number, cost in enumerate(candidates[:max_restorations], 1):
        chosen = (*kept, cost)
        if sum(group.convolutions for group in chosen) >= in_int8:
            steps.note("int8: no further group can be restored, or nothing would be left in int8")
            break
        label = f"int8: restoration {number} of {min(max_restorations, len(candidates))}"
        steps.note(f"{label}: {', '.join(group.group for group in chosen)} out of int8")
        try:
            current = make(frozenset(name for group in chosen for name in group.nodes))
        except BuilderError as error:
            steps.warn(f"{label} cannot be built: {str(error).splitlines()[0]}")
            continue
        trades.append(_trade(current, chosen))
        if current.missing < best.missing:
            best = _with(current, chosen)
        if not current.failures:
            break
        if current.missing <= kept_missing:
            kept, kept_missing = chosen, current.missing
        else:
            steps.note(f"int8: {cost.group} goes back to int8, as that was closer to the gate")
    return Verified(**{**best.__dict__, "ranking": tuple(ranking), "trades": tuple(trades)})


def _with(verified: Verified, restored: Sequence[GroupCost]) -> Verified:
    return Verified(**{**verified.__dict__, "restored": tuple(cost.group for cost in restored)})


def _trade(verified: Verified, restored: Sequence[GroupCost]) -> Trade:
    artifact = verified.artifact
    return Trade(
        restored=tuple(cost.group for cost in restored),
        int8_convolutions=int(artifact.layers.get("convolutions", {}).get("int8", 0)),
        size_bytes=int8_size_bytes(artifact.quantized) if artifact.quantized is not None else 0,
        comparison=verified.comparison,
        failures=tuple(verified.failures),
    )
