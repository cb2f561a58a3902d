"""The nodes of a site know each other by a token: a secret in a file, which is the same on all of them."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedcompress.errors import ConfigError

HEADER = "fedcompress-token"  # key of the token in a call's metadata
LEAST = 32  # characters of a token, letters and digits


def read_token(path: Path, *, make: bool = False) -> str:
    """Read the secret; with ``make``, draw and write it first if there is none, readable by its owner only.

    Raises:
        ConfigError: there is none, it is too short, or others may read it.
    """
    if make and not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_hex(32) + "\n")
    try:
        mode = path.stat().st_mode
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        raise ConfigError("engine.token", path, "must be a file as on node 0, which makes it: copy it") from None
    if mode & 0o077:
        raise ConfigError("engine.token", path, "must be readable by its owner only: chmod 600")
    if len(token) < LEAST or not token.isalnum():
        raise ConfigError("engine.token", path, f"must have at least {LEAST} letters and digits")
    return token


def guard(token: str) -> Any:
    """Return an interceptor for a ``grpc.Server`` that refuses calls without the token."""
    import grpc

    def refuse(request: Any, context: Any) -> None:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "engine.token: is not node 0's")

    class Guard(grpc.ServerInterceptor):  # type: ignore[misc,type-arg]  # its stub is generic, the class is not
        def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
            sent = dict(details.invocation_metadata).get(HEADER, "")
            if hmac.compare_digest(str(sent).encode(), token.encode()):
                return continuation(details)
            return grpc.unary_unary_rpc_method_handler(refuse)

    return Guard()
