"""Before the server starts: which models can be served here, and if not, why and which command fixes it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from base.gpu import has_gpu
from pipeline import contract
from repository.errors import RepositoryError
from repository.integrity import misfit_of, plan_remedy, version_faults
from repository.manifest import Manifest
from repository.networks import Mixture, mixture, mixture_remedy
from repository.plans import Machine, find_machine
from repository.profiles import PROFILES, ServingProfile
from repository.promotions import read_promotions, was_forced
from repository.store import ModelRepository, network_problems, read_config
from repository.versions import rollback_version
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
        versions: those that the profile's configuration names and that can be served.
        reasons: why it cannot be served; empty if it can.
        remedy: the command that fixes it; empty if it can be served.
        warnings: what is worth knowing though it can be served.
        built: whether any version of the model exists for the profile.
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
        """Text for the terminal."""
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
        warning: what is worth knowing about this machine; empty if nothing is.
    """

    profile: str
    models: tuple[ModelStatus, ...]
    machine: Machine | None = None
    warning: str = ""

    def lines(self) -> list[str]:
        """Text for the terminal."""
        first = [f"profile {self.profile}" + (f": {self.machine}" if self.machine else "")]
        first += [f"warning: {self.warning}"] if self.warning else []
        return [*first, *(line for status in self.models for line in status.lines())]


def preflight(
    repository: ModelRepository,
    profile: str,
    precisions: Sequence[str] | None = None,
    machine: Machine | None = None,
    installation: Installation | None = None,
) -> Preflight:
    """Find out whether the promoted versions can be served here; nothing is changed or started.

    Args:
        repository: the model repository.
        profile: cpu, tensorrt or cuda.
        precisions: which to examine; None takes all.
        machine: to compare plans with; None takes this one.
        installation: the server; None takes the one on PATH.

    Raises:
        ServingError: this machine lacks shared memory.
    """
    warning = check_shared_memory()
    chosen = [name for name in contract.PRECISIONS if precisions is None or name in precisions]
    served = PROFILES[profile]
    machine = (machine or find_machine()) if served.loads_plans else None
    lack = _lack(served, installation)
    try:
        mixed = mixture(repository, profile, chosen)
    except RepositoryError:  # reported with the model
        mixed = None
    statuses = (_Examination(repository, name, served, machine).status(lack, mixed) for name in chosen)
    return Preflight(profile, tuple(statuses), machine, warning)


def check(repository: ModelRepository, profile: str, precisions: Sequence[str] | None = None) -> Preflight:
    """Refuse to start a server that could not serve what it is asked to.

    Precisions of which nothing is built are ignored unless they are asked for; a promoted version that cannot be
    served is an error.

    Raises:
        ServingError: names model, reason and the command that fixes it.
    """
    found = preflight(repository, profile, precisions)
    wanted = [status for status in found.models if precisions is not None or status.built]
    failed = [status for status in wanted if not status.ready]
    if failed:
        lines = "\n".join(line for status in failed for line in status.lines())
        others = ",".join(status.precision for status in wanted if status.ready)
        hint = f"\nTo serve the others: --precisions {others}" if others else ""
        raise ServingError(f"not everything can be served under the profile {profile}:\n{lines}{hint}")
    return found


class _Examination:
    """Examines one model."""

    def __init__(
        self, repository: ModelRepository, precision: str, profile: ServingProfile, machine: Machine | None
    ) -> None:
        self._repository, self._precision, self._profile, self._machine = repository, precision, profile, machine
        self._model = contract.network_model(precision)
        self._build = repository.build_command(precision, profile.name)
        versions = repository.versions(precision)
        self._servable = [one for one in versions if repository.is_servable(precision, one, profile.name)]
        self._reasons: list[str] = []
        self._remedies: list[str] = []
        self._warnings: list[str] = []

    def status(self, lack: tuple[str, str] | None, mixed: Mixture | None) -> ModelStatus:
        """The model's status.

        Args:
            lack: what the machine lacks for the profile, and the command that helps.
            mixed: versions of more than one network that the profile serves.
        """
        promoted: list[int] = []
        built = True
        try:
            promoted = self._repository.promoted(self._precision, self._profile.name)
            named = self._repository.named_versions(self._precision, self._profile.name)
            problems = _config_problems(self._repository, self._precision)
        except RepositoryError as error:
            promoted = []
            remedy = "restore it from its .in of the shipped model_repository, then `python -m builder verify`"
            self._refuse(str(error), remedy)
        else:
            self._warnings += self._repository.strays(self._precision)
            for stray in self._repository.named_strays(self._precision, self._profile.name):
                self._refuse(stray, self._repository.stray_remedy(self._precision, self._profile.name))
            if promoted:
                for problem in problems:
                    self._refuse(problem, self._build)
                if lack is not None:
                    self._refuse(*lack)
                for version in promoted:
                    if self._check_whole(version):
                        manifest = self._repository.manifest(self._precision, version)
                        self._check_gate(manifest)
                        self._check_plans(manifest)
                self._check_network(mixed)
            else:
                built = self._explain_nothing(named)
        return ModelStatus(
            self._model,
            self._precision,
            tuple(promoted),
            tuple(self._reasons),
            next(iter(self._remedies), ""),
            tuple(self._warnings),
            built,
        )

    def _explain_nothing(self, named: list[int]) -> bool:
        """Say why no version is promoted; returns whether anything is built for the profile."""
        if self._servable:
            if not named:
                reason = f"no version is promoted under the profile {self._profile.name}"
            else:
                reason = f"the configuration names the versions {named}, which are missing or not for the profile"
            self._refuse(reason, self._promote(self._servable[-1]))
            # A profile without its own builds serves nothing until a version is promoted for it.
            return bool(named) or self._profile.is_built
        for version in filter(self._is_mine, named):
            if self._check_whole(version):
                self._check_plans(self._repository.manifest(self._precision, version))
        if self._reasons:
            return True
        self._refuse(f"no version for the profile {self._profile.name} is built", self._build)
        return False

    def _check_whole(self, version: int) -> bool:
        faults = version_faults(self._repository, self._precision, version)
        others = [one for one in self._servable if one != version]
        for fault in faults:
            remedy = self._promote(others[-1]) if others else f"{self._build} ({fault.remedy})"
            if self._repository.trusted is not None:  # the others may be no better
                remedy = fault.remedy
            subject = f"version {version}" if fault.subject == f"{self._model}/{version}" else fault.subject
            self._refuse(f"{subject}: {fault.problem}", remedy)
        return not faults

    def _check_gate(self, manifest: Manifest) -> None:
        if manifest.gate_refusal is None:
            return
        text = f"version {manifest.version}: {manifest.gate_refusal}"
        promotions = read_promotions(self._repository.model_folder(self._precision), self._profile.name)
        if manifest.verification is None:
            self._warnings.append(text)
        elif was_forced(promotions, manifest.version):
            self._warnings.append(f"{text}; it was promoted with --force")
        else:
            force = f"to take the risk: {self._promote(manifest.version)} --force"
            back = f"python -m builder rollback {self._model} --profile {self._profile.name}"
            target = rollback_version(self._repository, self._precision, self._profile.name)
            self._refuse(text, force if target is None else f"{back}, or {force}")

    def _check_plans(self, manifest: Manifest) -> None:
        machine = self._machine
        if machine is None:
            return
        if any(facts.get("version_compatible") for facts in manifest.plans.values()):
            # Such plans carry host code, which Triton loads only with this option.
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

    def _check_network(self, mixed: Mixture | None) -> None:
        if mixed is None or self._precision not in {manifest.precision for manifest in mixed.manifests}:
            return
        remedy = mixture_remedy(self._repository, mixed)
        if mixed.of_other_classes:
            self._refuse(f"{mixed}, whose classes differ; one repository serves one network", remedy)
        else:
            self._warnings.append(f"{mixed}; to serve one: {remedy}")

    def _is_mine(self, version: int) -> bool:
        """Whether a version exists and was built for the profile, or does not say for which."""
        if version not in self._repository.versions(self._precision):
            return False
        try:
            return self._repository.manifest(self._precision, version).profile in self._profile.serves
        except RepositoryError:
            return True

    def _promote(self, version: int) -> str:
        return f"python -m builder promote {self._model}/{version} --profile {self._profile.name}"

    def _refuse(self, reason: str, remedy: str) -> None:
        self._reasons.append(reason)
        self._remedies.append(remedy)


def _lack(profile: ServingProfile, installation: Installation | None) -> tuple[str, str] | None:
    """What this machine lacks for a profile, and the command that helps; None if nothing is known to be missing."""
    if profile.loads_plans:
        reason, remedy = _without_backend(installation), "docker compose up"
    else:
        reason, remedy = _without_cuda() if profile.needs_gpu else None, _CUDA_REMEDY
    return (reason, remedy) if reason else None


def _without_cuda() -> str | None:
    """Why ONNX Runtime cannot use a GPU here; None if it can, as far as can be seen without trying."""
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in providers:
        return f"this environment's ONNX Runtime has no CUDA provider (it has {', '.join(providers)})"
    return None if has_gpu() else "no GPU is available (nvidia-smi lists none)"


def _config_problems(repository: ModelRepository, precision: str) -> list[str]:
    """Sizes and limits of the steps around the network that differ from the newest version's."""
    manifests = repository.manifests(precision)
    if not manifests:
        return []
    problems = []
    for name in contract.SHARED_MODELS:
        config = read_config(repository.shared_config(name))
        problems += [f"{name}: {problem}" for problem in network_problems(config, manifests[-1].source)]
    read_config(repository.shared_config(contract.ensemble_model(precision)))  # refused if it is broken
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
