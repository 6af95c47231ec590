"""One repository serves one network: which versions come from which export, and what is said where they differ.

Callers know classes by number, and choose a precision by its speed. So versions that are served beside each other must
have the same classes in the same order: where they do not, nothing is built, promoted or started. Versions of a
retrained network with the same classes may be built beside those of the old one. They are promoted together; served
beside the old ones they are reported, since answers then differ by more than the precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline import contract
from repository.errors import RepositoryError
from repository.manifest import Manifest

if TYPE_CHECKING:
    from repository.store import ModelRepository

_SHOWN_CLASSES: Final = 3
_SHOWN_HASH: Final = 8


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
        names = [class_names(manifest.source) for manifest in self.manifests]
        return any(other_classes(one, other) for one in names for other in names)

    def __str__(self) -> str:
        versions = "; ".join(f"{one.model}/{one.version} is of {source_text(one.source)}" for one in self.manifests)
        return f"the profile {self.profile} mixes networks: {versions}"


def mixture(
    repository: ModelRepository,
    profile: str,
    precisions: Sequence[str] = contract.PRECISIONS,
    planned: Mapping[str, int] | None = None,
) -> Mixture | None:
    """Look whether the versions that a profile serves come from more than one export.

    Args:
        repository: where they lie.
        profile: cpu, tensorrt or cuda.
        precisions: those that are served together.
        planned: precision to version that is to be served instead of the present one.

    Returns:
        What is mixed; None if all come from one export. Versions without a readable manifest, and sources that a
        manifest does not name, are left out: they are faults of their own (``python -m builder verify``).

    Raises:
        RepositoryError: a configuration is missing or broken.
    """
    served = {precision: max(repository.promoted(precision, profile), default=None) for precision in precisions}
    served |= planned or {}
    found = []
    for precision in contract.PRECISIONS:
        version = served.get(precision)
        by_number = {manifest.version: manifest for manifest in repository.manifests(precision)} if version else {}
        if version in by_number and source_hash(by_number[version].source):
            found.append(by_number[version])
    return Mixture(profile, tuple(found)) if len({source_hash(one.source) for one in found}) > 1 else None


def mixture_remedy(repository: ModelRepository, mixed: Mixture, wanted: str = "") -> str:
    """The command that makes a profile serve one network again, or what is needed for it.

    Args:
        repository: where the versions lie.
        mixed: what is, or would be, served.
        wanted: hash of the source that is to be served if all precisions of it are built; else the newest.
    """
    where = f"--repository {repository.path}"
    precisions = [manifest.precision for manifest in mixed.manifests]
    wholes = [one for one in _by_source(repository, mixed.profile) if set(precisions) <= set(one)]
    if wholes:
        newest = max(wholes, key=lambda one: _age([one[precision] for precision in precisions], wanted))
        versions = " ".join(f"{newest[precision].model}/{newest[precision].version}" for precision in precisions)
        return f"python -m builder promote {versions} --profile {mixed.profile} {where}"
    if mixed.of_other_classes:
        return (
            f"serve one network alone, such as with --precisions {precisions[-1]}, and build the other one into a "
            "repository of its own with --repository FOLDER"
        )
    file = max(mixed.manifests, key=lambda one: one.created_utc).source.get("file", "one export")
    return (
        f"build {', '.join(precisions)} of {file} into {repository.path}, and promote them in one command: "
        f"python -m builder promote MODEL/VERSION … --profile {mixed.profile} {where}"
    )


def _age(manifests: Sequence[Manifest], wanted: str) -> tuple[bool, str, int]:
    """What versions of one source are sorted by: whether it is the wanted one, then how new they are."""
    found = source_hash(manifests[0].source) == wanted
    return found, max(one.created_utc for one in manifests), max(one.version for one in manifests)


def _by_source(repository: ModelRepository, profile: str) -> list[dict[str, Manifest]]:
    """Per source, the newest version of each precision that the profile can serve and whose gate passed."""
    sources: dict[str, dict[str, Manifest]] = {}
    for precision in contract.PRECISIONS:
        for manifest in repository.manifests(precision):
            passed = manifest.verification is None or manifest.verification.get("passed") is True
            if passed and repository.is_servable(precision, manifest.version, profile):
                sources.setdefault(source_hash(manifest.source), {})[precision] = manifest
    return [one for source, one in sources.items() if source]


def refuse_other_classes(folder: object, manifest: Manifest, names: Sequence[str]) -> None:
    """Refuse to build a network into a repository that holds one with other classes.

    Args:
        folder: the repository's.
        manifest: of a version in it.
        names: class names of the export.

    Raises:
        RepositoryError: the classes differ.
    """
    difference = other_classes(class_names(manifest.source), names)
    if difference:
        raise RepositoryError(
            f"{folder} holds {manifest.model}/{manifest.version} of {source_text(manifest.source)}; this export has "
            f"{classes_text(names)}: {difference}. One repository serves one network, since callers know classes by "
            "number: build into another one with --repository FOLDER"
        )


def other_classes(before: Sequence[str], now: Sequence[str]) -> str | None:
    """What differs between two lists of class names; None if a class's number means the same in both.

    Exports without names have ``class_0`` and so on, of which only the number counts; an empty list is unknown.

    Example:
        >>> other_classes(["cat", "dog"], ["cat", "cow"])
        "class 1 was 'dog' and is 'cow'"
    """
    if not before or not now:
        return None
    if len(before) != len(now):
        return f"{len(before)} class(es) before, {len(now)} now"
    if _unnamed(before) or _unnamed(now):
        return None
    pairs = enumerate(zip(before, now, strict=True))
    return next((f"class {index} was {old!r} and is {new!r}" for index, (old, new) in pairs if old != new), None)


def class_names(source: Mapping[str, object]) -> tuple[str, ...]:
    """Class names of a manifest's source; empty if it does not say."""
    names = source.get("class_names")
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


def source_hash(source: Mapping[str, object]) -> str:
    """Hash of a manifest's source; empty if it does not say."""
    return str(source.get("sha256") or "")


def source_text(source: Mapping[str, object]) -> str:
    """For people: ``best.onnx (3fa41c22…, 2 classes: cat, dog)``."""
    names = class_names(source)
    classes = f", {classes_text(names)}" if names else ""
    return f"{source.get('file', 'an export')} ({source_hash(source)[:_SHOWN_HASH]}…{classes})"


def classes_text(names: Sequence[str]) -> str:
    """For people: ``80 classes: person, bicycle, car, …``."""
    more = ", …" if len(names) > _SHOWN_CLASSES else ""
    return f"{len(names)} class{'' if len(names) == 1 else 'es'}: {', '.join(names[:_SHOWN_CLASSES])}{more}"


def _unnamed(names: Sequence[str]) -> bool:
    return all(name == f"class_{index}" for index, name in enumerate(names))
