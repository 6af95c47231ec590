"""Fetches one pinned, hashed file from the package index that pip is set up to use."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from base.errors import FetchError
from base.files import sha256_of
from base.interpreter import PYTHON

# pip's warnings say why an index did not answer; its errors only that nothing matched.
_UNREACHABLE: Final = re.compile(r"connection broken by '(?P<broken>.*)': |(?P<refused>Could not fetch URL .*)")


def fetch_archive(requirement: str, sha256: str, destination: Path, source: bool = False) -> Path:
    """Get one file of a package, from ``destination`` if it is there already, else through pip.

    pip knows the machine's index, proxies and certificates.

    Args:
        requirement: name and version, such as ``nvidia-pytriton==0.7.0``.
        sha256: of the file, hexadecimal; pip refuses any other, and the download is hashed again here.
        destination: folder to keep the file in.
        source: get the source archive instead of a wheel.

    Returns:
        The file, its hash checked.

    Raises:
        FetchError: the file is not available, or has another hash.
    """
    destination.mkdir(parents=True, exist_ok=True)
    for file in destination.iterdir():
        if file.is_file() and not file.name.startswith(".") and sha256_of(file) == sha256:
            return file
    with tempfile.TemporaryDirectory(dir=destination, prefix=".fetching-") as folder:
        _download(requirement, sha256, Path(folder), source)
        files = [file for file in Path(folder).iterdir() if file.suffix != ".txt"]
        if len(files) != 1 or sha256_of(files[0]) != sha256:
            raise FetchError(f"{requirement}: the file fetched does not have the pinned SHA-256 {sha256}")
        return files[0].replace(destination / files[0].name)


def _download(requirement: str, sha256: str, folder: Path, source: bool) -> None:
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"{requirement} could not be fetched: {sys.executable} has no pip; add it with "
            f"`{sys.executable} -m ensurepip`"
        )
    name = requirement.split("==", maxsplit=1)[0]
    listing = folder / "requirement.txt"
    listing.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    # The build backend of the source archive is installed, pinned and hashed: none is fetched unseen.
    kind = ["--no-binary", name, "--no-build-isolation"] if source else ["--only-binary", ":all:"]
    command = [*PYTHON, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    watched = sys.stderr.isatty()
    print(f"fetching {requirement} …", file=sys.stderr, flush=True)
    result = subprocess.run(
        [*command, *kind, "--dest", str(folder), "--requirement", str(listing)],
        stdout=sys.stderr if watched else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode:
        raise FetchError(
            f"{requirement} could not be fetched: {explain_pip(result.stderr)}. Set pip up for an index that has it "
            f"(PIP_INDEX_URL, PIP_FIND_LINKS or pip.conf), or put the file with SHA-256 {sha256} into {folder.parent}"
        )


def explain_pip(stderr: str) -> str:
    """Why pip failed, in one line, from what it wrote to standard error."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        return "the package index has a file with another SHA-256"
    warnings = [line for line in lines if line.startswith("WARNING")]
    said = [line.removeprefix("ERROR: ") for line in lines if not line.startswith(("WARNING", "[notice]"))]
    reported = f"pip says: {' '.join(said[-2:])}" if said else "pip gave no reason"
    reasons = [found.group("broken") or found.group("refused") for found in map(_UNREACHABLE.search, warnings) if found]
    if not reasons:
        return reported
    # urllib3 puts the address of its connection object in front.
    return f"the package index was not reachable ({re.sub(r'<[^>]*>: ', '', reasons[-1])}); {reported}"
