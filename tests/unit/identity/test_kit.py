"""A kit opens with its passphrase alone, as it was made, and leads nowhere but into its folder."""

from __future__ import annotations

import io
import os
import zipfile

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fedcompress.errors import ConfigError, IdentityError
from fedcompress.identity.kit import HEAD_SIZE, MAGIC, decrypt_kit, encrypt_kit, is_safe_path

SECRET = "correct horse battery"
FILES = {"kit.json": b"{}", "template/adapter_model.safetensors": os.urandom(3000), "ca.crt": b""}


def sealed(archive: bytes) -> bytes:
    """Encrypt any bytes as a kit's archive, by the words of the format."""
    head = MAGIC + bytes(16) + bytes(12)
    key = Scrypt(salt=bytes(16), length=32, n=1 << 15, r=8, p=1).derive(SECRET.encode())
    return head + AESGCM(key).encrypt(bytes(12), archive, head)


def zipped(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as out:
        for name, data in entries:
            out.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return stream.getvalue()


def test_what_goes_in_comes_out() -> None:
    data = encrypt_kit(FILES, SECRET)
    assert decrypt_kit(data, SECRET) == FILES
    assert FILES["template/adapter_model.safetensors"] not in data
    assert encrypt_kit(FILES, SECRET) != data, "salt and nonce are new each time"
    assert decrypt_kit(sealed(zipped([("a", b"b")])), SECRET) == {"a": b"b"}


@pytest.mark.parametrize("at", [len(MAGIC), HEAD_SIZE - 1, HEAD_SIZE, HEAD_SIZE + 500, -1])
def test_a_changed_byte(at: int) -> None:
    data = bytearray(encrypt_kit(FILES, SECRET))
    data[at] ^= 1
    with pytest.raises(IdentityError, match="does not open"):
        decrypt_kit(bytes(data), SECRET)


@pytest.mark.parametrize("secret", ["", "correct horse batterz", SECRET + " "])
def test_another_passphrase(secret: str) -> None:
    with pytest.raises(IdentityError, match="passphrase"):
        decrypt_kit(encrypt_kit(FILES, SECRET), secret)


@pytest.mark.parametrize("data", [b"", MAGIC, b"PK\3\4" + bytes(100), MAGIC[:-1] + bytes(100)])
def test_what_is_no_kit(data: bytes) -> None:
    with pytest.raises(ConfigError, match="must be a file of"):
        decrypt_kit(data, SECRET)


@pytest.mark.parametrize("name", ["../a", "/a", "a/../b", "a//b", "..", "a\\b", "C:a", "a/b/", ".hidden", "a\nb", ""])
def test_paths_that_lead_elsewhere(name: str) -> None:
    assert not is_safe_path(name)
    with pytest.raises(ConfigError, match="plain relative path"):
        encrypt_kit({name: b""}, SECRET)
    if name:
        with pytest.raises(ConfigError, match="plain relative path"):
            decrypt_kit(sealed(zipped([(name, b"x")])), SECRET)


def test_archives_that_are_larger_than_they_look() -> None:
    for archive in (
        zipped([("a", bytes(10_000_000))], zipfile.ZIP_DEFLATED),
        zipped([(f"a{n}", b"") for n in range(1001)]),
        b"no archive",
    ):
        with pytest.raises(ConfigError, match="KIT"):
            decrypt_kit(sealed(archive), SECRET)


def test_a_short_passphrase() -> None:
    with pytest.raises(ConfigError, match="at least 12"):
        encrypt_kit(FILES, "short")
