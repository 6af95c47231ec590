"""The steps of the ensemble on an NVIDIA GPU: pictures are decoded, and masks are made, where the network runs.

Kernels lie in ``kernels/``, one file each; every file names the function of ``pipeline`` whose results it has. CuPy and
nvImageCodec are imported where they are used, so that the rest can be read and tested without a GPU.
"""
