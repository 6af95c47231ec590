"""``python -m bench``. The parts are in :mod:`bench.cli`, which the processes that are spawned for them can import."""

import sys

from bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
