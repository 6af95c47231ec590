"""When int8 does not pass its gate: groups of layers leave int8, one after another, and the best step is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from base.progress import Steps
from builder.artifact import Profile
from builder.errors import BuilderError
from builder.sensitivity import GroupCost, groups_with_weights, rank_groups
from builder.trade import trade_table
from builder.verifier import Verified, Verifier


def make_verified(
    precision: str, profile: Profile, verifier: Verifier, max_restorations: int, steps: Steps
) -> Verified:
    """Make and verify a precision; while int8 fails its gate, take the costliest groups of layers out of int8.

    Args:
        precision: fp32, fp16 or int8.
        profile: makes the network.
        verifier: compares it.
        max_restorations: how many groups are tried.
        steps: where progress is shown.

    Returns:
        The first network that passes, else the one that comes closest.
    """

    def make(nodes: frozenset[str]) -> Verified:
        return verifier.verify(precision, profile.make(precision, nodes))

    first = make(frozenset())
    quantized = first.artifact.quantized
    if not first.failures or quantized is None or not max_restorations or not first.agreement.reference_detections:
        return first
    steps.warn(f"{precision}: gate not passed ({'; '.join(first.failures)}); ranking layers by what int8 costs")
    subject = verifier.subject(quantized, profile.reference)
    groups = groups_with_weights(quantized)
    with steps.step("int8: rank groups of layers", f"{len(subject.paths)} images", len(groups)) as advance:
        ranking = rank_groups(subject, advance, groups)
    best = restore(first, ranking, make, max_restorations, steps)
    steps.console.print(trade_table(best.trades))
    return best


def restore(
    first: Verified,
    ranking: Sequence[GroupCost],
    make: Callable[[frozenset[str]], Verified],
    max_restorations: int,
    steps: Steps,
) -> Verified:
    """Take the costliest groups out of int8 until the gate is passed.

    A group whose restoration takes the network further from its gate goes back to int8 before the next one is tried.

    Args:
        first: the network with all its layers in int8.
        ranking: groups with convolutions, the costliest first.
        make: makes and verifies the network without the quantizers of some nodes.
        max_restorations: how many groups are tried.
        steps: where progress is shown.

    Returns:
        The first network that passes, else the one that comes closest, with all steps.
    """
    best, kept_missing = first, first.missing
    kept: tuple[GroupCost, ...] = ()
    trades = [first.trade(())]
    in_int8 = sum(cost.convolutions for cost in ranking)
    for number, cost in enumerate(ranking[:max_restorations], 1):
        chosen = (*kept, cost)
        if sum(group.convolutions for group in chosen) >= in_int8:
            steps.note("int8: no further group can be restored, or nothing would be left in int8")
            break
        names = tuple(group.group for group in chosen)
        label = f"int8: restoration {number} of {min(max_restorations, len(ranking))}"
        steps.note(f"{label}: {', '.join(names)} out of int8")
        try:
            current = make(frozenset(name for group in chosen for name in group.nodes))
        except BuilderError as error:
            steps.warn(f"{label} cannot be built: {str(error).splitlines()[0]}")
            continue
        trades.append(current.trade(names))
        if current.missing < best.missing:
            best = replace(current, restored=names)
        if not current.failures:
            break
        if current.missing <= kept_missing:
            kept, kept_missing = chosen, current.missing
        else:
            steps.note(f"int8: {cost.group} goes back to int8, as that was closer to the gate")
    return replace(best, ranking=tuple(ranking), trades=tuple(trades))
