"""A site's own key, and the coordinator's public one: what is signed here, and what is taken."""

from __future__ import annotations

from dataclasses import dataclass

from clients.site import SiteConfig
from fedcompress.errors import IdentityError
from fedcompress.identity import PrivateKey, PublicKey
from fedcompress.identity.tasks import check_task
from fedcompress.wire import Limits, seal_of, sign_envelope, split_bundle


@dataclass(frozen=True)
class SiteIdentity:
    """Both keys, as far as site.toml names them."""

    key: PrivateKey | None = None
    coordinator: PublicKey | None = None

    @classmethod
    def load(cls, site: SiteConfig) -> SiteIdentity:
        """Read the files that site.toml names.

        Raises:
            ConfigError: one of them is no key, or others may read the private one.
        """
        key, coordinator = site.identity.key, site.identity.coordinator
        return cls(
            PrivateKey.load(key, field="identity.key") if key is not None else None,
            PublicKey.load(coordinator, field="identity.coordinator") if coordinator is not None else None,
        )

    def sign(self, envelope: bytes) -> bytes:
        """The envelope with this site's signature, if it has a key."""
        return sign_envelope(envelope, self.key.sign) if self.key is not None else envelope

    def check(self, signature: str, task_json: str, bundle: bytes) -> None:
        """Verify a task and every envelope of its downlink; nothing of them is decoded before.

        Raises:
            IdentityError: ``signature``: the coordinator has not signed them.
            WireError: an envelope is malformed.
        """
        if self.coordinator is None:
            return
        check_task(self.coordinator, signature, task_json, bundle)
        limits = Limits(max_body=len(bundle))
        for number, piece in enumerate(split_bundle(bundle, limits)):
            seal = seal_of(piece, limits)
            if not seal.signature or not self.coordinator.verifies(seal.signature, seal.statement):
                raise IdentityError(
                    "signature", f"downlink: envelope {number}: is not signed by the key {self.coordinator.id}"
                )
