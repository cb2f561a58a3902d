"""Says who speaks: Ed25519 keys, the coordinator's registry of them, its audit log, and certificates."""

from fedcompress.identity.keys import PrivateKey, PublicKey
from fedcompress.identity.registry import Registry, Signer

__all__ = ["PrivateKey", "PublicKey", "Registry", "Signer"]
