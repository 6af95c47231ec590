"""What a repository holds beside its versions, against what this project ships: the steps' code, and configurations.

A signed version proves nothing about a server that also loads a step's code by somebody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pipeline import contract
from repository.errors import RepositoryError
from repository.shim import is_importable
from repository.store import CONFIG_NAMES, SHIPPED_REPOSITORY, read_config
from repository.templates import TEMPLATE_SUFFIX

_TUNABLE: Final = ("input", "output", "max_batch_size", "instance_group", "version_policy", "dynamic_batching")
"""What an operator, the builder or a promotion may change in a configuration, and the values of parameters."""

_CACHE: Final = "__pycache__"


def foreign_parts(repository: Path) -> Iterator[tuple[str, str]]:
    """What is not as shipped, and would run or choose what runs.

    Args:
        repository: the model repository.

    Yields:
        The path below the repository, and what is wrong with it.
    """
    for precision in contract.PRECISIONS:
        for name in sorted(set(CONFIG_NAMES.values())):
            yield from _config_problems(repository, f"{contract.network_model(precision)}/{name}")
    steps = [*contract.SHARED_MODELS, *map(contract.ensemble_model, contract.PRECISIONS)]
    for step in steps:
        for path in sorted([repository / step, *(repository / step).rglob("*")]):
            below = path.relative_to(repository)
            name = str(below)
            if path.is_symlink():
                yield name, "is a link"
            elif path.suffix == ".pbtxt":
                yield from _config_problems(repository, name)
            elif is_importable(path) and _CACHE not in below.parts and not _is_same(path, SHIPPED_REPOSITORY / below):
                yield name, "is other code than this project ships"


def _config_problems(repository: Path, name: str) -> Iterator[tuple[str, str]]:
    try:
        shipped_name = SHIPPED_REPOSITORY / f"{name}{TEMPLATE_SUFFIX}"
        mine, shipped = (_fixed(read_config(path)) for path in (repository / name, shipped_name))
    except RepositoryError as error:
        yield name, f"cannot be compared with the shipped one ({error})"
        return
    if mine != shipped:
        allowed = ", ".join((*_TUNABLE, "values of parameters"))
        yield name, f"chooses something else than the shipped one; allowed to differ: {allowed}"


def _fixed(config: Any) -> Any:
    """A configuration without what may differ."""
    for field in _TUNABLE:
        config.ClearField(field)
    for parameter in config.parameters.values():
        parameter.ClearField("string_value")
    return config


def _is_same(path: Path, shipped: Path) -> bool:
    return path.is_file() and shipped.is_file() and path.read_bytes() == shipped.read_bytes()
