"""The signature of a task: of its JSON and of the downlink that comes with it.

Run, round, version and site are in the JSON. A task that names no site holds what is right for
every site: the digests of the last merged updates of all of them.
"""

from __future__ import annotations

import hashlib

from fedcompress.errors import IdentityError
from fedcompress.identity.keys import PrivateKey, PublicKey

CONTEXT = b"fedcompress-task-v1\0"


def task_statement(task_json: str, payload: bytes) -> bytes:
    """The bytes that are signed: two digests of fixed size after a context of their own."""
    return CONTEXT + hashlib.sha256(task_json.encode()).digest() + hashlib.sha256(payload).digest()


def sign_task(key: PrivateKey, task_json: str, payload: bytes) -> str:
    """The coordinator's signature, hex."""
    return key.sign(task_statement(task_json, payload)).hex()


def check_task(key: PublicKey, signature: str, task_json: str, payload: bytes) -> None:
    """Verify a task.

    Raises:
        IdentityError: ``signature``: it has none, or not the coordinator's.
    """
    try:
        raw = bytes.fromhex(signature)
    except ValueError:
        raw = b""
    if not raw:
        raise IdentityError("signature", "task: has no signature: this site takes none without its coordinator's")
    if not key.verifies(raw, task_statement(task_json, payload)):
        raise IdentityError("signature", f"task: its signature is not of the coordinator's key {key.id}")
