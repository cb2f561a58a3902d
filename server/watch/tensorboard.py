"""A run is written as TensorBoard events: quality, bytes and seconds by round, and each site's own quality."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedcompress.errors import ConfigError, MissingPackageError
from fedcompress.types import NAME_PATTERN
from server.events import EXPORTED
from server.ledger.quality import pool_quality
from server.runs import resolve_run_name
from server.watch.reading import WatchReader
from server.watch.view import take_snapshot

LOOK = 1.0  # seconds between two looks at the run


@dataclass(frozen=True, kw_only=True)
class Scalar:
    """One number for TensorBoard.

    Attributes:
        tag: its name.
        step: its round; 0: the start.
        value: the number.
        at: when it was measured, seconds since 1970.
    """

    tag: str
    step: int
    value: float
    at: float


def format_tag(name: str) -> str:
    """Format a site's name as part of a tag; a name that no site may have is replaced by its digest.

    Examples:
        >>> format_tag("north")
        'north'
        >>> format_tag("../x")
        'site-f6b9fb0e'
    """
    return name if NAME_PATTERN.fullmatch(name) else f"site-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def read_scalars(state_dir: Path, run: str) -> Iterator[Scalar]:
    """Yield all numbers of a run so far; quality belongs to the round that made the version which was evaluated."""
    shown = take_snapshot(state_dir, run)
    sent_bytes = 0.0
    started_at = shown.history[0].at - shown.history[0].seconds if shown.history else shown.at
    ended = {0: started_at}  # when each round has ended
    for name, first in (("accuracy", shown.accuracy_start), ("loss", shown.loss_start)):
        if first is not None:
            yield Scalar(tag=f"quality/{name}", step=0, value=first, at=ended[0])
    for row in shown.history:
        ended[row.round] = row.at
        sent_bytes += row.uplink_bytes + row.downlink_bytes
        values = {
            "quality/accuracy": row.accuracy,
            "quality/loss": row.loss,
            "bytes/up": row.uplink_bytes,
            "bytes/down": row.downlink_bytes,
            "bytes/total": sent_bytes,
            "round/seconds": row.seconds,
            "round/merged": row.merged,
            "round/late": row.late,
            "round/refused": row.refused,
        }
        for tag, value in values.items():
            if value is not None:
                yield Scalar(tag=tag, step=row.round, value=float(value), at=row.at)
    with WatchReader(state_dir) as reader:
        for round_, sites in reader.evaluated(run).items():
            for site, metrics in sites.items():
                quality = pool_quality([metrics])
                if quality is None or round_ - 1 not in ended:
                    continue
                for name, number in (("accuracy", quality.accuracy), ("loss", quality.loss)):
                    yield Scalar(
                        tag=f"sites/{format_tag(site)}/{name}", step=round_ - 1, value=number, at=ended[round_ - 1]
                    )


def write_events(
    state_dir: Path, folder: Path, *, run: str = "", once: bool, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Write a run's scalars into ``folder/RUN``, once or until the run has ended.

    Written again into the same folder, they take the place of those that were there when TensorBoard reads them.

    Args:
        state_dir: the coordinator's.
        folder: where TensorBoard looks.
        run: name of the run; empty: the last that was started.
        once: whether to write only what there is now.
        sleep: waits so many seconds.

    Returns:
        How many scalars were written.

    Raises:
        ConfigError: there is no such run, or the folder cannot be written.
        MissingPackageError: tensorboardX is absent.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise MissingPackageError("tensorboard: tensorboardX is absent: pip install 'fedcompress[watch]'") from error
    name = resolve_run_name(state_dir, run)
    target = folder / format_tag(name)
    try:
        target.mkdir(parents=True, exist_ok=True)
        writer = SummaryWriter(str(target), purge_step=0)
    except OSError as error:
        raise ConfigError("--tensorboard", folder, f"cannot be written: {error.strerror}") from error
    written: set[tuple[str, int]] = set()
    with writer:
        while True:
            ended = once or take_snapshot(state_dir, name).state in EXPORTED
            for scalar in read_scalars(state_dir, name):
                key = (scalar.tag, scalar.step)
                if key not in written and math.isfinite(scalar.value):
                    writer.add_scalar(scalar.tag, scalar.value, scalar.step, walltime=scalar.at)
                    written.add(key)
            writer.flush()
            if ended:
                return len(written)
            sleep(LOOK)
