"""Coordinator and site as processes that a test may kill.

python -m tests.faults.processes coordinator FOLDER PORT ROUNDS | site FOLDER PORT NODE NAME
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

from fedcompress.config.train_task import TrainTask
from fedcompress.errors import MismatchError
from fedcompress.storage.failpoints import failpoint
from server.coordinator import Coordinator
from tests.faults.sockets import SocketTransport, frame, take_frame
from tests.unit.clients.site_support import FakeSite
from tests.unit.server.memory import run_config

NAMES = ("north", "south", "west")
RETRY = 0.02  # seconds between two tries to connect


def coordinate(folder: Path, port: int, rounds: int) -> None:
    """All rounds; every one waits for all sites, so that the same is merged whoever is killed."""
    transport = SocketTransport(port)
    everybody = {"quorum": len(NAMES), "patience": 10_000, "round_timeout": 60.0, "join_timeout": 60.0}
    config = run_config(folder, len(NAMES), rounds=rounds, **everybody)
    Coordinator(config, transport, lambda event: None).run()
    transport.close()


def serve(folder: Path, port: int, node: int, name: str) -> None:
    """Answer tasks until told to end; connect again whenever the coordinator is gone."""
    site = FakeSite(folder / "sites", name)
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(frame({"hello": True, "node": node}))
                if _answer(connection, site, node):
                    return
        except OSError:
            time.sleep(RETRY)


def _answer(connection: socket.socket, site: FakeSite, node: int) -> bool:
    """True once told to end, False once the connection is gone."""
    buffer = bytearray()
    while data := connection.recv(1 << 20):
        buffer += data
        while (found := take_frame(buffer)) is not None:
            fields, bundle = found
            if "end" in fields:
                return True
            status, reply = {"status": "ok", "site": site.name}, b""
            try:
                reply = site.answer(TrainTask.from_json(fields["task"]), bundle, fields["signature"])
            except MismatchError as error:
                status = {"status": "failed", "site": site.name, "code": error.code, "message": str(error)}
            message = frame({"node": node, "status": status}, reply)
            connection.sendall(message[: len(message) // 2])
            failpoint("site.reply")
            connection.sendall(message[len(message) // 2 :])
    return False


if __name__ == "__main__":
    role, folder, port, *rest = sys.argv[1:]
    if role == "coordinator":
        coordinate(Path(folder), int(port), int(rest[0]))
    else:
        serve(Path(folder), int(port), int(rest[0]), rest[1])
