"""Which models a server loads under a profile."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import contract
from repository.errors import RepositoryError
from repository.networks import mixture, mixture_remedy
from repository.profiles import PROFILES
from repository.store import ModelRepository


def models_to_load(repository: ModelRepository, profile: str, precisions: Sequence[str] | None = None) -> list[str]:
    """Names of the models that the server loads when it starts.

    Args:
        repository: the model repository.
        profile: cpu, tensorrt or cuda.
        precisions: which must be served; None takes all that can be.

    Raises:
        RepositoryError: none can be served, one that was asked for cannot, or they have different classes.
    """
    servable = repository.servable_precisions(profile)
    wanted = servable if precisions is None else precisions
    missing = next((precision for precision in wanted if precision not in servable), None)
    if missing or not wanted:
        what = f"no version of {contract.network_model(missing)}" if missing else f"no version in {repository.path}"
        build = repository.build_command(missing or contract.PRECISIONS[-1], profile)
        raise RepositoryError(f"{what} can be served under the profile {profile}; build with `{build}`")
    mixed = mixture(repository, profile, wanted)
    if mixed is not None and mixed.of_other_classes:
        raise RepositoryError(f"{mixed}. One repository serves one network: {mixture_remedy(repository, mixed)}")
    return [
        *PROFILES[profile].shared_models,
        *(contract.network_model(precision) for precision in wanted),
        *(contract.ensemble_model(precision) for precision in wanted),
    ]
