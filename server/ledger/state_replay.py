"""Any published version can be read from the ledger; older ones by decoding the envelopes that lead to them."""

from __future__ import annotations

from collections.abc import Sequence

from fedcompress.errors import AccessError, ConfigError, MismatchError, StateError, WireError
from fedcompress.pipeline.states import decode_state
from fedcompress.storage.blobs import BlobStore
from fedcompress.types import Layout, Tensors, from_bytes, state_digest
from server.ledger.reader import LedgerReader, VersionRow
from server.state_dir import BLOBS


def replay_version(reader: LedgerReader, run: str, version: int | None = None) -> tuple[int, Tensors]:
    """Read the state of a version, bit for bit as it was published.

    Args:
        reader: of the ledger.
        run: name of the run.
        version: its number; None for the newest.

    Returns:
        The number of the version, and its state: float32 tensors of the run's layout.

    Raises:
        ConfigError: the run has no such version.
        StateError: a blob is missing or changed, or the state is not the one that was published.
    """
    rows = reader.versions(run)
    if not rows:
        raise ConfigError("--run", run, f"has published nothing: runs are {reader.runs()}")
    number = rows[-1].version if version is None else version
    path = [row for row in rows if row.version <= number]
    if not path or path[-1].version != number:
        raise ConfigError("--round", number, f"must be from {rows[0].version} to {rows[-1].version}")
    layout = Layout.from_json(reader.run_row(run)[0])
    blobs = BlobStore(reader.folder / BLOBS)
    state = _read_whole_state(blobs, layout, path[-1].state)
    if state is None:
        state = _replay_path(blobs, layout, path)
    digest = state_digest(layout, state).hex()
    if digest != path[-1].digest:
        raise StateError(f"version {number}: {digest[:16]}: must be {path[-1].digest[:16]}, which was published")
    return number, state


def _read_whole_state(blobs: BlobStore, layout: Layout, name: str | None) -> Tensors | None:
    """Read a state that is kept whole; None if it is not, or if a coordinator that runs has just dropped it."""
    try:
        return from_bytes(blobs.get(name), layout) if name else None
    except (StateError, AccessError):
        return None


def _replay_path(blobs: BlobStore, layout: Layout, path: Sequence[VersionRow]) -> Tensors:
    """Replay the envelopes of some versions, from the state of the first one if that is kept whole."""
    envelopes = [row.envelope for row in path]
    state = _read_whole_state(blobs, layout, path[0].state) if path[0].version else None
    return replay_envelopes(blobs, layout, envelopes if state is None else envelopes[1:], state)


def replay_envelopes(
    blobs: BlobStore, layout: Layout, envelopes: Sequence[str], state: Tensors | None = None
) -> Tensors:
    """Decode a chain of envelopes, one after another.

    Args:
        blobs: has the envelopes.
        layout: of the adapter.
        envelopes: names of their blobs, in order.
        state: that the first envelope starts from; None for a snapshot.

    Returns:
        The state that the last envelope leads to.

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
