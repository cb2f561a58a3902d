"""Reads and writes Ed25519 keys as files, signs with them, and verifies.

A private key is PKCS8 in PEM, readable by its owner only; a public key is one line of text:
``fedcompress-ed25519 BASE64 NAME``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedcompress.errors import ConfigError
from fedcompress.types import NAME_PATTERN

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KIND = "fedcompress-ed25519"  # first word of a public key's line
KEY_SIZE = 32  # bytes of a raw public key
MAX_FILE = 4096  # bytes of a key's file; no more is read


@dataclass(frozen=True)
class PublicKey:
    """A public key has 32 raw bytes, and the name that its maker gave it; the name may be empty."""

    data: bytes
    name: str = ""

    @property
    def id(self) -> str:
        """Return the first 16 hex digits of the key's SHA-256: for people and logs, not for comparisons."""
        return hashlib.sha256(self.data).hexdigest()[:16]

    @property
    def line(self) -> str:
        """Return the text form, without a newline."""
        return f"{KIND} {base64.b64encode(self.data).decode()} {self.name}".rstrip()

    @classmethod
    def parse(cls, text: str, *, field: str = "public key") -> PublicKey:
        """Parse the text form, as ``line`` gives it.

        Args:
            text: one line; white space around it is ignored.
            field: what an error calls the key.

        Raises:
            ConfigError: the text is something else.
        """
        rule = f"must be one line: {KIND}, 32 bytes in base64, a name"
        match text.split():
            case [kind, data, *rest] if kind == KIND and len(rest) <= 1:
                name = rest[0] if rest else ""
            case _:
                raise ConfigError(field, repr(text[:80]), rule)
        try:
            raw = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ConfigError(field, repr(text[:80]), rule) from error
        if len(raw) != KEY_SIZE or (name and not NAME_PATTERN.fullmatch(name)):
            raise ConfigError(field, repr(text[:80]), rule)
        return cls(raw, name)

    @classmethod
    def load(cls, path: Path, *, field: str = "public key") -> PublicKey:
        """Read a public key's file.

        Raises:
            ConfigError: the file cannot be read, or is something else.
        """
        return cls.parse(_read(path, field).decode("utf-8", "replace"), field=field)

    def verifies(self, signature: bytes, statement: bytes) -> bool:
        """Verify a signature of 64 bytes: True if this key's owner has signed ``statement``."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.data).verify(signature, statement)
        except InvalidSignature:
            return False
        return True


class PrivateKey:
    """Holds a private key and signs with it; the key is never printed and never sent."""

    def __init__(self, key: Ed25519PrivateKey, name: str) -> None:
        self._key = key
        self._name = name

    @classmethod
    def new(cls, name: str) -> PrivateKey:
        """Generate a key.

        Args:
            name: of its files, and in the text form of its public half.

        Raises:
            ConfigError: ``name`` is not a valid name.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if not NAME_PATTERN.fullmatch(name):
            raise ConfigError("NAME", repr(name[:80]), f"must match {NAME_PATTERN.pattern}")
        return cls(Ed25519PrivateKey.generate(), name)

    @classmethod
    def load(cls, path: Path, *, field: str = "key") -> PrivateKey:
        """Read a private key's file.

        Raises:
            ConfigError: the file cannot be read, others may read it, or it holds no Ed25519 key.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        data = _read(path, field)
        check_private(path, field)
        try:
            key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(field, path, "must be a private key as `fedcompress keys new` writes it") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(field, path, "must be an Ed25519 key, as `fedcompress keys new` makes it")
        return cls(key, path.stem if NAME_PATTERN.fullmatch(path.stem) else "")

    @property
    def public(self) -> PublicKey:
        """Return the public half."""
        return PublicKey(self._key.public_key().public_bytes_raw(), self._name)

    def sign(self, statement: bytes) -> bytes:
        """Sign some bytes: 64 bytes of Ed25519, the same for the same ``statement``."""
        return self._key.sign(statement)

    def save(self, folder: Path, *, force: bool = False) -> tuple[Path, Path]:
        """Write ``NAME.key``, for its owner alone, and ``NAME.pub``; return their paths.

        Args:
            folder: where to write; it is made where it is missing.
            force: replace files that are there already.

        Raises:
            ConfigError: one of the files is there already, or cannot be written.
        """
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        key = folder / f"{self._name}.key"
        public = folder / f"{self._name}.pub"
        write_file(key, pem, mode=0o600, force=force)
        write_file(public, f"{self.public.line}\n".encode(), mode=0o644, force=force)
        return key, public


def check_private(path: Path, field: str) -> None:
    """Raise ``ConfigError`` if others than the owner may read a file."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(field, path, f"others may read it, its mode is {mode:o}: chmod 600 {path}")


def write_file(path: Path, data: bytes, *, mode: int, force: bool = False) -> None:
    """Create a file that has its mode from the first byte on, and fsync it.

    A folder that is made for a private file is private, too.

    Args:
        path: of the file.
        data: what to write.
        mode: permission bits, such as 0o600; the umask does not change them.
        force: replace, in one step, a file that is there already.

    Raises:
        ConfigError: the file is there already and ``force`` is not given, or it cannot be written.
    """
    target = path.with_name(f".{path.name}.{os.getpid()}.part") if force else path
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if mode == 0o600 else 0o777)
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(handle, mode)  # the umask may have cleared bits
            stream.write(data)
            stream.flush()
            os.fsync(handle)
        if target != path:
            os.replace(target, path)
    except FileExistsError as error:
        raise ConfigError("--out", path, "exists already: --force overwrites it") from error
    except OSError as error:
        raise ConfigError("--out", path, f"cannot be written: {error.strerror}") from error


def _read(path: Path, field: str) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(field, path, f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise ConfigError(field, path, f"is larger than {MAX_FILE} bytes: is no key")
    return data
