"""What happens to versions after they are built: promoted, rolled back, pruned."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Final

import numpy as np

from base.files import write_atomically
from pipeline import contract
from repository.errors import RepositoryError
from repository.integrity import misfit_of, plan_remedy, version_faults
from repository.live import LiveError, LiveServer
from repository.manifest import Manifest
from repository.network import onnx_network
from repository.networks import mixture, mixture_remedy
from repository.plans import find_machine
from repository.profiles import PROFILES
from repository.promotions import Action, Promotion, append_promotion, read_promotions, rollback_target
from repository.running import running_servers
from repository.store import ModelRepository

_AS_BEFORE: Final = "Configuration and servers answer as before"


class PromotionError(RepositoryError):
    """A version was not promoted; what was served before is still served."""


@dataclass(frozen=True)
class VersionRef:
    """A model, or one of its versions, as commands take it.

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
        if name not in models or (slash and not re.fullmatch(r"[1-9][0-9]{0,17}", number)):
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
    refs: Sequence[VersionRef],
    profile: str | None = None,
    *,
    force: bool = False,
    mix_sources: bool = False,
    servers: Sequence[LiveServer] | None = None,
) -> list[Promoted]:
    """Serve versions: name them in the profile's configurations, and have running servers load them.

    In the end either all of them are served, or what was served before.

    Args:
        repository: where they are.
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
        >>> promote(repository, refs, "cpu")  # doctest: +SKIP
    """
    _check_one_of_each(refs)
    manifests = [repository.manifest(ref.precision, ref.version or 0) for ref in refs]
    profile = profile or _profile_of(manifests)
    for manifest in manifests:
        if manifest.gate_refusal is not None and not force:
            raise RepositoryError(
                f"{manifest.name} is not promoted: {manifest.gate_refusal}. Build it again with more calibration "
                "images, promote another version, or take the risk with "
                f"`python -m builder promote {manifest.name} --force`"
            )
        _check_whole(repository, manifest)
    return _turn_to(repository, manifests, profile, "promote", servers, mix_sources=mix_sources)


def rollback(
    repository: ModelRepository,
    precisions: Sequence[str],
    profile: str | None = None,
    *,
    servers: Sequence[LiveServer] | None = None,
) -> list[Promoted]:
    """Serve the versions that were served before the current ones, whatever their gates and sources.

    Args:
        repository: where they are.
        precisions: of the models, each once.
        profile: None takes the one that has promotions.
        servers: as in :func:`promote`.

    Returns:
        One entry per model, in order.

    Raises:
        RepositoryError: nothing was served before, it is missing or damaged, or it has other classes than what is
            served beside it.
        PromotionError: as in :func:`promote`.
    """
    _check_one_of_each([VersionRef(precision) for precision in precisions])
    profile = profile or _profile_with_promotions(repository, precisions[0])
    manifests = []
    for precision in precisions:
        target = rollback_version(repository, precision, profile)
        if target is None:
            model = contract.network_model(precision)
            raise RepositoryError(
                f"no version of {model} was served before the current one under the profile {profile}; promote one "
                f"with `python -m builder promote {model}/VERSION --profile {profile}`"
            )
        manifests.append(repository.manifest(precision, target))
        _check_whole(repository, manifests[-1])
    return _turn_to(repository, manifests, profile, "rollback", servers, mix_sources=True)


def rollback_version(repository: ModelRepository, precision: str, profile: str) -> int | None:
    """The version that a rollback would go to; None if there is none."""
    promotions = read_promotions(repository.model_folder(precision), profile)
    return rollback_target(promotions, _current(repository, precision, profile))


def prune(repository: ModelRepository, keep: int, *, dry_run: bool = False) -> list[VersionRef]:
    """Remove old versions; never a promoted one, nor the one that a rollback would go to.

    Args:
        repository: where they are.
        keep: how many of the newest versions of each model stay in any case, 0 or more.
        dry_run: remove nothing.

    Returns:
        The versions that were, or would be, removed.

    Raises:
        RepositoryError: ``keep`` is negative, or a configuration is broken.
    """
    if keep < 0:
        raise RepositoryError(f"keep is {keep}; allowed: 0 or more")
    removed = []
    with contextlib.nullcontext() if dry_run else repository.locked():
        for precision in contract.PRECISIONS:
            versions = repository.versions(precision)
            kept: set[int | None] = set(versions[max(0, len(versions) - keep) :])
            for profile in contract.PROFILES:
                kept |= {*repository.promoted(precision, profile), rollback_version(repository, precision, profile)}
            removed += [VersionRef(precision, version) for version in versions if version not in kept]
        for ref in [] if dry_run else removed:
            repository.remove(ref.precision, ref.version or 0)
    return removed


def _check_whole(repository: ModelRepository, manifest: Manifest) -> None:
    faults = version_faults(repository, manifest.precision, manifest.version)
    if faults:
        fault = faults[0]
        subject = "" if fault.subject == manifest.name else f"{fault.subject} "
        raise RepositoryError(f"{manifest.name} cannot be served: {subject}{fault.problem}; {fault.remedy}")


def _check_one_of_each(refs: Sequence[VersionRef]) -> None:
    if not refs or len({ref.model for ref in refs}) < len(refs):
        raise RepositoryError(
            f"{' '.join(map(str, refs)) or 'nothing'} was given; needed: at least one model, and each once"
        )


def _profile_of(manifests: Sequence[Manifest]) -> str:
    profiles = sorted({manifest.profile for manifest in manifests})
    if len(profiles) > 1:
        built = ", ".join(f"{manifest.name} for {manifest.profile}" for manifest in manifests)
        raise RepositoryError(f"{built}: built for different profiles; name one with --profile {' or '.join(profiles)}")
    return profiles[0]


def _profile_with_promotions(repository: ModelRepository, precision: str) -> str:
    promoted = {promotion.profile for promotion in read_promotions(repository.model_folder(precision))}
    profiles = [profile for profile in contract.PROFILES if profile in promoted]
    if len(profiles) == 1:
        return profiles[0]
    model = contract.network_model(precision)
    what = f"versions were promoted under {' and '.join(profiles)}" if profiles else "no version was promoted"
    allowed = " or ".join(profiles or contract.PROFILES)
    raise RepositoryError(f"{model}: {what}; name the profile with --profile {allowed}")


def _current(repository: ModelRepository, precision: str, profile: str) -> int | None:
    """The version that is served: the highest that the configuration names and that can be served."""
    return max(repository.promoted(precision, profile), default=None)


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
            mine = [server for server in running_servers(repository.path) if server.profile == profile]
            servers = [stack.enter_context(LiveServer.of(server)) for server in mine]
        turns = [_Turn(repository, manifest, profile, servers, on_this_machine=local) for manifest in manifests]
        begun: list[_Turn] = []
        try:
            for turn in turns:
                begun.append(turn)
                turn.make()
        except BaseException as error:
            outcome = _undo(begun)
            if isinstance(error, LiveError):
                raise PromotionError(f"{begun[-1].manifest.name} is not promoted: {error}. {outcome}") from error
            raise
        for turn in turns:
            turn.log(action)
    return [turn.outcome() for turn in turns]


def _check_one_network(
    repository: ModelRepository, manifests: Sequence[Manifest], profile: str, mix_sources: bool
) -> None:
    """Refuse to serve versions of different networks beside each other."""
    mixed = mixture(repository, profile, planned={one.precision: one.version for one in manifests})
    if mixed is None or (mix_sources and not mixed.of_other_classes):
        return
    ways = mixture_remedy(repository, mixed, manifests[0].source_hash)
    if not mixed.of_other_classes:
        ways += "; or, to serve versions of both exports for a while, repeat your command with --mix-sources"
    names = ", ".join(manifest.name for manifest in manifests)
    raise RepositoryError(f"{names} not promoted: then {mixed}. One repository serves one network: {ways}")


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
        """See what is served, and refuse what could not be; nothing is changed yet."""
        self.manifest = manifest
        self._repository, self._profile = repository, profile
        self._path = repository.config_path(manifest.precision, profile)
        self._text = self._path.read_text(encoding="utf-8")
        self._previous = _current(repository, manifest.precision, profile)
        self.serving = [server for server in servers if _serves(server, manifest)]
        self._idle = [server for server in servers if server not in self.serving]
        if self.serving:
            _check_loadable(repository, manifest, profile, on_this_machine=on_this_machine)

    def make(self) -> None:
        """Change the configuration, then the servers."""
        folder = self._repository.version_folder(self.manifest.precision, self.manifest.version)
        self._repository.drop_compiled(folder)
        self._repository.promote(self.manifest.precision, self._profile, self.manifest.version)
        for server in self.serving:
            _switch(server, self.manifest)

    def restore(self) -> None:
        """Put the configuration back."""
        if self._path.read_text(encoding="utf-8") != self._text:
            write_atomically(self._path, self._text)

    def log(self, action: Action) -> None:
        """Log the promotion, unless it changed nothing."""
        version = self.manifest.version
        forced = action == "promote" and self.manifest.gate_refusal is not None
        if self._previous != version or forced:
            time_utc = datetime.now(timezone.utc).isoformat(timespec="seconds")
            promotion = Promotion(time_utc, self._profile, action, version, self._previous, forced)
            append_promotion(self._repository.model_folder(self.manifest.precision), promotion)

    def outcome(self) -> Promoted:
        """What is served now."""
        names, idle = (tuple(server.name for server in servers) for servers in (self.serving, self._idle))
        return Promoted(self.manifest.version, self._previous, self._profile, names, idle)


def _undo(turns: Sequence[_Turn]) -> str:
    """Put configurations and servers back; returns how that went."""
    for turn in turns:
        turn.restore()
    outcomes = [_reload_all(turn.serving, turn.manifest.model) for turn in reversed(turns)]
    return next((text for text in outcomes if text != _AS_BEFORE), outcomes[0])


def _check_loadable(repository: ModelRepository, manifest: Manifest, profile: str, *, on_this_machine: bool) -> None:
    """Refuse a version that could not be loaded before a server tries: it remembers a failed load."""
    if not PROFILES[profile].loads_plans:
        path = repository.version_folder(manifest.precision, manifest.version) / "model.onnx"
        try:
            onnx_network(path.read_bytes())(np.zeros((1, *_input_dims(manifest)), np.uint8))
        except Exception as error:  # ONNX Runtime raises its own types, one per status
            raise PromotionError(
                f"{manifest.name} is not promoted: ONNX Runtime does not run its model.onnx ({error})"
            ) from error
    elif on_this_machine:
        misfit = misfit_of(repository, manifest, find_machine())
        if misfit is not None and misfit.known:
            remedy = plan_remedy(repository, manifest, misfit)
            raise PromotionError(f"{manifest.name} is not promoted: {misfit.reason}; on this machine: {remedy}")


def _input_dims(manifest: Manifest) -> tuple[int, ...]:
    return tuple(manifest.source["tensor_sizes"][contract.IMAGES.name])


def _serves(server: LiveServer, manifest: Manifest) -> bool:
    try:
        server.wait_live()
        return bool(server.ready_versions(manifest.model))
    except LiveError as error:
        raise PromotionError(f"{manifest.name} is not promoted: {error}") from error


def _switch(server: LiveServer, manifest: Manifest) -> None:
    ensemble = contract.ensemble_model(manifest.precision)
    with_ensemble = server.is_model_ready(ensemble)
    if server.ready_versions(manifest.model) != (manifest.version,):
        server.reload(manifest.model)
    server.check_answers(manifest.precision, manifest.version, _input_dims(manifest))
    if with_ensemble and not server.is_model_ready(ensemble):
        raise LiveError(f"{server.name}: {ensemble} is not ready with {manifest.name}")


def _reload_all(servers: Sequence[LiveServer], model: str) -> str:
    """Return servers to the configuration on disk; returns how that went."""
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
    note = f"; until it is restarted, /v2/health/ready of {', '.join(unready)} says 'not ready'" if unready else ""
    return f"{_AS_BEFORE}{note}"
