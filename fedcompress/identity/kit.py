"""A kit is one encrypted file with what a new site gets from its coordinator.

Layout: the magic, 16 bytes of salt, 12 bytes of nonce, and an uncompressed zip archive under AES-256-GCM, whose key is
made of a passphrase by scrypt (RFC 7914). All before the ciphertext is authenticated with it.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from fedcompress.errors import ConfigError, IdentityError
from fedcompress.identity.keys import PublicKey
from fedcompress.types import NAME_PATTERN

MAGIC = b"FCKIT1\r\n"
SALT_SIZE = 16  # bytes
NONCE_SIZE = 12  # bytes
HEAD_SIZE = len(MAGIC) + SALT_SIZE + NONCE_SIZE
TAG_SIZE = 16  # bytes that AES-GCM adds
SCRYPT_N = 1 << 15  # cost; with r = 8 it takes 32 MiB
MAX_SIZE = 1 << 30  # bytes of a kit
MAX_FILES = 1000
LEAST_PASSPHRASE = 12  # characters
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")  # a folder or a file in a kit


def encrypt_kit(files: Mapping[str, bytes], passphrase: str) -> bytes:
    """Encrypt files to a kit.

    Args:
        files: contents by relative path, with ``/`` between folders.
        passphrase: at least 12 characters.

    Returns:
        The bytes of the kit.

    Raises:
        ConfigError: the passphrase is too short, a path is none that a kit can have, or all are too large.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if len(passphrase) < LEAST_PASSPHRASE:
        rule = f"must have at least {LEAST_PASSPHRASE} characters"
        raise ConfigError("passphrase", f"{len(passphrase)} characters", rule)
    for name in files:
        if not is_safe_path(name):
            raise ConfigError("kit", repr(name[:200]), "must be a plain relative path")
    size = sum(len(data) for data in files.values())
    if size > MAX_SIZE // 2 or len(files) > MAX_FILES:
        rule = f"must be at most {MAX_SIZE // 2} bytes in {MAX_FILES} files: leave the template out, send it apart"
        raise ConfigError("kit", f"{size} bytes in {len(files)} files", rule)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
        for name, data in files.items():
            out.writestr(zipfile.ZipInfo(name), data)
    salt = os.urandom(SALT_SIZE)
    nonce = os.urandom(NONCE_SIZE)
    head = MAGIC + salt + nonce
    return head + AESGCM(_derive_key(passphrase, salt)).encrypt(nonce, archive.getvalue(), head)


def decrypt_kit(data: bytes, passphrase: str) -> dict[str, bytes]:
    """Decrypt a kit to its files; nothing is written.

    Args:
        data: bytes of the kit.
        passphrase: that it was made with.

    Returns:
        Contents by relative path; every path is plain and leads into the folder it is written to.

    Raises:
        ConfigError: it is no kit, or larger than a kit may be.
        IdentityError: the passphrase is another, or a byte was changed.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if len(data) > MAX_SIZE or len(data) < HEAD_SIZE + TAG_SIZE or not data.startswith(MAGIC):
        rule = f"must be a file of `fedcompress site kit`, of at most {MAX_SIZE} bytes"
        raise ConfigError("KIT", f"{len(data)} bytes", rule)
    head = data[:HEAD_SIZE]
    salt = head[len(MAGIC) : -NONCE_SIZE]
    try:
        archive = AESGCM(_derive_key(passphrase, salt)).decrypt(head[-NONCE_SIZE:], data[HEAD_SIZE:], head)
    except InvalidTag:
        text = "kit: does not open: the passphrase is another, or the file was changed on its way"
        raise IdentityError("kit", text) from None
    return _read_archive(archive)


def is_safe_path(name: str) -> bool:
    """Return whether a path is relative, plain ASCII, and leads into no other folder than the one it is in."""
    parts = name.split("/")
    return len(parts) <= 4 and all(_PART.fullmatch(part) for part in parts)


def collect_kit(name: str, address: str, sources: Mapping[str, Path | None], *, model: str = "") -> dict[str, bytes]:
    """Collect the files of a kit.

    Args:
        name: of the site.
        address: HOST:PORT of the SuperLink.
        sources: files and folders by their path in the kit; None is left out.
        model: hub id of the base model, if sites take it from there.

    Returns:
        Contents by path, with ``kit.json``, which has name, address and model.

    Raises:
        ConfigError: a name or an address is wrong, or a file is absent.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError("NAME", repr(name[:80]), f"must match {NAME_PATTERN.pattern}")
    if not re.fullmatch(r"[^/\s]+:[0-9]{1,5}", address):
        raise ConfigError("--coordinator", repr(address[:80]), "must be HOST:PORT")
    files = {"kit.json": json.dumps({"name": name, "coordinator": address, "model": model}).encode()}
    for target, source in sources.items():
        if source is None:
            continue
        if not source.exists():
            raise ConfigError("kit", source, "must be an existing file or folder")
        found = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
        for path in found:
            inner = f"{target}/{path.relative_to(source).as_posix()}" if source.is_dir() else target
            files[inner] = path.read_bytes()
    if "coordinator.pub" in files:
        PublicKey.parse(files["coordinator.pub"].decode("utf-8", "replace"), field="--coordinator-key")
    return files


def read_passphrase(path: Path) -> str:
    """Read a passphrase: the first line of a file, without white space around it.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--passphrase-file", path, f"cannot be read: {error}") from error
    return lines[0].strip() if lines else ""


def _read_archive(archive: bytes) -> dict[str, bytes]:
    """Read an uncompressed zip archive; its sizes cannot be more than its own bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as source:
            members = source.infolist()
            names = [member.filename for member in members]
            size = sum(member.file_size for member in members)
            is_plain = all(m.compress_type == zipfile.ZIP_STORED and m.file_size == m.compress_size for m in members)
            if len(names) > MAX_FILES or size > len(archive) or not is_plain or len(set(names)) != len(names):
                raise ConfigError("KIT", f"{len(names)} files", "must be uncompressed, each once, within its own size")
            for name in names:
                if not is_safe_path(name):
                    raise ConfigError("KIT", repr(name[:200]), "must be a plain relative path: nothing was written")
            return {name: source.read(name) for name in names}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise ConfigError("KIT", "its archive", f"cannot be read: {error}") from error


def _derive_key(passphrase: str, salt: bytes) -> bytes:
    """Derive a key of 32 bytes from a passphrase by scrypt, with r = 8 and p = 1."""
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    return Scrypt(salt=salt, length=32, n=SCRYPT_N, r=8, p=1).derive(passphrase.encode())
