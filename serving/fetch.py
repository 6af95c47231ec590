"""Fetches one pinned, hashed file from the package index that pip is set up to use."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from serving.errors import ServingError


def fetch_archive(requirement: str, sha256: str, destination: Path, source: bool = False) -> Path:
    """Get one file of a package, from ``destination`` if it is there already, else through pip.

    pip is asked because it knows the machine's index, proxies and certificates.

    Args:
        requirement: name and version, such as ``nvidia-pytriton==0.7.0``.
        sha256: of the file wanted, hexadecimal; pip refuses any other, and what it brings is hashed again here.
        destination: folder to keep the file in.
        source: get the source archive instead of a wheel.

    Returns:
        The file, its hash checked.

    Raises:
        ServingError: the file cannot be had, or has another hash.
    """
    destination.mkdir(parents=True, exist_ok=True)
    for file in destination.iterdir():
        if file.is_file() and not file.name.startswith(".") and _sha256(file) == sha256:
            return file
    with tempfile.TemporaryDirectory(dir=destination, prefix=".fetching-") as folder:
        _download(requirement, sha256, Path(folder), source)
        files = [file for file in Path(folder).iterdir() if file.suffix != ".txt"]
        if len(files) != 1 or _sha256(files[0]) != sha256:
            raise ServingError(f"{requirement}: the file fetched does not have the pinned SHA-256 {sha256}")
        return files[0].replace(destination / files[0].name)


def _download(requirement: str, sha256: str, folder: Path, source: bool) -> None:
    name = requirement.split("==", maxsplit=1)[0]
    listing = folder / "requirement.txt"
    listing.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    # The build backend of the source archive is installed, pinned and hashed: none is fetched unseen.
    kind = ["--no-binary", name, "--no-build-isolation"] if source else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    watched = sys.stderr.isatty()
    print(f"fetching {requirement} …", file=sys.stderr, flush=True)
    result = subprocess.run(
        [*command, *kind, "--dest", str(folder), "--requirement", str(listing)],
        stdout=sys.stderr if watched else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        detail = " ".join(lines[-2:]) or f"pip ended with {result.returncode}"
        raise ServingError(
            f"{requirement} could not be fetched: {detail}. Check that `pip download {requirement}` "
            "reaches your package index"
        )


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
