"""One small picture through every ensemble of a new server.

It spares the first caller what each step does only once, and gives admission control its first measurement: until then
it does not know the server's speed and admits few requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from pipeline import contract
from serving.health import ask

_ENSEMBLES: Final = frozenset(map(contract.ensemble_model, contract.PRECISIONS))


def warm_up(
    http_url: str, models: Iterable[str], headers: Mapping[str, str] | None = None, timeout_s: float = 30.0
) -> dict[str, str]:
    """Ask every ensemble among the models for the instances of one gray picture (:func:`serving.health.ask`).

    Returns:
        By ensemble, why it did not answer; empty if all did.
    """
    faults = {}
    for model in sorted(_ENSEMBLES & set(models)):
        try:
            fault = ask(http_url, model, headers, timeout_s)[1]
        except OSError as error:
            fault = str(error) or type(error).__name__
        if fault:
            faults[model] = fault
    return faults
