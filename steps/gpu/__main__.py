"""``python -m steps.gpu [NUMBER]``: whether the steps can run on a GPU. Compiles the kernels, which are kept.

Prints the GPU's name; or, with status 1, why they cannot.
"""

from __future__ import annotations

import sys

from steps.gpu.decoder import EngineDecoder
from steps.gpu.device import CudaDevice


def main(number: int = 0) -> int:
    """Open a GPU and its decoder."""
    try:
        device = CudaDevice(number)
        EngineDecoder(number, device.stream)
    except Exception as error:  # CuPy and nvImageCodec raise types of their own
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        return 1
    print(device.name)
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
