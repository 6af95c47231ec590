"""What happens to versions after they are built: promoted, rolled back, pruned."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from builder.errors import RepositoryError
from builder.integrity import misfit_of, plan_remedy, version_faults
from builder.live import LiveError, LiveServer
from builder.manifest import Manifest
from builder.plans import machine_at_hand
from builder.promotions import Action, Promotion, append_promotion, now_utc, read_promotions, rollback_target
from builder.repository import ModelRepository, write_text
from builder.verification import onnx_network
from pipeline import contract
from serving.state import running_servers


class PromotionError(RepositoryError):
    """A version was not promoted; what was served before is served still."""


@dataclass(frozen=True)
class VersionRef:
    """A model, or one of its versions, as a person names it.

    Attributes:
        precision: fp32, fp16 or int8.
        version: None means the model.
    """

    precision: str
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> VersionRef:
        """Read ``segmentation_int8`` or ``segmentation_int8/2``.

        Raises:
            ValueError: it is neither.
        """
        models = {contract.segmentation_model(precision): precision for precision in contract.PRECISIONS}
        name, slash, number = text.rstrip("/").partition("/")
        if name not in models or (slash and not re.fullmatch(r"[1-9]\d*", number)):
            raise ValueError(
                f"{text!r}; expected a model, or a model and version, such as segmentation_int8/2; models: "
                f"{', '.join(models)}"
            )
        return cls(models[name], int(number) if slash else None)

    @property
    def model(self) -> str:
        """Name of the model."""
        return contract.segmentation_model(self.precision)

    def __str__(self) -> str:
        return self.model if self.version is None else f"{self.model}/{self.version}"


@dataclass(frozen=True)
class Promoted:
    """Outcome of a promotion or rollback.

    Attributes:
        version: served from now on.
        previous: served before; None if none was, the same number if nothing changed.
        profile: cpu or tensorrt.
        servers: running servers that answer with it, by name.
        not_serving: running servers that do not serve this precision, by name.
    """

    version: int
    previous: int | None
    profile: str
    servers: tuple[str, ...]
    not_serving: tuple[str, ...]


def promote(
    repository: ModelRepository,
    precision: str,
    version: int,
    profile: str | None = None,
    *,
    force: bool = False,
    servers: Sequence[LiveServer] | None = None,
) -> Promoted:
    """Serve a version: name it in the profile's configuration, and have running servers turn to it.

    Args:
        repository: where it lies.
        precision: fp32, fp16 or int8.
        version: its number.
        profile: cpu or tensorrt; None takes the one it was built for.
        force: also if its gate did not pass.
        servers: to reload; None takes those of this repository and profile that run on this machine.

    Raises:
        RepositoryError: there is no such version, it is damaged, it cannot be served under the profile, or its gate did
            not pass.
        PromotionError: a server could not serve it; configuration and servers are as they were.
    """
    ref = VersionRef(precision, version)
    manifest = read_manifest(repository, ref)
    profile = profile or manifest.profile
    _check_gate(ref, manifest, force)
    faults = version_faults(repository, precision, version)
    if faults:
        raise RepositoryError(f"{ref} is damaged: {faults[0].problem}; {faults[0].remedy}")
    forced = force and gate_refusal(manifest) is not None
    return _turn_to(repository, ref, manifest, profile, "promote", forced, servers)


def rollback(
    repository: ModelRepository,
    precision: str,
    profile: str | None = None,
    *,
    servers: Sequence[LiveServer] | None = None,
) -> Promoted:
    """Serve the version that was served before the current one; its gate is not asked again.

    Args:
        repository: the repository.
        precision: fp32, fp16 or int8.
        profile: None takes the one that has promotions.
        servers: as in :func:`promote`.

    Raises:
        RepositoryError: nothing was served before, or it is gone or damaged.
        PromotionError: as in :func:`promote`.
    """
    profile = profile or _profile_with_promotions(repository, precision)
    target = rollback_version(repository, precision, profile)
    model = contract.segmentation_model(precision)
    if target is None:
        raise RepositoryError(
            f"no version of {model} was served before the current one under the profile {profile}; promote one with "
            f"`python -m builder promote {model}/VERSION --profile {profile}`"
        )
    ref = VersionRef(precision, target)
    manifest = read_manifest(repository, ref)
    faults = version_faults(repository, precision, target)
    if faults:
        raise RepositoryError(f"{ref} is damaged: {faults[0].problem}; promote another version")
    return _turn_to(repository, ref, manifest, profile, "rollback", False, servers)


def rollback_version(repository: ModelRepository, precision: str, profile: str) -> int | None:
    """The version that a rollback would go to; None if there is none."""
    promotions = read_promotions(repository.model_folder(precision), profile)
    return rollback_target(promotions, _current(repository, precision, profile))


def prune(repository: ModelRepository, keep: int, *, dry_run: bool = False) -> list[VersionRef]:
    """Remove old versions; never a promoted one, nor the one that a rollback would go to.

    Args:
        repository: the repository.
        keep: how many of the newest versions of each model stay in any case, 0 or more.
        dry_run: remove nothing.

    Returns:
        The versions that were, or would be, removed.

    Raises:
        RepositoryError: ``keep`` is negative, or a configuration is broken.
    """
    if keep < 0:
        raise RepositoryError(f"keep is {keep}; allowed: 0 or more")
    with contextlib.nullcontext() if dry_run else repository.locked():
        doomed = [
            VersionRef(precision, version)
            for precision in contract.PRECISIONS
            for version in _prunable(repository, precision, keep)
        ]
        for ref in [] if dry_run else doomed:
            repository.remove(ref.precision, ref.version or 0)
    return doomed


def read_manifest(repository: ModelRepository, ref: VersionRef) -> Manifest:
    """Manifest of a version.

    Raises:
        RepositoryError: no such version, or a broken manifest.
    """
    versions = repository.versions(ref.precision)
    if ref.version not in versions:
        there = f"there are {', '.join(map(str, versions))}" if versions else "none is built"
        raise RepositoryError(f"{ref}: no such version in {repository.path}; {there}. See `python -m builder list`")
    return Manifest.read(repository.model_folder(ref.precision) / str(ref.version))


def gate_refusal(manifest: Manifest) -> str | None:
    """Why a version's gate does not allow it to be served; None if it does.

    fp32 is what the others are compared with, so it needs no verification.
    """
    verification = manifest.verification
    if verification is None:
        return None if manifest.precision == "fp32" else "it was never verified against fp32"
    if verification.get("passed") is True:
        return None
    metrics, gate = verification.get("metrics") or {}, verification.get("gate") or {}
    found = ", ".join(f"{name} {_number(metrics.get(name))}, needed {_number(least)}" for name, least in gate.items())
    return f"its gate did not pass ({found or 'the manifest does not say why'})"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "not measured"


def _check_gate(ref: VersionRef, manifest: Manifest, force: bool) -> None:
    reason = gate_refusal(manifest)
    if reason is not None and not force:
        raise RepositoryError(
            f"{ref} is not promoted: {reason}. Build it again with more calibration images, promote another "
            f"version, or take the risk with `python -m builder promote {ref} --force`"
        )


def _turn_to(
    repository: ModelRepository,
    ref: VersionRef,
    manifest: Manifest,
    profile: str,
    action: Action,
    forced: bool,
    servers: Sequence[LiveServer] | None,
) -> Promoted:
    version = manifest.version
    with repository.locked(), contextlib.ExitStack() as stack:
        path = repository.config_path(ref.precision, profile)
        previous = _current(repository, ref.precision, profile)
        named = repository.named_versions(ref.precision, profile)
        before = path.read_text(encoding="utf-8")
        local = servers is None
        if servers is None:
            found = [server for server in running_servers(repository.path) if server.profile == profile]
            servers = [stack.enter_context(LiveServer.of(server)) for server in found]
        serving = [server for server in servers if _serves(server, ref)]
        if serving:
            _try_before(repository, ref, manifest, profile, on_this_machine=local)
        repository.promote(ref.precision, profile, version)
        try:
            for server in serving:
                _switch(server, ref.precision, version, tuple(manifest.source["tensor_sizes"][contract.IMAGES.name]))
        except BaseException as error:
            if named != [version]:
                write_text(path, before)
            undone = _reload_all(serving, ref.model)
            if isinstance(error, LiveError):
                raise PromotionError(f"{ref} is not promoted: {error}. {undone}") from error
            raise
        if previous != version or forced:
            promotion = Promotion(now_utc(), profile, action, version, previous, forced)
            append_promotion(repository.model_folder(ref.precision), promotion)
    idle = tuple(server.name for server in servers if server not in serving)
    return Promoted(version, previous, profile, tuple(server.name for server in serving), idle)


def _try_before(
    repository: ModelRepository, ref: VersionRef, manifest: Manifest, profile: str, *, on_this_machine: bool
) -> None:
    """Refuse what could not be loaded before a server is asked to: a failed load leaves its mark there."""
    if profile == "cpu":
        dims = manifest.source["tensor_sizes"][contract.IMAGES.name]
        path = repository.model_folder(ref.precision) / str(ref.version) / "model.onnx"
        try:
            onnx_network(path.read_bytes())(np.zeros((1, *dims), np.uint8))
        except Exception as error:  # ONNX Runtime raises types of its own, one per status
            raise PromotionError(
                f"{ref} is not promoted: ONNX Runtime does not run its model.onnx ({error})"
            ) from error
    elif on_this_machine:
        misfit = misfit_of(repository, manifest, machine_at_hand())
        if misfit is not None and misfit.known:
            remedy = plan_remedy(repository, manifest, misfit)
            raise PromotionError(f"{ref} is not promoted: {misfit.reason}; on this machine: {remedy}")


def _serves(server: LiveServer, ref: VersionRef) -> bool:
    try:
        server.wait_live()
        return bool(server.ready_versions(ref.model))
    except LiveError as error:
        raise PromotionError(f"{ref} is not promoted: {error}") from error


def _switch(server: LiveServer, precision: str, version: int, input_dims: tuple[int, ...]) -> None:
    model, ensemble = contract.segmentation_model(precision), contract.ensemble_model(precision)
    with_ensemble = server.is_model_ready(ensemble)
    if server.ready_versions(model) != (version,):
        server.reload(model)
    server.check_answers(precision, version, input_dims)
    if with_ensemble and not server.is_model_ready(ensemble):
        raise LiveError(f"{server.name}: {ensemble} is not ready with {model}/{version}")


def _reload_all(servers: Sequence[LiveServer], model: str) -> str:
    """Bring servers back to the configuration on disk; says how that went."""
    faults, unready = [], []
    for server in servers:
        try:
            server.reload(model)
            if not server.is_ready():
                unready.append(server.name)
        except LiveError as error:
            faults.append(str(error))
    if faults:
        return f"The configuration is as it was, but {'; '.join(faults)}: restart it"
    # Triton remembers a version that failed to load (seen on 2.51), and has no call that makes it forget.
    told = f"; until it is restarted, /v2/health/ready of {', '.join(unready)} says 'not ready'" if unready else ""
    return f"Configuration and servers answer as before{told}"


def _current(repository: ModelRepository, precision: str, profile: str) -> int | None:
    """The version that is served: the highest of those that the configuration names and that are there."""
    return max(repository.promoted(precision, profile), default=None)


def _profile_with_promotions(repository: ModelRepository, precision: str) -> str:
    profiles = {promotion.profile for promotion in read_promotions(repository.model_folder(precision))}
    if len(profiles) == 1:
        return profiles.pop()
    model = contract.segmentation_model(precision)
    what = "versions were promoted under both profiles" if profiles else "no version was promoted"
    raise RepositoryError(f"{model}: {what}; name the profile with --profile {' or '.join(contract.PROFILES)}")


def _prunable(repository: ModelRepository, precision: str, keep: int) -> Iterator[int]:
    versions = repository.versions(precision)
    kept = set(versions[max(0, len(versions) - keep) :])
    for profile in contract.PROFILES:
        kept |= set(repository.promoted(precision, profile))
        target = rollback_version(repository, precision, profile)
        kept |= {target} if target is not None else set()
    return (version for version in versions if version not in kept)
