"""Sends hostile inputs over several connections, and keeps those that failed."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
from tritonclient.grpc import service_pb2

from pipeline.loopback import grpc_channel_args
from pipeline.result import Segmentation
from tests.chaos import protocol
from tests.chaos.corpus_valid import Sample
from tests.chaos.expected import fingerprint
from tests.chaos.hostile_judge import (
    Answer,
    Input,
    Outcome,
    image_fault,
    read_grpc,
    read_http,
    read_refusal,
    request_fault,
)
from tests.chaos.protocol import Malformed

_WORKERS: Final = 4
_TIMEOUT_S: Final = 20.0
_CLOSE_S: Final = 1.5
"""How long to wait for an answer to bytes that are no request."""
_CHANNEL: Final = [("grpc.use_local_subchannel_pool", 1)]  # a connection per worker


class Sender:
    """Sends inputs from several threads, over both protocols.

    Args:
        grpc_url: of the server.
        http_url: of the server.
        failures: folder for inputs that failed.
        verified: how many answers are kept to be compared with the network's own.

    Attributes:
        kept: images that were answered and the fingerprints of the answers.
    """

    def __init__(self, grpc_url: str, http_url: str, failures: Path, verified: int = 0) -> None:
        self.kept: list[tuple[Sample, str]] = []
        self._grpc_url, self._http_url, self._failures, self._verified = grpc_url, http_url, failures, verified

    def send_all(self, inputs: Iterator[Input]) -> list[Outcome]:
        """Send them; outcomes in any order."""
        waiting: queue.Queue[Input | None] = queue.Queue(maxsize=64)
        outcomes: list[Outcome] = []

        def work() -> None:
            options = [*_CHANNEL, *grpc_channel_args(self._grpc_url)]
            with grpc.insecure_channel(self._grpc_url, options=options) as channel:
                while (one := waiting.get()) is not None:
                    outcomes.append(self._send(channel, one))

        workers = [threading.Thread(target=work) for _ in range(_WORKERS)]
        for worker in workers:
            worker.start()
        for one in inputs:
            waiting.put(one)
        for _ in workers:
            waiting.put(None)
        for worker in workers:
            worker.join()
        return outcomes

    def _send(self, channel: Any, one: Input) -> Outcome:
        started = time.monotonic()
        answer = Answer("lost")
        try:
            answer = self._image(channel, one.data) if isinstance(one, Sample) else self._malformed(channel, one)
            seconds = time.monotonic() - started
            fault = image_fault(one, answer) if isinstance(one, Sample) else request_fault(one, answer)
        except Exception as error:  # of any kind: a worker that ended would leave the rest unsent
            seconds, fault = time.monotonic() - started, f"no answer: {error!r}"
        if fault:
            self._keep(one)
        elif isinstance(one, Sample) and answer.segmentations:
            self._remember(one, answer.segmentations[0])
        busy = not fault and isinstance(one, Malformed) and one.may_be_busy and answer.result != "answered"
        return Outcome(one.kind, one.name, "refused" if busy else answer.result, seconds, fault)

    def _image(self, channel: Any, data: bytes) -> Answer:
        # Both protocols in turn, by the bytes, so that a seed gives the same run.
        if hashlib.sha256(data).digest()[0] % 2:
            return _call(channel, protocol.INFER, protocol.infer_request([data]).SerializeToString())
        body, length = protocol.infer_body(data)
        return read_http(*protocol.send_http(self._http_url, protocol.http_request(body, length), _TIMEOUT_S))

    def _malformed(self, channel: Any, one: Malformed) -> Answer:
        if one.http is None:
            return _call(channel, one.method, one.message, one.mask_format)
        url = self._grpc_url if one.to_grpc_port else self._http_url
        patience_s = _CLOSE_S if one.may_close else _TIMEOUT_S
        try:
            return read_http(*protocol.send_http(url, one.http, patience_s, one.half_close))
        except TimeoutError:
            if one.may_close:  # the server waits for the rest, which is right as long as others are not blocked
                return Answer("closed")
            raise

    def _remember(self, sample: Sample, found: Segmentation) -> None:
        if len(self.kept) < self._verified and len(sample.data) < 1 << 20:
            self.kept.append((sample, fingerprint(found)))

    def _keep(self, one: Input) -> None:
        """Write the bytes of an input that failed to the folder of failures."""
        self._failures.mkdir(parents=True, exist_ok=True)
        name = "".join(letter if letter.isalnum() else "_" for letter in f"{one.kind}_{one.name}")[:120]
        (self._failures / name).write_bytes(one.data if isinstance(one, Sample) else one.http or one.message)


def _call(channel: Any, method: str, message: bytes, mask_format: str = "rle") -> Answer:
    """Call a method with bytes, right or wrong."""
    call = channel.unary_unary(method, lambda data: data, lambda data: data)
    try:
        data = call(message, timeout=_TIMEOUT_S)
    except grpc.RpcError as error:
        return read_refusal(error)
    if method != protocol.INFER:
        return Answer("another method's answer", data.hex()[:200])
    return read_grpc(service_pb2.ModelInferResponse.FromString(data), mask_format)
