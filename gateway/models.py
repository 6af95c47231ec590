"""What tritonserver serves: precisions, versions and class names."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from tritonclient.grpc import service_pb2

from gateway.errors import Refusal
from gateway.triton import Triton
from pipeline import contract
from pipeline.class_names import from_parameters

_FRESH_S: Final = 10.0
_LONGEST_S: Final = 60.0
DEFAULT_ORDER: Final = ("int8", "fp16", "fp32")
"""Which precision answers where none is asked for: the first that is served."""


@dataclass(frozen=True)
class Model:
    """One precision that is served.

    Attributes:
        precision: fp32, fp16 or int8.
        version: of the network.
        class_names: of classes 0, 1, and so on; empty where the configuration says none.
    """

    precision: str
    version: str
    class_names: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the ensemble."""
        return contract.ensemble_model(self.precision)


class Models:
    """Asks tritonserver what it serves, and remembers it for some seconds.

    Args:
        triton: where to ask.
    """

    def __init__(self, triton: Triton) -> None:
        self._triton = triton
        self._known: dict[str, Model] = {}
        self._asked = -_LONGEST_S
        self._asking: asyncio.Task[None] | None = None

    async def served(self) -> dict[str, Model]:
        """Precision to model, in the contract's order. What is some seconds old is asked for again in the background.

        Raises:
            Refusal: tritonserver does not answer.
        """
        age_s = asyncio.get_running_loop().time() - self._asked
        if age_s > _FRESH_S and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())  # else asyncio logs it
        if self._asking is not None and (age_s > _LONGEST_S or not self._known):
            await asyncio.shield(self._asking)
        return self._known

    async def chosen(self, precision: str | None) -> Model:
        """The model of a precision; without one, see :data:`DEFAULT_ORDER`.

        Raises:
            Refusal: it is not served (404), or nothing is (503).
        """
        served = await self.served()
        if precision is None:
            found = next((served[name] for name in DEFAULT_ORDER if name in served), None)
            if found is None:
                raise Refusal(
                    "no precision is ready; the server may be starting: try again", HTTPStatus.SERVICE_UNAVAILABLE
                )
            return found
        if precision not in contract.PRECISIONS:
            raise Refusal(f"parameter 'precision' is {precision[:40]!r}; allowed: {', '.join(contract.PRECISIONS)}")
        if precision not in served:
            raise Refusal(
                f"precision {precision} is not served here; served: {', '.join(served) or 'none'}",
                HTTPStatus.NOT_FOUND,
            )
        return served[precision]

    async def _ask(self) -> None:
        found = [await self._model(precision) for precision in contract.PRECISIONS]
        self._known = {model.precision: model for model in found if model is not None}
        self._asked = asyncio.get_running_loop().time()

    async def _model(self, precision: str) -> Model | None:
        ensemble, network = contract.ensemble_model(precision), contract.network_model(precision)
        try:
            if not (await self._triton.ask("ModelReady", service_pb2.ModelReadyRequest(name=ensemble))).ready:
                return None
            config = (await self._triton.ask("ModelConfig", service_pb2.ModelConfigRequest(name=ensemble))).config
            versions = (
                await self._triton.ask("ModelMetadata", service_pb2.ModelMetadataRequest(name=network))
            ).versions
        except Refusal as refusal:
            if refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            return None  # such a model is not loaded
        names = from_parameters({name: value.string_value for name, value in config.parameters.items()})
        return Model(precision, max(versions, key=lambda text: int(text) if text.isdecimal() else 0, default=""), names)
