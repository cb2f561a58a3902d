"""The ClientApp: one message in, one reply out. A thin relay to the warm worker."""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients import LIBRARY
from clients.site import SiteConfig
from clients.worker_client import run_round
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import ConfigError, FedCompressError, TrainingError
from fedcompress.flower import from_records, require_version, to_records
from fedcompress.traffic.relay import read_wire

LOG = logging.getLogger("flwr")
app = ClientApp()


@app.train()
def handle(message: Message, context: Context) -> Message:
    """Relay a round to the worker; a failure is a reply with a reason, not an exception."""
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
        code = error.code if isinstance(error, TrainingError) else type(error).__name__
        if isinstance(error, ConfigError) and not site_name:
            code = "site-config"
        status = {"status": "failed", "site": site_name, "code": code, "message": str(error)}
        return Message(to_records(status, b""), reply_to=message)
    done: dict[str, bool | int | str] = {"status": "ok", "site": site_name, "replayed": replayed}
    done |= _wire(site)
    return Message(to_records(done, payload), reply_to=message)


def _wire(site: SiteConfig) -> dict[str, int]:
    """What has crossed the site's link until now, if that is counted."""
    found = read_wire(site.state_dir)
    return {} if found is None else {"wire_life": found.life, "wire_up": found.up, "wire_down": found.down}
