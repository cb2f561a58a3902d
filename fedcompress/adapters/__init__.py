"""Loads and saves PEFT adapters and templates of runs, fingerprints bases, and makes seeded starts."""

from fedcompress.adapters.fingerprint import base_fingerprint
from fedcompress.adapters.folder import Adapter, adapter_digest, load_adapter, save_adapter
from fedcompress.adapters.groups import group_of
from fedcompress.adapters.seeded_init import seeded_init
from fedcompress.adapters.spec import parse_adapter
from fedcompress.adapters.table import ADAPTERS
from fedcompress.adapters.template import Template, load_template, save_template

__all__ = [
    "ADAPTERS",
    "Adapter",
    "Template",
    "adapter_digest",
    "parse_adapter",
    "base_fingerprint",
    "group_of",
    "load_adapter",
    "load_template",
    "save_adapter",
    "save_template",
    "seeded_init",
]
