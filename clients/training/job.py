"""Says what a worker asks of its ranks. It needs no torch: the worker writes it, the ranks read it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fedcompress.config.train_task import TrainTask

STATE = "state.f32"  # stream of the published state in its folder, where tensors stay on the disk
DELTA = "update.f32"  # stream of trained minus published, in the folder of results
OUT_OF_MEMORY = "out-of-memory"  # code of a failure


@dataclass(frozen=True, kw_only=True)
class Job:
    """Describes one round of training or evaluation.

    Args:
        task: the round.
        published: PEFT folder of the state to start from; where weights of the base are trained, layout and stream.
        constants: file of constants, if they were sent.
        out: folder to which rank 0 writes the delta.
        micro_batch: examples a rank handles at once, at most.
        drop: forget the model afterwards, and free its memory.
    """

    task: TrainTask
    published: Path
    constants: Path | None
    out: Path
    micro_batch: int
    drop: bool = False

    def to_json(self) -> str:
        """Write the job for the ranks."""
        paths = {"published": str(self.published), "out": str(self.out), "constants": str(self.constants or "")}
        return json.dumps({"task": asdict(self.task), "micro_batch": self.micro_batch, "drop": self.drop, **paths})

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read what ``to_json`` has written."""
        raw = json.loads(text)
        return cls(
            task=TrainTask.from_json(json.dumps(raw["task"])),
            published=Path(raw["published"]),
            constants=Path(raw["constants"]) if raw["constants"] else None,
            out=Path(raw["out"]),
            micro_batch=raw["micro_batch"],
            drop=raw["drop"],
        )
