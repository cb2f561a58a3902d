"""A site signs what it sends with its own key, and takes only what the coordinator's key has signed."""

from __future__ import annotations

from dataclasses import dataclass

from clients.site import SiteConfig
from fedcompress.errors import IdentityError
from fedcompress.identity import PrivateKey, PublicKey
from fedcompress.identity.tasks import check_task
from fedcompress.wire import Limits, seal_of, sign_envelope, split_bundle


@dataclass(frozen=True)
class SiteIdentity:
    """Holds the keys of a site, as far as site.toml names them.

    Attributes:
        key: the site's private key; None: what it sends is not signed.
        coordinator: the coordinator's public key; None: what comes is not verified.
    """

    key: PrivateKey | None = None
    coordinator: PublicKey | None = None

    @classmethod
    def load(cls, site: SiteConfig) -> SiteIdentity:
        """Read the key files that site.toml names.

        Raises:
            ConfigError: one of them is no key, or others may read the private one.
        """
        key: PrivateKey | None = None
        if site.identity.key is not None:
            key = PrivateKey.load(site.identity.key, field="identity.key")
        coordinator: PublicKey | None = None
        if site.identity.coordinator is not None:
            coordinator = PublicKey.load(site.identity.coordinator, field="identity.coordinator")
        return cls(key, coordinator)

    def sign(self, envelope: bytes) -> bytes:
        """Return the envelope with this site's signature, or as it is if the site has no key."""
        return sign_envelope(envelope, self.key.sign) if self.key is not None else envelope

    def check(self, signature: str, task_json: str, bundle: bytes) -> None:
        """Verify a task and every envelope of its downlink; no envelope is decoded before.

        Args:
            signature: the coordinator's, of task and downlink, hex.
            task_json: the task, as it was signed.
            bundle: the downlink, concatenated envelopes, each of which is signed, too.

        Raises:
            IdentityError: ``signature``: the coordinator has not signed them.
            WireError: an envelope is malformed.
        """
        if self.coordinator is None:
            return
        check_task(self.coordinator, signature, task_json, bundle)
        limits = Limits(max_body=len(bundle))
        for number, envelope in enumerate(split_bundle(bundle, limits)):
            seal = seal_of(envelope, limits)
            if not seal.signature or not self.coordinator.verifies(seal.signature, seal.statement):
                raise IdentityError(
                    "signature", f"downlink: envelope {number}: is not signed by the key {self.coordinator.id}"
                )
