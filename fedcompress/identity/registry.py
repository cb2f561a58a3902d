"""The coordinator's registry knows which key may speak for which site.

It is one SQLite file in the state directory. A key is never deleted: a revoked one stays, so that
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

FILE = "keys.db"  # in the state directory
COORDINATOR = "coordinator"  # name of the coordinator's own key in its state directory
_SCHEMA = """
CREATE TABLE IF NOT EXISTS key (
  public TEXT PRIMARY KEY, site TEXT NOT NULL, name TEXT NOT NULL, added REAL NOT NULL, revoked REAL);
"""


@dataclass(frozen=True)
class Signer:
    """A signer is a registered key together with the site that it speaks for."""

    site: str
    key: PublicKey
    added: float  # seconds since 1970
    revoked: float | None = None  # seconds since 1970; None while the key may be used


Log = Callable[[Signer], None]


class Registry:
    """Holds the keys of the sites of one coordinator; may be read while another process writes."""

    def __init__(self, folder: Path) -> None:
        """Open or create the registry of a state directory.

        Raises:
            ConfigError: the folder cannot be made or written.
            AccessError: the registry is there, but cannot be opened now.
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
        """Register a key for a site; a site may have several, to change from one to the next.

        A key that already speaks for this site is left as it is.

        Args:
            key: the site's public key.
            site: the site's name.
            log: is called with a new signer before the registration is committed; if it raises, nothing is changed.

        Returns:
            The signer as it is registered now.

        Raises:
            ConfigError: the key is revoked or another site's, or ``site`` is not a valid name.
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
        """Revoke one key, or all keys of a site.

        Args:
            name: the name of a site, or the id of a key.
            log: is called once for each key before the change is committed; if it raises, nothing is changed.

        Returns:
            The signers that were not revoked before.

        Raises:
            ConfigError: there is no such key or site.
        """
        with transaction(self._db):
            matching = [s for s in self.signers() if name in (s.site, s.key.id)]
            if not matching:
                known = sorted({s.site for s in self.signers()})
                raise ConfigError("NAME", repr(name[:80]), f"must be a site, one of {known}, or the id of a key")
            now = time.time()
            revoked = [replace(s, revoked=now) for s in matching if s.revoked is None]
            for signer in revoked:
                self._db.execute("UPDATE key SET revoked=? WHERE public=?", (now, signer.key.data.hex()))
                log(signer)
        return revoked

    def signers(self) -> list[Signer]:
        """Return all signers, revoked ones too, ordered by site and by the time when they were added."""
        rows = self._db.execute("SELECT site, public, name, added, revoked FROM key ORDER BY site, added, public")
        return [
            Signer(site, PublicKey(bytes.fromhex(public), name), added, revoked)
            for site, public, name, added, revoked in rows
        ]

    def knows(self, site: str) -> bool:
        """Return True if a key was ever registered for a site, be it revoked since."""
        return self._db.execute("SELECT 1 FROM key WHERE site=? LIMIT 1", (site,)).fetchone() is not None

    def signer_of(self, seal: Seal, *, claimed: str = "") -> Signer | None:
        """Find the registered key, revoked or not, that made a signature; None if none did.

        Args:
            seal: digest and signature of an envelope.
            claimed: the site that says it has signed; its keys are tried first.
        """
        signers = sorted(self.signers(), key=lambda s: s.site != claimed)
        return next((s for s in signers if s.key.verifies(seal.signature, seal.statement)), None)


def coordinator_key(folder: Path) -> PrivateKey | None:
    """Load the coordinator's own key from its state directory; None if it has none.

    Raises:
        ConfigError: the file holds no key, or others may read it.
    """
    path = folder / f"{COORDINATOR}.key"
    return PrivateKey.load(path, field="coordinator.key") if path.exists() else None
