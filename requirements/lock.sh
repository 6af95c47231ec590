#!/bin/sh
# Writes the lock files from pyproject.toml: pinned, hashed, for x86-64 and arm64 Linux, naming no index.
# Needs uv (python -m pip install uv). Run from the repository's root: sh requirements/lock.sh
set -eu
lock() {
    name=$1
    shift
    [ "${KEEP:-}" ] || rm -f "requirements/$name.txt"  # KEEP=1 leaves the pins that still fit
    uv pip compile "$@" --universal --python-version 3.10 --generate-hashes \
        --no-annotate --no-header --quiet --output-file "requirements/$name.txt"
    # Every environment is CPython before 3.13 on Linux (tool.uv.environments); only the rest of a marker says anything.
    sed -i -E \
        -e "s/ and \(\(platform_machine == 'aarch64' and platform_python_implementation == 'CPython' and sys_platform == 'linux'\) or \(platform_machine == 'x86_64' and platform_python_implementation == 'CPython' and sys_platform == 'linux'\)\)//" \
        -e "s/ ; python_full_version < '3.13' \\\\$/ \\\\/" \
        -e "s/ ; python_full_version < '3.13' and / ; /" \
        -e "s/ and python_full_version < '3.13'//" \
        "requirements/$name.txt"
}
# What torch brings differs between its processor and CUDA builds: it is left to its own installation.
without_torch=$(for name in torch triton cuda-toolkit cuda-bindings cuda-pathfinder nvidia-cublas nvidia-cuda-cccl \
    nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand \
    nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 \
    nvidia-nvtx; do echo "--no-emit-package $name"; done)
lock base pyproject.toml
lock dev pyproject.toml --extra load --extra test --extra lint --group openvino
lock openvino --group openvino --no-emit-package numpy
lock tensorrt pyproject.toml --extra load --extra test --extra lint --group openvino --extra tensorrt \
    --constraints requirements/dev.txt $without_torch
lock gpu pyproject.toml --extra load --extra test --extra gpu --constraints requirements/dev.txt --no-emit-package onnxruntime
lock exports --group exports --no-emit-package opencv-python $without_torch
# Of any Python from 3.10 on: the limits of the server's environment do not hold for it.
lock adapters --group adapters --no-config --no-emit-package opencv-python
