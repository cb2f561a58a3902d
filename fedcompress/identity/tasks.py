"""Signs a task, together with the downlink that comes with it, and verifies such a signature.

Run, round, version and site are in the task's JSON. A task that names no site holds what is right for
every site: the digests of the last merged updates of all of them.
"""

from __future__ import annotations

import hashlib

from fedcompress.errors import IdentityError
from fedcompress.identity.keys import PrivateKey, PublicKey

CONTEXT = b"fedcompress-task-v1\0"  # begins what is signed, so that it is taken for no other kind of statement


def task_statement(task_json: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: ``CONTEXT``, then the SHA-256 of the JSON and that of the downlink."""
    return CONTEXT + hashlib.sha256(task_json.encode()).digest() + hashlib.sha256(payload).digest()


def sign_task(key: PrivateKey, task_json: str, payload: bytes) -> str:
    """Sign a task with the coordinator's key.

    Args:
        key: the coordinator's.
        task_json: the task as it is sent.
        payload: the bytes of the downlink: envelopes one behind the other.

    Returns:
        The signature in hex, 128 digits.
    """
    return key.sign(task_statement(task_json, payload)).hex()


def check_task(key: PublicKey, signature: str, task_json: str, payload: bytes) -> None:
    """Raise ``IdentityError`` unless the coordinator has signed a task and its downlink.

    Args:
        key: the coordinator's public key.
        signature: what came with the task, in hex; text that is no hex counts as no signature.
        task_json: the task as it was received.
        payload: the bytes of the downlink.

    Raises:
        IdentityError: ``signature``: the task has none, or not the coordinator's.
    """
    try:
        signature_bytes = bytes.fromhex(signature)
    except ValueError:
        signature_bytes = b""
    if not signature_bytes:
        raise IdentityError("signature", "task: has no signature: this site takes none without its coordinator's")
    if not key.verifies(signature_bytes, task_statement(task_json, payload)):
        raise IdentityError("signature", f"task: its signature is not of the coordinator's key {key.id}")
