"""PEFT adapter folders to layouts and states, and back; fingerprints; seeded starts."""

from fedcompress.adapters.fingerprint import base_fingerprint
from fedcompress.adapters.folder import Adapter, adapter_digest, load_adapter, save_adapter
from fedcompress.adapters.groups import ADAPTERS, group_of
from fedcompress.adapters.init import seeded_init

__all__ = [
    "ADAPTERS",
    "Adapter",
    "adapter_digest",
    "base_fingerprint",
    "group_of",
    "load_adapter",
    "save_adapter",
    "seeded_init",
]
