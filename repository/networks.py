"""One repository serves one network: which versions come from which export, and how to serve one again.

Callers know classes by number, and choose a precision by its speed. So versions that are served together must have the
same classes in the same order; otherwise nothing is built, promoted or started. Versions of a retrained network with
the same classes may be built beside the old ones, and are promoted together. Served beside the old ones they are
reported, since answers then differ by more than the precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline import contract
from repository.manifest import Manifest, other_classes
from repository.store import ModelRepository


@dataclass(frozen=True)
class Mixture:
    """Versions of more than one network that a profile serves, or would serve.

    Attributes:
        profile: cpu, tensorrt or cuda.
        manifests: of every version that is served, one per precision; at least two, of different sources.
    """

    profile: str
    manifests: tuple[Manifest, ...]

    @property
    def of_other_classes(self) -> bool:
        """Whether they differ in classes, so that a class's number means different things."""
        names = [manifest.class_names for manifest in self.manifests]
        return any(other_classes(one, other) for one in names for other in names)

    def __str__(self) -> str:
        versions = "; ".join(f"{one.name} is of {one.source_text}" for one in self.manifests)
        return f"the profile {self.profile} mixes networks: {versions}"


def mixture(
    repository: ModelRepository,
    profile: str,
    precisions: Sequence[str] = contract.PRECISIONS,
    planned: Mapping[str, int] | None = None,
) -> Mixture | None:
    """Find out whether the versions that a profile serves come from more than one export.

    Args:
        repository: where they are.
        profile: cpu, tensorrt or cuda.
        precisions: those that are served together.
        planned: precision to version that will be served instead of the present one.

    Returns:
        What is mixed; None if all come from one export. Versions without a readable manifest, and sources that a
        manifest does not name, are left out: ``python -m builder verify`` reports them.

    Raises:
        RepositoryError: a configuration is missing or broken.
    """
    served = {precision: max(repository.promoted(precision, profile), default=None) for precision in precisions}
    served |= planned or {}
    found = tuple(
        manifest
        for precision in contract.PRECISIONS
        for manifest in repository.manifests(precision)
        if manifest.version == served.get(precision) and manifest.source_hash
    )
    return Mixture(profile, found) if len({manifest.source_hash for manifest in found}) > 1 else None


def mixture_remedy(repository: ModelRepository, mixed: Mixture, wanted: str = "") -> str:
    """The command that makes a profile serve one network again, or what is needed for it.

    Args:
        repository: where the versions are.
        mixed: what is, or would be, served.
        wanted: hash of the source to serve if all precisions of it are built; else the newest.
    """
    where = f"--repository {repository.path}"
    precisions = [manifest.precision for manifest in mixed.manifests]
    whole = [
        [versions[precision] for precision in precisions]
        for versions in _by_source(repository, mixed.profile)
        if set(precisions) <= set(versions)
    ]
    if whole:
        best = max(
            whole,
            key=lambda manifests: (
                manifests[0].source_hash == wanted,
                max(one.created_utc for one in manifests),
                max(one.version for one in manifests),
            ),
        )
        names = " ".join(manifest.name for manifest in best)
        return f"python -m builder promote {names} --profile {mixed.profile} {where}"
    if mixed.of_other_classes:
        return (
            f"serve only one network, such as with --precisions {precisions[-1]}, and build the other one into a "
            "separate repository with --repository FOLDER"
        )
    file = max(mixed.manifests, key=lambda one: one.created_utc).source.get("file", "one export")
    return (
        f"build {', '.join(precisions)} of {file} into {repository.path}, and promote them in one command: "
        f"python -m builder promote MODEL/VERSION … --profile {mixed.profile} {where}"
    )


def _by_source(repository: ModelRepository, profile: str) -> list[dict[str, Manifest]]:
    """Per source, the newest version of each precision that the profile can serve and whose gate passed."""
    sources: dict[str, dict[str, Manifest]] = {}
    for precision in contract.PRECISIONS:
        for manifest in repository.manifests(precision):
            passed = manifest.verification is None or manifest.gate_passed
            if manifest.source_hash and passed and repository.is_servable(precision, manifest.version, profile):
                sources.setdefault(manifest.source_hash, {})[precision] = manifest
    return list(sources.values())
