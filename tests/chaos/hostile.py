"""Hostile input: ten thousand images and requests made for harm; each must end in a right answer or a clear refusal.

``python -m tests.chaos.hostile --inputs 10000``
"""

from __future__ import annotations

import argparse
import contextlib
import json
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

from load.machine import describe_machine
from pipeline import contract
from repository.store import SHIPPED_REPOSITORY
from scenes.reference import fetch_reference
from serving.server import ServerOptions, TritonServer
from serving.stubs import stubs_of
from tests.chaos import corpus, protocol, protocol_raw
from tests.chaos.corpus_crafted import crafted_images
from tests.chaos.corpus_masks import endless_masks
from tests.chaos.corpus_mutations import mutate
from tests.chaos.corpus_pictures import large_pictures
from tests.chaos.corpus_valid import valid_images
from tests.chaos.expected import Case, Network
from tests.chaos.hostile_judge import Input, Outcome, Sample
from tests.chaos.hostile_send import Sender, kept_input
from tests.chaos.hostile_watch import Dribblers, Watcher, resource_faults, resources
from tests.chaos.overload import configured_bound_s

PRECISION: Final = "int8"

_VERIFIED: Final = 300
_SEED_BYTES: Final = 64 * 1024
_LARGE_BYTES: Final = 8 << 20
_REPEATED: Final = 6
_SETTLE_S: Final = 3.0
_BOUNDED_S: Final = 10.0  # a server without such a bound does all that is asked, for minutes
_AT_ONCE: Final = 50  # images of which one network remembers the outputs


def run(repository: Path, out: Path, inputs: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Send hostile inputs to a server and look at all that comes of it.

    Args:
        repository: a built model repository.
        out: folder for ``hostile.json`` and, where something was not as promised, ``failures/``.
        inputs: how many, the test sets first of all.
        seed: of what is drawn.

    Returns:
        The figures, with ``faults``: what was not as promised.
    """
    started = time.monotonic()
    photograph = fetch_reference().photographs[0].read_bytes()
    out.mkdir(parents=True, exist_ok=True)
    options = ServerOptions(repository, precisions=(PRECISION,), http_port=0, grpc_port=0, metrics_port=0)
    with TritonServer(options) as server, _quiet():
        sender = Sender(server.grpc_url, server.http_url, out / "failures", min(_VERIFIED, inputs // 10))
        # Everything once, so that libraries and pools have their sizes before memory is measured.
        bounded = configured_bound_s(repository) <= _BOUNDED_S
        warm = sender.send_all(every_kind(seed + 1, bounded))
        sender.kept.clear()
        time.sleep(_SETTLE_S)
        before, processes = resources(server), _processes(server)
        with Watcher(server, PRECISION, photograph) as watcher, Dribblers(server.http_url):
            outcomes = sender.send_all(drawn(inputs, seed, bounded))
        time.sleep(_SETTLE_S)
        after, processes_after = resources(server), _processes(server)
        ready = server.is_ready()
    with _quiet():
        wrong = wrong_answers(repository, sender.kept)
    faults = [f"{one.kind}, {one.name}: {one.fault}" for one in [*warm, *outcomes] if one.fault] + watcher.faults
    faults += [*resource_faults(before, after), *wrong]
    faults += [] if ready else ["the server was not ready at the end"]
    faults += [] if processes == processes_after else ["a process of the Python backend was lost"]
    result = _summary(outcomes) | {
        "inputs_asked": inputs,
        "inputs_before": len(warm),
        "seed": seed,
        "seconds": time.monotonic() - started,
        "before": before,
        "after": after,
        "watched": {
            "requests": len(watcher.seconds),
            "median_s": float(np.median(watcher.seconds or [0.0])),
            "worst_s": max(watcher.seconds, default=0.0),
        },
        "answers_compared_bit_for_bit": len(sender.kept),
        "machine": describe_machine(),
        "faults": faults,
    }
    (out / "hostile.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what libpng, libjpeg and OpenCV have to say, thousands of times, when images are decoded here too."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _processes(server: TritonServer) -> set[int]:
    return {stub.pid for stub in stubs_of(server.pid or 0)}


def every_kind(seed: int, bounded: bool = True) -> Iterator[Input]:
    """The files made for harm, each malformed request, and some mutations; large ones often.

    A process of the Python backend keeps the shared memory that its largest request took, so each must have had one.

    Args:
        seed: of what is drawn.
        bounded: whether requests for more work than a server with a bound does are among them.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    for sample in _crafted():
        yield from [sample] * (_REPEATED if len(sample.data) > _LARGE_BYTES else 1)
    yield from mutations(list(valid_images().items()), chance, 200)
    yield from malformed(chance)
    if bounded:
        yield from endless_masks()
        yield from large_pictures()


def malformed(chance: random.Random) -> Iterator[protocol.Malformed]:
    """Each malformed request once, over both protocols."""
    image = cv2.imencode(".jpg", np.full((48, 64, 3), 99, np.uint8))[1].tobytes()
    yield from protocol.over_http(image, chance)
    yield from protocol.over_grpc(image, chance)
    yield from protocol_raw.raw_requests(image, chance)


def mutations(valid: Sequence[tuple[str, bytes]], chance: random.Random, count: int) -> Iterator[Sample]:
    """So many damaged copies of valid images."""
    for number in range(count):
        way, seed, data = mutate(chance, valid)
        yield Sample("mutations", f"{way} {seed} {number}", data)


def drawn(inputs: int, seed: int, bounded: bool = True) -> Iterator[Input]:
    """The test sets, the files made for harm and the malformed requests; mutations until there are enough.

    Where these are more than are asked for, some of each are drawn.

    Args:
        inputs: how many.
        seed: of what is drawn.
        bounded: see :func:`every_kind`.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    files = [Sample(f"test set {name}", file, data) for name, of in corpus.corpus().items() for file, data in of]
    requests = [one for _ in range(max(1, inputs // 2500)) for one in malformed(chance)]
    everything: list[Input] = [*files, *_crafted(), *requests]
    everything = chance.sample(everything, min(len(everything), 2 * inputs // 3))
    valid = [*valid_images().items(), *((one.name, one.data) for one in files if _is_seed(one))]
    everything += [*endless_masks(), *large_pictures()] if bounded else []
    everything += mutations(valid, chance, inputs - len(everything))
    chance.shuffle(everything)
    yield from everything


def _crafted() -> Iterator[Sample]:
    return (Sample("made for harm", made.name, made.data, made.expects) for made in crafted_images())


def _is_seed(sample: Sample) -> bool:
    starts = (b"\x89PNG", b"\xff\xd8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    return sample.data.startswith(starts) and 16 < len(sample.data) < _SEED_BYTES


def wrong_answers(repository: Path, kept: Sequence[tuple[Sample, str]]) -> list[str]:
    """Compare answers, bit for bit, with what the pipeline and the network come to without a server."""
    folder = repository / contract.network_model(PRECISION)
    version = max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=1)
    faults = []
    for start in range(0, len(kept), _AT_ONCE):
        network = Network(folder / str(version) / "model.onnx")
        for sample, found in kept[start : start + _AT_ONCE]:
            if network.answer(Case(sample.name, sample.data, {})) != found:
                faults.append(f"{sample.kind}, {sample.name}: answered otherwise than the network does by itself")
    return faults


def _summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    kinds: dict[str, dict[str, float]] = {}
    for one in outcomes:
        entry = kinds.setdefault(one.kind, {"inputs": 0, "answered": 0, "refused": 0, "closed": 0, "worst_s": 0.0})
        entry["inputs"] += 1
        entry[one.result] = entry.get(one.result, 0) + 1
        entry["worst_s"] = max(entry["worst_s"], one.seconds)
    slowest = max(outcomes, key=lambda one: one.seconds, default=None)
    return {
        "inputs": len(outcomes),
        "kinds": dict(sorted(kinds.items())),
        "slowest": {"name": slowest.name, "seconds": slowest.seconds} if slowest else {},
    }


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
        f"{result['seconds']:.0f} s; photographs meanwhile: {watched['requests']}, median {watched['median_s']:.2f} s, "
        f"the slowest {watched['worst_s']:.2f} s; memory {before['memory_mb']:.0f} to {after['memory_mb']:.0f} MB; "
        f"file descriptors {before['descriptors']:.0f} to {after['descriptors']:.0f}; shared memory regions "
        f"{before['regions']:.0f} to {after['regions']:.0f}; {result['answers_compared_bit_for_bit']} answers compared "
        f"bit for bit; slowest: {result['slowest'].get('name')}",
        highlight=False,
    )
    for fault in result["faults"]:
        console.print(f"[red]FAULT[/red] {fault}", highlight=False, markup=True)


def replay(repository: Path, file: Path) -> int:
    """Send an input that failed once more; returns 1 if it fails again."""
    options = ServerOptions(repository, precisions=(PRECISION,), http_port=0, grpc_port=0, metrics_port=0)
    with TritonServer(options, log=print) as server:
        (outcome,) = Sender(server.grpc_url, server.http_url, file.parent).send_all(iter([kept_input(file)]))
    print(outcome)
    return 1 if outcome.fault else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns 1 if something was not as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.hostile", description=__doc__)
    parser.add_argument("--repository", type=Path, default=SHIPPED_REPOSITORY)
    parser.add_argument("--out", type=Path, default=Path("out/chaos"))
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=Path, metavar="FILE", help="an input under failures/")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        return replay(options.repository, options.replay)
    result = run(options.repository, options.out, options.inputs, options.seed)
    show(result)
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
