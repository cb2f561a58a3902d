"""What a rank of a site does in a job, without its worker; started by torchrun.

python site_ranks.py SITE.toml JOB.json [JOB.json ...]: rank 0 prints a line "RESULT {...}" for each job, with the
loss of each step.
"""

import json
import sys
from pathlib import Path

import torch

from clients.site import SiteConfig
from clients.training.engines import init_distributed
from clients.training.job import Job
from clients.training.trainer import Trainer
from fedcompress.errors import FedCompressError


def main(argv: list[str]) -> None:
    """Entry point."""
    torch.set_num_threads(1)
    site = SiteConfig.load(Path(argv[0]))
    rank, world = init_distributed(100)
    trainer = Trainer(site, rank, world)
    for name in argv[1:]:
        losses: list[float] = []

        def progress(*, kept: list[float] = losses, **fields: object) -> None:
            if fields["phase"] == "train":
                kept.append(float(fields["loss"]))  # type: ignore[arg-type]

        try:
            metrics = trainer.run(Job.from_json(Path(name).read_text()), progress)
        except FedCompressError as error:
            metrics = {"error": f"{type(error).__name__}: {error}"}  # type: ignore[dict-item]
        if rank == 0:
            print("RESULT " + json.dumps({"losses": losses, "metrics": metrics}), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
