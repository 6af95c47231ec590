"""Signatures of versions: Ed25519 over ``manifest.json``, which holds the hashes of all other files of its version.

A signature is 64 bytes (RFC 8032), keys are PEM files, so that OpenSSL makes and checks them too.
"""

from __future__ import annotations

import argparse
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from base.files import write_atomically
from base.paths import local_path
from repository.errors import RepositoryError
from repository.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_NAME: Final = f"{MANIFEST_NAME}.sig"
TRUSTED_KEYS_VARIABLE: Final = "TRITON_SEGMENTATION_TRUSTED_KEYS"
"""Environment variable: a file of public keys, as of ``--trusted-keys``."""

_SIGNATURE_BYTES: Final = 64
_ROOT_UID: Final = 0
_PUBLIC_KEY: Final = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


@dataclass(frozen=True)
class SigningKey:
    """A private key.

    Attributes:
        path: its file.
        private: the key.
    """

    path: Path
    private: Ed25519PrivateKey

    @classmethod
    def read(cls, path: Path, repository: Path) -> SigningKey:
        """Read a private key that nobody else can read.

        Args:
            path: PEM, as ``keygen`` or ``openssl genpkey -algorithm ed25519`` writes it.
            repository: where versions are signed; the key must lie elsewhere.

        Raises:
            RepositoryError: it cannot be read, others can read it, it lies in the repository, or it is another kind of
                file.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        data, mode = _read(path, repository)
        if mode & 0o077:
            raise RepositoryError(f"{path} can be read by others (mode {mode:04o}); `chmod 600 {path}`, or a new key")
        try:
            key = load_pem_private_key(data, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise RepositoryError(f"{path}: no private key in PEM without a password ({error}); {_MAKE_ONE}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise RepositoryError(f"{path} holds a key of another kind; allowed: Ed25519. {_MAKE_ONE}")
        return cls(path, key)

    @property
    def trusted(self) -> TrustedKeys:
        """Only this key, to check with."""
        return TrustedKeys(self.path, (self.private.public_key(),))

    def sign(self, folder: Path) -> None:
        """Write the signature of the manifest in a version's folder."""
        signature = self.private.sign((folder / MANIFEST_NAME).read_bytes())
        write_atomically(folder / SIGNATURE_NAME, signature, mode=0o444)


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys of those whose versions are served.

    Attributes:
        path: the file that they are from.
        keys: one or more.
    """

    path: Path
    keys: tuple[Ed25519PublicKey, ...]

    @classmethod
    def read(cls, path: Path, repository: Path) -> TrustedKeys:
        """Read public keys.

        Args:
            path: PEM, one key or several behind each other; only this user or root may be able to write to it.
            repository: what is checked with them; the file must lie elsewhere.

        Raises:
            RepositoryError: it cannot be read, others can write to it, it lies in the repository, or it holds no keys.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        data, mode = _read(path, repository)
        if mode & 0o022:
            raise RepositoryError(f"others can write to {path} (mode {mode:04o}); `chmod go-w {path}`")
        try:
            keys = [load_pem_public_key(block) for block in _PUBLIC_KEY.findall(data)]
        except (ValueError, UnsupportedAlgorithm) as error:
            raise RepositoryError(f"{path}: a public key in it is broken ({error}); copy it again") from error
        found = tuple(key for key in keys if isinstance(key, Ed25519PublicKey))
        if not found or len(found) < len(keys):
            kinds = f"{len(keys)} public keys, {len(found)} of them Ed25519"
            raise RepositoryError(f"{path} holds {kinds}; allowed: one or more of Ed25519, in PEM. {_MAKE_ONE}")
        return cls(path, found)

    @classmethod
    def configured(cls, path: Path | None, repository: Path) -> TrustedKeys | None:
        """The keys of a file, else of the one that :data:`TRUSTED_KEYS_VARIABLE` names; None if neither is given.

        Raises:
            RepositoryError: see :meth:`read`.
        """
        named = path or os.environ.get(TRUSTED_KEYS_VARIABLE)
        return cls.read(Path(named), repository) if named else None

    def problem(self, folder: Path) -> str | None:
        """Why the version in a folder counts as not signed by any of the keys; None if one signed it."""
        from cryptography.exceptions import InvalidSignature

        path = folder / SIGNATURE_NAME
        if not os.path.lexists(path):
            return f"it is not signed ({SIGNATURE_NAME} is missing)"
        try:
            if path.is_symlink() or not path.is_file() or path.stat().st_size != _SIGNATURE_BYTES:
                return f"{SIGNATURE_NAME} is no file of {_SIGNATURE_BYTES} bytes"
            signature, signed = path.read_bytes(), (folder / MANIFEST_NAME).read_bytes()
        except OSError as error:
            return f"its signature cannot be checked ({error})"
        for key in self.keys:
            try:
                key.verify(signature, signed)
            except InvalidSignature:
                continue
            return None
        return f"{SIGNATURE_NAME} is not the signature of this {MANIFEST_NAME} by a key of {self.path}"


_MAKE_ONE: Final = "`python -m builder keygen FILE` makes a key, and FILE.pub"


def add_trusted_keys(parser: argparse.ArgumentParser) -> None:
    """Declare ``--trusted-keys``, of every command that refuses versions."""
    parser.add_argument(
        "--trusted-keys",
        type=local_path,
        metavar="FILE",
        help="public keys; takes only versions that one of them signed, beside steps as shipped (default: the file in "
        f"${TRUSTED_KEYS_VARIABLE}; without either, unsigned versions too)",
    )


def make_key(path: Path) -> Path:
    """Make a private key, readable only by this user, and beside it ``NAME.pub``, the public one.

    Args:
        path: file of the private key; neither of the two files may exist.

    Returns:
        The file of the public key.

    Raises:
        RepositoryError: one of the files exists, or cannot be written.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    public_path = path.with_name(f"{path.name}.pub")
    try:
        if os.path.lexists(public_path):
            raise FileExistsError(None, "there is such a file", str(public_path))
        for file, data, mode in ((path, private, 0o600), (public_path, public, 0o644)):
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
                stream.write(data)
    except OSError as error:
        raise RepositoryError(f"{error.filename}: no key is written ({error.strerror}); give another name") from error
    return public_path


def _read(path: Path, repository: Path) -> tuple[bytes, int]:
    """Content and permissions of a key's file, which nobody but its reader and root may own."""
    if path.resolve().is_relative_to(repository.resolve()):
        raise RepositoryError(
            f"{path} lies in the repository {repository}, whose author could exchange it; keep keys elsewhere"
        )
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            data = stream.read()
    except OSError as error:
        raise RepositoryError(f"{path}: the key cannot be read ({error.strerror}). {_MAKE_ONE}") from error
    if status.st_uid not in (os.geteuid(), _ROOT_UID):
        raise RepositoryError(f"{path} belongs to another user ({status.st_uid}); give a file of this user's or root's")
    return data, stat.S_IMODE(status.st_mode)
