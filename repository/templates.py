"""Configurations are made from templates: ``config.pbtxt`` from the ``config.pbtxt.in`` beside it.

A checkout tracks the templates alone. What a promotion or a build writes is in files that git ignores, so that the
checkout stays clean, and what was promoted outlives new templates.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from base.files import write_atomically
from repository.errors import RepositoryError

TEMPLATE_SUFFIX: Final = ".in"
BASE_SUFFIX: Final = ".base"
"""Of the hidden file that keeps the template from which a configuration was made."""


def templates(repository: Path) -> Iterator[Path]:
    """The templates of a repository; those that are not a checkout's have none."""
    for pattern in ("*/*.pbtxt", "*/configs/*.pbtxt"):
        yield from sorted(repository.glob(pattern + TEMPLATE_SUFFIX))


def made_from(template: Path) -> Path:
    """The configuration that is made from a template."""
    return template.with_suffix("")


def left_behind(repository: Path) -> list[Path]:
    """Configurations that were made from templates of an earlier release which this one does not have."""
    if not any(templates(repository)):
        return []  # not a checkout's
    bases = sorted(repository.glob(f"*/configs/.*.pbtxt{BASE_SUFFIX}"))
    made = (base.with_name(base.name[1:].removesuffix(BASE_SUFFIX)) for base in bases)
    return [path for path in made if not path.with_name(path.name + TEMPLATE_SUFFIX).exists()]


def outdated(repository: Path) -> list[Path]:
    """Templates whose configuration is missing, or was made from another release's template."""
    found = []
    for template in templates(repository):
        made, base = made_from(template), _base_of(template)
        if not (made.is_file() and base.is_file() and base.read_bytes() == template.read_bytes()):
            found.append(template)
    return found


def refresh(repository: Path) -> list[Path]:
    """Make configurations whose templates are new and remove those without one; the caller holds the lock.

    What was changed in a configuration since it was made stays: versions, sizes, class names, a person's own changes.

    Args:
        repository: the model repository.

    Returns:
        The configurations that were written.

    Raises:
        RepositoryError: a template or a configuration is broken.

    Example:
        >>> refresh(Path("model_repository"))  # doctest: +SKIP
        [PosixPath('model_repository/network_int8/config.pbtxt')]
    """
    for made in left_behind(repository):
        made.unlink(missing_ok=True)
        _base_of(made.with_name(made.name + TEMPLATE_SUFFIX)).unlink()
    written = []
    for template in outdated(repository):
        made, base = made_from(template), _base_of(template)
        text = template.read_text(encoding="utf-8")
        result = text
        if made.is_file():
            after = _parsed(template)
            mine, before = _parsed(made), _parsed(base if base.is_file() else template)
            if mine != before:
                result = text_format.MessageToString(_merged(mine, before, after))
        write_atomically(made, result)
        write_atomically(base, text)
        written.append(made)
    return written


def _base_of(template: Path) -> Path:
    made = made_from(template)
    return made.with_name(f".{made.name}{BASE_SUFFIX}")


def _merged(mine: Any, before: Any, after: Any) -> Any:
    """The new template, with the fields that differ from the old one."""
    dims = {tensor.name: list(tensor.dims) for tensor in [*mine.input, *mine.output]}
    shipped = {tensor.name: list(tensor.dims) for tensor in [*before.input, *before.output]}
    for tensor in [*after.input, *after.output]:
        if tensor.name in dims and dims[tensor.name] != shipped.get(tensor.name):
            tensor.dims[:] = dims[tensor.name]
    ours, theirs = ({field.name: value for field, value in config.ListFields()} for config in (mine, before))
    for name in sorted({*ours, *theirs} - {"input", "output", "parameters"}):
        if ours.get(name) == theirs.get(name):
            continue
        after.ClearField(name)
        alone = type(mine)()
        alone.CopyFrom(mine)
        for other in ours.keys() - {name}:
            alone.ClearField(other)
        after.MergeFrom(alone)
    for key in {*mine.parameters, *before.parameters}:
        if key not in mine.parameters:
            after.parameters.pop(key, None)
        elif key not in before.parameters or mine.parameters[key] != before.parameters[key]:
            after.parameters[key].CopyFrom(mine.parameters[key])
    return after


def _parsed(path: Path) -> Any:
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise RepositoryError(f"{path}: not a model configuration ({error}); remove it, it is made again") from error
