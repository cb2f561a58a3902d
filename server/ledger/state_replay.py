"""Any published version from the ledger: older ones by decoding the envelopes that lead to them."""

from __future__ import annotations

from collections.abc import Sequence

from fedcompress.errors import AccessError, ConfigError, MismatchError, StateError, WireError
from fedcompress.pipeline.states import decode_state
from fedcompress.storage.blobs import BlobStore
from fedcompress.types import Layout, Tensors, from_bytes, state_digest
from server.ledger.reader import LedgerReader
from server.state_dir import BLOBS


def replay_version(history: LedgerReader, run: str, version: int | None = None) -> tuple[int, Tensors]:
    """The state of a version (None: the newest), bit for bit as it was published.

    Raises:
        ConfigError: the run has no such version.
        StateError: a blob is missing or changed, or the state is not the one that was published.
    """
    rows = history.versions(run)
    if not rows:
        raise ConfigError("--run", run, f"has published nothing: runs are {history.runs()}")
    wanted = rows[-1][0] if version is None else version
    path = [row for row in rows if row[0] <= wanted]
    if not path or path[-1][0] != wanted:
        raise ConfigError("--round", wanted, f"must be from {rows[0][0]} to {rows[-1][0]}")
    layout = Layout.from_json(history.run_row(run)[0])
    blobs = BlobStore(history.folder / BLOBS)
    state = _stored(blobs, layout, path[-1][3])
    if state is None:
        state = _replayed(blobs, layout, path)
    reached = state_digest(layout, state).hex()
    if reached != path[-1][1]:
        raise StateError(f"version {wanted}: {reached[:16]}: must be {path[-1][1][:16]}, which was published")
    return wanted, state


def _stored(blobs: BlobStore, layout: Layout, name: str | None) -> Tensors | None:
    """A state that is kept whole; None if it is not, or a coordinator that runs has just dropped it."""
    try:
        return from_bytes(blobs.get(name), layout) if name else None
    except (StateError, AccessError):
        return None


def _replayed(blobs: BlobStore, layout: Layout, path: list[tuple[int, str, str, str | None]]) -> Tensors:
    names = [envelope for _, _, envelope, _ in path]
    first, _, _, kept = path[0]
    state = _stored(blobs, layout, kept) if first else None
    return replay_envelopes(blobs, layout, names[1:] if state is not None else names, state)


def replay_envelopes(
    blobs: BlobStore, layout: Layout, envelopes: Sequence[str], state: Tensors | None = None
) -> Tensors:
    """The state that a chain of envelopes, named by their blobs, leads to.

    Raises:
        StateError: a blob is missing or changed, or the chain is broken.
    """
    for name in envelopes:
        try:
            _, state = decode_state(blobs.get(name), layout, state)
        except (WireError, MismatchError) as error:
            raise StateError(f"blob: {name[:16]}: the chain of versions is broken there: {error}") from error
    assert state is not None
    return state
