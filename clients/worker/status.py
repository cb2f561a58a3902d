"""The status tells what a worker is, how its ranks are, and what they use of this machine."""

from __future__ import annotations

import os

from clients.runtime.hardware import gpus, host_memory, resident
from clients.state.counters import Counters
from clients.worker.rank_group import RankGroup
from fedcompress.proto.v1 import worker_pb2


def build_status(site: str, rank_group: RankGroup, counters: Counters) -> worker_pb2.StatusReply:
    """Return the part of a status that does not depend on a round, with the phase ``idle``.

    Args:
        site: the site's name.
        rank_group: the ranks that attend the worker.
        counters: bytes received and sent, by run, and the last failure.

    Returns:
        A reply in which the fields of a round are still empty.
    """
    total, available = host_memory()
    reply = worker_pb2.StatusReply(
        site=site,
        pid=os.getpid(),
        phase="idle",
        ranks_ready=rank_group.ready,
        ranks=rank_group.ranks,
        rss_bytes=resident([os.getpid()]),
        ranks_rss_bytes=resident(rank_group.pids),
        host_total_bytes=total,
        host_available_bytes=available,
    )
    for gpu in gpus():
        reply.gpus.add(index=gpu.index, name=gpu.name, total_bytes=gpu.total, used_bytes=gpu.used)
    for row in counters.traffic():
        reply.traffic.add(
            run=row.run,
            received_bytes=row.received,
            sent_bytes=row.sent,
            requests=row.requests,
            replies=row.replies,
        )
        reply.bytes_received += row.received
        reply.bytes_sent += row.sent
    failure = counters.last_failure()
    if failure is not None:
        reply.last_error = failure.message
        reply.last_error_code = failure.code
        reply.last_error_run = failure.run
        reply.last_error_round = failure.round
        reply.last_error_at = failure.at
    return reply
