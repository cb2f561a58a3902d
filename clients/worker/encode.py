"""An update that is too large for memory: target, code and residual, part by part."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clients.site import SiteConfig
from clients.worker.session import Held, Session
from fedcompress.codecs import CodecSpec
from fedcompress.config import TrainTask
from fedcompress.errors import ConfigError
from fedcompress.parts import Piece, values_of
from fedcompress.parts.stored import MAGIC, opened, parts_of, raw
from fedcompress.parts.streaming import stream_update
from fedcompress.privacy import clip_factor
from fedcompress.types import Tensors, l2_norm
from fedcompress.wire import Header


def encode_stream(session: Session, site: SiteConfig, task: TrainTask, header: Header, held: Held, file: Path) -> bytes:
    """Delta plus residual to an envelope; commits outbox and residual.

    Args:
        session: of the site.
        site: for the bound on the update's norm.
        task: the round.
        header: of the reply.
        held: what the site holds.
        file: of the delta.

    Raises:
        ConfigError: the run wants a residual of fewer bits.
    """
    feedback, codec = task.error_feedback, CodecSpec.parse(task.codec)
    if feedback.store != "none":
        raise ConfigError("task.residual_store", feedback.store, "must be none where weights of the base are trained")
    delta = opened(file, held.layout)
    scale = np.float32(1)
    if site.max_update_norm > 0:
        norms = [l2_norm(values.values()) for _, values in parts_of(held.layout, delta)]
        scale = clip_factor(float(np.linalg.norm(norms)), site.max_update_norm)

    def read(pieces: list[Piece]) -> Tensors:
        values = values_of(delta, pieces)
        if scale != 1:
            values = {name: value * scale for name, value in values.items()}
        return feedback.target(values, values_of(held.residual, pieces), task.round)

    with session.stream() as residual:
        residual.write(MAGIC)

        def keep(_: list[Piece], target: Tensors, decoded: Tensors) -> None:
            for chunk in raw(feedback.residual(target, decoded)):
                residual.write(chunk)

        payload = stream_update(read, held.layout, codec, header, keep)
    session.commit(task.run, task.round, header.base_digest, payload, residual)
    return payload
