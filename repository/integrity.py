"""Whether versions on disk are what their manifests say, and whether they can run here."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from base.files import sha256_of
from pipeline import contract
from repository.errors import RepositoryError
from repository.live import LiveError, LiveServer
from repository.manifest import MANIFEST_NAME, Manifest
from repository.networks import mixture, mixture_remedy
from repository.plans import Machine, Misfit, find_machine, plan_misfit
from repository.profiles import PROFILES
from repository.running import running_servers
from repository.shim import SHIM_NAME, is_importable, is_shim
from repository.shipped import foreign_parts
from repository.signatures import SIGNATURE_NAME, SigningKey
from repository.store import ModelRepository, network_problems, read_config
from repository.templates import TEMPLATE_SUFFIX

_CACHE: Final = "__pycache__"


@dataclass(frozen=True)
class Fault:
    """Something that is wrong.

    Attributes:
        subject: model or version, such as ``network_int8/2``.
        problem: what is wrong.
        remedy: what to do.
    """

    subject: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}; {self.remedy}"


@dataclass
class Findings:
    """Outcome of :func:`verify`.

    Attributes:
        versions: number of versions that were checked.
        faults: what is wrong.
        notes: what is worth knowing, and what could not be decided here.
    """

    versions: int = 0
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(
    repository: ModelRepository,
    precision: str | None = None,
    version: int | None = None,
    machine: Machine | None = None,
) -> Findings:
    """Check versions: hashes, manifests, configurations, plans against this machine, servers against configurations.

    Nothing is changed.

    Args:
        repository: the repository.
        precision: only this model; None takes all.
        version: only this version of it; its plans must then run here, promoted or not.
        machine: to compare plans with; None takes this one.

    Raises:
        RepositoryError: the version asked for does not exist.
    """
    findings = Findings()
    this_machine = functools.cache(lambda: machine or find_machine())
    for name in [precision] if precision else contract.PRECISIONS:
        versions = repository.versions(name)
        if version is not None and version not in versions:
            model = contract.network_model(name)
            raise RepositoryError(f"{model}/{version}: no such version in {repository.path}; there are {versions}")
        for number in versions if version is None else [version]:
            findings.versions += 1
            faults = version_faults(repository, name, number)
            findings.faults += [fault for fault in faults if fault not in findings.faults]
            if not faults:
                manifest = repository.manifest(name, number)
                _check_plans(repository, manifest, this_machine, findings, required=version is not None)
        findings.faults += [*_named_stray_faults(repository, name), *_config_faults(repository, name)]
        findings.notes += repository.strays(name)
        findings.notes += _leftover_notes(repository, name)
    if version is None:
        _check_networks(repository, findings)
        findings.faults += _server_faults(repository, precision)
    return findings


def version_faults(repository: ModelRepository, precision: str, version: int) -> list[Fault]:
    """Compare a version's files with its manifest, and its manifest with its place.

    Where keys are trusted, also its signature, and what the repository holds beside the versions.
    """
    faults = _content_faults(repository, precision, version, strict=repository.trusted is not None)
    if repository.trusted is not None:
        name = f"{contract.network_model(precision)}/{version}"
        unsigned = repository.trusted.problem(repository.version_folder(precision, version))
        if unsigned is not None:
            remedy = f"whoever vouches for it signs it: `python -m builder sign {name} --key FILE`"
            faults.append(Fault(name, unsigned, remedy))
        remedy = "take it from the shipped model_repository, or remove it"
        faults += [Fault(part, problem, remedy) for part, problem in foreign_parts(repository.path)]
    return faults


def sign(repository: ModelRepository, precision: str, version: int, key: SigningKey) -> Manifest:
    """Sign a version that is whole; an older signature is replaced.

    Returns:
        Its manifest.

    Raises:
        RepositoryError: there is no such version, or it is not what its manifest says.
    """
    with repository.locked():
        manifest = repository.manifest(precision, version)
        faults = _content_faults(repository, precision, version, strict=True)
        if faults:
            raise RepositoryError(f"{manifest.name} is not signed: {faults[0].problem}; {faults[0].remedy}")
        key.sign(repository.version_folder(precision, version))
    return manifest


def _content_faults(repository: ModelRepository, precision: str, version: int, *, strict: bool) -> list[Fault]:
    folder = repository.version_folder(precision, version)
    subject = f"{contract.network_model(precision)}/{version}"
    try:
        manifest = Manifest.read(folder)
        problems = [*_manifest_problems(manifest, precision, version), *_file_problems(manifest, folder, strict)]
    except RepositoryError as error:
        problems = [str(error)]
    except (TypeError, AttributeError, KeyError) as error:
        problems = [f"{MANIFEST_NAME} has entries of the wrong kind ({error!r})"]
    shim = folder / SHIM_NAME
    if os.path.lexists(shim) and not is_shim(shim):
        problems.append(f"{SHIM_NAME} is other code than the builder writes, which the server would run")
    faults = [Fault(subject, problem, _rebuild_remedy(repository, precision, version)) for problem in problems]
    foreign = repository.foreign_code(precision)
    if foreign:
        problem = f"the server could import {', '.join(foreign)} beside the versions"
        faults.append(Fault(contract.network_model(precision), problem, "move it elsewhere"))
    return faults


def misfit_of(repository: ModelRepository, manifest: Manifest, machine: Machine) -> Misfit | None:
    """Why Triton's TensorRT backend could not run a version here; None if it can."""
    config = read_config(repository.config_path(manifest.precision, "tensorrt"))
    default = config.default_model_filename or "model.plan"
    return plan_misfit(manifest.plans, dict(config.cc_model_filenames), default, machine)


def plan_remedy(repository: ModelRepository, manifest: Manifest, misfit: Misfit) -> str:
    """The command that fixes a misfit; run it on the machine that is to serve."""
    if misfit.addable:
        return f"python -m builder add-plan {manifest.name} --repository {repository.path}"
    return repository.build_command(manifest.precision, "tensorrt")


def _manifest_problems(manifest: Manifest, precision: str, version: int) -> Iterator[str]:
    model = contract.network_model(precision)
    if (manifest.model, manifest.version, manifest.precision) != (model, version, precision):
        yield f"{MANIFEST_NAME} describes {manifest.name} ({manifest.precision})"
    if manifest.profile not in contract.PROFILES:
        yield f"{MANIFEST_NAME} names the profile {manifest.profile!r}; allowed: {', '.join(contract.PROFILES)}"
    if not any(manifest.tag.endswith(f"-{entry.sha256[:8]}") for entry in manifest.files.values()):
        yield f"the tag {manifest.tag} ends with the hash of none of its files"
    for name, facts in manifest.plans.items():
        if name not in manifest.files:
            yield f"{MANIFEST_NAME} describes {name}, but lists no such file"
        if facts.get("flavor") == "tensorrt-rtx" and name.endswith(".plan"):
            yield f"{name} is a TensorRT-RTX plan under a name that Triton's TensorRT backend would load"
    for name in manifest.files:
        if name.endswith(".plan") and name not in manifest.plans:
            yield f"{MANIFEST_NAME} does not say what {name} was built with and for"


def _file_problems(manifest: Manifest, folder: Path, strict: bool) -> Iterator[str]:
    for name, entry in manifest.files.items():
        path = folder / name
        if name != SHIM_NAME and is_importable(path):
            yield f"{name} is code that the server could import; a version has no other than {SHIM_NAME}"
        if path.is_symlink():
            yield f"{name} is a link, not a file"
        elif not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != entry.size_bytes:
            yield f"{name} has {path.stat().st_size} bytes; {MANIFEST_NAME} says {entry.size_bytes}"
        elif sha256_of(path) != entry.sha256:
            yield f"{name} has another SHA-256 than {MANIFEST_NAME} says"
    known = {*manifest.files, MANIFEST_NAME, SIGNATURE_NAME, _CACHE}
    for extra in sorted(entry.name for entry in folder.iterdir() if entry.name not in known):
        if extra.endswith(".plan") and _is_of_plans(manifest):
            yield f"{extra} is not in {MANIFEST_NAME}: repeat `python -m builder add-plan`, which was cut short"
        elif strict or not extra.startswith("."):  # half-written files are leftovers
            yield f"{extra} is not in {MANIFEST_NAME}"


def _is_of_plans(manifest: Manifest) -> bool:
    return manifest.profile in PROFILES and PROFILES[manifest.profile].loads_plans


def _check_plans(
    repository: ModelRepository,
    manifest: Manifest,
    this_machine: Callable[[], Machine],
    findings: Findings,
    *,
    required: bool,
) -> None:
    if not _is_of_plans(manifest):
        return
    try:
        misfit = misfit_of(repository, manifest, this_machine())
        promoted = manifest.version in repository.promoted(manifest.precision, "tensorrt")
    except RepositoryError:
        return  # reported with the configuration
    if misfit is None:
        return
    if misfit.known and (promoted or required):
        remedy = f"on this machine: `{plan_remedy(repository, manifest, misfit)}`"
        findings.faults.append(Fault(manifest.name, misfit.reason, remedy))
    else:
        findings.notes.append(f"{manifest.name}: {misfit.reason}")


def _check_networks(repository: ModelRepository, findings: Findings) -> None:
    """What a profile serves must be of one network: other classes are a fault, another export is noted."""
    for profile in contract.PROFILES:
        try:
            mixed = mixture(repository, profile)
        except RepositoryError:
            continue  # reported with the configuration
        if mixed is None:
            continue
        remedy = mixture_remedy(repository, mixed)
        if mixed.of_other_classes:
            findings.faults.append(Fault(f"profile {profile}", str(mixed), remedy))
        else:
            findings.notes.append(f"{mixed}; to serve one: {remedy}")


def _config_faults(repository: ModelRepository, precision: str) -> Iterator[Fault]:
    model = contract.network_model(precision)
    manifests = repository.manifests(precision)
    for profile in contract.PROFILES:
        path = repository.config_path(precision, profile)
        try:
            config = read_config(path)
        except RepositoryError as error:
            place = path.relative_to(repository.path)
            remedy = f"restore {place} from {place}{TEMPLATE_SUFFIX} of the shipped model_repository"
            yield Fault(model, str(error), remedy)
            continue
        mine = [manifest for manifest in manifests if manifest.profile in PROFILES[profile].serves]
        named = list(config.version_policy.specific.versions)
        # A profile without its own builds serves nothing until a version is promoted for it.
        wanted = named or PROFILES[profile].is_built
        servable = [one for one in mine if repository.is_servable(precision, one.version, profile)]
        if wanted and servable and not repository.promoted(precision, profile):
            yield Fault(
                model,
                f"{path.name} names the versions {named}, of which none can be served under the profile {profile}",
                f"promote one with `python -m builder promote {servable[-1].name} --profile {profile}`",
            )
        for problem in network_problems(config, mine[-1].source) if mine else []:
            remedy = f"`{repository.build_command(precision, profile)}` writes it"
            yield Fault(model, f"{path.name}: {problem}", remedy)


def _named_stray_faults(repository: ModelRepository, precision: str) -> Iterator[Fault]:
    """Links and files that a configuration names as versions: the project ignores them, but Triton loads them."""
    for profile in contract.PROFILES:
        try:
            strays = repository.named_strays(precision, profile)
        except RepositoryError:
            continue  # reported with the configuration
        for stray in strays:
            yield Fault(contract.network_model(precision), stray, repository.stray_remedy(precision, profile))


def _leftover_notes(repository: ModelRepository, precision: str) -> list[str]:
    if repository.is_locked():
        return [f"{contract.network_model(precision)}: a builder is writing to the repository now"]
    return [
        f"{path.relative_to(repository.path)}: left by a builder that was killed; the next build removes it"
        for path in repository.leftovers(precision)
    ]


def _server_faults(repository: ModelRepository, precision: str | None) -> Iterator[Fault]:
    """Running servers that serve other versions than the configuration names: a promotion was cut short."""
    for running in running_servers(repository.path):
        with LiveServer.of(running) as server:
            for name in [precision] if precision else contract.PRECISIONS:
                model = contract.network_model(name)
                try:
                    ready = server.ready_versions(model)
                    promoted = repository.promoted(name, running.profile)
                except LiveError as error:
                    yield Fault(
                        model, str(error), "if it is still starting, try again when it is ready; else restart it"
                    )
                    break
                except RepositoryError:
                    continue  # reported with the configuration
                if ready and list(ready) != sorted(promoted):
                    command = f"python -m builder promote {model}/{max(promoted)}" if promoted else "restart the server"
                    remedy = f"`{command} --profile {running.profile}`" if promoted else command
                    problem = f"{server.name} serves {list(ready)}, the configuration names {promoted}"
                    yield Fault(model, problem, remedy)


def _rebuild_remedy(repository: ModelRepository, precision: str, version: int) -> str:
    folder = repository.version_folder(precision, version)
    rebuild = f"remove it with `rm -r {folder}` and build it again with the command that built it"
    try:
        profiles = repository.profiles_of(precision, version)
    except RepositoryError:  # reported with the configuration
        profiles = []
    if not profiles:
        return rebuild
    model = contract.network_model(precision)
    back = " and ".join(f"`python -m builder rollback {model} --profile {profile}`" for profile in profiles)
    return f"it is promoted ({', '.join(profiles)}): go back with {back}, then {rebuild}"
