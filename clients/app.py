"""The ClientApp hands each message of the coordinator to the warm worker, and sends back the worker's reply.

Flower starts a process for every message, which imports no torch; all that is slow or durable is in the worker.
"""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients import LIBRARY
from clients.site import SiteConfig
from clients.worker_client import run_round
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ConfigError, FedCompressError, TrainingError, error_name
from fedcompress.flower import from_records, require_version, to_records
from fedcompress.traffic.relay import read_wire

LOG = logging.getLogger("flwr")
app = ClientApp()


@app.train()
def handle(message: Message, context: Context) -> Message:
    """Relay a round to the worker; a failure becomes a reply with a reason, not an exception."""
    site_name = ""
    try:
        require_version(LIBRARY)
        site_file = Path(str(context.node_config.get("site-config", "")))
        site = SiteConfig.load(site_file)
        site_name = site.name
        config, bundle = from_records(message.content)
        task = TrainTask.from_json(str(config["task"]))
        signature = str(config.get("signature", ""))
        payload, replayed = run_round(
            site_file, site, task, bundle, lambda text: LOG.info("%s: %s", site.name, text), signature=signature
        )
    except FedCompressError as error:
        LOG.error("%s: %s", site_name or "site", error)
        code = error.code if isinstance(error, TrainingError) else error_name(error)
        if isinstance(error, ConfigError) and not site_name:
            code = "site-config"
        status = {"status": "failed", "site": site_name, "code": code, "message": str(error)}
        return Message(to_records(status, b""), reply_to=message)
    reply_fields: dict[str, bool | int | str] = {"status": "ok", "site": site_name, "replayed": replayed}
    reply_fields |= _link_traffic(site)
    return Message(to_records(reply_fields, payload), reply_to=message)


def _link_traffic(site: SiteConfig) -> dict[str, int]:
    """Return the bytes that have crossed the site's link until now; empty where they are not counted."""
    wire = read_wire(site.state_dir)
    return {} if wire is None else {"wire_life": wire.life, "wire_up": wire.up, "wire_down": wire.down}
