"""What a worker tells about itself, its ranks and this machine."""

from __future__ import annotations

import os

from clients.runtime.hardware import gpus, host_memory, resident
from clients.state.counters import Counters
from clients.worker.rank_group import RankGroup
from fedcompress.proto.v1 import worker_pb2


def build_status(site: str, hub: RankGroup, counters: Counters) -> worker_pb2.StatusReply:
    """The part that does not depend on a round: it is idle."""
    total, available = host_memory()
    reply = worker_pb2.StatusReply(
        site=site,
        pid=os.getpid(),
        phase="idle",
        ranks_ready=hub.ready,
        ranks=hub.ranks,
        rss_bytes=resident([os.getpid()]),
        ranks_rss_bytes=resident(hub.pids),
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
        reply.last_error, reply.last_error_code = failure.message, failure.code
        reply.last_error_run, reply.last_error_round, reply.last_error_at = failure.run, failure.round, failure.at
    return reply
