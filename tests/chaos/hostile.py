"""Hostile input: ten thousand images and requests made for harm; each must end in a right answer or a clear refusal.

``python -m tests.chaos.hostile --inputs 10000``
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import cv2
import grpc
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from tritonclient.grpc import service_pb2, service_pb2_grpc

from builder.reference import fetch_reference
from builder.repository import SHIPPED_REPOSITORY
from client import RetryPolicy, SegmentationClient
from load.machine import describe_machine
from pipeline.errors import BUSY, ImageError
from pipeline.images import decode_image
from serving.server import ServerOptions, TritonServer
from serving.stubs import stubs_of
from tests.chaos import corpus, protocol
from tests.chaos.corpus_crafted import crafted_images
from tests.chaos.corpus_mutations import mutate
from tests.chaos.corpus_valid import valid_images

PRECISION: Final = "int8"
PROMPT_S: Final = 5.0
"""A photograph that travels between the hostile inputs is answered within this time."""

MEMORY_GROWTH: Final = 0.10

_WORKERS: Final = 4
_DRIBBLERS: Final = 3
_TIMEOUT_S: Final = 20.0
_NONSENSE_S: Final = 2.0  # what is not HTTP may also be left without an answer
_UNREAD_JSON: Final = ("failed to parse the request JSON buffer", "Unable to parse '")
_REFUSALS: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)
"""What gRPC has for a caller's fault."""


@dataclass(frozen=True)
class Sample:
    """One image to send.

    Attributes:
        kind: for the table.
        name: of the file, or how it was made.
        data: its bytes.
    """

    kind: str
    name: str
    data: bytes


Input: TypeAlias = "Sample | protocol.Malformed"


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        kind: of the input.
        name: of the input.
        result: ``answered``, ``refused`` or ``closed``.
        seconds: until it was known.
        fault: what is wrong with that; empty if nothing is.
    """

    kind: str
    name: str
    result: str
    seconds: float
    fault: str = ""


def run(repository: Path, out: Path, inputs: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Send hostile inputs to a server and look at all that comes of it.

    Args:
        repository: a built model repository.
        out: folder for ``hostile.json`` and, where something was not as promised, ``failures/``.
        inputs: how many, at least; the test sets and each malformed request once are the least there is.
        seed: of what is drawn.

    Returns:
        The figures, with ``faults``: what was not as promised.
    """
    photograph = fetch_reference().photographs[0].read_bytes()
    out.mkdir(parents=True, exist_ok=True)
    options = ServerOptions(repository, precisions=(PRECISION,), http_port=0, grpc_port=0, metrics_port=0)
    with TritonServer(options) as server:
        pid = server.pid
        assert pid is not None
        sender = Sender(server.grpc_url, server.http_url, out / "failures")
        # Everything once, so that libraries and pools have their sizes before memory is measured.
        warm = sender.send_all(every_kind(seed + 1))
        before, processes = resources(pid), {stub.pid for stub in stubs_of(pid)}
        with Watcher(server.grpc_url, photograph) as watcher, Dribblers(server.http_url):
            outcomes = sender.send_all(drawn(inputs, seed))
        time.sleep(2.0)
        after, processes_after = resources(pid), {stub.pid for stub in stubs_of(pid)}
        ready = server.is_ready()
    result = _summary(outcomes)
    result |= {
        "inputs_asked": inputs,
        "seed": seed,
        "before": before,
        "after": after,
        "watched": {"requests": len(watcher.seconds), "worst_s": max(watcher.seconds, default=0.0)},
        "machine": describe_machine(),
    }
    faults = [f"{one.kind}, {one.name}: {one.fault}" for one in [*warm, *outcomes] if one.fault] + watcher.faults
    faults += _resource_faults(before, after)
    faults += [] if ready else ["the server was not ready at the end"]
    faults += [] if processes == processes_after else ["a process of the Python backend was lost"]
    result["faults"] = faults
    (out / "hostile.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def every_kind(seed: int) -> Iterator[Input]:
    """The files made for harm, each malformed request, and some mutations."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    valid = list(valid_images().items())
    yield from (Sample("made for harm", made.name, made.data) for made in crafted_images())
    yield from mutations(valid, chance, 200)
    yield from malformed(chance)


def malformed(chance: random.Random) -> Iterator[protocol.Malformed]:
    """Each malformed request once, over both protocols."""
    image = cv2.imencode(".jpg", np.full((48, 64, 3), 99, np.uint8))[1].tobytes()
    yield from protocol.over_http(image, chance)
    yield from protocol.over_grpc(image, chance)


def mutations(valid: Sequence[tuple[str, bytes]], chance: random.Random, count: int) -> Iterator[Sample]:
    """So many damaged copies of valid images."""
    for number in range(count):
        way, seed, data = mutate(chance, valid)
        yield Sample("mutations", f"{way} {seed} {number}", data)


def drawn(inputs: int, seed: int) -> Iterator[Input]:
    """The test sets, the files made for harm and the malformed requests; mutations until there are enough."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    fixed = [Sample(f"test set {name}", file, data) for name, files in corpus.corpus().items() for file, data in files]
    fixed += [Sample("made for harm", made.name, made.data) for made in crafted_images()]
    requests = [one for _ in range(max(1, inputs // 2500)) for one in malformed(chance)]
    rest = max(0, inputs - len(fixed) - len(requests))
    everything: list[Input] = [*fixed, *requests, *mutations(list(valid_images().items()), chance, rest)]
    chance.shuffle(everything)
    yield from everything


class Sender:
    """Sends inputs from several threads, over both protocols.

    Args:
        grpc_url: of the server.
        http_url: of the server.
        failures: folder for the bytes of inputs that failed.
    """

    def __init__(self, grpc_url: str, http_url: str, failures: Path) -> None:
        self._grpc_url, self._http_url, self._failures = grpc_url, http_url, failures

    def send_all(self, inputs: Iterator[Input]) -> list[Outcome]:
        """Send them; outcomes in any order."""
        waiting: queue.Queue[Input | None] = queue.Queue(maxsize=64)
        outcomes: list[Outcome] = []

        def work() -> None:
            options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            with grpc.insecure_channel(self._grpc_url, options=options) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                while (one := waiting.get()) is not None:
                    outcomes.append(self._send(stub, one))

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

    def _send(self, stub: Any, one: Input) -> Outcome:
        started = time.monotonic()
        expected = None
        try:
            if isinstance(one, Sample):
                # Both protocols in turn, by the bytes, so that a seed gives the same run.
                over_grpc = len(one.data) % 2 == 0
                result, text = self._image(stub, one.data, over_grpc)
                expected = _expected(one.data)
                fault = _image_fault(result, text, expected)
            else:
                result, text = self._malformed(stub, one)
                fault = _request_fault(one, result, text)
        except Exception as error:  # whatever it is: a worker that ended would leave the rest unsent
            closed = isinstance(error, TimeoutError) and isinstance(one, protocol.Malformed) and one.may_close
            result, fault = ("closed", "") if closed else ("lost", f"no answer: {error!r}")
        outcome = Outcome(one.kind, one.name, result, time.monotonic() - started, fault)
        if fault:
            self._keep(one)
        return outcome

    def _image(self, stub: Any, data: bytes, over_grpc: bool) -> tuple[str, str]:
        if over_grpc:
            request = service_pb2.ModelInferRequest(model_name=protocol.MODEL)
            request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
            request.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
            return _over_grpc(stub, request)
        body, length = protocol._json(data)
        return _read_http(*protocol.send_http(self._http_url, protocol.http_request(body, length), _TIMEOUT_S))

    def _malformed(self, stub: Any, one: protocol.Malformed) -> tuple[str, str]:
        if one.grpc is not None:
            return _over_grpc(stub, one.grpc)
        assert one.http is not None
        patience_s = _NONSENSE_S if one.may_close else _TIMEOUT_S
        return _read_http(*protocol.send_http(self._http_url, one.http, patience_s))

    def _keep(self, one: Input) -> None:
        self._failures.mkdir(parents=True, exist_ok=True)
        data = one.data if isinstance(one, Sample) else one.http or one.grpc.SerializeToString()
        name = "".join(letter if letter.isalnum() else "_" for letter in f"{one.kind}_{one.name}")[:120]
        (self._failures / name).write_bytes(data)


def _over_grpc(stub: Any, request: Any) -> tuple[str, str]:
    """Result and text: the answered image's height and width, or the server's words."""
    try:
        response = stub.ModelInfer(request, timeout=_TIMEOUT_S)
    except grpc.RpcError as error:
        code = error.code()
        return ("refused" if code in _REFUSALS else f"gRPC {code.name}"), str(error.details())
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name == "image_size":
            return "answered", " ".join(map(str, np.frombuffer(raw, np.int32).tolist()))
    return "answered", "no image_size"


def _read_http(status: int | None, body: bytes) -> tuple[str, str]:
    if status is None:
        return "closed", ""
    if status == 200:
        try:
            outputs = {output["name"]: output for output in json.loads(body)["outputs"]}
            return "answered", " ".join(map(str, outputs["image_size"]["data"]))
        except (ValueError, KeyError) as error:
            return "answered", f"no image_size: {error!r}"
    text = body.decode(errors="replace")
    # Triton 2.51 has 500 for JSON that it cannot read, in words of its own.
    unread = status == 500 and any(words in text for words in _UNREAD_JSON)
    return ("refused" if 400 <= status < 500 or unread else f"HTTP {status}"), text


def _expected(data: bytes) -> str | ImageError:
    """What the pipeline makes of an image: its height and width, or the refusal."""
    try:
        height, width = decode_image(data).shape[:2]
    except ImageError as error:
        return error
    return f"{height} {width}"


def _image_fault(result: str, text: str, expected: str | ImageError) -> str:
    if isinstance(expected, ImageError):
        right = result == "refused" and str(expected)[:60] in _unescaped(text)
        return "" if right else f"{result} ({text[:200]}); expected the refusal: {expected}"
    return "" if (result, text) == ("answered", expected) else f"{result} ({text[:200]}); expected: {expected}"


def _request_fault(one: protocol.Malformed, result: str, text: str) -> str:
    allowed = {"refused"} | ({"answered"} if one.valid else set()) | ({"closed"} if one.may_close else set())
    if result not in allowed:
        return f"{result} ({text[:200]}); allowed: {', '.join(sorted(allowed))}"
    if result == "refused" and BUSY in text:
        return "the server was busy"
    return ""


def _unescaped(text: str) -> str:
    """The error out of an HTTP answer's JSON, or the text as it is."""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text


class Watcher:
    """Sends a photograph every second, and compares the answer.

    Attributes:
        seconds: how long each took.
        faults: what was not as promised.
    """

    def __init__(self, url: str, photograph: bytes) -> None:
        self.seconds: list[float] = []
        self.faults: list[str] = []
        self._url, self._photograph = url, photograph
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        with SegmentationClient(self._url, precision=PRECISION, retry=RetryPolicy(retries=0)) as client:
            first = client.segment(self._photograph)
            while not self._stop.wait(1.0):
                started = time.monotonic()
                try:
                    found = client.segment(self._photograph)
                except Exception as error:  # whatever it is, it is a fault
                    self.faults.append(f"an ordinary photograph failed meanwhile: {error}")
                    continue
                self.seconds.append(time.monotonic() - started)
                if found.encoded_masks != first.encoded_masks or not np.array_equal(found.boxes, first.boxes):
                    self.faults.append("an ordinary photograph was answered differently meanwhile")
                if self.seconds[-1] > PROMPT_S:
                    self.faults.append(f"an ordinary photograph took {self.seconds[-1]:.1f} s meanwhile")


class Dribblers:
    """A few connections that send a byte now and then, and never finish."""

    def __init__(self, url: str) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._dribble, args=(url,)) for _ in range(_DRIBBLERS)]

    def __enter__(self) -> Dribblers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _dribble(self, url: str) -> None:
        while not self._stop.is_set():
            protocol.dribble(url, 5.0)


def resources(pid: int) -> dict[str, float]:
    """Memory, file descriptors and shared memory of a server and its processes."""
    parent = psutil.Process(pid)
    processes = [parent, *parent.children(recursive=True)]
    return {
        "memory_mb": sum(each.memory_info().rss for each in processes) / 1e6,
        "descriptors": float(sum(each.num_fds() for each in processes)),
        "regions": float(len(list(Path("/dev/shm").glob("segmentation_*")))),  # noqa: S108
    }


def _resource_faults(before: dict[str, float], after: dict[str, float]) -> list[str]:
    faults = []
    if after["memory_mb"] > (1 + MEMORY_GROWTH) * before["memory_mb"]:
        faults.append(f"memory grew from {before['memory_mb']:.0f} to {after['memory_mb']:.0f} MB")
    if after["descriptors"] > before["descriptors"] + 16:
        faults.append(f"file descriptors grew from {before['descriptors']:.0f} to {after['descriptors']:.0f}")
    return faults


def _summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    kinds: dict[str, dict[str, float]] = {}
    for one in outcomes:
        entry = kinds.setdefault(one.kind, {"inputs": 0, "answered": 0, "refused": 0, "closed": 0, "worst_s": 0.0})
        entry["inputs"] += 1
        entry[one.result] = entry.get(one.result, 0) + 1
        entry["worst_s"] = max(entry["worst_s"], one.seconds)
    return {"inputs": len(outcomes), "kinds": dict(sorted(kinds.items()))}


def show(result: dict[str, Any]) -> None:
    """Print the figures as a table."""
    table = Table(title=f"hostile input: {result['inputs']} inputs, seed {result['seed']}")
    names = sorted({name for entry in result["kinds"].values() for name in entry} - {"worst_s"})
    for column in ("kind", *names, "slowest s"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, entry in result["kinds"].items():
        table.add_row(kind, *(str(entry.get(name, 0)) for name in names), f"{entry['worst_s']:.2f}")
    console = Console()
    console.print(table)
    watched, before, after = result["watched"], result["before"], result["after"]
    console.print(
        f"photographs meanwhile: {watched['requests']}, the slowest {watched['worst_s']:.2f} s; memory "
        f"{before['memory_mb']:.0f} to {after['memory_mb']:.0f} MB; file descriptors {before['descriptors']:.0f} to "
        f"{after['descriptors']:.0f}"
    )
    for fault in result["faults"]:
        console.print(f"[red]FAULT[/red] {fault}", highlight=False)


def replay(repository: Path, file: Path) -> int:
    """Send the bytes of an image that failed once more; returns 1 if it fails again."""
    options = ServerOptions(repository, precisions=(PRECISION,), http_port=0, grpc_port=0, metrics_port=0)
    with TritonServer(options, log=print) as server:
        sample = Sample("replayed", file.name, file.read_bytes())
        (outcome,) = Sender(server.grpc_url, server.http_url, file.parent).send_all(iter([sample]))
    print(outcome)
    return 1 if outcome.fault else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns 1 if something was not as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.hostile", description=__doc__)
    parser.add_argument("--repository", type=Path, default=SHIPPED_REPOSITORY)
    parser.add_argument("--out", type=Path, default=Path("out/chaos"))
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=Path, metavar="FILE", help="an image under failures/")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        return replay(options.repository, options.replay)
    result = run(options.repository, options.out, options.inputs, options.seed)
    show(result)
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
