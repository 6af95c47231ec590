"""Commands of ``python -m builder`` about versions: list, show, promote, rollback, prune, verify, sign."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Final

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from base.paths import local_path
from pipeline import contract
from pipeline.command_line import printable, say
from repository.errors import RepositoryError
from repository.integrity import sign, verify
from repository.live import LiveServer
from repository.manifest import Manifest
from repository.networks import mixture, mixture_remedy
from repository.promotions import read_promotions
from repository.signatures import SigningKey, add_trusted_keys, make_key
from repository.store import DEFAULT_REPOSITORY, ModelRepository
from repository.versions import Promoted, VersionRef, promote, prune, rollback

_PIPE_COLUMNS: Final = 240
"""Width of a table that no terminal bounds: a file or another program gets whole tags."""


def add_commands(commands: Any) -> None:
    """Add the commands to a parser's subparsers; each sets ``run``, which takes the parsed options."""
    listing = commands.add_parser("list", help="list the versions in the repository")
    listing.set_defaults(run=_list)

    show = commands.add_parser("show", help="show everything recorded about a version")
    show.add_argument("version", type=version_reference, metavar="MODEL/VERSION", help="such as network_int8/2")
    show.add_argument("--json", action="store_true", help="print manifest.json as it is")
    show.set_defaults(run=_show)

    promoting = commands.add_parser("promote", help="serve versions, on running servers too")
    promoting.add_argument(
        "versions",
        type=version_reference,
        nargs="+",
        metavar="MODEL/VERSION",
        help="such as network_int8/2; of a retrained network, the versions of all precisions in one command",
    )
    promoting.add_argument("--force", action="store_true", help="also if an accuracy gate did not pass")
    promoting.add_argument(
        "--mix-sources",
        action="store_true",
        help="also beside versions of another export, as long as the classes are the same",
    )
    _add_promotion_options(promoting, "default: the one it was built for")
    promoting.set_defaults(run=_promote)

    rolling = commands.add_parser("rollback", help="serve the version again that was served before")
    rolling.add_argument("models", type=_model, nargs="+", metavar="MODEL", help="such as network_int8")
    _add_promotion_options(rolling, "default: the one with promotions")
    rolling.set_defaults(run=_rollback)

    pruning = commands.add_parser("prune", help="remove old versions; never a promoted one or a rollback's target")
    pruning.add_argument("--keep", type=int, required=True, metavar="N", help="newest versions of each model that stay")
    pruning.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    pruning.set_defaults(run=_prune)

    verifying = commands.add_parser(
        "verify", help="check hashes, manifests, configurations, plans against this machine"
    )
    verifying.add_argument("version", type=_ref, nargs="?", metavar="MODEL[/VERSION]", help="default: everything")
    verifying.set_defaults(run=_verify)

    signing = commands.add_parser("sign", help="check versions, and sign them")
    signing.add_argument("versions", type=version_reference, nargs="+", metavar="MODEL/VERSION")
    signing.add_argument("--key", type=local_path, required=True, metavar="FILE", help="private key (see keygen)")
    signing.set_defaults(run=_sign)

    making = commands.add_parser("keygen", help="make a private key that signs versions, and its public key FILE.pub")
    making.add_argument("file", type=local_path, metavar="FILE", help="for the private key; outside of the repository")
    making.set_defaults(run=_keygen)

    for parser in (promoting, rolling, verifying):
        add_trusted_keys(parser)
    for parser in (listing, show, promoting, rolling, pruning, verifying, signing):
        parser.add_argument(
            "--repository",
            type=local_path,
            default=DEFAULT_REPOSITORY,
            help="model repository (default: model_repository)",
        )


def _add_promotion_options(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--profile", choices=contract.PROFILES, help=f"configuration to change ({default})")
    parser.add_argument(
        "--url",
        metavar="HOST:PORT",
        default=os.environ.get("SEGMENTATION_CONTROL_URL"),
        help="gRPC endpoint of a server to reload, such as one in a container (default: those started on this machine)",
    )
    parser.add_argument(
        "--admin-secret-file",
        type=local_path,
        metavar="FILE",
        default=os.environ.get("SEGMENTATION_ADMIN_SECRET_FILE"),
        help="holds the secret of that server's model-control API",
    )


def _list(options: argparse.Namespace) -> int:
    repository = ModelRepository.existing(options.repository)
    table = Table(Column("model", overflow="fold"), "version", Column("tag", overflow="fold"))
    for name in ("source", "profile", "gate", "MB", "created", "served"):
        table.add_column(name)
    broken = []
    for precision in contract.PRECISIONS:
        for version in repository.versions(precision):
            ref = VersionRef(precision, version)
            try:
                manifest = repository.manifest(precision, version)
                served = ", ".join(repository.profiles_of(precision, version))
            except RepositoryError as error:
                broken.append(f"{ref}: {error}")
                continue
            size = sum(entry.size_bytes for entry in manifest.files.values()) / 1e6
            cells = (ref.model, str(version), manifest.tag, manifest.source_hash[:8], manifest.profile)
            more = (_gate_word(manifest), f"{size:.1f}", manifest.created_utc, served)
            table.add_row(*(Text(printable(cell)) for cell in (*cells, *more)))
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_COLUMNS
    console.print(table)
    for line in broken:
        say(line)
    _warn_of_strays(repository)
    _warn_of_mixtures(repository, contract.PROFILES)
    if not table.row_count and not broken:
        say(f"no version is built yet; `python -m builder build --repository {repository.path}` makes some")
    return 0


def _show(options: argparse.Namespace) -> int:
    repository = ModelRepository.existing(options.repository)
    ref: VersionRef = options.version
    manifest = repository.manifest(ref.precision, ref.version or 0)
    if options.json:
        text = manifest.to_json().removesuffix("\n")
        # What a terminal would obey is written in JSON's own escapes.
        say(text if text == printable(text, layout=True) else json.dumps(json.loads(text), indent=2))
        return 0
    served = ", ".join(repository.profiles_of(ref.precision, manifest.version))
    say(f"{ref}: {manifest.tag}")
    say(f"served under: {served or 'no profile'}")
    say(f"gate: {manifest.gate_refusal or _gate_word(manifest)}")
    values = json.loads(manifest.to_json())
    for line in _outline({key: value for key, value in values.items() if key not in ("tag", "model", "version")}):
        say(line)
    history = read_promotions(repository.model_folder(ref.precision))
    mine = [one for one in history if manifest.version in (one.version, one.previous)]
    for one in mine:
        forced = ", forced" if one.forced else ""
        say(f"{one.time_utc}  {one.action} under {one.profile}: {one.previous or 'none'} -> {one.version}{forced}")
    return 0


def _promote(options: argparse.Namespace) -> int:
    repository = ModelRepository.existing(options.repository, options.trusted_keys)
    with ExitStack() as stack:
        done = promote(
            repository,
            options.versions,
            options.profile,
            force=options.force,
            mix_sources=options.mix_sources,
            servers=_servers(options, stack),
        )
    return _show_outcomes(repository, options.versions, done)


def _rollback(options: argparse.Namespace) -> int:
    repository = ModelRepository.existing(options.repository, options.trusted_keys)
    precisions = [ref.precision for ref in options.models]
    with ExitStack() as stack:
        done = rollback(repository, precisions, options.profile, servers=_servers(options, stack))
    return _show_outcomes(repository, options.models, done)


def _prune(options: argparse.Namespace) -> int:
    repository = ModelRepository.existing(options.repository)
    removed = prune(repository, options.keep, dry_run=options.dry_run)
    for ref in removed:
        say(f"{'would remove' if options.dry_run else 'removed'} {ref}")
    if not removed:
        say("nothing to remove")
    _warn_of_strays(repository)
    return 0


def _verify(options: argparse.Namespace) -> int:
    ref: VersionRef | None = options.version
    repository = ModelRepository.existing(options.repository, options.trusted_keys)
    findings = verify(repository, ref.precision if ref else None, ref.version if ref else None)
    for note in findings.notes:
        say(f"note: {note}")
    for fault in findings.faults:
        say(f"FAULT {fault.subject}: {fault.problem}\n      {fault.remedy}")
    count = len(findings.faults)
    say(f"{findings.versions} versions checked: {f'{count} faults' if count else 'no fault'}")
    return 1 if findings.faults else 0


def _sign(options: argparse.Namespace) -> int:
    repository = ModelRepository.existing(options.repository)
    key = SigningKey.read(options.key, repository.path)
    for ref in options.versions:
        sign(repository, ref.precision, ref.version, key)
        say(f"signed {ref}")
    return 0


def _keygen(options: argparse.Namespace) -> int:
    public = make_key(options.file)
    say(f"{options.file}: signs versions (`build --sign-key`, `sign --key`); keep it to yourself")
    say(f"{public}: checks them (`--trusted-keys` of promote, rollback, verify, preflight and run)")
    return 0


def _servers(options: argparse.Namespace, stack: ExitStack) -> list[LiveServer] | None:
    """The server that the command line names; None means those of this machine."""
    if options.url is None and options.admin_secret_file is None:
        return None
    if options.url is None or options.admin_secret_file is None:
        raise RepositoryError("a server is reached with both: --url HOST:PORT and --admin-secret-file FILE")
    try:
        secret = options.admin_secret_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RepositoryError(
            f"{options.admin_secret_file}: cannot be read ({error}); give the server's file"
        ) from error
    return [stack.enter_context(LiveServer(options.url, secret))]


def _show_outcomes(repository: ModelRepository, refs: Sequence[VersionRef], outcomes: Sequence[Promoted]) -> int:
    for ref, done in zip(refs, outcomes, strict=True):
        before = f"before: {done.previous}" if done.previous is not None else "before: none"
        say(f"{ref.model}/{done.version} is served under the profile {done.profile} ({before})")
        for name in done.servers:
            say(f"  {name} answers with it")
        for name in done.not_serving:
            say(f"  {name} does not serve {ref.model}; start it again to serve it too")
        if not done.servers and not done.not_serving:
            say("  no server of this repository and profile runs here; the next one starts with it")
    _warn_of_strays(repository)
    _warn_of_mixtures(repository, [outcomes[0].profile])
    return 0


def _warn_of_strays(repository: ModelRepository) -> None:
    for precision in contract.PRECISIONS:
        for stray in repository.strays(precision):
            say(f"warning: {stray}")


def _warn_of_mixtures(repository: ModelRepository, profiles: Sequence[str]) -> None:
    for profile in profiles:
        try:
            mixed = mixture(repository, profile)
        except RepositoryError as error:
            say(str(error))
            continue
        if mixed is not None:
            say(f"warning: {mixed}\n  to serve one network: {mixture_remedy(repository, mixed)}")


def _gate_word(manifest: Manifest) -> str:
    if manifest.verification is None:
        return "not verified"
    return "passed" if manifest.gate_passed else "FAILED"


def _outline(value: Any, indent: str = "  ") -> Iterator[str]:
    """Nested JSON as indented lines; short lists take one line."""
    items = value.items() if isinstance(value, dict) else ((f"- {index}", item) for index, item in enumerate(value, 1))
    for key, item in items:
        flat = not isinstance(item, dict | list) or not item
        if isinstance(item, list) and all(not isinstance(entry, dict | list) for entry in item):
            joined = ", ".join(_scalar(entry) for entry in item)
            flat, item = True, joined or "none"  # noqa: PLW2901 - the list's text takes its place
        if flat:
            yield f"{indent}{key}: {_scalar(item)}"
        else:
            yield f"{indent}{key}:"
            yield from _outline(item, indent + "  ")


def _scalar(value: Any) -> str:
    if value is None or value in ({}, []):
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _ref(text: str) -> VersionRef:
    try:
        return VersionRef.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def version_reference(text: str) -> VersionRef:
    """Read a version as a person names it, such as ``network_int8/2``; for ``argparse``."""
    ref = _ref(text)
    if ref.version is None:
        raise argparse.ArgumentTypeError(f"{text!r} names no version; expected such as {ref.model}/2")
    return ref


def _model(text: str) -> VersionRef:
    ref = _ref(text)
    if ref.version is not None:
        raise argparse.ArgumentTypeError(f"{text!r}; expected the model without a version: {ref.model}")
    return ref
