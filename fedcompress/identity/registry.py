"""The coordinator's registry: which key may speak for which site.

One SQLite file in the state directory. A key is never deleted: a revoked one stays, so that
its signatures are refused with that reason, and it cannot be registered again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fedcompress.errors import AccessError, ConfigError
from fedcompress.identity.keys import PrivateKey, PublicKey
from fedcompress.storage.database import open_database, transaction
from fedcompress.storage.file_access import is_passing
from fedcompress.types import NAME_PATTERN
from fedcompress.wire import Seal

FILE = "keys.db"
COORDINATOR = "coordinator"  # name of the coordinator's own key in its state directory
_SCHEMA = """
CREATE TABLE IF NOT EXISTS key (
  public TEXT PRIMARY KEY, site TEXT NOT NULL, name TEXT NOT NULL, added REAL NOT NULL, revoked REAL);
"""


@dataclass(frozen=True)
class Signer:
    """A registered key and the site that it speaks for."""

    site: str
    key: PublicKey
    added: float  # seconds since 1970
    revoked: float | None = None


Log = Callable[[Signer], None]


class Registry:
    """Keys of the sites of one coordinator; may be read while another process writes."""

    def __init__(self, folder: Path) -> None:
        """Open or create the registry of a state directory.

        Raises:
            ConfigError: the folder cannot be made or written.
            AccessError: the registry is there, and cannot be opened now.
        """
        import sqlite3

        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = open_database(folder / FILE, _SCHEMA)
        except (OSError, sqlite3.Error) as error:
            if is_passing(error) and (folder / FILE).exists():
                raise AccessError(folder / FILE, error) from error
            raise ConfigError("--state-dir", folder, f"must be a folder that can be written: {error}") from error

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *error: object) -> None:
        self._db.close()

    def register(self, key: PublicKey, site: str, *, log: Log = lambda signer: None) -> Signer:
        """Let a key speak for a site; a site may have several, to change from one to the next.

        Args:
            key: the site's.
            site: its name.
            log: is told what is new, before it counts; if it raises, nothing is changed.

        Raises:
            ConfigError: the key is revoked or another site's, or ``site`` is not a name.
        """
        if not NAME_PATTERN.fullmatch(site):
            raise ConfigError("--site", repr(site[:80]), f"must match {NAME_PATTERN.pattern}")
        with transaction(self._db):
            known = next((s for s in self.signers() if s.key.data == key.data), None)
            if known is not None and known.revoked is not None:
                raise ConfigError("PUBKEY_FILE", key.id, "was revoked: make a new key")
            if known is not None and known.site != site:
                raise ConfigError("PUBKEY_FILE", key.id, f"is the key of site {known.site}: make another one")
            if known is not None:
                return known
            signer = Signer(site, key, time.time())
            self._db.execute(
                "INSERT INTO key VALUES (?, ?, ?, ?, NULL)", (key.data.hex(), site, key.name, signer.added)
            )
            log(signer)
        return signer

    def revoke(self, name: str, *, log: Log = lambda signer: None) -> list[Signer]:
        """Revoke a key by its id, or all keys of a site; returns those that were not revoked before.

        Args:
            name: of a site, or the id of a key.
            log: as for ``register``, once for each key.

        Raises:
            ConfigError: there is no such key or site.
        """
        with transaction(self._db):
            found = [s for s in self.signers() if name in (s.site, s.key.id)]
            if not found:
                known = sorted({s.site for s in self.signers()})
                raise ConfigError("NAME", repr(name[:80]), f"must be a site, one of {known}, or the id of a key")
            now = time.time()
            revoked = [replace(s, revoked=now) for s in found if s.revoked is None]
            for signer in revoked:
                self._db.execute("UPDATE key SET revoked=? WHERE public=?", (now, signer.key.data.hex()))
                log(signer)
        return revoked

    def signers(self) -> list[Signer]:
        """All keys, revoked ones too, by site and time."""
        rows = self._db.execute("SELECT site, public, name, added, revoked FROM key ORDER BY site, added, public")
        return [Signer(site, PublicKey(bytes.fromhex(data), name), added, off) for site, data, name, added, off in rows]

    def knows(self, site: str) -> bool:
        """Whether a key was ever registered for a site."""
        return self._db.execute("SELECT 1 FROM key WHERE site=? LIMIT 1", (site,)).fetchone() is not None

    def signer_of(self, seal: Seal, *, claimed: str = "") -> Signer | None:
        """Whose signature it is; None if no registered key made it.

        Args:
            seal: digest and signature of an envelope.
            claimed: the site to try first.
        """
        signers = sorted(self.signers(), key=lambda s: s.site != claimed)
        return next((s for s in signers if s.key.verifies(seal.signature, seal.statement)), None)


def coordinator_key(folder: Path) -> PrivateKey | None:
    """The coordinator's own key in its state directory, or None.

    Raises:
        ConfigError: the file is no key, or others may read it.
    """
    path = folder / f"{COORDINATOR}.key"
    return PrivateKey.load(path, field="coordinator.key") if path.exists() else None
