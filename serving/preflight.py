"""Before the server starts: which models can be served here, and if not, why and which command fixes it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pipeline import contract
from repository.errors import RepositoryError
from repository.gpu import gpu_at_hand
from repository.integrity import build_command, misfit_of, plan_remedy, size_problems, version_faults
from repository.manifest import Manifest
from repository.networks import Mixture, mixture, mixture_remedy
from repository.plans import Machine, machine_at_hand
from repository.profiles import PROFILES
from repository.promotions import read_promotions, was_forced
from repository.store import ModelRepository, read_config
from repository.versions import gate_refusal, rollback_version
from serving.environment import check_shared_memory
from serving.errors import ServingError
from serving.tritonserver import Installation, find_tritonserver

_CUDA_REMEDY: Final = (
    "python -m serving run --profile cpu; on a machine with a GPU, pip uninstall onnxruntime and pip install "
    "onnxruntime-gpu"
)
_VERSION_COMPATIBLE: Final = "tritonserver needs --backend-config=tensorrt,version-compatible=true"


@dataclass(frozen=True)
class ModelStatus:
    """Whether one model can be served.

    Attributes:
        model: such as ``network_int8``.
        precision: fp32, fp16 or int8.
        versions: those that the profile's configuration names and that are there.
        reasons: why it cannot be served; empty if it can.
        remedy: the command that fixes it; empty if it can be served.
        warnings: what is worth knowing though it can be served.
        built: whether any version of the model is there for the profile.
    """

    model: str
    precision: str
    versions: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()
    remedy: str = ""
    warnings: tuple[str, ...] = ()
    built: bool = True

    @property
    def ready(self) -> bool:
        """Whether it can be served."""
        return not self.reasons

    def lines(self) -> list[str]:
        """For people."""
        if self.ready:
            named = ", ".join(map(str, self.versions))
            first = f"ready      {self.model}/{named}"
        else:
            first = f"not ready  {self.model}: {'; '.join(self.reasons)}"
        more = [f"           remedy: {self.remedy}"] if self.remedy else []
        return [first, *more, *(f"           warning: {warning}" for warning in self.warnings)]


@dataclass(frozen=True)
class Preflight:
    """Outcome for a repository and profile.

    Attributes:
        profile: cpu, tensorrt or cuda.
        models: one status per precision.
        machine: what plans were compared with; None where no plans are loaded.
        warning: what is worth knowing of this machine; empty if nothing is.
    """

    profile: str
    models: tuple[ModelStatus, ...]
    machine: Machine | None = None
    warning: str = ""

    def lines(self) -> list[str]:
        """For people."""
        first = [f"profile {self.profile}" + (f": {self.machine}" if self.machine else "")]
        first += [f"warning: {self.warning}"] if self.warning else []
        return [*first, *(line for status in self.models for line in status.lines())]


def preflight(
    repository: Path,
    profile: str,
    precisions: Sequence[str] | None = None,
    machine: Machine | None = None,
    installation: Installation | None = None,
) -> Preflight:
    """Look whether the promoted versions can be served here; nothing is changed or started.

    Args:
        repository: the model repository.
        profile: cpu, tensorrt or cuda.
        precisions: which to look at; None looks at all.
        machine: what to compare plans with; None looks at this one.
        installation: the server; None looks for the one on PATH.

    Raises:
        RepositoryError: the folder is no model repository.
        ServingError: this machine lacks shared memory.
    """
    warning = check_shared_memory()
    opened = ModelRepository.existing(repository)
    chosen = [name for name in contract.PRECISIONS if precisions is None or name in precisions]
    served, lack = PROFILES[profile], None
    if served.loads_plans:
        machine = machine or machine_at_hand()
        without = _without_backend(installation)
        lack = _Lack(without, "docker compose up") if without else None
    else:
        machine = None
        without = _without_cuda() if served.needs_gpu else None
        lack = _Lack(without, _CUDA_REMEDY) if without else None
    statuses = [_Examination(opened, name, profile, machine).status(lack) for name in chosen]
    return Preflight(profile, tuple(_told_of_mixtures(opened, profile, chosen, statuses)), machine, warning)


def check(repository: Path, profile: str, precisions: Sequence[str] | None = None) -> Preflight:
    """Refuse to start a server that could not serve what it is asked to.

    Precisions of which nothing is built are ignored unless they are asked for; a promoted version that cannot be
    served is never left out in silence.

    Raises:
        ServingError: names model, reason and the command that fixes it.
    """
    found = preflight(repository, profile, precisions)
    wanted = [status for status in found.models if precisions is not None or status.built]
    failed = [status for status in wanted if not status.ready]
    if failed:
        told = "\n".join(line for status in failed for line in status.lines())
        others = ",".join(status.precision for status in wanted if status.ready)
        hint = f"\nTo serve the others: --precisions {others}" if others else ""
        raise ServingError(f"not everything can be served under the profile {profile}:\n{told}{hint}")
    return found


@dataclass(frozen=True)
class _Lack:
    """What the machine lacks for a profile, and the command that helps."""

    reason: str
    remedy: str


class _Examination:
    """Looks at one model."""

    def __init__(self, repository: ModelRepository, precision: str, profile: str, machine: Machine | None) -> None:
        self._repository, self._precision, self._profile, self._machine = repository, precision, profile, machine
        self._model = contract.network_model(precision)
        self._build = build_command(repository, precision, profile)
        versions = repository.versions(precision)
        self._servable = [version for version in versions if repository.is_servable(precision, version, profile)]
        self._reasons: list[str] = []
        self._remedies: list[str] = []
        self._warnings: list[str] = []

    def status(self, lack: _Lack | None) -> ModelStatus:
        """The model's status."""
        try:
            promoted = self._repository.promoted(self._precision, self._profile)
            named = self._repository.named_versions(self._precision, self._profile)
            problems = _config_problems(self._repository, self._precision)
        except RepositoryError as error:
            self._refuse(str(error), "copy the file from the shipped model_repository, then `python -m builder verify`")
            return self._told(())
        if not promoted:
            return self._told((), built=self._explain_nothing(named))
        for problem in problems:
            self._refuse(problem, self._build)
        if lack is not None:
            self._refuse(lack.reason, lack.remedy)
        for version in promoted:
            self._examine(version)
        return self._told(promoted)

    def _explain_nothing(self, named: list[int]) -> bool:
        """Say why no version is promoted; returns whether there is anything built for the profile."""
        broken = [one for one in named if self._is_mine(one)]
        if self._servable and not named:
            self._refuse(f"no version is promoted under the profile {self._profile}", self._promote(self._servable[-1]))
            # Nothing was asked for where the profile has no builds of its own.
            return PROFILES[self._profile].is_built
        if self._servable:
            text = f"the configuration names the versions {named}, which are not there or lack what the profile loads"
            self._refuse(text, self._promote(self._servable[-1]))
            return True
        for version in broken:
            self._check_whole(version)
            if not self._reasons and PROFILES[self._profile].loads_plans:
                self._check_plans(self._manifest(version))
        if self._reasons:
            return True
        self._refuse(f"no version for the profile {self._profile} is built", self._build)
        return False

    def _examine(self, version: int) -> None:
        if not self._check_whole(version):
            return
        manifest = self._manifest(version)
        self._check_gate(manifest)
        if self._machine is not None:
            self._check_plans(manifest)

    def _check_whole(self, version: int) -> bool:
        faults = version_faults(self._repository, self._precision, version)
        others = [one for one in self._servable if one != version]
        for fault in faults:
            remedy = self._promote(others[-1]) if others else f"{self._build} ({fault.remedy})"
            self._refuse(f"version {version}: {fault.problem}", remedy)
        return not faults

    def _check_gate(self, manifest: Manifest) -> None:
        refusal = gate_refusal(manifest)
        if refusal is None:
            return
        text = f"version {manifest.version}: {refusal}"
        promotions = read_promotions(self._repository.model_folder(self._precision), self._profile)
        if manifest.verification is None:
            self._warnings.append(text)
        elif was_forced(promotions, manifest.version):
            self._warnings.append(f"{text}; it was promoted with --force")
        else:
            force = f"to take the risk: {self._promote(manifest.version)} --force"
            back = f"python -m builder rollback {self._model} --profile {self._profile}"
            target = rollback_version(self._repository, self._precision, self._profile)
            self._refuse(text, force if target is None else f"{back}, or {force}")

    def _check_plans(self, manifest: Manifest) -> None:
        machine = self._machine
        if machine is None:
            return
        if any(facts.get("version_compatible") for facts in manifest.plans.values()):
            # Such plans carry host code, which Triton loads only if told that they can be trusted.
            self._warnings.append(f"version {manifest.version} is version compatible: {_VERSION_COMPATIBLE}")
        misfit = misfit_of(self._repository, manifest, machine)
        if misfit is None:
            return
        text = f"version {manifest.version}: {misfit.reason}"
        if machine.gpu is None:
            self._refuse(text, f"python -m serving run --profile cpu, or on a machine with a GPU: {self._build}")
        elif misfit.known:
            self._refuse(text, plan_remedy(self._repository, manifest, misfit))
        else:
            self._warnings.append(text)

    def _is_mine(self, version: int) -> bool:
        """Whether a version is there and was built for the profile, or does not say for which."""
        if version not in self._repository.versions(self._precision):
            return False
        try:
            return self._manifest(version).profile in PROFILES[self._profile].serves
        except RepositoryError:
            return True

    def _manifest(self, version: int) -> Manifest:
        return Manifest.read(self._repository.model_folder(self._precision) / str(version))

    def _promote(self, version: int) -> str:
        return f"python -m builder promote {self._model}/{version} --profile {self._profile}"

    def _refuse(self, reason: str, remedy: str) -> None:
        self._reasons.append(reason)
        self._remedies.append(remedy)

    def _told(self, versions: Sequence[int], *, built: bool = True) -> ModelStatus:
        return ModelStatus(
            self._model,
            self._precision,
            tuple(versions),
            tuple(self._reasons),
            next(iter(self._remedies), ""),
            tuple(self._warnings),
            built,
        )


def _told_of_mixtures(
    repository: ModelRepository, profile: str, precisions: Sequence[str], statuses: Sequence[ModelStatus]
) -> list[ModelStatus]:
    """The statuses, with what is to be said where they are of more than one network."""
    try:
        mixed = mixture(repository, profile, precisions)
    except RepositoryError:  # told with the model
        return list(statuses)
    if mixed is None:
        return list(statuses)
    concerned = {manifest.precision for manifest in mixed.manifests}
    remedy = mixture_remedy(repository, mixed)
    return [_with_mixture(one, mixed, remedy) if one.precision in concerned else one for one in statuses]


def _with_mixture(status: ModelStatus, mixed: Mixture, remedy: str) -> ModelStatus:
    if not mixed.of_other_classes:
        return replace(status, warnings=(*status.warnings, f"{mixed}; to serve one: {remedy}"))
    reason = f"{mixed}, whose classes differ; one repository serves one network"
    return replace(status, reasons=(*status.reasons, reason), remedy=status.remedy or remedy)


def _without_cuda() -> str | None:
    """Why ONNX Runtime cannot use a GPU here; None if it can, as far as can be seen without trying."""
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in providers:
        return f"this environment's ONNX Runtime has no CUDA provider (it has {', '.join(providers)})"
    # A container may have the GPU without nvidia-smi.
    if gpu_at_hand() is None and not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return "no GPU is available (nvidia-smi names none)"
    return None


def _config_problems(repository: ModelRepository, precision: str) -> list[str]:
    """Sizes of the steps around the network that differ from the newest version's."""
    manifests = repository.manifests(precision)
    if not manifests:
        return []
    sizes = manifests[-1].source.get("tensor_sizes", {})
    problems = []
    for name in contract.SHARED_MODELS:
        path = repository.path / name / "config.pbtxt"
        problems += [f"{name}: {problem}" for problem in size_problems(read_config(path), sizes)]
    read_config(repository.path / contract.ensemble_model(precision) / "config.pbtxt")
    return problems


def _without_backend(installation: Installation | None) -> str | None:
    """Why the server of this machine cannot run plans; None if it can."""
    if installation is None and shutil.which("tritonserver") is None:
        return "no tritonserver is on PATH, and the embedded one has no TensorRT backend"
    try:
        (installation or find_tritonserver()).check_backend("tensorrt")
    except ServingError as error:
        return str(error)
    return None
