"""The GPU's steps, held against the CPU functions that they equal: `make test-gpu` on a machine with an NVIDIA GPU.

What needs no GPU runs everywhere: kernels are compiled for the host, with a fiber for each thread of a block.
"""
