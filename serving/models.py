"""Which models of a repository can be served under a profile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from builder.errors import RepositoryError
from builder.repository import ModelRepository
from pipeline import contract
from serving.errors import ServingError


def servable_precisions(repository: Path, profile: str) -> tuple[str, ...]:
    """Precisions of which the profile's configuration names a version that is there.

    Raises:
        ServingError: the folder is no model repository, or a configuration is broken.
    """
    missing = [name for name in contract.SHARED_MODELS if not (repository / name / "config.pbtxt").is_file()]
    if missing:
        raise ServingError(
            f"{repository} is not a model repository of this project (no {missing[0]}/config.pbtxt); give one "
            "with --repository"
        )
    opened = ModelRepository(repository)
    try:
        return tuple(precision for precision in contract.PRECISIONS if opened.promoted(precision, profile))
    except RepositoryError as error:
        raise ServingError(str(error)) from error


def models_to_load(repository: Path, profile: str, precisions: Sequence[str] | None = None) -> list[str]:
    """Names of the models that the server loads at its start.

    Args:
        repository: the model repository.
        profile: cpu or tensorrt.
        precisions: which must be served; None takes all that can be.

    Raises:
        ServingError: none can be served, or one that was asked for cannot.
    """
    servable = servable_precisions(repository, profile)
    remedy = f"build with `python -m builder build --profile {profile} --repository {repository}`"
    if precisions is None and not servable:
        raise ServingError(f"no version in {repository} can be served under the profile {profile}; {remedy}")
    missing = [precision for precision in precisions or () if precision not in servable]
    if missing:
        raise ServingError(
            f"no version of {contract.segmentation_model(missing[0])} can be served under the profile {profile}; "
            f"{remedy} --precisions {missing[0]}"
        )
    chosen = precisions or servable
    return [
        *contract.SHARED_MODELS,
        *(contract.segmentation_model(precision) for precision in chosen),
        *(contract.ensemble_model(precision) for precision in chosen),
    ]
