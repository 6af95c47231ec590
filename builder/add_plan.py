"""``python -m builder add-plan``: one more GPU architecture for a version that exists."""

from __future__ import annotations

import os
from dataclasses import replace

from base.files import write_atomically
from base.gpu import Gpu
from base.progress import Steps
from builder.settings import PlanSettings
from builder.tensorrt.compile import CompiledPlan, compile_plan
from repository.errors import RepositoryError
from repository.flavor import Flavor
from repository.manifest import MANIFEST_NAME, FileEntry, Manifest
from repository.profiles import PROFILES
from repository.signatures import SIGNATURE_NAME
from repository.store import ModelRepository


def plan_name(flavor: Flavor, gpu: Gpu | None) -> str:
    """File name of a plan; Triton finds it through ``cc_model_filenames``.

    Args:
        flavor: the TensorRT that builds it.
        gpu: the GPU that it is built for.
    """
    return f"model-{architecture(flavor, gpu)}{flavor.plan_suffix}"


def architecture(flavor: Flavor, gpu: Gpu | None) -> str:
    """What a plan is for, such as ``sm90``; plans of TensorRT-RTX are portable."""
    if flavor.is_rtx:
        return "portable"
    return gpu.architecture if gpu is not None else "sm-unknown"


def plan_facts(plan: CompiledPlan, settings: PlanSettings, gpu: Gpu | None) -> dict[str, object]:
    """What the manifest says of a plan."""
    return {
        "flavor": plan.flavor,
        "tensorrt": plan.tensorrt_version,
        "gpu": gpu.name if gpu else None,
        "compute_capability": gpu.compute_capability if gpu else None,
        "version_compatible": settings.version_compatible,
        "hardware_compatible": settings.hardware_compatible != "none",
        "batches": list(plan.batches),
    }


def add_plan(
    repository: ModelRepository, precision: str, version: int, flavor: Flavor, gpu: Gpu | None, steps: Steps
) -> Manifest:
    """Build a plan for the GPU of this machine out of a version's ``model.onnx``, and add it to the version.

    Existing files do not change. The plan is written first and the manifest after it, so the next run completes one
    that was killed in between. A signature does not cover the new manifest, and is removed.

    Args:
        repository: the model repository.
        precision: fp32, fp16 or int8.
        version: a version of the tensorrt profile.
        flavor: TensorRT to build with.
        gpu: the GPU of this machine.
        steps: where progress is shown.

    Returns:
        The version's new manifest.

    Raises:
        RepositoryError: the version is not one of the tensorrt profile, or has a plan for this GPU already.
        TensorRTError: the plan cannot be built.
    """
    folder = repository.model_folder(precision) / str(version)
    manifest = repository.manifest(precision, version)
    if manifest.profile not in PROFILES or not PROFILES[manifest.profile].loads_plans:
        raise RepositoryError(
            f"{manifest.tag} was built for the profile {manifest.profile}; build one with --profile tensorrt first"
        )
    name = plan_name(flavor, gpu)
    if name in manifest.plans:
        raise RepositoryError(f"{manifest.tag} has {name} already; versions are never changed, build a new one instead")
    batches = next((entry["batches"] for entry in manifest.plans.values() if "batches" in entry), [1, 8, 16])
    settings = PlanSettings(
        min_batch=batches[0],
        opt_batch=batches[1],
        max_batch=batches[2],
        workspace_mib=manifest.settings.get("plan", {}).get("workspace_mib", PlanSettings().workspace_mib),
    )
    with steps.step(f"{precision}: build plan", f"{flavor}, {gpu.name if gpu else 'no GPU available'}"):
        plan = compile_plan(folder / "model.onnx", settings, flavor)
    with repository.locked():
        manifest = Manifest.read(folder)
        write_atomically(folder / name, plan.plan, mode=0o444)
        changed = replace(
            manifest,
            files={**manifest.files, name: FileEntry.of(folder / name)},
            plans={**manifest.plans, name: plan_facts(plan, settings, gpu)},
        )
        write_atomically(folder / MANIFEST_NAME, changed.to_json(), mode=0o444)
        if os.path.lexists(folder / SIGNATURE_NAME):
            (folder / SIGNATURE_NAME).unlink()
            steps.warn(f"{manifest.name} is no longer signed: `python -m builder sign {manifest.name} --key FILE`")
    return changed
