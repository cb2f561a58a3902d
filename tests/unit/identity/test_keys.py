"""Keys as files, and the registry of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fedcompress.errors import AccessError, ConfigError
from fedcompress.identity import PrivateKey, PublicKey, Registry
from fedcompress.identity.audit import AuditLog
from fedcompress.identity.keys import write_file
from fedcompress.identity.registry import coordinator_key
from fedcompress.identity.tasks import CONTEXT, check_task, sign_task
from fedcompress.wire import Seal
from tests.support import no_descriptors

# RFC 8032, section 7.1, test 2
SECRET = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def rfc_key() -> PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return PrivateKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SECRET)), "rfc")


def test_vector_of_the_rfc() -> None:
    key = rfc_key()
    assert key.public.data.hex() == PUBLIC
    assert key.sign(b"\x72").hex() == SIGNATURE
    assert key.public.verifies(bytes.fromhex(SIGNATURE), b"\x72")
    assert not key.public.verifies(bytes.fromhex(SIGNATURE), b"\x73")
    for bad in (b"", bytes(64), bytes.fromhex(SIGNATURE)[:-1]):
        assert not key.public.verifies(bad, b"\x72")


def test_a_signature_has_one_form() -> None:
    """s + L verifies under a careless library, and would be another reply with the same content."""
    order = 2**252 + 27742317777372353535851937790883648493
    raw = bytes.fromhex(SIGNATURE)
    s = int.from_bytes(raw[32:], "little") + order
    assert not rfc_key().public.verifies(raw[:32] + s.to_bytes(32, "little"), b"\x72")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files(tmp_path: Path, umask: int) -> None:
    made = PrivateKey.new("north")
    before = os.umask(umask)
    try:
        key, public = made.save(tmp_path / "keys")
    finally:
        os.umask(before)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert key.read_text().startswith("-----BEGIN PRIVATE KEY-----")
    assert public.read_text().count("\n") == 1
    assert PublicKey.load(public) == made.public
    assert PrivateKey.load(key).public == made.public
    with pytest.raises(ConfigError, match="exists already"):
        made.save(tmp_path / "keys")
    other = PrivateKey.new("north")
    other.save(tmp_path / "keys", force=True)
    assert PublicKey.load(public) == other.public
    assert sorted(p.name for p in (tmp_path / "keys").iterdir()) == ["north.key", "north.pub"]


def test_a_private_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    key, public = PrivateKey.new("north").save(tmp_path)
    for mode in (0o640, 0o604, 0o666):
        key.chmod(mode)
        with pytest.raises(ConfigError, match=f"identity.key: .*its mode is {mode:o}: chmod 600"):
            PrivateKey.load(key, field="identity.key")
    for path in (public, tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError):
            PrivateKey.load(path)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    from fedcompress.identity.certs import CertOptions, make_certs

    make_certs(CertOptions(hosts=("localhost",)), tmp_path)
    with pytest.raises(ConfigError, match="must be an Ed25519 key"):
        PrivateKey.load(tmp_path / "server.key")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519 AAAA x",
        "fedcompress-ed25519",
        "fedcompress-ed25519 AAAA x",
        "fedcompress-ed25519 !!!! x",
        f"{rfc_key().public.line} two",
        rfc_key().public.line.replace("rfc", "../x"),
        rfc_key().public.line + "\n" + rfc_key().public.line,
    ],
)
def test_bad_public_keys(text: str) -> None:
    with pytest.raises(ConfigError, match=r"public key: .*must be one line"):
        PublicKey.parse(text)


def test_names(tmp_path: Path) -> None:
    for name in ("", "../x", "a b", "x\n", "-x", "x" * 65):
        with pytest.raises(ConfigError, match="NAME"):
            PrivateKey.new(name)
        with Registry(tmp_path) as registry, pytest.raises(ConfigError, match="--site"):
            registry.register(rfc_key().public, name)


def seal(key: PrivateKey) -> Seal:
    return Seal(b"d" * 32, key.sign(Seal(b"d" * 32, b"").statement))


def test_registry(tmp_path: Path) -> None:
    north, south, new = (PrivateKey.new(n) for n in ("north", "south", "new"))
    with Registry(tmp_path / "state") as registry:
        registry.register(north.public, "north")
        registry.register(north.public, "north")  # twice is once
        registry.register(south.public, "south")
        with pytest.raises(ConfigError, match="is the key of site north"):
            registry.register(north.public, "south")
    with Registry(tmp_path / "state") as registry:
        found = registry.signer_of(seal(south), claimed="north")
        assert found is not None
        assert (found.site, found.revoked) == ("south", None)
        assert registry.signer_of(seal(new)) is None
        registry.register(new.public, "north")  # beside the old one
        assert [s.key for s in registry.revoke(north.public.id)] == [north.public]
        assert registry.revoke(north.public.id) == []
        old, now = registry.signer_of(seal(north)), registry.signer_of(seal(new))
        assert old is not None
        assert old.revoked is not None
        assert now is not None
        assert now.revoked is None
        with pytest.raises(ConfigError, match="was revoked"):
            registry.register(north.public, "north")
        assert {s.key.data for s in registry.revoke("north")} == {new.public.data}
        assert registry.knows("north")
        with pytest.raises(ConfigError, match="must be a site"):
            registry.revoke("nobody")


def test_what_cannot_be_logged_does_not_count(tmp_path: Path) -> None:
    def broken(signer: object) -> None:
        raise OSError("the disk is full")

    key = PrivateKey.new("north")
    with Registry(tmp_path) as registry:
        with pytest.raises(OSError, match="full"):
            registry.register(key.public, "north", log=broken)
        assert registry.signers() == []
        registry.register(key.public, "north")
        with pytest.raises(OSError, match="full"):
            registry.revoke("north", log=broken)
        assert [s.revoked for s in registry.signers()] == [None]


def test_the_coordinators_key(tmp_path: Path) -> None:
    assert coordinator_key(tmp_path) is None
    made = PrivateKey.new("coordinator")
    made.save(tmp_path)
    found = coordinator_key(tmp_path)
    assert found is not None
    assert found.public == made.public


def test_a_task_is_not_an_envelope() -> None:
    """Signatures of one kind are none of the other: what is signed begins differently."""
    key = rfc_key()
    signature = sign_task(key, "{}", b"x")
    check_task(key.public, signature, "{}", b"x")
    assert not Seal(b"d" * 32, b"").statement.startswith(CONTEXT[:14])


def test_folders_that_are_made_for_secrets_are_private(tmp_path: Path) -> None:
    """A state directory is made by whichever command comes first."""
    write_file(tmp_path / "state" / "coordinator.key", b"x", mode=0o600)
    with Registry(tmp_path / "registry"):
        pass
    AuditLog(tmp_path / "log")
    for name in ("state", "registry", "log"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700, name
    (tmp_path / "theirs").mkdir(mode=0o755)
    write_file(tmp_path / "theirs" / "a.key", b"x", mode=0o600)
    assert (tmp_path / "theirs").stat().st_mode & 0o777 == 0o755


def test_a_registry_that_cannot_be_opened_now(tmp_path: Path) -> None:
    """It is no setting that is wrong, so a run that needs it begins again."""
    with Registry(tmp_path):
        pass
    with no_descriptors(), pytest.raises(AccessError, match="cannot be opened now"):
        Registry(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--state-dir"):
        Registry(tmp_path / "file")
