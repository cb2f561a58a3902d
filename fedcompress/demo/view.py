"""The view of the demo shows a live table while it runs, and a summary at the end; always on stderr."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedcompress.demo.run import DemoOptions, compute_perplexity


class DemoView:
    """A demo view shows a row when a round is merged, and its accuracy when the next message brings it."""

    def __init__(self, options: DemoOptions) -> None:
        self._options = options
        self._console = Console(stderr=True)
        self._rows: list[dict[str, Any]] = []
        self._quality: dict[int, dict[str, Any]] = {}
        self._status = "preparing"
        self._started = time.monotonic()
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> DemoView:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)
        if not self._console.is_terminal:
            self._console.print()

    def on_event(self, event: dict[str, Any]) -> None:
        """Take in one event of the demo or the coordinator."""
        match event["event"]:
            case "phase":
                self._status = event["text"]
            case "warning":
                self._console.print(f"warning: {event['message']}", style="yellow", markup=False)
            case "waiting":
                self._status = f"waiting for sites: {event['sites']} of {event['needed']} are connected"
            case "asked":
                self._status = f"round {event['round']}: {event['sites']} sites are training"
            case "reply":
                self._status = f"round {event['round']}: {event['site']} sent {event['bytes']:,} bytes"
            case "refused":
                self._console.print(f"refused {event['site']}: {event['code']}: {event['message']}", style="yellow")
            case "quality":
                self._quality[event["version"]] = event
            case "round":
                self._rows.append(event)

    def _render(self) -> Group:
        table = Table(
            title=f"fedcompress demo: {self._options.task}, {self._options.sites} sites", title_justify="left"
        )
        figure = "perplexity" if self._options.demo.samples else "loss"
        for name in ("round", "accuracy", figure, "bytes up", "bytes down", "seconds"):
            table.add_column(name, justify="right")
        table.add_row("start", *self._accuracy(0), "", "", "")
        for row in self._rows:
            table.add_row(
                f"{row['round']}/{self._options.rounds}",
                *self._accuracy(row["version"]),
                f"{row['uplink_bytes']:,}",
                f"{row['downlink_bytes']:,}",
                f"{row['seconds']:.1f}",
            )
        seconds = time.monotonic() - self._started
        return Group(table, Text(f"{seconds:5.0f} s  {self._status}", style="dim"))

    def _accuracy(self, version: int) -> tuple[str, str]:
        """Return accuracy and loss, or perplexity, of a version as text; dots while they are not known."""
        quality = self._quality.get(version)
        if not quality:
            return "...", "..."
        figure = compute_perplexity(self._options, quality).get("perplexity", quality["loss"])
        return f"{quality['accuracy']:.4f}", f"{figure:.4f}"

    def summary(self, result: dict[str, Any]) -> None:
        """Print what has come of the demo, from the content of ``result.json``."""
        ratio = result["ratio_vs_bf16"]
        payload = result["payload_bytes"]
        lines = []
        for sample in result.get("samples", []):
            lines += [
                f"question: {sample['prompt']}",
                f"  wanted: {sample['wanted']}",
                f"  before: {' '.join(sample['before'].split())}",
                f"  after:  {' '.join(sample['after'].split())}",
                "",
            ]
        if "perplexity_end" in result:
            lines.append(f"perplexity {result['perplexity_start']:.3f} -> {result['perplexity_end']:.3f}")
        lines += [
            f"accuracy {result['accuracy_start']:.4f} -> {result['accuracy_end']:.4f} "
            f"in {len(result['rounds'])} rounds, {result['wall_seconds']:.0f} s",
            f"sent up {payload['up']:,} bytes ({ratio['up']:.1f} x fewer than bf16), "
            f"down {payload['down']:,} bytes ({ratio['down']:.1f} x fewer)",
            f"largest process {result['peak_memory_bytes'] / 2**30:.2f} GiB",
            f"adapter (stock PEFT): {result['adapter_dir']}",
            f"result and picture:   {self._options.out.resolve()}/result.json, accuracy.png",
        ]
        self._console.print("\n".join(lines), highlight=False, markup=False)
