"""The model repository on disk: its configurations, and versions that appear whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from base.files import write_atomically
from base.paths import address_problem
from pipeline import contract
from pipeline.class_names import to_parameters
from pipeline.letterbox import IMAGE_FITS
from pipeline.parameters import RequestLimits
from repository.errors import RepositoryError
from repository.manifest import MANIFEST_NAME, Manifest, classes_text, is_named, other_classes
from repository.profiles import PROFILES
from repository.shim import SHIM_NAME, is_importable
from repository.signatures import TrustedKeys
from repository.templates import BASE_SUFFIX, TEMPLATE_SUFFIX, left_behind, made_from, outdated, refresh, templates

SHIPPED_REPOSITORY: Final = Path(__file__).resolve().parent.parent / "model_repository"
DEFAULT_REPOSITORY: Final = Path(os.environ.get("SEGMENTATION_REPOSITORY") or SHIPPED_REPOSITORY)
"""Where commands look if no ``--repository`` is given; containers set the variable."""
PROMOTIONS_NAME: Final = ".promotions.jsonl"
"""Log of what was promoted, in each model's folder; Triton reads only numbered folders."""

CONFIG_NAME: Final = "config.pbtxt"
CONFIG_NAMES: Final = {name: profile.config_name for name, profile in PROFILES.items()}
"""Where the configuration of a ``network_*`` model lies, per profile."""

IMAGE_FIT: Final = "image_fit"
"""Parameter of the step that decodes: one of :data:`pipeline.letterbox.IMAGE_FITS`, as the network wants it."""
RESAMPLE: Final = "resample"
"""Likewise: one of :data:`pipeline.letterbox.RESAMPLING`, the operator's choice."""
NO_LIMITS: Final[Mapping[str, float]] = MappingProxyType({})
"""Of a network whose end leaves every request as it is."""

_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")  # what fits Triton's 64 bits
_STAGING_PREFIX: Final = ".building-"
_LOCK_NAME: Final = ".lock"
_COPYING_NAME: Final = ".copying"
_ONNX_FILES: Final = ("model.onnx", SHIM_NAME)
_MAKE_ROOM: Final = "make room on that disk, then repeat the command"
_BE_ALLOWED: Final = "make it writable for this user, then repeat the command"
_DISK_REMEDIES: Final = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: _MAKE_ROOM,
    errno.EROFS: _BE_ALLOWED,
    errno.EACCES: _BE_ALLOWED,
    errno.EPERM: _BE_ALLOWED,
    errno.ELOOP: "remove this link, then repeat the command",
}


class ModelRepository:
    """A Triton model repository of this project.

    Attributes:
        path: its folder.
        trusted: keys of those whose versions are served; None serves unsigned ones too.
    """

    def __init__(self, path: Path, trusted: TrustedKeys | None = None) -> None:
        self.path, self.trusted = path, trusted

    @classmethod
    def open(cls, path: Path) -> ModelRepository:
        """Open a repository; a folder that is missing or empty gets the shipped models without versions.

        A checkout's own gets its configurations from its templates.

        Raises:
            RepositoryError: the folder holds something else.
        """
        repository = cls(path)
        if any(templates(path)) and not address_problem(path):
            repository.refresh()
        problem = repository._problem()
        if problem is None:
            return repository
        copying = path / _COPYING_NAME
        if address_problem(path) or (path.exists() and not copying.exists() and _has_foreign_entries(path)):
            raise RepositoryError(f"{problem}; give a new or empty folder with --repository")
        if not SHIPPED_REPOSITORY.is_dir():
            raise RepositoryError(f"{SHIPPED_REPOSITORY}: missing; run from a checkout of the project")
        with _explained_disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        with repository.locked():
            if repository._problem() is not None:  # else another builder has made it meanwhile
                copying.touch()  # marks a copy that was cut short, which the next builder repeats
                folders = {folder.name for folder in SHIPPED_REPOSITORY.iterdir() if folder.is_dir()}
                # Not the whole at once: the folder may be another user's whose modes and times this one cannot set.
                for name in folders - _not_copied(str(SHIPPED_REPOSITORY), [*folders]):
                    shutil.copytree(SHIPPED_REPOSITORY / name, path / name, ignore=_not_copied, dirs_exist_ok=True)
                for template in templates(SHIPPED_REPOSITORY):
                    target = path / made_from(template).relative_to(SHIPPED_REPOSITORY)
                    target.parent.mkdir(exist_ok=True)
                    shutil.copyfile(template, target)
                copying.unlink()
        return repository

    def refresh(self) -> None:
        """Make configurations whose templates are new, as after the checkout was updated.

        Raises:
            RepositoryError: they cannot be written, or one is broken.
        """
        if outdated(self.path) or left_behind(self.path):
            with self.locked():
                refresh(self.path)

    @classmethod
    def existing(cls, path: Path, trusted_keys: Path | None = None) -> ModelRepository:
        """Open a repository that must exist; nothing is written but what a checkout's new templates make.

        Args:
            path: its folder.
            trusted_keys: file of public keys; None takes the one that the environment names, if it does.

        Raises:
            RepositoryError: there is none, or no keys are in the file.
        """
        repository = cls(path)
        with contextlib.suppress(RepositoryError):  # another user's, or read-only: what is there is served
            repository.refresh()
        problem = repository._problem()
        if problem is not None:
            raise RepositoryError(
                f"{problem}; give one with --repository, or make one with `python -m builder build --repository {path}`"
            )
        repository.trusted = TrustedKeys.configured(trusted_keys, path)
        return repository

    def _problem(self) -> str | None:
        """Why the path is not a whole repository; None if it is."""
        problem = address_problem(self.path)
        if problem is not None:
            return problem
        missing = [name for name in contract.SHARED_MODELS if not self.shared_config(name).is_file()]
        if not missing and not (self.path / _COPYING_NAME).exists():
            return None
        what = f"no {missing[0]}/{CONFIG_NAME}" if missing else "its copy was cut short"
        return f"{self.path} is not a model repository of this project ({what})"

    def model_folder(self, precision: str) -> Path:
        """Folder of ``network_<precision>``."""
        return self.path / contract.network_model(precision)

    def version_folder(self, precision: str, version: int) -> Path:
        """Folder of one version, there or not."""
        return self.model_folder(precision) / str(version)

    def config_path(self, precision: str, profile: str) -> Path:
        """The configuration of ``network_<precision>`` under a profile."""
        return self.model_folder(precision) / CONFIG_NAMES[profile]

    def shared_config(self, model: str) -> Path:
        """The configuration of a model that has the same one under every profile."""
        return self.path / model / CONFIG_NAME

    def versions(self, precision: str) -> list[int]:
        """Numbers of the versions on disk, rising; see :meth:`strays` for what else is there."""
        return sorted(int(entry.name) for entry in self._entries(precision) if _is_version(entry))

    def strays(self, precision: str) -> list[str]:
        """What lies among the versions and is none, such as a link, for messages. Everything ignores it."""
        known = (CONFIG_NAME, CONFIG_NAME + TEMPLATE_SUFFIX, "configs", "__pycache__")
        model = contract.network_model(precision)
        return [
            f"{model}: {entry.name!a} is {_kind_of(entry)}, not a version; it is ignored. Move it elsewhere"
            for entry in sorted(self._entries(precision))
            if not _is_version(entry) and entry.name not in known and not entry.name.startswith(".")
        ]

    def foreign_code(self, precision: str) -> list[str]:
        """Names of files and folders beside the versions that a Python process of the server could import."""
        return [
            ascii(entry.name)
            for entry in sorted(self._entries(precision))
            if not _is_version(entry) and is_importable(entry)
        ]

    def drop_compiled(self, folder: Path) -> None:
        """Remove what Python would run in place of a version's ``model.py``: its compiled form, which no hash covers.

        Args:
            folder: of the version, of a network or a step.

        Raises:
            RepositoryError: it cannot be removed.
        """
        cache = folder / "__pycache__"
        try:
            for path in [cache] if cache.is_symlink() else cache.glob(f"{Path(SHIM_NAME).stem}.*"):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise RepositoryError(
                f"{cache} may hold other code than {SHIM_NAME}, and cannot be removed ({error.strerror}); remove it "
                f"with `rm -r {cache}`"
            ) from error

    def _entries(self, precision: str) -> list[Path]:
        folder = self.model_folder(precision)
        return list(folder.iterdir()) if folder.is_dir() else []

    def step_folders(self) -> list[Path]:
        """Folders of the versions of the steps that all precisions share."""
        folders = (folder for model in contract.SHARED_MODELS for folder in (self.path / model).iterdir())
        return sorted(folder for folder in folders if _is_version(folder))

    def next_version(self, precision: str) -> int:
        """The number that follows the highest on disk, and that nothing else has taken.

        Raises:
            RepositoryError: no number is left.
        """
        version = max(self.versions(precision), default=0) + 1
        while os.path.lexists(self.version_folder(precision, version)):
            version += 1
        if not _VERSION.fullmatch(str(version)):
            highest = self.version_folder(precision, version - 1)
            raise RepositoryError(f"{highest} has the highest number that a version can have; move it elsewhere")
        return version

    def manifest(self, precision: str, version: int) -> Manifest:
        """Manifest of a version.

        Raises:
            RepositoryError: there is no such version, or its manifest is broken or that of another one.
        """
        versions = self.versions(precision)
        if version not in versions:
            found = f"there are {', '.join(map(str, versions))}" if versions else "none is built"
            raise RepositoryError(
                f"{contract.network_model(precision)}/{version}: no such version in {self.path}; {found}. See "
                f"`python -m builder list --repository {self.path}`"
            )
        manifest = Manifest.read(self.version_folder(precision, version))
        if (manifest.precision, manifest.version) != (precision, version):
            raise RepositoryError(
                f"{contract.network_model(precision)}/{version}: its {MANIFEST_NAME} describes {manifest.name} "
                f"({manifest.precision}); remove it, and build it again"
            )
        return manifest

    def manifests(self, precision: str) -> list[Manifest]:
        """Manifests of the versions on disk, by rising number; versions without a readable one are left out."""
        found = []
        for version in self.versions(precision):
            with contextlib.suppress(RepositoryError):
                found.append(self.manifest(precision, version))
        return found

    def find_build(self, precision: str, build_key: str) -> Manifest | None:
        """The version that an earlier, equal build wrote, if its files are still whole in number and size."""
        for manifest in reversed(self.manifests(precision)):
            folder = self.version_folder(precision, manifest.version)
            whole = all(
                (folder / name).is_file() and (folder / name).stat().st_size == entry.size_bytes
                for name, entry in manifest.files.items()
            )
            if manifest.build_key == build_key and whole:
                return manifest
        return None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the repository for writing; a second builder waits.

        Users who are neither the owner nor of the group cannot open the lock file, and so not hold the lock.

        Raises:
            RepositoryError: it cannot be written to, the disk is full, or the lock file is a link.
        """
        with _explained_disk_errors(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.path / _LOCK_NAME, flags, 0o660)
            try:
                status = os.fstat(descriptor)
                if status.st_uid == os.geteuid() and status.st_mode & 0o007:  # made by an older release
                    os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~0o007)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)  # the lock ends with it

    def check_writable(self) -> None:
        """Refuse a place that this user may not write to, before anything takes long.

        Raises:
            RepositoryError: names the folder, its owner, this user, and what to do.
        """
        nearest = next(place for place in (self.path.resolve(), *self.path.resolve().parents) if os.path.lexists(place))
        for folder in (nearest, *(self.model_folder(precision) for precision in contract.PRECISIONS)):
            with _explained_disk_errors(folder):
                if os.path.lexists(folder) and not os.access(folder, os.W_OK | os.X_OK):
                    number = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
                    raise OSError(number, os.strerror(number), str(folder))

    def is_locked(self) -> bool:
        """Whether a builder is writing to the repository now."""
        try:
            with (self.path / _LOCK_NAME).open() as stream:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except (FileNotFoundError, PermissionError):  # another user's repository
            return False
        return False

    def leftovers(self, precision: str) -> list[Path]:
        """Staging folders and half-written configurations that concern a precision.

        While the repository is not locked, they are those of builders that were killed.
        """
        folder = self.model_folder(precision)
        shared = [self.path / name for name in contract.SHARED_MODELS]
        half_written = [file for place in (folder, folder / "configs", *shared) for file in place.glob(".*.pbtxt-*")]
        versions = (self.version_folder(precision, version) for version in self.versions(precision))
        half_written += [file for version in versions for file in version.glob(".*-*")]
        return sorted([*folder.glob(f"{_STAGING_PREFIX}*"), *half_written])

    @contextlib.contextmanager
    def staging(self, precision: str) -> Iterator[Path]:
        """A temporary folder on the repository's file system, removed afterwards if it was not published.

        Call it while the repository is :meth:`locked`: leftovers of builders that were killed are removed.
        """
        parent = self.model_folder(precision)
        self._sweep(precision)
        folder = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, precision: str, staged: Path, version: int) -> Path:
        """Turn a staged folder into a version, in one step. Its files become read-only.

        Raises:
            RepositoryError: the version exists.
        """
        target = self.version_folder(precision, version)
        if os.path.lexists(target):
            raise RepositoryError(f"{target} exists; versions are never changed")
        for file in staged.iterdir():
            file.chmod(0o444)
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        staged.chmod(0o755)
        staged.rename(target)
        return target

    def remove(self, precision: str, version: int) -> None:
        """Remove a version: hidden in one step, then deleted. Call it while the repository is :meth:`locked`."""
        self._sweep(precision)
        folder = self.version_folder(precision, version)
        hidden = folder.with_name(f"{_STAGING_PREFIX}removed-{version}-{secrets.token_hex(4)}")
        folder.rename(hidden)
        shutil.rmtree(hidden)

    def _sweep(self, precision: str) -> None:
        for leftover in self.leftovers(precision):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)  # what cannot be removed stays, and `verify` reports it
            else:
                leftover.unlink(missing_ok=True)

    def promoted(self, precision: str, profile: str) -> list[int]:
        """Versions that the profile's configuration names and that can be served under it."""
        named = self.named_versions(precision, profile)
        return [version for version in named if self.is_servable(precision, version, profile)]

    def named_versions(self, precision: str, profile: str) -> list[int]:
        """Versions that the profile's configuration names, there or not.

        Raises:
            RepositoryError: the configuration is missing or broken.
        """
        return list(read_config(self.config_path(precision, profile)).version_policy.specific.versions)

    def named_strays(self, precision: str, profile: str) -> list[str]:
        """Links and files that the profile's configuration names as versions: Triton would load them.

        Raises:
            RepositoryError: the configuration is missing or broken.
        """
        named = (self.version_folder(precision, one) for one in self.named_versions(precision, profile))
        return [
            f"{contract.network_model(precision)}/{path.name} is {_kind_of(path)}, not a version, and "
            f"{self.config_path(precision, profile).name} names it"
            for path in named
            if os.path.lexists(path) and not _is_version(path)
        ]

    def stray_remedy(self, precision: str, profile: str) -> str:
        """What to do about :meth:`named_strays`."""
        promote = f"python -m builder promote {contract.network_model(precision)}/VERSION --profile {profile}"
        return f"move it elsewhere, and promote a version with `{promote}`"

    def servable_precisions(self, profile: str) -> tuple[str, ...]:
        """Precisions of which the profile's configuration names a version that can be served.

        Raises:
            RepositoryError: a configuration is missing or broken.
        """
        return tuple(precision for precision in contract.PRECISIONS if self.promoted(precision, profile))

    def profiles_of(self, precision: str, version: int) -> list[str]:
        """Profiles under which the configuration names a version that can be served."""
        return [profile for profile in contract.PROFILES if version in self.promoted(precision, profile)]

    def is_servable(self, precision: str, version: int, profile: str) -> bool:
        """Whether a version holds what the profile's backend loads."""
        folder = self.version_folder(precision, version)
        if not _is_version(folder):
            return False
        if PROFILES[profile].loads_plans:
            return any(folder.glob("*.plan"))
        return all((folder / name).is_file() for name in _ONNX_FILES)

    def why_not_servable(self, precision: str, version: int, profile: str) -> str | None:
        """Why a version cannot be served under a profile, and what to do; None if it can."""
        if self.is_servable(precision, version, profile):
            return None
        folder = self.version_folder(precision, version)
        if not _is_version(folder):
            return "there is no such version; `python -m builder list` shows those that exist"
        if not PROFILES[profile].loads_plans:
            missing = [name for name in _ONNX_FILES if not (folder / name).is_file()]
            return f"{folder} lacks {' and '.join(missing)}; `python -m builder verify` says more"
        onnx_profiles = "|".join(name for name in contract.PROFILES if not PROFILES[name].loads_plans)
        ref = f"{contract.network_model(precision)}/{version}"
        elsewhere = f"its model.onnx is served by `python -m builder promote {ref} --profile {onnx_profiles}`"
        if any(folder.glob("*.rtxplan")):
            return (
                "its plan is one of TensorRT-RTX, which Triton's TensorRT backend does not load. Build with the "
                f"package tensorrt on the machine that is to serve; {elsewhere}"
            )
        return f"it holds no TensorRT plan. Build with --profile {profile}; {elsewhere}"

    def check_servable(self, precision: str, version: int, profile: str) -> None:
        """Refuse a version that cannot be served under a profile.

        Raises:
            RepositoryError: it cannot; says why, and what to do.
        """
        reason = self.why_not_servable(precision, version, profile)
        if reason is not None:
            model = contract.network_model(precision)
            raise RepositoryError(f"{model}/{version} cannot be served under the profile {profile}: {reason}")

    def promote(self, precision: str, profile: str, version: int) -> None:
        """Make the profile's configuration name only this version.

        Raises:
            RepositoryError: the version cannot be served under the profile.
        """
        self.check_servable(precision, version, profile)
        self._name_versions(precision, profile, [version])

    def withdraw(self, precision: str, profile: str) -> None:
        """Make the profile's configuration name no version."""
        self._name_versions(precision, profile, [])

    def _name_versions(self, precision: str, profile: str, versions: list[int]) -> None:
        path = self.config_path(precision, profile)
        config = read_config(path)
        if list(config.version_policy.specific.versions) != versions:
            config.version_policy.specific.versions[:] = versions
            write_config(path, config)

    def build_command(self, precision: str, profile: str) -> str:
        """The command that builds a precision; then the one that promotes it, where the profile has no own builds."""
        stages = contract.PRECISIONS[: contract.PRECISIONS.index(precision) + 1]
        where = f"--repository {self.path}"
        chosen = f"--profile {PROFILES[profile].build_profile} --precisions {','.join(stages)}"
        build = f"python -m builder build {chosen} {where}"
        if PROFILES[profile].is_built:
            return build
        model = contract.network_model(precision)
        return f"{build}, then python -m builder promote {model}/VERSION --profile {profile} {where}"

    def fit_network(
        self,
        sizes: Mapping[str, list[int]],
        class_names: Sequence[str],
        limits: Mapping[str, float] = NO_LIMITS,
        *,
        stretch: bool = False,
    ) -> list[Path]:
        """Write the network's sizes, limits and class names into the configurations that differ from them.

        Args:
            sizes: tensor name to dimensions, without batch, of the tensors that depend on the network.
            class_names: of the network.
            limits: on requests, by the names of :class:`pipeline.parameters.RequestLimits`.
            stretch: whether images fill the network's input.

        Returns:
            The files that were rewritten.

        Raises:
            RepositoryError: other versions in the repository have other sizes, classes or limits; one repository serves
                one network, because all precisions share the other steps and the classes' numbers.
        """
        manifests = [one for precision in contract.PRECISIONS for one in self.manifests(precision)]
        for manifest in manifests:
            self._refuse_other_network(manifest, sizes, class_names, limits)
        if not is_named(class_names):  # another version's export may say what they are
            class_names = next((one.class_names for one in manifests if is_named(one.class_names)), class_names)
        names = to_parameters(class_names)
        ensembles = [self.path / contract.ensemble_model(precision) for precision in contract.PRECISIONS]
        networks = [self.model_folder(precision) for precision in contract.PRECISIONS]
        named = [
            path
            for folder in (*networks, *ensembles)
            for path in (folder / CONFIG_NAME, *sorted(folder.glob("configs/*.pbtxt")))
        ]
        changed = []
        for path in [*(self.shared_config(name) for name in contract.SHARED_MODELS), *named]:
            config = read_config(path)
            before = config.SerializeToString(deterministic=True)
            for tensor in [*config.input, *config.output]:
                tensor.dims[:] = sizes.get(tensor.name, tensor.dims)
            for name, text in _decided(config, limits, stretch=stretch).items():
                if text is not None:
                    config.parameters[name].string_value = text
                elif name in config.parameters:
                    del config.parameters[name]
            for name in names if path in named else ():
                config.parameters[name].string_value = names[name]
            if config.SerializeToString(deterministic=True) != before:
                write_config(path, config)
                changed.append(path)
        return changed

    def _refuse_other_network(
        self,
        manifest: Manifest,
        sizes: Mapping[str, list[int]],
        class_names: Sequence[str],
        limits: Mapping[str, float],
    ) -> None:
        difference = other_classes(manifest.class_names, class_names)
        if difference:
            raise RepositoryError(
                f"{self.path} holds {manifest.name} of {manifest.source_text}; this export has "
                f"{classes_text(class_names)}: {difference}. One repository serves one network, since callers know "
                "classes by number: build into another one with --repository FOLDER"
            )
        if manifest.source["tensor_sizes"] != sizes:
            raise RepositoryError(
                f"{self.path} holds {manifest.tag} with tensors {manifest.source['tensor_sizes']}; this export has "
                f"{sizes}. One repository serves one network shape: build into another one with --repository FOLDER"
            )
        if manifest.source.get("request_limits", {}) != limits:
            raise RepositoryError(
                f"{self.path} holds {manifest.tag}, whose end allows {manifest.source.get('request_limits', {})} of a "
                f"request; this export's allows {dict(limits)}. One repository serves one kind of end: build into "
                "another one with --repository FOLDER"
            )


def _decided(config: Any, limits: Mapping[str, float], *, stretch: bool) -> dict[str, str | None]:
    """Parameters of a step's configuration that the network decides; None where there must be none."""
    inputs, outputs = ({tensor.name for tensor in tensors} for tensors in (config.input, config.output))
    answers = contract.NUM_DETECTIONS.name in outputs
    decided: dict[str, str | None] = {}
    if config.HasField("ensemble_scheduling"):
        return decided
    if contract.GEOMETRY.name in outputs or (answers and contract.IMAGE.name in inputs):
        decided[IMAGE_FIT] = IMAGE_FITS[1] if stretch else None
    if answers:
        names = [field.name for field in dataclasses.fields(RequestLimits)]
        decided |= {name: f"{limits[name]:.9g}" if name in limits else None for name in names}
    return decided


def network_problems(config: Any, source: Mapping[str, Any]) -> list[str]:
    """Sizes and parameters of a configuration that differ from those of a network.

    Args:
        config: of a step.
        source: what the network's manifest says of its export.
    """
    decided = _decided(config, source.get("request_limits", NO_LIMITS), stretch=source.get("stretch", False))
    wanted = {name: text for name, text in decided.items() if text is not None}
    there = {name: config.parameters[name].string_value for name in decided if name in config.parameters}
    wrong = [f"its parameters are {there}, the network's are {wanted}"] if there != wanted else []
    sizes = source.get("tensor_sizes", {})
    other = [
        f"{tensor.name} is {list(tensor.dims)}, the network's is {sizes[tensor.name]}"
        for tensor in [*config.input, *config.output]
        if tensor.name in sizes and list(tensor.dims) != list(sizes[tensor.name])
    ]
    return other + wrong


def _is_version(path: Path) -> bool:
    return _VERSION.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()


def _kind_of(path: Path) -> str:
    if path.is_symlink():
        return "a link"
    return "a folder" if path.is_dir() else "a file"


def read_config(path: Path) -> Any:
    """Parse a ``config.pbtxt`` into a ``ModelConfig``.

    Raises:
        RepositoryError: missing or not a model configuration.
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except OSError as error:
        template = f"{path.name}{TEMPLATE_SUFFIX} of the shipped model_repository"
        raise RepositoryError(f"{path}: {error.strerror}; restore it from {template}") from error
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise RepositoryError(f"{path}: not a model configuration ({error})") from error


def write_config(path: Path, config: Any) -> None:
    """Write a ``ModelConfig`` as text, atomically."""
    write_atomically(path, text_format.MessageToString(config))


@contextlib.contextmanager
def _explained_disk_errors(path: Path) -> Iterator[None]:
    """Turn errors that only a person can fix into ones that say how; others pass unchanged."""
    try:
        yield
    except OSError as error:
        remedy = _DISK_REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        where = Path(error.filename or path)
        if error.errno in (errno.EACCES, errno.EPERM):
            remedy = f"{_users(where)}: {remedy}"
        raise RepositoryError(f"{where}: {error.strerror}; {remedy}") from error


def _users(path: Path) -> str:
    """Whose a path is and who asks, with what helps a container."""
    with contextlib.suppress(OSError):
        owner = next(place for place in [path, *path.parents] if place.exists()).stat().st_uid
        hint = f" (in a container: SEGMENTATION_UID={owner} in .env)" if owner else ""
        return f"it belongs to user {owner}, and this is user {os.geteuid()}{hint}"
    return f"this is user {os.geteuid()}"


def _has_foreign_entries(folder: Path) -> bool:
    return any(entry.name != _LOCK_NAME for entry in folder.iterdir())


def _not_copied(folder: str, names: list[str]) -> set[str]:
    """What of the shipped repository is not copied: built versions, what was made of templates, caches, leftovers."""
    return {
        name
        for name in names
        if name in ("__pycache__", PROMOTIONS_NAME, _COPYING_NAME)
        or name.startswith((_STAGING_PREFIX, _LOCK_NAME))
        or name.endswith((".pbtxt", TEMPLATE_SUFFIX, BASE_SUFFIX))
        or (Path(folder) / name / MANIFEST_NAME).is_file()
    }
