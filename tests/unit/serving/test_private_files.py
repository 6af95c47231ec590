"""Files of the server are its user's alone, whatever it asks for."""

from __future__ import annotations

import subprocess
import sys

from serving.private_files import PRIVATE_UMASK, keep_files_private

SCRIPT = """
import os, sys
folder = sys.argv[1]
for name, mode in (("region", 0o644), ("program", 0o700)):
    with open(os.path.join(folder, name), "w") as file:
        os.fchmod(file.fileno(), mode)
"""


def test_a_file_that_is_opened_to_all_stays_private(tmp_path):
    """As Boost does it: made, then its mode set."""
    subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path],
        check=True,
        umask=PRIVATE_UMASK,
        preexec_fn=lambda: keep_files_private() or sys.exit(9),
    )
    assert (tmp_path / "region").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "program").stat().st_mode & 0o777 == 0o700
    assert (tmp_path.stat().st_mode & 0o700) == 0o700
