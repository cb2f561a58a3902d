"""A ClientApp of a site without a model: it answers with one of a few recorded updates, under its own name."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedcompress.config.train_task import TrainTask
from fedcompress.flower import from_records, to_records
from tests.faults.simulated import SimulatedSites

app = ClientApp()


@app.train()
def handle(message: Message, context: Context) -> Message:
    """A reply to the task, as the site of the simulated load test would send it."""
    from fedcompress.adapters import adapter_digest
    from fedcompress.types import Layout
    from tests.unit.server.memory import CONFIG

    config, bundle = from_records(message.content)
    task = TrainTask.from_json(str(config["task"]))
    file = Path(str(context.node_config["site-config"]))
    number = int(file.stem.rpartition("-")[2])
    sites = SimulatedSites(number, Layout.from_json(task.layout), adapter_digest(CONFIG), file.parent / "steps")
    sites.send(number, task, bundle)
    (reply,) = sites.receive(0)
    return Message(to_records(dict(reply.status), reply.payload), reply_to=message)
