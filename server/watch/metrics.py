"""A snapshot is written as metrics for Prometheus, in its text format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedcompress.errors import MissingPackageError
from server.watch.view import Snapshot

if TYPE_CHECKING:
    from prometheus_client.core import Metric

# Values of the label ``state``.
STATES = (
    "starting", "waiting", "asked", "merging", "evaluating", "finished", "stopped", "failed", "interrupted",
)  # fmt: skip
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def to_prometheus(snapshot: Snapshot) -> bytes:
    """Write all metrics of a run. Sites are those that were admitted; whatever else sends shares ``site=""``.

    Raises:
        MissingPackageError: prometheus-client is absent.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.registry import Collector
    except ImportError as error:
        raise MissingPackageError("metrics: prometheus-client is absent: pip install 'fedcompress[watch]'") from error

    class Once(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from _run_metrics(snapshot)
            yield from _traffic_metrics(snapshot)
            yield from _site_metrics(snapshot)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Once())
    return generate_latest(registry)


def _run_metrics(shown: Snapshot) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    last = shown.history[-1] if shown.history else None
    gauges: tuple[tuple[str, str, float | None], ...] = (
        ("rounds", "Rounds that are planned.", shown.rounds),
        ("awaited_sites", "Sites that were asked and have not answered.", len(shown.awaited)),
        ("accuracy", "Of the last version that sites evaluated, on their held-out rows.", shown.accuracy),
        ("loss", "Mean loss of the last version that sites evaluated, in nats.", shown.loss),
        (
            "last_round_seconds",
            "From the first message of the last round to its commit.",
            last.seconds if last else None,
        ),
        ("last_round_timestamp_seconds", "When the last round was committed.", last.at if last else None),
        ("parameters", "Entries of an update.", shown.parameters),
    )
    for name, text, value in gauges:
        if value is not None:
            gauge = GaugeMetricFamily(f"fedcompress_{name}", text, labels=["run"])
            gauge.add_metric([shown.run], value)
            yield gauge
    counters = (
        ("rounds_done", "Committed rounds.", shown.rounds_done),
        ("updates_merged", "Updates that rounds merged.", sum(r.merged for r in shown.history)),
        ("updates_merged_late", "Of these, trained from an older version.", sum(r.late for r in shown.history)),
    )
    for name, text, count in counters:
        counter = CounterMetricFamily(f"fedcompress_{name}", text, labels=["run"])
        counter.add_metric([shown.run], count)
        yield counter
    refused = CounterMetricFamily("fedcompress_refusals", "What was not admitted, by reason.", labels=["run", "code"])
    for code, count in shown.refused_by_code.items():
        refused.add_metric([shown.run, code], count)
    yield refused
    state = GaugeMetricFamily("fedcompress_state", "1 for the state that the run is in.", labels=["run", "state"])
    for name in STATES:
        state.add_metric([shown.run, name], float(shown.state == name))
    yield state


def _traffic_metrics(shown: Snapshot) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily

    labels = ["run", "site", "direction", "kind"]
    payload = CounterMetricFamily("fedcompress_payload_bytes", "Whole envelopes.", labels=labels)
    protocol = CounterMetricFamily("fedcompress_protocol_bytes", "What Flower's records add to them.", labels=labels)
    messages = CounterMetricFamily("fedcompress_messages", "Messages; a `failure` has no update.", labels=labels)
    for row in shown.traffic:
        values = [shown.run, row.site, row.direction, row.kind]
        payload.add_metric(values, row.payload_bytes)
        protocol.add_metric(values, row.protocol_bytes)
        messages.add_metric(values, row.messages)
    text = "The same messages with every tensor uncompressed."
    baseline = CounterMetricFamily("fedcompress_baseline_bytes", text, labels=["run", "dtype", "direction"])
    for dtype, base in shown.baselines.items():
        baseline.add_metric([shown.run, dtype, "up"], base.uplink_bytes)
        baseline.add_metric([shown.run, dtype, "down"], base.downlink_bytes)
    text = "What else crossed the links of sites that count: HTTP, TLS, polling."
    transport = CounterMetricFamily("fedcompress_transport_bytes", text, labels=["run", "site", "direction"])
    for site in shown.sites:
        for way, value in (("up", site.uplink_transport_bytes), ("down", site.downlink_transport_bytes)):
            if value is not None:
                transport.add_metric([shown.run, site.site, way], value)
    yield from (payload, protocol, messages, baseline, transport)


def _site_metrics(shown: Snapshot) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    gauges = (
        ("site_version", "Version that a site holds.", lambda s: s.version),
        ("site_last_merged_round", "Last round that merged an update of a site.", lambda s: s.merged_round),
        ("site_rate_bytes_per_second", "Of the last exchange, without training.", lambda s: s.rate or None),
        ("site_examples", "That a site trained on last.", lambda s: s.examples),
        ("site_loss", "Of the version that a site was sent last, on its held-out rows.", lambda s: s.loss),
        ("site_awaited", "1 for a site that was asked and has not answered.", lambda s: s.awaited_since is not None),
    )
    for name, text, read in gauges:
        gauge = GaugeMetricFamily(f"fedcompress_{name}", text, labels=["run", "site"])
        for site in shown.sites:
            value = read(site)
            if value is not None:
                gauge.add_metric([shown.run, site.site], float(value))
        yield gauge
