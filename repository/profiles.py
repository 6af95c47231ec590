"""The profiles: what each one's backend loads, what it needs, and which builds it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pipeline import contract


@dataclass(frozen=True)
class ServingProfile:
    """One way of serving the network; code compares these attributes, never the name.

    Attributes:
        name: as on the command line.
        config_name: where the configuration of a ``network_*`` model lies, in the model's folder.
        loads_plans: the backend loads TensorRT plans; else it loads ``model.onnx``, in the Python backend.
        needs_gpu: nothing runs without an NVIDIA GPU.
        serves: profiles of the builder whose versions are meant for it.
        fused: ``network_*`` takes encoded images and returns masks, so that there are no other steps but admission.
        gpu_steps: the steps around the network run on the GPU too, where they can.

    Example:
        >>> PROFILES["cuda"].loads_plans, PROFILES["cuda"].build_profile
        (False, 'cpu')
    """

    name: str
    config_name: str
    loads_plans: bool
    needs_gpu: bool
    serves: tuple[str, ...]
    fused: bool = False
    gpu_steps: bool = False

    @property
    def shared_models(self) -> tuple[str, ...]:
        """Steps that the ensembles of all precisions share."""
        return (contract.ADMISSION_MODEL,) if self.fused else contract.SHARED_MODELS

    @property
    def least_load_timeout_s(self) -> int:
        """How long a process may at least be given to load its model: on a GPU, some are compiled first."""
        return 300 if self.fused or self.gpu_steps else 0

    @property
    def build_profile(self) -> str:
        """What to give to ``python -m builder build --profile`` for a version that this profile serves."""
        return self.serves[0]

    @property
    def is_built(self) -> bool:
        """Whether the builder makes versions for it; else it serves those of another profile, once promoted."""
        return self.build_profile == self.name


GPU_STEPS: Final = "gpu-steps"
"""What ``tensorrt`` does, but with the network in the Python backend: for ``bench gpu --profile gpu-steps`` alone."""

PROFILES: Final[Mapping[str, ServingProfile]] = {
    profile.name: profile
    for profile in (
        ServingProfile("cpu", "configs/cpu.pbtxt", loads_plans=False, needs_gpu=False, serves=("cpu",)),
        ServingProfile(
            "tensorrt", "config.pbtxt", loads_plans=True, needs_gpu=True, serves=("tensorrt",), gpu_steps=True
        ),
        ServingProfile(
            "cuda",
            "configs/cuda.pbtxt",
            loads_plans=False,
            needs_gpu=True,
            serves=("cpu", "tensorrt"),
            fused=True,
        ),
        ServingProfile(
            GPU_STEPS,
            "configs/cuda.pbtxt",
            loads_plans=False,
            needs_gpu=True,
            serves=("cpu", "tensorrt"),
            gpu_steps=True,
        ),
    )
}
"""By name."""

BUILT_PROFILES: Final = tuple(name for name in contract.PROFILES if PROFILES[name].is_built)
"""Profiles that the builder makes versions for."""
