"""A running server of the repository: reloads a model through the model-control API, and checks what answers."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import cv2
import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from base.errors import OperatorError
from base.listeners import is_ours
from base.names import ADMIN_HEADER
from pipeline import contract
from pipeline.loopback import grpc_channel_args
from repository.running import RunningServer

GRPC_ADMIN_HEADER: Final = f"triton-grpc-protocol-{ADMIN_HEADER}"
"""gRPC metadata that opens the restricted APIs."""

_LIVE_TIMEOUT_S: Final = 60.0
"""How long to wait for a server that is just starting."""

ANSWER_TIMEOUT_S: Final = 60.0
"""How long a server may take to answer by default."""

_LOAD_TIMEOUT_S: Final = 300.0
_POLL_S: Final = 0.1

_Answer = TypeVar("_Answer")


class LiveError(OperatorError):
    """A running server did not do what it was asked."""


class LiveServer:
    """One running server, over gRPC.

    Args:
        url: host and port of its gRPC endpoint.
        admin_secret: opens the model-control API.
        name: for messages.
        answer_timeout_s: how long an answer may take, in seconds; loading a model always has five minutes.
        own: it is this user's and on this machine: nobody else who took its port is sent the secret.
    """

    def __init__(
        self,
        url: str,
        admin_secret: str,
        name: str | None = None,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        own: bool = False,
    ) -> None:
        self.url = url
        self._timeout_s = answer_timeout_s
        self.name = name or f"the server at {url}"
        self._admin_secret = admin_secret
        self._own = own
        self._client = triton.InferenceServerClient(url, channel_args=grpc_channel_args(url))

    @classmethod
    def of(cls, server: RunningServer) -> LiveServer:
        """The server of a state file."""
        return cls(server.grpc, server.admin_secret, f"the server at {server.grpc} (process {server.pid})", own=True)

    def __enter__(self) -> LiveServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def wait_live(self) -> None:
        """Wait until the server answers, which it does once its first models are loaded.

        This does not wait for readiness: a server is not ready while it loads any model, nor ever again when one
        version of one model failed to load, though the others go on answering.

        Raises:
            LiveError: not within the time.
        """
        deadline = time.monotonic() + _LIVE_TIMEOUT_S
        while True:
            try:
                if self._client.is_server_live(client_timeout=5):
                    return
            except (InferenceServerException, grpc.RpcError):
                pass  # it does not listen yet
            if time.monotonic() > deadline:
                raise LiveError(f"{self.name} did not answer within {_LIVE_TIMEOUT_S:.0f} s; its log says why")
            time.sleep(_POLL_S)

    def is_ready(self) -> bool:
        """Whether the server says that all of its models are ready, as ``/v2/health/ready`` does."""
        return bool(self._ask("say whether it is ready", lambda: self._client.is_server_ready(client_timeout=10)))

    def ready_versions(self, model: str) -> tuple[int, ...]:
        """Versions of a model that are ready, rising; empty if the model is not loaded.

        Raises:
            LiveError: the server does not say.
        """
        index = self._ask(
            "list its models",
            lambda: self._client.get_model_repository_index(headers=self._headers(), client_timeout=self._timeout_s),
        )
        # A model with one version that was never loaded is listed without state or version.
        ready = [int(entry.version) for entry in index.models if entry.name == model and entry.state == "READY"]
        return tuple(sorted(ready))

    def config(self, model: str) -> dict[str, Any]:
        """The configuration that a model is loaded with, in protobuf's JSON form.

        Raises:
            LiveError: the server does not say.
        """
        answer = self._ask(
            f"return the configuration of {model}",
            lambda: self._client.get_model_config(model, as_json=True, client_timeout=self._timeout_s),
        )
        return dict(answer["config"])

    def reload(self, model: str, config: str | None = None) -> None:
        """Load a model with its configuration on disk, or with another one.

        Triton loads the new version, switches to it, then unloads the old one when its last request is done; ensembles
        that use the model follow. If loading fails, the old version goes on serving. (Seen on 2.51, under traffic, to
        higher and to lower numbers.)

        Args:
            model: its name.
            config: JSON; Triton loads the model anew if it differs from the present configuration.

        Raises:
            LiveError: the server refused, or could not load the model; the message gives its reason.
        """
        self._ask(
            f"load {model}",
            lambda: self._client.load_model(
                model, headers=self._headers(), config=config, client_timeout=_LOAD_TIMEOUT_S
            ),
        )

    def check_answers(self, precision: str, version: int, input_dims: tuple[int, ...]) -> None:
        """Check that a version is ready, answers a zero image, and is the one that unversioned requests reach.

        Args:
            precision: fp32, fp16 or int8.
            version: number of the version.
            input_dims: height, width and channels of the network's input.

        Raises:
            LiveError: it does not.
        """
        model = contract.network_model(precision)
        takes_files = self.config(model)["input"][0]["name"] == contract.IMAGE.name
        tensor = _black_file(input_dims) if takes_files else _black_pixels(input_dims)
        outputs = (contract.BOXES, contract.SCORES) if takes_files else (contract.CANDIDATES, contract.PROTOTYPES)
        for asked in (str(version), ""):
            answer = self._ask(
                f"answer a zero image with {model}/{version}",
                functools.partial(self._infer, model, asked, tensor),
            )
            answered = int(answer.get_response().model_version)
            if answered != version:
                raise LiveError(f"{self.name} answers with {model}/{answered}; expected: {model}/{version}")
            for spec in outputs:
                values = answer.as_numpy(spec.name)
                if values is None or not np.isfinite(values.astype(np.float32)).all():
                    raise LiveError(f"{self.name}: {spec.name} of {model}/{version} is missing or not finite")

    def is_model_ready(self, model: str) -> bool:
        """Whether a model's latest version is ready.

        Raises:
            LiveError: the server does not say.
        """
        return bool(
            self._ask(f"say whether {model} is ready", lambda: self._client.is_model_ready(model, client_timeout=10))
        )

    def _infer(self, model: str, version: str, tensor: Any) -> Any:
        return self._client.infer(model, [tensor], model_version=version, client_timeout=self._timeout_s)

    def _headers(self) -> dict[str, str]:
        if self._own and not is_ours(self.url):
            raise LiveError(f"{self.name}: nobody or another user listens there, who is not sent the secret")
        return {GRPC_ADMIN_HEADER: self._admin_secret}

    def _ask(self, what: str, call: Callable[[], _Answer]) -> _Answer:
        try:
            return call()
        except (InferenceServerException, grpc.RpcError) as error:
            said = error.message() if isinstance(error, InferenceServerException) else str(error)
            raise LiveError(f"{self.name} could not {what}: {said}") from error


def _black_pixels(dims: tuple[int, ...]) -> Any:
    tensor = triton.InferInput(contract.IMAGES.name, [1, *dims], contract.IMAGES.dtype)
    tensor.set_data_from_numpy(np.zeros((1, *dims), np.uint8))
    return tensor


def _black_file(dims: tuple[int, ...]) -> Any:
    """The same as a file, for a network that decodes (profile cuda)."""
    data = cv2.imencode(".jpg", np.zeros(dims, np.uint8))[1].tobytes()
    tensor = triton.InferInput(contract.IMAGE.name, [1, 1], contract.IMAGE.dtype)
    tensor.set_data_from_numpy(np.array([[data]], dtype=object))
    return tensor
