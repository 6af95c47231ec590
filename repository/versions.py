"""What happens to versions after they are built: promoted, rolled back, pruned."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline import contract
from repository.errors import RepositoryError
from repository.integrity import misfit_of, plan_remedy, version_faults
from repository.live import LiveError, LiveServer
from repository.manifest import Manifest
from repository.network import onnx_network
from repository.networks import mixture, mixture_remedy, source_hash
from repository.plans import machine_at_hand
from repository.profiles import PROFILES
from repository.promotions import Action, Promotion, append_promotion, now_utc, read_promotions, rollback_target
from repository.running import running_servers
from repository.store import ModelRepository, write_text

_AS_BEFORE: Final = "Configuration and servers answer as before"


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
        """Read ``network_int8`` or ``network_int8/2``.

        Raises:
            ValueError: it is neither.
        """
        models = {contract.network_model(precision): precision for precision in contract.PRECISIONS}
        name, slash, number = text.rstrip("/").partition("/")
        if name not in models or (slash and not re.fullmatch(r"[1-9]\d*", number)):
            raise ValueError(
                f"{text!r}; expected a model, or a model and version, such as network_int8/2; models: "
                f"{', '.join(models)}"
            )
        return cls(models[name], int(number) if slash else None)

    @property
    def model(self) -> str:
        """Name of the model."""
        return contract.network_model(self.precision)

    def __str__(self) -> str:
        return self.model if self.version is None else f"{self.model}/{self.version}"


@dataclass(frozen=True)
class Promoted:
    """Outcome of a promotion or rollback.

    Attributes:
        version: served from now on.
        previous: served before; None if none was, the same number if nothing changed.
        profile: cpu, tensorrt or cuda.
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
    mix_sources: bool = False,
    servers: Sequence[LiveServer] | None = None,
) -> Promoted:
    """Serve one version; see :func:`promote_together`."""
    refs = [VersionRef(precision, version)]
    return promote_together(repository, refs, profile, force=force, mix_sources=mix_sources, servers=servers)[0]


def promote_together(
    repository: ModelRepository,
    refs: Sequence[VersionRef],
    profile: str | None = None,
    *,
    force: bool = False,
    mix_sources: bool = False,
    servers: Sequence[LiveServer] | None = None,
) -> list[Promoted]:
    """Serve versions: name them in the profile's configurations, and have running servers turn to them.

    Either all of them are served in the end, or what was served before.

    Args:
        repository: where they lie.
        refs: versions, at most one of each model.
        profile: cpu, tensorrt or cuda; None takes the one that they were built for.
        force: also if a gate did not pass.
        mix_sources: also beside versions of another export with the same classes.
        servers: to reload; None takes those of this repository and profile that run on this machine.

    Returns:
        One entry per version, in order.

    Raises:
        RepositoryError: there is no such version, it is damaged, it cannot be served under the profile, its gate did
            not pass, or it comes from another network than what is served beside it.
        PromotionError: a server could not serve them; configurations and servers are as they were.

    Example:
        >>> refs = [VersionRef(precision, 2) for precision in ("fp32", "fp16", "int8")]
        >>> promote_together(repository, refs, "cpu")  # doctest: +SKIP
    """
    _check_one_of_each(refs)
    manifests = [read_manifest(repository, ref) for ref in refs]
    profile = profile or _profile_of(refs, manifests)
    for ref, manifest in zip(refs, manifests, strict=True):
        _check_gate(ref, manifest, force)
        faults = version_faults(repository, ref.precision, manifest.version)
        if faults:
            raise RepositoryError(f"{ref} is damaged: {faults[0].problem}; {faults[0].remedy}")
    return _turn_to(repository, manifests, profile, "promote", servers, mix_sources=mix_sources)


def rollback(
    repository: ModelRepository,
    precision: str,
    profile: str | None = None,
    *,
    servers: Sequence[LiveServer] | None = None,
) -> Promoted:
    """Serve the version of one model that was served before; see :func:`rollback_together`."""
    return rollback_together(repository, [precision], profile, servers=servers)[0]


def rollback_together(
    repository: ModelRepository,
    precisions: Sequence[str],
    profile: str | None = None,
    *,
    servers: Sequence[LiveServer] | None = None,
) -> list[Promoted]:
    """Serve the versions that were served before the current ones; their gates and sources are not asked again.

    Args:
        repository: the repository.
        precisions: of the models, each once.
        profile: None takes the one that has promotions.
        servers: as in :func:`promote_together`.

    Returns:
        One entry per model, in order.

    Raises:
        RepositoryError: nothing was served before, it is gone or damaged, or it has other classes than what is served
            beside it.
        PromotionError: as in :func:`promote_together`.
    """
    _check_one_of_each([VersionRef(precision) for precision in precisions])
    profile = profile or _profile_with_promotions(repository, precisions[0])
    manifests = []
    for precision in precisions:
        target = rollback_version(repository, precision, profile)
        model = contract.network_model(precision)
        if target is None:
            raise RepositoryError(
                f"no version of {model} was served before the current one under the profile {profile}; promote one "
                f"with `python -m builder promote {model}/VERSION --profile {profile}`"
            )
        ref = VersionRef(precision, target)
        manifests.append(read_manifest(repository, ref))
        faults = version_faults(repository, precision, target)
        if faults:
            raise RepositoryError(f"{ref} is damaged: {faults[0].problem}; promote another version")
    return _turn_to(repository, manifests, profile, "rollback", servers, mix_sources=True)


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


def _check_one_of_each(refs: Sequence[VersionRef]) -> None:
    models = [ref.model for ref in refs]
    twice = sorted({model for model in models if models.count(model) > 1})
    if twice or not refs:
        raise RepositoryError(
            f"{' '.join(map(str, refs)) or 'nothing'} was given; needed: at least one model, and each once"
        )


def _profile_of(refs: Sequence[VersionRef], manifests: Sequence[Manifest]) -> str:
    profiles = sorted({manifest.profile for manifest in manifests})
    if len(profiles) > 1:
        built = ", ".join(f"{ref} for {manifest.profile}" for ref, manifest in zip(refs, manifests, strict=True))
        raise RepositoryError(f"{built}: built for different profiles; name one with --profile {' or '.join(profiles)}")
    return profiles[0]


def _check_one_network(
    repository: ModelRepository, manifests: Sequence[Manifest], profile: str, mix_sources: bool
) -> None:
    """Refuse to serve versions of different networks beside each other."""
    mixed = mixture(repository, profile, planned={one.precision: one.version for one in manifests})
    if mixed is None or (mix_sources and not mixed.of_other_classes):
        return
    what = ", ".join(f"{one.model}/{one.version}" for one in manifests)
    ways = mixture_remedy(repository, mixed, source_hash(manifests[0].source))
    if not mixed.of_other_classes:
        ways += "; or, to serve versions of both exports for a while, repeat your command with --mix-sources"
    raise RepositoryError(f"{what} not promoted: then {mixed}. One repository serves one network: {ways}")


def _turn_to(
    repository: ModelRepository,
    manifests: Sequence[Manifest],
    profile: str,
    action: Action,
    servers: Sequence[LiveServer] | None,
    *,
    mix_sources: bool,
) -> list[Promoted]:
    with repository.locked(), contextlib.ExitStack() as stack:
        for manifest in manifests:
            repository.check_servable(manifest.precision, manifest.version, profile)
        _check_one_network(repository, manifests, profile, mix_sources)
        local = servers is None
        if servers is None:
            found = [server for server in running_servers(repository.path) if server.profile == profile]
            servers = [stack.enter_context(LiveServer.of(server)) for server in found]
        turns = [_Turn(repository, manifest, profile, servers, on_this_machine=local) for manifest in manifests]
        begun: list[_Turn] = []
        try:
            for turn in turns:
                begun.append(turn)
                turn.make()
        except BaseException as error:
            undone = _undo(begun)
            if isinstance(error, LiveError):
                raise PromotionError(f"{begun[-1].ref} is not promoted: {error}. {undone}") from error
            raise
        for turn in turns:
            turn.log(action)
    return [turn.outcome() for turn in turns]


class _Turn:
    """One model's way from the version that is served to another one."""

    def __init__(
        self,
        repository: ModelRepository,
        manifest: Manifest,
        profile: str,
        servers: Sequence[LiveServer],
        *,
        on_this_machine: bool,
    ) -> None:
        """Look at what is served, and refuse what could not be; nothing is changed yet."""
        self._repository, self._manifest, self._profile, self._servers = repository, manifest, profile, servers
        self.ref = VersionRef(manifest.precision, manifest.version)
        self._path = repository.config_path(manifest.precision, profile)
        self._previous = _current(repository, manifest.precision, profile)
        self._named = repository.named_versions(manifest.precision, profile)
        self._before = self._path.read_text(encoding="utf-8")
        self.serving = [server for server in servers if _serves(server, self.ref)]
        if self.serving:
            _try_before(repository, self.ref, manifest, profile, on_this_machine=on_this_machine)

    def make(self) -> None:
        """Change the configuration, then the servers."""
        precision, version = self._manifest.precision, self._manifest.version
        self._repository.promote(precision, self._profile, version)
        dims = tuple(self._manifest.source["tensor_sizes"][contract.IMAGES.name])
        for server in self.serving:
            _switch(server, precision, version, dims)

    def restore(self) -> None:
        """Put the configuration back."""
        if self._named != [self._manifest.version]:
            write_text(self._path, self._before)

    def log(self, action: Action) -> None:
        """Write the promotion down, unless it changed nothing."""
        version = self._manifest.version
        forced = action == "promote" and gate_refusal(self._manifest) is not None
        if self._previous != version or forced:
            promotion = Promotion(now_utc(), self._profile, action, version, self._previous, forced)
            append_promotion(self._repository.model_folder(self._manifest.precision), promotion)

    def outcome(self) -> Promoted:
        """What is served now."""
        idle = tuple(server.name for server in self._servers if server not in self.serving)
        names = tuple(server.name for server in self.serving)
        return Promoted(self._manifest.version, self._previous, self._profile, names, idle)


def _undo(turns: Sequence[_Turn]) -> str:
    """Bring configurations and servers back; says how that went."""
    for turn in turns:
        turn.restore()
    told = [_reload_all(turn.serving, turn.ref.model) for turn in reversed(turns)]
    return next((text for text in told if text != _AS_BEFORE), told[0])


def _try_before(
    repository: ModelRepository, ref: VersionRef, manifest: Manifest, profile: str, *, on_this_machine: bool
) -> None:
    """Refuse what could not be loaded before a server is asked to: a failed load leaves its mark there."""
    if not PROFILES[profile].loads_plans:
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
            what_to_do = plan_remedy(repository, manifest, misfit)
            raise PromotionError(f"{ref} is not promoted: {misfit.reason}; on this machine: {what_to_do}")


def _serves(server: LiveServer, ref: VersionRef) -> bool:
    try:
        server.wait_live()
        return bool(server.ready_versions(ref.model))
    except LiveError as error:
        raise PromotionError(f"{ref} is not promoted: {error}") from error


def _switch(server: LiveServer, precision: str, version: int, input_dims: tuple[int, ...]) -> None:
    model, ensemble = contract.network_model(precision), contract.ensemble_model(precision)
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
    return f"{_AS_BEFORE}{told}"


def _current(repository: ModelRepository, precision: str, profile: str) -> int | None:
    """The version that is served: the highest of those that the configuration names and that are there."""
    return max(repository.promoted(precision, profile), default=None)


def _profile_with_promotions(repository: ModelRepository, precision: str) -> str:
    promoted = {promotion.profile for promotion in read_promotions(repository.model_folder(precision))}
    profiles = [profile for profile in contract.PROFILES if profile in promoted]
    if len(profiles) == 1:
        return profiles[0]
    model = contract.network_model(precision)
    what = f"versions were promoted under {' and '.join(profiles)}" if profiles else "no version was promoted"
    allowed = " or ".join(profiles or contract.PROFILES)
    raise RepositoryError(f"{model}: {what}; name the profile with --profile {allowed}")


def _prunable(repository: ModelRepository, precision: str, keep: int) -> Iterator[int]:
    versions = repository.versions(precision)
    kept = set(versions[max(0, len(versions) - keep) :])
    for profile in contract.PROFILES:
        kept |= set(repository.promoted(precision, profile))
        target = rollback_version(repository, precision, profile)
        kept |= {target} if target is not None else set()
    return (version for version in versions if version not in kept)
