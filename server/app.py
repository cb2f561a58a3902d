"""The ServerApp parses the run config, binds Flower's grid to a transport, and runs the coordinator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedcompress.config.run_config import parse_run_config
from fedcompress.errors import ConfigError, FedCompressError, LayoutError, MismatchError, error_name
from fedcompress.flower import require_version
from fedcompress.identity.audit import AuditLog
from fedcompress.identity.registry import coordinator_key
from fedcompress.storage.disk_space import reserve_space
from fedcompress.storage.locks import hold
from server import LIBRARY
from server.audit_events import AuditedEvents
from server.coordinator import Coordinator
from server.events import EventLog, RunFailed
from server.state_dir import COORDINATOR_LOCK
from server.transport.flower_grid import LOG, GridTransport

FINAL = (ConfigError, LayoutError, MismatchError)  # errors that no new attempt can heal
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation of a run config, or resume it."""
    require_version(LIBRARY)
    config = parse_run_config(dict(context.run_config))
    lock_message = f"state-dir: {config.state_path}: is held by a coordinator, pid"
    with hold(config.state_path / COORDINATOR_LOCK, lock_message):
        key = coordinator_key(config.state_path)
        emit = AuditedEvents(AuditLog(config.state_path, key), config.run, EventLog(config.state_path, config.run))
        try:
            with reserve_space(config.state_path):
                Coordinator(config, GridTransport(grid), emit).run()
        except Exception as error:
            tell_failure(emit, error)
            raise


def tell_failure(emit: Callable[[dict[str, Any]], None], error: Exception) -> None:
    """Emit why a run has failed, if there is a place left to note it in."""
    message = f"{error_name(error)}: {error}"
    try:
        emit(RunFailed(message=message, final=isinstance(error, FINAL)).to_dict())
    except (OSError, FedCompressError) as second:
        LOG.error("%s (which could not be noted: %s)", message, second)
