"""Files that a reader never sees half of, their hashes, and folders that no other user can enter."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
from pathlib import Path


def write_atomically(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Write a file beside its place, as ``.NAME-…``, and rename it.

    Args:
        path: its folder must exist.
        data: the content; text is written in UTF-8, file names that are not UTF-8 with escapes.
        mode: permissions of the file.

    Raises:
        OSError: it cannot be written; what was there before is unchanged.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as stream:
        beside = Path(stream.name)
        try:
            stream.write(data.encode(errors="backslashreplace") if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
            beside.chmod(mode)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def private_folder(path: Path) -> Path:
    """Make a folder that only this user can enter, unless it exists.

    Making it neither follows a link nor takes what is there. So nobody else can own what is in it, or open or lock it.

    Args:
        path: its parent must exist; others may be able to write there, as to ``/dev/shm``.

    Returns:
        The path.

    Raises:
        PermissionError: another user made it, or it is a link or a file, or others can enter it.
        OSError: it cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if not is_private(path):
        raise PermissionError(errno.EPERM, "not a folder of this user's that nobody else can enter", str(path))
    return path


def is_private(path: Path) -> bool:
    """Whether a path is a folder, not a link to one, of this user's that nobody else can enter."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and _is_mine(status) and not status.st_mode & 0o077


def open_private(path: Path, flags: int) -> int:
    """Open a regular file of this user's, or make it with mode 0600; links are not followed.

    Args:
        path: the file.
        flags: of :func:`os.open`; ``O_CREAT`` makes it.

    Returns:
        The descriptor.

    Raises:
        PermissionError: it belongs to another user, others can write to it, or it is no regular file.
        OSError: it is a link, or cannot be opened.
    """
    # Without O_NONBLOCK a named pipe would wait for its other end.
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not _is_mine(status) or status.st_mode & 0o022:
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "not a file of this user's that nobody else can write to", str(path))
    return descriptor


def _is_mine(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid()
