"""Hostile input: ten thousand images and requests made for harm; each must end in a right answer or a clear refusal.

``python -m tests.chaos.hostile --inputs 10000``, and ``--profile cuda --precision fp16`` on a GPU
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from base.names import STATE_NAME
from pipeline import contract
from scenes.reference import fetch_reference
from serving.server import ServerOptions, TritonServer
from serving.stubs import StubFinder
from tests.chaos import corpus, part, protocol
from tests.chaos.corpus_crafted import crafted_images
from tests.chaos.corpus_heavy import endless_masks, large_images
from tests.chaos.corpus_mutations import mutate
from tests.chaos.corpus_valid import Sample, valid_images
from tests.chaos.expected import Case, Network
from tests.chaos.hostile_judge import Input, Outcome
from tests.chaos.hostile_send import Sender
from tests.chaos.hostile_watch import Dribblers, Watcher, resource_faults
from tests.chaos.overload import configured_bound_s
from tests.chaos.resources import used_by

_VERIFIED: Final = 300
_SEED_BYTES: Final = 64 * 1024
_LARGE_BYTES: Final = 8 << 20
_REPEATED: Final = 6
_SETTLE_S: Final = 3.0
_BOUNDED_S: Final = 10.0  # a server without such a bound does all that is asked, for minutes
_AT_ONCE: Final = 50  # images of which one network remembers the outputs


def run(
    repository: Path,
    out: Path,
    inputs: int = 10_000,
    seed: int = 0,
    profile: str = "cpu",
    precision: str = "int8",
) -> dict[str, Any]:
    """Send so many hostile inputs to a server; each must end in a right answer or a clear refusal.

    Those that do not are written to ``failures/``. Answers are compared with the network's under the profile cpu alone:
    on a GPU the last bits depend on the batch.

    Returns:
        The figures, with ``faults``: what was not as promised.
    """
    photograph = fetch_reference().photographs[0].read_bytes()
    protocol.MODEL = contract.ensemble_model(precision)
    on_cpu = profile == "cpu"
    options = ServerOptions(repository, profile, (precision,))
    with TritonServer(options) as server, _quiet():
        verified = min(_VERIFIED, inputs // 10) if on_cpu else 0
        sender = Sender(server.grpc_url, server.http_url, out / "failures", verified)
        # Everything once, so that libraries and pools have their sizes before memory is measured.
        bounded = configured_bound_s(repository) <= _BOUNDED_S
        warm = sender.send_all(_every_kind(seed + 1, bounded))
        sender.kept.clear()
        time.sleep(_SETTLE_S)
        before, processes = _used(server), _processes(server)
        with Watcher(server, precision, photograph, exact=on_cpu) as watcher, Dribblers(server.http_url):
            outcomes = sender.send_all(_drawn(inputs, seed, bounded))
        time.sleep(_SETTLE_S)
        after, processes_after = _used(server), _processes(server)
        ready = server.is_ready()
    with _quiet():
        wrong = _wrong_answers(repository, precision, sender.kept)
    faults = [f"{one.kind}, {one.name}: {one.fault}" for one in [*warm, *outcomes] if one.fault] + watcher.faults
    faults += [*resource_faults(before, after), *wrong]
    faults += [] if ready else ["the server was not ready at the end"]
    faults += [] if processes == processes_after else ["a process of the Python backend was lost"]
    result = {
        "inputs": len(outcomes),
        "kinds": _by_kind(outcomes),
        "inputs_asked": inputs,
        "seed": seed,
        "profile": profile,
        "precision": precision,
        "before": before,
        "after": after,
        "watched": {"requests": len(watcher.seconds), "worst_s": max(watcher.seconds, default=0.0)},
        "answers_compared_bit_for_bit": len(sender.kept),
        "faults": faults,
    }
    _show(result)
    return part.keep(out, "hostile" if on_cpu else f"hostile_{profile}", result)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the thousands of messages of libpng, libjpeg and OpenCV about the images that are decoded here too."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _used(server: TritonServer) -> dict[str, float]:
    return used_by(server.pid or 0, server.state_folder.name.removesuffix(STATE_NAME))


def _processes(server: TritonServer) -> set[int]:
    return {stub.pid for stub in StubFinder(server.pid or 0).find()}


def _every_kind(seed: int, bounded: bool) -> Iterator[Input]:
    """The files made for harm, each malformed request, and some mutations; large ones often.

    A process of the Python backend keeps the shared memory that its largest request took, so each must have had one.
    Only a server with a bound refuses requests for more work than anybody needs.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    for sample in crafted_images():
        yield from [sample] * (_REPEATED if len(sample.data) > _LARGE_BYTES else 1)
    yield from _mutations(list(valid_images().items()), chance, 200)
    yield from _malformed(chance)
    if bounded:
        yield from [*endless_masks(), *large_images()]


def _malformed(chance: random.Random) -> Iterator[protocol.Malformed]:
    image = cv2.imencode(".jpg", np.full((48, 64, 3), 99, np.uint8))[1].tobytes()
    return protocol.malformed(image, chance)


def _mutations(valid: Sequence[tuple[str, bytes]], chance: random.Random, count: int) -> Iterator[Sample]:
    """So many damaged copies of valid images."""
    for number in range(count):
        way, seed, data = mutate(chance, valid)
        yield Sample("mutations", f"{way} {seed} {number}", data)


def _drawn(inputs: int, seed: int, bounded: bool) -> Iterator[Input]:
    """The test sets, the files made for harm and the malformed requests; mutations until there are enough.

    Where these are more than are asked for, some of each are drawn.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    files = [Sample(f"test set {name}", file, data) for name, of in corpus.corpus().items() for file, data in of]
    requests = [one for _ in range(max(1, inputs // 2500)) for one in _malformed(chance)]
    everything: list[Input] = [*files, *crafted_images(), *requests]
    everything = chance.sample(everything, min(len(everything), 2 * inputs // 3))
    valid = [*valid_images().items(), *((one.name, one.data) for one in files if _is_seed(one))]
    everything += [*endless_masks(), *large_images()] if bounded else []
    everything += _mutations(valid, chance, inputs - len(everything))
    chance.shuffle(everything)
    yield from everything


def _is_seed(sample: Sample) -> bool:
    starts = (b"\x89PNG", b"\xff\xd8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    return sample.data.startswith(starts) and 16 < len(sample.data) < _SEED_BYTES


def _wrong_answers(repository: Path, precision: str, kept: Sequence[tuple[Sample, str]]) -> list[str]:
    """Compare answers, bit for bit, with those of the pipeline and the network without a server."""
    folder = repository / contract.network_model(precision)
    version = max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=1)
    faults = []
    for start in range(0, len(kept), _AT_ONCE):
        network = Network(folder / str(version) / "model.onnx")
        for sample, answer in kept[start : start + _AT_ONCE]:
            if network.answer(Case(sample.name, sample.data, {})) != answer:
                faults.append(f"{sample.kind}, {sample.name}: the answer differs from the network's own")
    return faults


def _by_kind(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    kinds: dict[str, dict[str, float]] = {}
    for one in outcomes:
        entry = kinds.setdefault(one.kind, {"inputs": 0, "answered": 0, "refused": 0, "closed": 0, "worst_s": 0.0})
        entry["inputs"] += 1
        entry[one.result] = entry.get(one.result, 0) + 1
        entry["worst_s"] = max(entry["worst_s"], one.seconds)
    return dict(sorted(kinds.items()))


def _show(result: dict[str, Any]) -> None:
    table = Table(title=f"hostile input: {result['inputs']} inputs, seed {result['seed']}")
    names = sorted({name for entry in result["kinds"].values() for name in entry} - {"worst_s"})
    for column in ("kind", *names, "slowest s"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, entry in result["kinds"].items():
        table.add_row(kind, *(str(entry.get(name, 0)) for name in names), f"{entry['worst_s']:.2f}")
    watched = result["watched"]
    changes = (f"{name} {value:.0f} to {result['after'][name]:.0f}" for name, value in result["before"].items())
    Console().print(table)
    Console().print(
        f"photographs meanwhile: {watched['requests']}, the slowest {watched['worst_s']:.2f} s; {'; '.join(changes)}; "
        f"{result['answers_compared_bit_for_bit']} answers compared bit for bit",
        highlight=False,
    )


if __name__ == "__main__":
    choices = {"profile": contract.PROFILES, "precision": ("int8", *contract.PRECISIONS[:2])}
    sys.exit(part.command("hostile", run, inputs=10_000, seed=0, **choices))
