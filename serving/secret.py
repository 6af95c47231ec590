"""The secret that opens the restricted APIs, kept in a file."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path
from typing import Final

from serving.errors import ServingError

# It becomes part of a command-line option of tritonserver that is cut at ":" and "=", and a header's value.
_ALLOWED: Final = re.compile(r"[A-Za-z0-9._~+/-]{16,512}")

_ROOT_UID: Final = 0


def new_secret() -> str:
    """A random secret of 192 bits."""
    return secrets.token_urlsafe(24)


def secret_in(path: Path) -> str:
    """The secret in a file; a file that is missing is made with a random one, readable only by its owner.

    Raises:
        ServingError: the file cannot be read or made, belongs to another user than this one and root, or holds
            something else.
    """
    try:
        with contextlib.suppress(FileExistsError):
            # Written beside and linked into place, so that nobody reads half of it.
            beside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
            if not path.exists():
                descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w") as stream:
                    stream.write(f"{new_secret()}\n")
                try:
                    os.link(beside, path)
                finally:
                    beside.unlink()
        with path.open(encoding="utf-8") as stream:
            owner = os.fstat(stream.fileno()).st_uid
            text = stream.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServingError(f"{path}: the secret cannot be read or made ({error}); name another file") from error
    if owner not in (os.geteuid(), _ROOT_UID):  # an orchestrator mounts secrets as root
        raise ServingError(f"{path} belongs to another user ({owner}), who knows the secret; name another file")
    if not _ALLOWED.fullmatch(text):
        raise ServingError(
            f"{path} holds no secret of 16 to 512 letters, digits and ._~+/-; write one with "
            f"`openssl rand -hex 32 > {path}`, or delete the file and one is made"
        )
    return text
