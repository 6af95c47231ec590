"""Which models of a repository can be served under a profile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from base.paths import address_problem
from pipeline import contract
from repository.errors import RepositoryError
from repository.networks import mixture, mixture_remedy
from repository.profiles import PROFILES
from repository.store import ModelRepository


def servable_precisions(repository: Path, profile: str) -> tuple[str, ...]:
    """Precisions of which the profile's configuration names a version that is there.

    Raises:
        RepositoryError: the folder is no model repository, or a configuration is broken.
    """
    problem = address_problem(repository)
    if problem is not None:
        raise RepositoryError(problem)
    missing = [name for name in contract.SHARED_MODELS if not (repository / name / "config.pbtxt").is_file()]
    if missing:
        raise RepositoryError(
            f"{repository} is not a model repository of this project (no {missing[0]}/config.pbtxt); give one "
            "with --repository"
        )
    opened = ModelRepository(repository)
    return tuple(precision for precision in contract.PRECISIONS if opened.promoted(precision, profile))


def models_to_load(repository: Path, profile: str, precisions: Sequence[str] | None = None) -> list[str]:
    """Names of the models that the server loads at its start.

    Args:
        repository: the model repository.
        profile: cpu, tensorrt or cuda.
        precisions: which must be served; None takes all that can be.

    Raises:
        RepositoryError: none can be served, one that was asked for cannot, or they have different classes.
    """
    servable = servable_precisions(repository, profile)
    if precisions is None and not servable:
        raise RepositoryError(
            f"no version in {repository} can be served under the profile {profile}; {_remedy(repository, profile)}"
        )
    missing = [precision for precision in precisions or () if precision not in servable]
    if missing:
        raise RepositoryError(
            f"no version of {contract.network_model(missing[0])} can be served under the profile {profile}; "
            f"{_remedy(repository, profile, missing[0])}"
        )
    chosen = precisions or servable
    opened = ModelRepository(repository)
    mixed = mixture(opened, profile, chosen)
    if mixed is not None and mixed.of_other_classes:
        raise RepositoryError(f"{mixed}. One repository serves one network: {mixture_remedy(opened, mixed)}")
    return [
        *contract.SHARED_MODELS,
        *(contract.network_model(precision) for precision in chosen),
        *(contract.ensemble_model(precision) for precision in chosen),
    ]


def _remedy(repository: Path, profile: str, precision: str | None = None) -> str:
    served = PROFILES[profile]
    more = f" --precisions {precision}" if precision else ""
    build = f"build with `python -m builder build --profile {served.build_profile} --repository {repository}{more}`"
    if served.is_built:
        return build
    where = f"--profile {profile} --repository {repository}"
    return (
        f"promote a version with `python -m builder promote MODEL/VERSION {where}`; where none is built, {build} first"
    )
