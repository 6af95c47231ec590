"""Audits the lock files and the server's releases: ``python requirements/audit.py`` (``make audit``).

Every pin is held against ``requirements/advisories.yaml``, and looked up in the package index that pip uses: whether
the files with the pinned hashes are still there, whether the release was withdrawn, and when it was made.
``docs/dependencies.md`` is written from both. More vulnerabilities are asked for with pip-audit, where it is installed
and its database answers; where not, that is said.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import yaml
from packaging.specifiers import SpecifierSet

from serving.tritonserver import EMBEDDED_VERSION

ROOT: Final = Path(__file__).resolve().parent.parent
LOCKS: Final = ("base", "openvino", "dev", "tensorrt", "exports", "adapters", "gpu")
DOCUMENT: Final = ROOT / "docs" / "dependencies.md"
ADVISORIES: Final = ROOT / "requirements" / "advisories.yaml"
SERVER: Final = "tritonserver"
EXPOSED: Final = "exposed"
STATES: Final = (EXPOSED, "accepted", "not exposed")
_JSON: Final = "application/vnd.pypi.simple.v1+json"  # PEP 691
_MONTHS: Final = {"2.51.0": "24.10"}  # of the container with the version that is embedded (Triton's release notes)
_PIN: Final = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)")


@dataclass(frozen=True)
class Pin:
    """One pinned package.

    Attributes:
        name: normalized (PEP 503).
        version: its version.
        hashes: SHA-256 sums of the files that may be installed, hexadecimal.
    """

    name: str
    version: str
    hashes: frozenset[str]


@dataclass(frozen=True)
class Release:
    """What the index says of a pin.

    Attributes:
        pin: the pin.
        released: day of its first file; None if the index does not say.
        problems: what is wrong; empty if nothing is.
    """

    pin: Pin
    released: date | None
    problems: tuple[str, ...] = ()


def read_lock(path: Path) -> list[Pin]:
    """The pins of a lock file, in its order; a package with a pin per Python version appears once for each."""
    pins: list[Pin] = []
    name, version, hashes = "", "", set[str]()
    for line in [*path.read_text().splitlines(), "end==0"]:
        found = _PIN.match(line)
        if found:
            if name:
                pins.append(Pin(name, version, frozenset(hashes)))
            name, version, hashes = re.sub(r"[-_.]+", "-", found[1]).lower(), found[2], set()
        hashes |= set(re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
    return pins


@dataclass(frozen=True)
class Advisory:
    """One entry of ``advisories.yaml``, which explains the fields."""

    component: str
    ids: tuple[str, ...]
    affected: SpecifierSet
    what: str
    here: str
    why: str
    source: str

    def hits(self, pins: Sequence[Pin]) -> list[str]:
        """Versions among the pins that are affected, rising."""
        found = {pin.version for pin in pins if pin.name == self.component and pin.version in self.affected}
        return sorted(found, key=lambda version: [int(part) for part in re.findall(r"\d+", version)])


def read_advisories(path: Path = ADVISORIES) -> list[Advisory]:
    """The list of advisories.

    Raises:
        ValueError: an entry lacks a field or has another one, or says something else than :data:`STATES`.
    """
    found = []
    for entry in yaml.load(path.read_text(), Loader=yaml.CSafeLoader):
        try:
            advisory = Advisory(**{**entry, "ids": tuple(entry["ids"]), "affected": SpecifierSet(entry["affected"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path.name}: {entry}: {error}") from error
        if advisory.here not in STATES or not advisory.ids or not all((advisory.what, advisory.why, advisory.source)):
            raise ValueError(f"{path.name}: {entry}: `here` is one of {', '.join(STATES)}; no field is empty")
        found.append(advisory)
    return found


def server_pins(dockerfile: Path = ROOT / "serving" / "Dockerfile") -> list[Pin]:
    """The server that is embedded, and the one of the container, as months."""
    month = re.search(r"^ARG MONTH=(\S+)", dockerfile.read_text(), re.MULTILINE)
    if month is None:
        raise ValueError(f"{dockerfile}: has no line `ARG MONTH=YY.MM`")
    return [Pin(SERVER, version, frozenset()) for version in (_MONTHS[EMBEDDED_VERSION], month[1])]


def all_pins() -> list[Pin]:
    """Those of every lock file, and the servers."""
    locked = [pin for lock in LOCKS for pin in read_lock(ROOT / "requirements" / f"{lock}.txt")]
    return [*locked, *server_pins()]


def exposed(advisories: Sequence[Advisory], pins: Sequence[Pin]) -> list[str]:
    """A line about each pin that is affected by what the project is exposed to."""
    return [
        f"{advisory.component} {version}: {', '.join(advisory.ids)}: {advisory.what}; {advisory.why}. "
        f"Affected: {advisory.affected}; pin another version ({advisory.source})"
        for advisory in advisories
        if advisory.here == EXPOSED
        for version in advisory.hits(pins)
    ]


def table(advisories: Sequence[Advisory], pins: Sequence[Pin]) -> list[str]:
    """The advisories as lines of a table in Markdown."""
    lines = ["| component | advisories | affected | pinned and affected | here |", "| --- | --- | --- | --- | --- |"]
    for each in advisories:
        ids = ", ".join(f"[{each.ids[0]}]({each.source})" if i == 0 else name for i, name in enumerate(each.ids))
        hits = ", ".join(each.hits(pins)) or "none"
        state = f"{each.here}: {each.why}" if each.here != EXPOSED else f"not pinned: {each.why}"
        cells = (each.component, f"{ids}: {each.what}", f"`{each.affected}`", hits, state)
        lines.append(f"| {' | '.join(' '.join(cell.split()) for cell in cells)} |")
    return lines


def index_url() -> str:
    """The index that pip uses."""
    configured = os.environ.get("PIP_INDEX_URL")
    if configured is None:
        asked = subprocess.run(
            [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
            capture_output=True,
            text=True,
            check=False,
        )
        configured = asked.stdout.strip() if asked.returncode == 0 else None
    if not configured:
        from pip._internal.models.index import PyPI  # pip has no public name for its default

        configured = str(PyPI.simple_url)
    return configured.rstrip("/")


def look_up(pin: Pin, index: str) -> Release:
    """Ask the index about a pin."""
    request = urllib.request.Request(f"{index}/{pin.name}/", headers={"Accept": _JSON})  # noqa: S310 - pip's index
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            files = json.load(answer)["files"]
    except (OSError, ValueError, KeyError) as error:
        return Release(pin, None, (f"the index does not answer ({error})",))
    mine = [file for file in files if file.get("hashes", {}).get("sha256") in pin.hashes]
    problems = []
    missing = pin.hashes - {file["hashes"]["sha256"] for file in mine}
    if missing:
        problems.append(f"{len(missing)} of {len(pin.hashes)} pinned files are not in the index")
    withdrawn = {str(file["yanked"]) for file in mine if file.get("yanked")}
    problems += [f"withdrawn: {reason}" for reason in sorted(withdrawn)]
    return Release(pin, _day(mine), tuple(problems))


def _day(files: Sequence[dict[str, Any]]) -> date | None:
    times = [str(file["upload-time"])[:10] for file in files if file.get("upload-time")]
    return min(map(date.fromisoformat, times), default=None)


def vulnerabilities(lock: Path) -> tuple[str, bool]:
    """What pip-audit says of a lock file, and whether it knows of no vulnerability, as far as it could look."""
    options = ["--require-hashes", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named" in result.stderr:
        return "not asked: pip-audit is not installed (`pip install pip-audit`)", True
    try:
        entries = json.loads(result.stdout)["dependencies"]
    except (ValueError, KeyError):
        return f"not asked: pip-audit failed ({result.stderr.strip()[-200:]})", True
    # It passes what it could not look up as sound.
    looked_up = [entry for entry in entries if "skip_reason" not in entry]
    found = [(entry["name"], each["id"]) for entry in looked_up for each in entry["vulns"]]
    if not looked_up:
        return "not asked: pip-audit's database does not answer from here", True
    known = ", ".join(f"{name}: {identity}" for name, identity in found) or "none known"
    return f"{known} ({len(looked_up)} of {len(entries)} packages could be looked up)", not found


def document(releases: dict[str, list[Release]], audited: dict[str, str], today: date) -> str:
    """The text of ``docs/dependencies.md``."""
    lines = [
        "# Dependencies",
        "",
        "Every package that the lock files pin, with the day of its release, and the known advisories. Written by",
        "`make audit`, which checks too that the pinned files are still in the index and were not withdrawn, and fails",
        "if a pin is one that the project is exposed to. Why each direct dependency is there is said in",
        "`pyproject.toml`. torch is installed beside the locks `tensorrt` and `exports` (`requirements/install.sh`).",
        "",
        f"Looked up on {today.isoformat()}. Beyond the table, pip-audit says of known vulnerabilities:",
        "",
        *(f"- `requirements/{lock}.txt`: {said}" for lock, said in audited.items()),
        "",
        "## Known advisories",
        "",
        "From `requirements/advisories.yaml`, which says what its words mean. Versions of tritonserver are months of",
        f"its containers; the embedded {EMBEDDED_VERSION} is {_MONTHS[EMBEDDED_VERSION]}. NVIDIA publishes little,",
        "so that *accepted* means: **callers of the embedded server's gRPC port can at least end it. Give callers whom",
        "you do not trust the container, or HTTP alone.**",
        "",
        *table(read_advisories(), all_pins()),
    ]
    seen: set[tuple[str, str]] = set()
    for lock, found in releases.items():
        new = [release for release in found if (release.pin.name, release.pin.version) not in seen]
        seen |= {(release.pin.name, release.pin.version) for release in new}
        lines += [
            "",
            f"## {lock}{'' if lock == 'base' else ', besides'}",
            "",
            "| package | version | released |",
            "| --- | --- | --- |",
        ]
        lines += [f"| {each.pin.name} | {each.pin.version} | {each.released or 'unknown'} |" for each in new]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit; returns 1 if a pin has a problem, or a known vulnerability that the project is exposed to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--table", action="store_true", help="print the table of known advisories, and ask nobody")
    options = parser.parse_args(arguments)
    if options.table:
        print("\n".join(table(read_advisories(), all_pins())))
        return 0
    faults = exposed(read_advisories(), all_pins())
    print(f"{ADVISORIES.name}: {len(faults)} pins that the project is exposed to")
    for fault in faults:
        print(f"  {fault}")
    index = index_url()
    releases: dict[str, list[Release]] = {}
    audited, sound = {}, not faults
    with ThreadPoolExecutor(16) as pool:
        for lock in LOCKS:
            pins = read_lock(ROOT / "requirements" / f"{lock}.txt")
            releases[lock] = list(pool.map(lambda pin: look_up(pin, index), pins))
            audited[lock], clean = vulnerabilities(ROOT / "requirements" / f"{lock}.txt")
            bad = [release for release in releases[lock] if release.problems]
            sound = sound and clean and not bad
            print(f"{lock}: {len(pins)} packages, {len(bad)} with problems; vulnerabilities: {audited[lock]}")
            for release in bad:
                print(f"  {release.pin.name} {release.pin.version}: {'; '.join(release.problems)}")
    if not options.check:
        DOCUMENT.write_text(document(releases, audited, date.today()))
        print(f"written: {DOCUMENT.relative_to(ROOT)}")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
