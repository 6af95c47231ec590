"""Mixed traffic, every answer compared, versions promoted and rolled back, memory watched.

``python -m tests.chaos.soak --minutes 20``
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline import contract
from repository.manifest import MANIFEST_NAME, FileEntry, Manifest
from repository.store import ModelRepository
from tests.chaos import part
from tests.chaos.expected import Network, cases
from tests.chaos.faults_service import Service
from tests.chaos.resources import Sampler, draw, flatness
from tests.chaos.soak_traffic import Outcome, Traffic, warm_up
from tests.versions import promote_one, rollback_one

SWITCHED: Final = "fp16"
"""The precision whose versions are promoted and rolled back."""

_CASES: Final = 96
_SWITCH_EVERY_S: Final = 60.0
_SAMPLE_EVERY_S: Final = 2.0
_WARM_UP_S: Final = 20.0


def run(repository: Path, out: Path, minutes: float, seed: int = 0) -> dict[str, Any]:
    """Soak a server: mixed traffic, every answer compared, versions switched, memory watched.

    A copy of the repository is served.

    Returns:
        The figures, with ``faults``: what was not as promised.
    """
    seconds = minutes * 60
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        copy = ModelRepository(Path(shutil.copytree(repository, Path(folder) / "repository", symlinks=True)))
        first = copy.promoted(SWITCHED, "cpu")[0]
        second = _second_version(copy, first)
        drawn = cases(_CASES, seed)
        expected = _expected(copy, second, drawn)
        with Service(copy.path) as service:
            server = service.server
            sampler = Sampler(service.process.pid, server.shm_prefix, _SAMPLE_EVERY_S)
            warm_up(server.grpc, drawn)
            traffic = Traffic({"grpc": server.grpc, "http": server.http}, drawn, seed)
            with traffic, contextlib.ExitStack() as stack:
                time.sleep(_WARM_UP_S)  # allocators grow to what the traffic needs
                stack.enter_context(sampler)
                switches = _switch(copy, first, second, min(_SWITCH_EVERY_S, seconds / 6), seconds)
            events = [line for line in service.lines if "died" in line or "starting it again" in line]
    result = _summary(traffic.outcomes, expected, switches, seconds + _WARM_UP_S)
    result |= {"minutes": minutes, "seed": seed, "resources": flatness(sampler.samples)}
    result["faults"] += [f"resources: {fault}" for fault in result["resources"]["faults"]]
    result["faults"] += traffic.crashes + events
    out.mkdir(parents=True, exist_ok=True)
    draw(sampler.samples, [switch["at_s"] for switch in switches], out / "soak.png")
    _show(result)
    return part.keep(out, "soak", result)


def _second_version(repository: ModelRepository, first: int) -> int:
    """A version that answers differently: the network of int8 under the name of the precision that is switched."""
    network = repository.model_folder("int8") / str(repository.promoted("int8", "cpu")[0]) / "model.onnx"
    source = repository.model_folder(SWITCHED) / str(first)
    with repository.locked(), repository.staging(SWITCHED) as staged:
        for name in Manifest.read(source).files:
            shutil.copyfile(source / name, staged / name)
        shutil.copyfile(network, staged / "model.onnx")
        files = {path.name: FileEntry.of(path) for path in sorted(staged.iterdir())}
        number = repository.next_version(SWITCHED)
        values = json.loads((source / MANIFEST_NAME).read_text())
        values |= {"version": number, "build_key": f"soak{number}", "tag": f"soak-{files['model.onnx'].sha256[:8]}"}
        values["files"] = {name: vars(entry) for name, entry in files.items()}
        (staged / MANIFEST_NAME).write_text(json.dumps(values))
        repository.publish(SWITCHED, staged, number)
    return number


def _expected(repository: ModelRepository, second: int, drawn: Sequence[Any]) -> dict[tuple[str, int], list[str]]:
    """Precision and version to the right answer of every case."""
    found = {}
    for precision in contract.PRECISIONS:
        for version in {repository.promoted(precision, "cpu")[0], *([second] if precision == SWITCHED else [])}:
            network = Network(repository.model_folder(precision) / str(version) / "model.onnx")
            found[precision, version] = [network.answer(case) for case in drawn]
    return found


def _switch(
    repository: ModelRepository, first: int, second: int, every_s: float, seconds: float
) -> list[dict[str, Any]]:
    """Promote and roll back until the time is over; says from when to when which version was being put in place."""
    started = time.monotonic()
    switches = [{"version": first, "from": 0.0, "to": 0.0, "at_s": 0.0}]
    ends = started + seconds
    while time.monotonic() + every_s < ends:
        time.sleep(every_s)
        began = time.monotonic()
        wanted = second if switches[-1]["version"] == first else first
        done = promote_one(repository, SWITCHED, second) if wanted == second else rollback_one(repository, SWITCHED)
        if done.version != wanted or len(done.servers) != 1:
            raise RuntimeError(f"{SWITCHED}: version {done.version} is served by {done.servers}, expected {wanted}")
        switches.append({"version": wanted, "from": began, "to": time.monotonic(), "at_s": began - started})
    time.sleep(max(0.0, ends - time.monotonic()))
    return switches


def _allowed_versions(outcome: Outcome, switches: Sequence[dict[str, Any]]) -> set[int]:
    """Versions that may have answered a request: those in place, or being put in place, while it was under way."""
    before = [switch for switch in switches if switch["to"] <= outcome.started][-1:]
    during = [switch for switch in switches if switch["to"] > outcome.started and switch["from"] <= outcome.ended]
    return {switch["version"] for switch in [*before, *during]}


def _summary(
    outcomes: Sequence[Outcome],
    expected: dict[tuple[str, int], list[str]],
    switches: Sequence[dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    faults: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    by_version: Counter[str] = Counter()
    images = refused = 0
    for outcome in outcomes:
        kinds[outcome.kind] += 1
        if outcome.error is not None:
            refused += outcome.refusal_was_meant
            if not outcome.refusal_was_meant:
                faults[f"{outcome.kind} {outcome.precision}: {outcome.error}"] += 1
            continue
        if outcome.bad is not None:
            faults[f"bad input was answered: {outcome.bad}"] += 1
            continue
        versions = [version for precision, version in expected if precision == outcome.precision]
        allowed = versions if len(versions) == 1 else sorted(_allowed_versions(outcome, switches))
        # All images of a request travel together, so one version answers them.
        right = [
            version
            for version in allowed
            if all(
                expected[outcome.precision, version][case] == answer
                for case, answer in zip(outcome.cases, outcome.answers, strict=True)
            )
        ]
        images += len(outcome.cases)
        if not right:
            faults[f"wrong answer: {outcome.kind} {outcome.precision}, cases {outcome.cases}"] += 1
        elif len(right) == 1:
            by_version[f"{outcome.precision}/{right[0]}"] += 1
    latencies = np.array([one.ended - one.started for one in outcomes if one.error is None] or [np.nan])
    found = [f"{text} ({number} times)" for text, number in faults.items()]
    if not refused or not all(by_version[f"{SWITCHED}/{switch['version']}"] for switch in switches):
        found.append(f"not everything was tried: {refused} bad inputs, answers by version {dict(by_version)}")
    return {
        "requests": len(outcomes),
        "images": images,
        "images_per_s": images / seconds,
        "bad_inputs_refused": refused,
        "requests_by_client": dict(sorted(kinds.items())),
        "answers_told_apart_by_version": dict(sorted(by_version.items())),
        "switches": len(switches) - 1,
        "longest_switch_s": max(switch["to"] - switch["from"] for switch in switches),
        "latency_s": {f"p{rank}": float(np.percentile(latencies, rank)) for rank in (50, 95, 99, 100)},
        "wrong_answers": sum(number for text, number in faults.items() if text.startswith("wrong")),
        "faults": found,
    }


def _show(result: dict[str, Any]) -> None:
    table = Table(title=f"soak: {result['minutes']:g} minutes", show_header=False)
    for name in ("requests", "images", "bad_inputs_refused", "switches", "wrong_answers"):
        table.add_row(name.replace("_", " "), str(result[name]))
    table.add_row("images/s", f"{result['images_per_s']:.1f}")
    table.add_row("latency", ", ".join(f"{name} {value:.2f} s" for name, value in result["latency_s"].items()))
    for name, entry in result["resources"]["series"].items():
        change = f"{entry['change_percent']:+.1f} %"
        table.add_row(name, f"{entry['second_quarter']:.0f} to {entry['last_quarter']:.0f} ({change})")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(part.command("soak", run, minutes=20.0, seed=0))
