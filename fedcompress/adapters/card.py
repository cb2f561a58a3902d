"""The model card beside an exported adapter: how to load it without this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedcompress.adapters.classifier import USAGE

_CARD = """\
---
library_name: peft
tags: [federated, fedcompress]
---
# Adapter of a federated run

Task `{task}`, {sites} sites, {rounds} rounds, codec `{codec}`, held-out accuracy {accuracy:.4f}.
It loads with stock PEFT; fedcompress is not needed:

```python
BASE = {base!r}
ADAPTER = "."
LABELS = {labels!r}

{usage}```
"""


def write_card(folder: Path, base: Path, labels: Sequence[str], result: Mapping[str, Any]) -> None:
    """Write ``README.md`` into an adapter folder."""
    text = _CARD.format(
        task=result["task"],
        sites=result["sites"],
        rounds=len(result["rounds"]),
        codec=result["codec"],
        accuracy=result["accuracy_end"],
        base=str(base),
        labels=list(labels),
        usage=USAGE,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
