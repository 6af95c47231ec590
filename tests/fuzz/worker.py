"""One target under atheris, in a separate process: ``python -m tests.fuzz.worker NAME FINDINGS ARGUMENT…``.

An exception is kept once for each place that it comes from, and the run goes on. What ends the process (a crash, a
timeout, too much memory) is kept by libFuzzer.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import traceback
from pathlib import Path

import atheris

_MOST_KIB = 200 << 10  # of memory that one input may take
ROOMS = ("base", "builder", "client", "gateway", "pipeline", "repository", "tritonclient")


def main() -> None:
    """Fuzz until libFuzzer's own arguments say that it is enough."""
    name, findings, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=list(ROOMS)):
        from tests.fuzz.targets import TARGETS
    target, folder = TARGETS[name], Path(findings)
    seen: set[str] = set()

    def run(data: bytes) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            target.run(data)
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > _MOST_KIB:
                raise MemoryError(f"it took more than {_MOST_KIB} KiB")
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            place = "".join(f"{frame.filename}:{frame.lineno}\n" for frame in frames[-3:])
            digest = hashlib.sha256(f"{type(error)}\n{place}".encode()).hexdigest()[:12]
            if digest not in seen:
                seen.add(digest)
                (folder / f"{type(error).__name__}-{digest}").write_bytes(data)
                text = "".join(traceback.format_exception(error))
                (folder / f"{type(error).__name__}-{digest}.txt").write_text(text, errors="backslashreplace")

    for number, seed in enumerate(target.seeds()):
        (Path(arguments[0]) / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *arguments], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
